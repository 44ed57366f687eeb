"""What the pages read, from a database with a million tasks: each filter, pair of filters, deep page and statistic."""

import itertools
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

from kling_receiver.events.payloads import Payloads
from kling_receiver.policy import SlotLimits
from kling_receiver.statistics import overview, queues
from kling_receiver.statistics.hooks import hook_health
from kling_receiver.store.database import Database
from kling_receiver.store.reader import Reader, TaskDetail, TaskPage
from kling_receiver.store.task_list import TaskFilter
from tools.bench import filled
from tools.harness import servers
from tools.harness.postgresql import postgresql

PAIR_ROUNDS = 5
"""Rounds of each pair of filters: there are hundreds."""
SHOWN_PAIRS = 10
"""The slowest pairs, which are printed."""
DEEP_DAYS = 26
"""A deep page begins so many days ago."""
DAY_MS = filled.DAY_MS

Filters = Mapping[str, Mapping[str, Any]]
Call = Callable[[], Awaitable[Any]]
"""What is measured."""


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds that a call took. `fastest`: where other work has the machine, it is the least wrong."""

    fastest: float
    median: float
    p99: float


@contextmanager
def filled_database(engine: str, tasks: int) -> Iterator[Database]:
    """A database with so many tasks, as long as the block runs."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kling-pages-"))
        on_sqlite = engine == "SQLite"
        url = f"sqlite:///{folder}/kling.db" if on_sqlite else stack.enter_context(postgresql())
        database = Database(url)
        stack.callback(database.close)
        database.migrate()
        started = time.monotonic()
        filled.fill(database, tasks, int(time.time() * 1000))
        print(f"\n{engine}: {tasks} tasks, filled in {time.monotonic() - started:.0f} s", flush=True)
        yield database


async def measure(call: Call, rounds: int) -> Times:
    """Await a call once, and then several times on the clock."""
    await call()
    durations = []
    for _ in range(rounds):
        started = time.perf_counter()
        await call()
        durations.append((time.perf_counter() - started) * 1000)
    return times_of(durations)


def times_of(milliseconds: Iterable[float]) -> Times:
    """The times of a call's durations."""
    durations = sorted(milliseconds)
    return Times(durations[0], median(durations), durations[-(-99 * len(durations) // 100) - 1])


def print_head(title: str) -> None:
    """Print the head of a table of times."""
    print(f"\n{title:50} {'fastest':>8} {'median':>8} {'p99 ms':>8}")


def print_times(name: str, times: Times, note: str = "") -> None:
    """Print a row of it."""
    print(f"{name:50} {times.fastest:8.1f} {times.median:8.1f} {times.p99:8.1f}  {note}".rstrip(), flush=True)


def single_filters(now: int) -> Filters:
    """Filters that most, some, few and no tasks meet. `now`: unix ms of the newest task."""
    return {
        "no filter": {},
        "status succeed": {"status": "succeed"},
        "status failed": {"status": "failed"},
        "status processing": {"status": "processing"},
        "status of no task": {"status": "created"},
        "family": {"family": "images/generations"},
        "family, common but not lately": {"family": filled.OLD_FAMILY},
        "family, rare": {"family": filled.RARE_FAMILY},
        "family of no task": {"family": "videos/nothing"},
        "model": {"model": "kling-v3"},
        "model, rare": {"model": filled.RARE_MODEL},
        "model of no task": {"model": "kling-v0"},
        "tag": {"tag": filled.COMMON_TAG},
        "tag of a project": {"tag": "project-7"},
        "tag, rare": {"tag": filled.RARE_TAG},
        "tag of no task": {"tag": "nothing"},
        "Kling's id": {"kling_id": filled.kling_id(5_000)},
        "text": {"text": "kangaroo"},
        "text, Chinese": {"text": "熊猫"},
        "text, rare": {"text": filled.RARE_WORDS[0].upper()},
        "text of no prompt": {"text": "giraffe"},
        "text of each request, of no prompt": {"text": "kling-"},
        "a day": {"since": now - 9 * DAY_MS, "until": now - 8 * DAY_MS},
        "a time without tasks": {"since": now + DAY_MS},
    }


def pairs_of_filters(filters: Filters) -> Filters:
    """Each pair of two filters of different kinds."""
    return {
        f"{first} + {second}": {**filters[first], **filters[second]}
        for first, second in itertools.combinations(filters, 2)
        if filters[first] and filters[second] and not filters[first].keys() & filters[second].keys()
    }


async def measure_reads(database: Database, rounds: int) -> None:
    """Print how long the page's reads take."""
    reader = Reader(database)
    newest = await reader.read(lambda connection: connection.exec_driver_sql(NEWEST).scalar_one())
    filters = single_filters(newest)
    print_head("first and deep page of each filter")
    for name, call in _lists(reader, newest, filters).items():
        print_times(name, await measure(call, rounds), _note(await call()))
    pairs = _lists(reader, newest, pairs_of_filters(filters))
    times = {name: await measure(call, PAIR_ROUNDS) for name, call in pairs.items()}
    print_head(f"the slowest of {len(pairs)} pages of pairs of filters")
    for name in sorted(pairs, key=lambda name: times[name].median, reverse=True)[:SHOWN_PAIRS]:
        print_times(name, times[name], _note(await pairs[name]()))
    print_head("statistics")
    for name, call in _statistics(reader, newest).items():
        print_times(name, await measure(call, rounds))
    pages, seconds = await _search_everything(reader)
    print(f"\nA search of all prompts for a word of none: {pages} requests, {seconds:.1f} s")
    await reader.close()


NEWEST = "SELECT max(created_at) FROM task"


def _lists(reader: Reader, newest: int, filters: Filters) -> dict[str, Callable[[], Awaitable[TaskPage]]]:
    """For each filter, its first page and a deep one, rendered as for the API."""
    payloads = Payloads([servers.SECRET], "http://127.0.0.1")

    def render(detail: TaskDetail) -> bytes:
        return json.dumps(payloads.task(detail)).encode()

    calls: dict[str, Callable[[], Awaitable[TaskPage]]] = {}
    for name, values in filters.items():
        first = TaskFilter(**values)
        deep = replace(first, before=(newest - DEEP_DAYS * DAY_MS, ""))
        calls[name] = partial(reader.render_page, first, render)
        calls[f"{name}, deep"] = partial(reader.render_page, deep, render)
    return calls


def _note(page: TaskPage) -> str:
    """How many tasks a page found, and how far it has searched for them."""
    searched = f", {page.examined} examined" if page.examined else ""
    return f"{len(page.items)} found{searched}{', more' if page.last and not page.is_full else ''}"


def _statistics(reader: Reader, newest: int) -> dict[str, Call]:
    """What the pages Overview, Hooks and Task read."""
    end = newest + 1
    reads: dict[str, Callable[[Any], Any]] = {
        "tasks by outcome, 24 hours": lambda connection: overview.outcomes(connection, end - DAY_MS, end),
        "tasks by outcome, 30 days": lambda connection: overview.outcomes(connection, end - 30 * DAY_MS, end, DAY_MS),
        "callbacks, 30 days": lambda connection: overview.callbacks(connection, end - 30 * DAY_MS, end),
        "slots and queue": lambda connection: queues.slot_use(connection, SlotLimits()),
        "pending jobs": queues.pending_jobs,
        "three hooks": lambda connection: hook_health(connection, filled.HOOKS),
    }
    for days in (1, 7, 30):
        since = end - days * DAY_MS
        reads[f"durations and costs, {days} days"] = partial(overview.finished_tasks, since=since, until=end)
    return {name: partial(reader.read, read) for name, read in reads.items()}


async def _search_everything(reader: Reader) -> tuple[int, float]:
    """Search for a word that no prompt has, until the end: how many requests, and seconds."""
    started = time.monotonic()
    wanted, pages = TaskFilter(text="giraffe"), 0
    while True:
        page = await reader.render_page(wanted, lambda detail: b"")
        pages += 1
        if page.last is None:
            return pages, time.monotonic() - started
        wanted = replace(wanted, before=page.last)

"""Every question to the database that changes nothing, asked in threads beside the event loop."""

import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio.to_thread
from sqlalchemy import Connection, Select, func, select, tuple_
from sqlalchemy.exc import DBAPIError

from kling_receiver.store.database import READERS, Database
from kling_receiver.store.errors import OWN_FAULT
from kling_receiver.store.sql import Row, Sql, columns
from kling_receiver.store.tables import Result, Tag
from kling_receiver.store.transaction import EVENT, TASK, last_event

RESULT, TAG = Result.__table__, Tag.__table__  # type: ignore[attr-defined]  # set by SQLModel

SHOWN = "id, task, type, at, data"
"""What is shown of an event: not its body."""
TASKS = Sql(f"SELECT {columns(TASK)} FROM task WHERE id IN :tasks", of=TASK)  # noqa: S608  # ours
HOLDER = Sql("SELECT id FROM task WHERE task_id = :task_id LIMIT 1")
ONE_RESULT = Sql(f"SELECT {columns(RESULT)} FROM result WHERE task = :task AND n = :n", of=RESULT)  # noqa: S608
RESULTS = Sql(f"SELECT {columns(RESULT)} FROM result WHERE task IN :tasks ORDER BY task, n", of=RESULT)  # noqa: S608
TAGS = Sql("SELECT tag, task FROM tag WHERE task IN :tasks ORDER BY tag")
EVENTS = Sql(f"SELECT {SHOWN} FROM event WHERE id IN :ids", of=EVENT)  # noqa: S608  # ours
EVENTS_AT_ONCE = 100
TASKS_AT_ONCE = 10
"""Tasks that are held whole at once: read, they may be thirty times what they are as text."""
PAGE_BYTES = 256_000
"""A page ends with the task that passes this, however many were asked for. A usual task has 1 to 2 KB."""
BATCH_BYTES = 64_000
"""The same for the events of a stream, each of which shows its task: whoever reads slowly holds that much."""
NEWEST = 100
"""Tasks that are looked at to tell whether the gateway calls back at all."""

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run what blocks beside the event loop."""
    return await anyio.to_thread.run_sync(function, *args)


@dataclass(frozen=True, slots=True)
class Full:
    """A task with all that is shown of it."""

    row: Row
    results: list[Row]
    tags: list[str]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which tasks a list shows. `before`: the (created_at, id) of the last one already shown."""

    status: str | None = None
    family: str | None = None
    tag: str | None = None
    before: tuple[int, str] | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Page:
    """Tasks of a list as they are shown. `last`: the (created_at, id) of the last, when there are more."""

    shown: list[bytes]
    last: tuple[int, str] | None


class Reader:
    """Reads through the database's other door: it neither waits for the writer nor holds it up."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    async def close(self) -> None:
        """Let what is being read end: nobody may have a connection when the database is closed."""
        await asyncio.to_thread(self._threads.shutdown)

    async def read(self, question: Callable[[Connection], T]) -> T:
        """The answer to a question of several statements, all of one moment. Raises Unavailable."""

        def answer() -> T:
            with self.database.read() as connection:
                return question(connection)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, answer)
        except DBAPIError as error:
            if isinstance(error, OWN_FAULT):
                raise
            raise self.database.unavailable(error) from error

    async def task(self, task: str) -> Row | None:
        """A task's row."""
        return await self.read(lambda connection: TASKS.first(connection, tasks=[task]))

    async def holder(self, task_id: str) -> str | None:
        """Which of our tasks Kling's id belongs to."""
        found: str | None = await self.read(lambda connection: HOLDER.value(connection, task_id=task_id))
        return found

    async def results(self, task: str) -> list[Row]:
        """A task's results, in order."""
        return await self.read(lambda connection: RESULTS.all(connection, tasks=[task]))

    async def result(self, task: str, n: int) -> Row | None:
        """A task's n-th result."""
        return await self.read(lambda connection: ONE_RESULT.first(connection, task=task, n=n))

    async def full(self, tasks: Sequence[str]) -> dict[str, Full]:
        """Tasks with their results and tags; those that do not exist are left out."""
        return await self.read(functools.partial(full_tasks, tasks=tasks))

    async def page(self, wanted: Filter, show: Callable[[Full], bytes]) -> Page:
        """Tasks, newest first, as `show` makes them, which is done beside the event loop."""
        return await self.read(functools.partial(_page, wanted=wanted, show=show))

    async def batch(self, events: Sequence[Row], show: Callable[[Row, Full], bytes]) -> list[bytes]:
        """The first of these events, one at least, as `show` makes them of each and its task."""
        return await self.read(functools.partial(_batch, events=events, show=show))

    async def events(self, after: int, task: str | None = None) -> list[Row]:
        """Events with ids above `after`, in order, at most EVENTS_AT_ONCE; of one task or of all."""
        question = functools.partial(events_after, after=after, task=task, limit=EVENTS_AT_ONCE)
        return await self.read(question)

    async def event(self, event: int) -> Row | None:
        """One event."""
        return await self.read(lambda connection: EVENTS.first(connection, ids=[event]))

    async def was_called(self) -> bool:
        """Whether any of the newest tasks was ever called back."""
        newest = select(TASK.c.callbacks).order_by(TASK.c.created_at.desc(), TASK.c.id.desc()).limit(NEWEST)
        query = select(func.max(newest.subquery().c.callbacks))
        return await self.read(lambda connection: bool(connection.execute(query).scalar()))

    async def last_event(self) -> int:
        """The id of the newest event, 0 when there is none."""
        return await self.read(last_event)


def events_after(
    connection: Connection,
    after: int,
    task: str | None,
    *,
    limit: int,
    until: int | None = None,
    newest: bool = False,
) -> list[Row]:
    """Events with ids above `after`, up to `until`, in order or the `newest` first; of one task or of all."""
    where, given = "id > :after", Row(after=after, limit=limit)
    for name, condition, value in (("task", "task = :task", task), ("until", "id <= :until", until)):
        if value is not None:
            where, given[name] = f"{where} AND {condition}", value
    return _events(where, "DESC" if newest else "ASC").all(connection, **given)


@functools.cache
def _events(where: str, order: str) -> Sql:
    return Sql(f"SELECT {SHOWN} FROM event WHERE {where} ORDER BY id {order} LIMIT :limit", of=EVENT)  # noqa: S608


def full_tasks(connection: Connection, tasks: Sequence[str]) -> dict[str, Full]:
    """Tasks with their results and tags; those that do not exist are left out."""
    if not tasks:
        return {}
    found = {row["id"]: Full(row, [], []) for row in TASKS.all(connection, tasks=list(tasks))}
    for result in RESULTS.all(connection, tasks=list(found)):
        found[result["task"]].results.append(result)
    for tag in TAGS.all(connection, tasks=list(found)):
        found[tag["task"]].tags.append(tag["tag"])
    return found


def _page(connection: Connection, wanted: Filter, show: Callable[[Full], bytes]) -> Page:
    ids = list(connection.execute(_listed(wanted)).scalars())
    shown: list[bytes] = []
    size, last = 0, None
    for task, full in _one_by_one(connection, ids[: wanted.limit]):
        shown.append(show(full))
        size, last = size + len(shown[-1]), (full.row["created_at"], task)
        if size > PAGE_BYTES:
            break
    return Page(shown, last if len(shown) < len(ids) else None)


def _batch(connection: Connection, events: Sequence[Row], show: Callable[[Row, Full], bytes]) -> list[bytes]:
    shown: list[bytes] = []
    size = 0
    tasks = _one_by_one(connection, [event["task"] for event in events])
    for event, (_, full) in zip(events, tasks, strict=True):
        shown.append(show(event, full))
        size += len(shown[-1])
        if size > BATCH_BYTES:
            break
    return shown


def _one_by_one(connection: Connection, tasks: Sequence[str]) -> Iterator[tuple[str, Full]]:
    """Tasks in this order, read a few at a time."""
    for first in range(0, len(tasks), TASKS_AT_ONCE):
        few = tasks[first : first + TASKS_AT_ONCE]
        found = full_tasks(connection, sorted(set(few)))
        yield from ((task, found[task]) for task in few)


def _listed(wanted: Filter) -> Select[Any]:
    """The ids of a list, one more than its limit."""
    query = select(TASK.c.id).order_by(TASK.c.created_at.desc(), TASK.c.id.desc()).limit(wanted.limit + 1)
    if wanted.status:
        query = query.where(TASK.c.status == wanted.status)
    if wanted.family:
        query = query.where(TASK.c.family == wanted.family)
    if wanted.tag:
        query = query.where(TASK.c.id.in_(select(TAG.c.task).where(TAG.c.tag == wanted.tag)))
    if wanted.before:
        query = query.where(tuple_(TASK.c.created_at, TASK.c.id) < wanted.before)
    return query

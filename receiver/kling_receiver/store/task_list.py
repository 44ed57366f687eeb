"""The list of tasks, newest first: its filters, and the search for one page.

A list is read along an index that has its tasks in their order, by (created_at, id): a *walk*. There is one for all
tasks, and one for the tasks of a family, of a model, of a tag, and of each status but `succeed`, which nearly all
tasks have: its index would make each callback more expensive and find nothing sooner. A time range is a part of a
walk, and the cursor of a page is the place at which a walk goes on, so that a deep page costs what the first one does.

One filter with a walk of its own reads only the tasks that are shown. What no index finds is checked task by task: the
other filters of a combination, and the text of a prompt, which may be any part of a word in any language (an index of
parts of words would cost more than all else that a create writes, and could not find two Chinese characters). Such a
search is done in steps. One request examines tasks, newest first, until its page is full, or MAX_EXAMINED tasks or
SEARCH_SECONDS are spent; it then returns what it found and the place from which to go on. So a page may be short, or
empty, although more tasks follow, and no search holds a thread for long, whatever it is asked for.

Of several filters with a walk, the search takes the walk whose next PROBE tasks lead back furthest: it has the fewest
tasks in the time before the cursor. The walks name their index by a comparison of rows, (family, created_at, id) <
(...), instead of equality: PostgreSQL would choose by its statistics between that and the walk along all tasks, which
for a family that is common, but not lately, reads nearly the whole table.
"""

import functools
import json
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from kling_receiver.store.rows import Row
from kling_receiver.store.sql import Statement, is_sqlite
from kling_receiver.store.tables import load_json

MAX_EXAMINED = 10_000
"""Tasks that one page examines for filters that no index serves."""
SEARCH_SECONDS = 0.02
"""Seconds that the steps of a search are to take; a page is to take less than 0.05 s."""
FIRST_STEP, MIN_STEP, MAX_STEP = 100, 50, 1_000
"""Tasks of the first step, and of each later one: at most twice that of the step before, because a filter that most
tasks pass needs few, and as many as the time that is left allows."""
PROBE = 1_000
"""Tasks by which two walks are compared."""
NO_TIME = 1 << 62
"""Unix ms after and, negated, before every task."""

Position = tuple[int, str]
"""The (created_at, id) of a task: its place in a list."""


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks a list has.

    `text`: a part of the prompt, in upper or lower case. `since`, `until`: unix ms; a task created at `until` is not
    in the list. `before`: the (created_at, id) at which the page before ended.
    """

    status: str | None = None
    family: str | None = None
    model: str | None = None
    tag: str | None = None
    kling_id: str | None = None
    text: str | None = None
    since: int | None = None
    until: int | None = None
    before: Position | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Found:
    """The ids of a page, and one more if there is another page.

    `examined`: tasks that were examined one by one, at most. `end`: the place at which the search stopped before the
    page was full, and from which it goes on; None: the page is full, or no more tasks follow.
    """

    ids: list[str]
    examined: int = 0
    end: Position | None = None


def find_page(connection: Connection, task_filter: TaskFilter) -> Found:
    """Find the tasks of a page, by an index or in steps. Raises InvalidRow."""
    wanted = [name for name in FILTERS if getattr(task_filter, name)]
    bounds = _bounds(task_filter)
    walk = _choose_walk(connection, wanted, bounds)
    conditions = tuple(name for name in wanted if name != walk)
    if conditions or task_filter.text:
        return _search(connection, walk, conditions, bounds, task_filter)
    return Found(_page_statement(walk).scalars(connection, **bounds, limit=task_filter.limit + 1))


def ids_of_family(connection: Connection, family: str, *, skip: int, limit: int) -> list[str]:
    """The ids of a family's newest MAX_EXAMINED tasks, newest first, from number `skip` on."""
    end = min(skip + limit, MAX_EXAMINED)
    return _page_statement("family").scalars(connection, **_bounds(TaskFilter(family=family)), limit=end)[skip:]


def prompt_texts(request: Any) -> list[str]:
    """The prompts among a create's parameters: of each shot, and of both of Kling's standards."""
    texts: list[str] = []
    remaining = [request]
    while remaining:
        value = remaining.pop()
        if isinstance(value, dict):
            of_entry = value.get("text") if value.get("type") == "prompt" else None
            texts += [text for text in (value.get("prompt"), of_entry) if isinstance(text, str)]
            remaining += reversed(value.values())
        elif isinstance(value, list):
            remaining += reversed(value)
    return texts


def _choose_walk(connection: Connection, wanted: list[str], bounds: Row) -> str:
    """The walk with the fewest tasks in the time before the cursor: its next ones lead back furthest."""
    walks = [name for name in wanted if name != "status" or bounds["status"] != "succeed"]
    if len(walks) < 2 or walks[0] == "kling_id":
        return walks[0] if walks else "newest"
    ends: dict[str, tuple[int, str]] = {}
    for walk in walks:
        end = _position_statement(walk).first(connection, **bounds, skip=PROBE - 1)
        if end is None:  # the search ends within one step
            return walk
        ends[walk] = end["created_at"], end["id"]
    return min(ends, key=lambda walk: ends[walk])


def _search(
    connection: Connection, walk: str, conditions: tuple[str, ...], bounds: Row, task_filter: TaskFilter
) -> Found:
    """Examine the tasks of a walk in steps, until the page is full or the search has taken long enough."""
    spellings = _spellings(task_filter.text) if task_filter.text else []
    step = _step_statement(walk, conditions, len(spellings), on_sqlite=is_sqlite(connection))
    parameters: Row = {**bounds, **{f"text_{number}": text for number, text in enumerate(spellings)}}
    ids: list[str] = []
    examined, size = 0, FIRST_STEP
    begun = time.monotonic()
    deadline = begun + SEARCH_SECONDS
    while True:
        size = min(size, MAX_EXAMINED - examined)
        rows = step.all(connection, **parameters, limit=size)
        ids += [row["id"] for row in rows if not task_filter.text or _has_prompt(row["request"], task_filter.text)]
        examined += size
        end = _position_statement(walk).first(connection, **parameters, skip=size - 1)
        if len(ids) > task_filter.limit or end is None:
            return Found(ids[: task_filter.limit + 1], examined)
        now = time.monotonic()
        affordable = int(size * (deadline - now) / max(now - begun, 1e-6))  # at the speed of this step
        if examined >= MAX_EXAMINED or affordable < MIN_STEP:
            return Found(ids, examined, (end["created_at"], end["id"]))
        parameters |= {"before_at": end["created_at"], "before_id": end["id"]}
        begun, size = now, min(size * 2, affordable, MAX_STEP)


def _bounds(task_filter: TaskFilter) -> Row:
    """The parameters of a walk: its key, and the places between which it leads."""
    before = task_filter.before or (NO_TIME, "")
    if task_filter.until is not None:
        before = min(before, (task_filter.until, ""))
    since = -NO_TIME if task_filter.since is None else task_filter.since
    keys = {name: getattr(task_filter, name) for name in FILTERS}
    return {**keys, "before_at": before[0], "before_id": before[1], "since": since}


def _spellings(text: str) -> list[str]:
    """A text as stored JSON may have it, with ASCII letters in lower case.

    JSON is stored with escapes, in which the case of other letters cannot be ignored: the usual spellings are tried.
    """
    variants = (text, text.lower(), text.upper(), text.capitalize(), text.title())
    return list(dict.fromkeys(json.dumps(variant)[1:-1].lower() for variant in variants))


def _has_prompt(request: str, text: str) -> bool:
    """Whether a prompt has the text: so far it is known to be anywhere among the parameters."""
    return any(text.casefold() in prompt.casefold() for prompt in prompt_texts(load_json(request)))


FILTERS = ("kling_id", "tag", "status", "family", "model")
"""The filters by a value, each with a walk; `kling_id` leaves one task, usually."""
PARTIAL = {"status": "AND status <> 'succeed'", "model": "AND model <> ''"}
"""The conditions of partial indexes, which a statement must have literally."""
HAS_TAG = "(SELECT count(*) FROM tag WHERE tag.task_id = task.id AND tag.tag = :tag) > 0"
"""Looked up for each task: of an EXISTS, PostgreSQL may make a join that reads all tasks of the tag."""


def _walk(walk: str, *columns: str) -> str:
    """A SELECT along an index, newest first, of `id`, `created_at` and these columns; without its LIMIT."""
    if walk == "kling_id":  # + 0: no index has this order, so that the few tasks of the id are read, and sorted
        return f"""
            SELECT {", ".join(("id", "created_at", *columns))} FROM task WHERE kling_id = :kling_id
                AND (created_at, id) < (:before_at, :before_id) AND created_at >= :since
            ORDER BY created_at + 0 DESC, id DESC
        """
    table, task_id = ("tag", "task_id") if walk == "tag" else ("task", "id")
    key, value, order = ("", "", "") if walk == "newest" else (f"{walk}, ", f":{walk}, ", f"{walk} DESC, ")
    return f"""
        SELECT {", ".join((f"{task_id} AS id", "created_at", *columns))} FROM {table}
        WHERE ({key}created_at, {task_id}) < ({value}:before_at, :before_id)
            AND ({key}created_at) >= ({value}:since) {PARTIAL.get(walk, "")}
        ORDER BY {order}created_at DESC, {task_id} DESC
    """  # names of columns


@functools.cache
def _page_statement(walk: str) -> Statement[Row]:
    return Statement(f"{_walk(walk)} LIMIT :limit")


@functools.cache
def _position_statement(walk: str) -> Statement[Row]:
    """The task that follows the next `:skip` ones; the index has all that it reads."""
    return Statement(f"{_walk(walk)} LIMIT 1 OFFSET :skip")


@functools.cache
def _step_statement(walk: str, conditions: tuple[str, ...], spellings: int, *, on_sqlite: bool) -> Statement[Row]:
    """The tasks among the next `:limit` ones that meet the conditions, and have one of the spellings somewhere."""
    where = [HAS_TAG if name == "tag" else f"task.{name} = :{name}" for name in conditions]
    if spellings:
        search = "instr(lower(task.request)," if on_sqlite else """strpos(lower(task.request COLLATE "C"),"""
        where.append(f"({' OR '.join(f'{search} :text_{number}) > 0' for number in range(spellings))})")
    if walk != "tag":
        columns = [name for name in conditions if name != "tag"] + ["request"] * bool(spellings)
        source, request, condition = f"({_walk(walk, *columns)} LIMIT :limit) AS task", "request", " AND ".join(where)
    else:  # no join, which might begin with the tasks of a family
        source = f"({_walk(walk)} LIMIT :limit) AS walked"
        request = "(SELECT request FROM task WHERE task.id = walked.id) AS request"
        condition = f"(SELECT count(*) FROM task WHERE task.id = walked.id AND {' AND '.join(where)}) > 0"
    return Statement(f"""
        SELECT id{f", {request}" if spellings else ""} FROM {source}
        WHERE {condition} ORDER BY created_at DESC, id DESC
    """)  # names of columns

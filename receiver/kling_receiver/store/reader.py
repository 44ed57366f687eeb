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
from kling_receiver.store.errors import STATEMENT_ERRORS
from kling_receiver.store.sql import Row, Statement, columns
from kling_receiver.store.tables import Result, Tag
from kling_receiver.store.transaction import EVENT, TASK, last_event

RESULT, TAG = Result.__table__, Tag.__table__  # type: ignore[attr-defined]  # set by SQLModel

EVENT_COLUMNS = "id, task, type, at, data"
"""What is shown of an event: not its body."""
SELECT_TASKS = Statement(f"SELECT {columns(TASK)} FROM task WHERE id IN :tasks", table=TASK)  # noqa: S608  # ours
FIND_BY_KLING_ID = Statement("SELECT id FROM task WHERE task_id = :task_id LIMIT 1")
SELECT_RESULT = Statement(f"SELECT {columns(RESULT)} FROM result WHERE task = :task AND n = :n", table=RESULT)  # noqa: S608
SELECT_RESULTS = Statement(
    f"SELECT {columns(RESULT)} FROM result WHERE task IN :tasks ORDER BY task, n", table=RESULT
)
SELECT_TAGS = Statement("SELECT tag, task FROM tag WHERE task IN :tasks ORDER BY tag")
SELECT_EVENTS = Statement(f"SELECT {EVENT_COLUMNS} FROM event WHERE id IN :ids", table=EVENT)  # noqa: S608  # ours
EVENTS_AT_ONCE = 100
TASKS_AT_ONCE = 10
"""Tasks that are held whole at once: read, they may be thirty times what they are as text."""
PAGE_BYTES = 256_000
"""A page ends with the task that passes this, however many were asked for. A usual task has 1 to 2 KB."""
BATCH_BYTES = 64_000
"""The same for the events of a stream, each of which shows its task: whoever reads slowly holds that much."""
RECENT_TASKS = 100
"""Tasks that are looked at to tell whether the gateway calls back at all."""

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Run what blocks beside the event loop."""
    return await anyio.to_thread.run_sync(function, *args)


@dataclass(frozen=True, slots=True)
class TaskDetail:
    """A task with all that is shown of it."""

    row: Row
    results: list[Row]
    tags: list[str]


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks a list shows. `before`: the (created_at, id) of the last one already shown."""

    status: str | None = None
    family: str | None = None
    tag: str | None = None
    before: tuple[int, str] | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class TaskPage:
    """Tasks of a list as they are shown. `last`: the (created_at, id) of the last, when there are more."""

    items: list[bytes]
    last: tuple[int, str] | None


class Reader:
    """Reads through the database's other door: it neither waits for the writer nor holds it up."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    async def close(self) -> None:
        """Let what is being read end: nobody may have a connection when the database is closed."""
        await asyncio.to_thread(self._threads.shutdown)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """The answer to a question of several statements, all of one moment. Raises Unavailable."""

        def answer() -> T:
            with self.database.read() as connection:
                return query(connection)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, answer)
        except DBAPIError as error:
            if isinstance(error, STATEMENT_ERRORS):
                raise
            raise self.database.to_unavailable(error) from error

    async def task(self, task_id: str) -> Row | None:
        """A task's row."""
        return await self.read(lambda connection: SELECT_TASKS.first(connection, tasks=[task_id]))

    async def find_by_kling_id(self, task_id: str) -> str | None:
        """Which of our tasks Kling's id belongs to."""
        found: str | None = await self.read(
            lambda connection: FIND_BY_KLING_ID.scalar(connection, task_id=task_id)
        )
        return found

    async def results(self, task_id: str) -> list[Row]:
        """A task's results, in order."""
        return await self.read(lambda connection: SELECT_RESULTS.all(connection, tasks=[task_id]))

    async def result(self, task_id: str, index: int) -> Row | None:
        """A task's n-th result."""
        return await self.read(lambda connection: SELECT_RESULT.first(connection, task=task_id, n=index))

    async def details(self, task_ids: Sequence[str]) -> dict[str, TaskDetail]:
        """Tasks with their results and tags; those that do not exist are left out."""
        return await self.read(functools.partial(load_details, task_ids=task_ids))

    async def render_page(self, task_filter: TaskFilter, render: Callable[[TaskDetail], bytes]) -> TaskPage:
        """Tasks, newest first, as `show` makes them, which is done beside the event loop."""
        return await self.read(functools.partial(_render_page, task_filter=task_filter, render=render))

    async def render_events(
        self, events: Sequence[Row], render: Callable[[Row, TaskDetail], bytes]
    ) -> list[bytes]:
        """The first of these events, one at least, as `show` makes them of each and its task."""
        return await self.read(functools.partial(_render_events, events=events, render=render))

    async def events(self, after: int, task_id: str | None = None) -> list[Row]:
        """Events with ids above `after`, in order, at most EVENTS_AT_ONCE; of one task or of all."""
        question = functools.partial(events_after, after=after, task_id=task_id, limit=EVENTS_AT_ONCE)
        return await self.read(question)

    async def event(self, event_id: int) -> Row | None:
        """One event."""
        return await self.read(lambda connection: SELECT_EVENTS.first(connection, ids=[event_id]))

    async def any_recent_callback(self) -> bool:
        """Whether any of the newest tasks was ever called back."""
        newest = (
            select(TASK.c.callbacks).order_by(TASK.c.created_at.desc(), TASK.c.id.desc()).limit(RECENT_TASKS)
        )
        query = select(func.max(newest.subquery().c.callbacks))
        return await self.read(lambda connection: bool(connection.execute(query).scalar()))

    async def last_event(self) -> int:
        """The id of the newest event, 0 when there is none."""
        return await self.read(last_event)


def events_after(
    connection: Connection,
    after: int,
    task_id: str | None,
    *,
    limit: int,
    until: int | None = None,
    newest: bool = False,
) -> list[Row]:
    """Events with ids above `after`, up to `until`, in order or the `newest` first; of one task or of all."""
    where, given = "id > :after", Row(after=after, limit=limit)
    for name, condition, value in (("task", "task = :task", task_id), ("until", "id <= :until", until)):
        if value is not None:
            where, given[name] = f"{where} AND {condition}", value
    return _events_query(where, "DESC" if newest else "ASC").all(connection, **given)


@functools.cache
def _events_query(where: str, order: str) -> Statement:
    return Statement(
        f"SELECT {EVENT_COLUMNS} FROM event WHERE {where} ORDER BY id {order} LIMIT :limit", table=EVENT
    )


def load_details(connection: Connection, task_ids: Sequence[str]) -> dict[str, TaskDetail]:
    """Tasks with their results and tags; those that do not exist are left out."""
    if not task_ids:
        return {}
    found = {row["id"]: TaskDetail(row, [], []) for row in SELECT_TASKS.all(connection, tasks=list(task_ids))}
    for result in SELECT_RESULTS.all(connection, tasks=list(found)):
        found[result["task"]].results.append(result)
    for tag in SELECT_TAGS.all(connection, tasks=list(found)):
        found[tag["task"]].tags.append(tag["tag"])
    return found


def _render_page(
    connection: Connection, task_filter: TaskFilter, render: Callable[[TaskDetail], bytes]
) -> TaskPage:
    ids = list(connection.execute(_page_query(task_filter)).scalars())
    shown: list[bytes] = []
    size, last = 0, None
    for task, full in _iter_details(connection, ids[: task_filter.limit]):
        shown.append(render(full))
        size, last = size + len(shown[-1]), (full.row["created_at"], task)
        if size > PAGE_BYTES:
            break
    return TaskPage(shown, last if len(shown) < len(ids) else None)


def _render_events(
    connection: Connection, events: Sequence[Row], render: Callable[[Row, TaskDetail], bytes]
) -> list[bytes]:
    shown: list[bytes] = []
    size = 0
    tasks = _iter_details(connection, [event["task"] for event in events])
    for event, (_, full) in zip(events, tasks, strict=True):
        shown.append(render(event, full))
        size += len(shown[-1])
        if size > BATCH_BYTES:
            break
    return shown


def _iter_details(connection: Connection, tasks: Sequence[str]) -> Iterator[tuple[str, TaskDetail]]:
    """Tasks in this order, read a few at a time."""
    for first in range(0, len(tasks), TASKS_AT_ONCE):
        few = tasks[first : first + TASKS_AT_ONCE]
        found = load_details(connection, sorted(set(few)))
        yield from ((task, found[task]) for task in few)


def _page_query(task_filter: TaskFilter) -> Select[Any]:
    """The ids of a list, one more than its limit."""
    query = select(TASK.c.id).order_by(TASK.c.created_at.desc(), TASK.c.id.desc()).limit(task_filter.limit + 1)
    if task_filter.status:
        query = query.where(TASK.c.status == task_filter.status)
    if task_filter.family:
        query = query.where(TASK.c.family == task_filter.family)
    if task_filter.tag:
        query = query.where(TASK.c.id.in_(select(TAG.c.task).where(TAG.c.tag == task_filter.tag)))
    if task_filter.before:
        query = query.where(tuple_(TASK.c.created_at, TASK.c.id) < task_filter.before)
    return query

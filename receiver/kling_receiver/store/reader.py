"""Reads from the database, in a few threads beside the event loop. Nothing here writes.

The reader has connections of its own: it neither waits for the writer nor delays it.
"""

import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DBAPIError

from kling_callback.protocol.values import IDENTIFIER
from kling_receiver.states import STATUSES
from kling_receiver.store.database import BLOCKED_SECONDS, Database
from kling_receiver.store.engine.connections import READERS
from kling_receiver.store.errors import STATEMENT_ERRORS, Unavailable
from kling_receiver.store.rows import EventRow, ResultRow, Row, TaskRow
from kling_receiver.store.sql import Statement, columns
from kling_receiver.store.tables import EVENT, RESULT, SENT_HERE, TASK
from kling_receiver.store.task_list import Found, Position, TaskFilter, find_page, ids_of_family
from kling_receiver.threads import run_in_daemon_thread

EVENT_COLUMNS = "id, (SELECT id FROM event_log) AS log_id, task_id, type, created_at, data"
"""What is shown of an event: all columns but a callback's body, and the id of the log."""
SELECT_TASKS = Statement[TaskRow](f"SELECT {columns(TASK)} FROM task WHERE id IN :task_ids", table=TASK)
FIND_BY_KLING_ID = Statement("SELECT id FROM task WHERE kling_id = :kling_id LIMIT 1")
FIND_BY_OTHER_ID = Statement("""
    SELECT id, 1 AS place FROM task WHERE kling_id = :other_id
    UNION SELECT id, CASE WHEN kling_id IS NULL THEN 3 ELSE 2 END FROM task WHERE external_task_id = :other_id
    ORDER BY place, id LIMIT :limit
""")
MAX_FOUND = 5
"""Tasks of one id of Kling's or of the caller, of which usually one exists."""
SELECT_RESULTS = Statement[ResultRow](
    f"SELECT {columns(RESULT)} FROM result WHERE task_id IN :task_ids ORDER BY task_id, position",
    table=RESULT,
)
QUEUE_POSITIONS = Statement("""
    SELECT task_id, (
        SELECT count(*) FROM submission AS earlier
        WHERE earlier.state = 'queued' AND (earlier.rank, earlier.id) <= (own.rank, own.id)
    ) AS place FROM submission AS own WHERE own.task_id IN :task_ids AND own.state = 'queued'
""")
"""The count reads the index `submission_queue` only."""
STATUS_TIMES = Statement(f"""
    SELECT task_id, max(created_at) AS at FROM event
    WHERE task_id IN :task_ids AND type IN ({", ".join(f"'task.{status}'" for status in STATUSES)}) GROUP BY task_id
""")  # constants
"""When each task came to its status; a task may have come to `created` again."""
SELECT_TAGS = Statement("SELECT tag, task_id FROM tag WHERE task_id IN :task_ids ORDER BY tag")
SELECT_EVENTS = Statement[EventRow](f"SELECT {EVENT_COLUMNS} FROM event WHERE id IN :ids", table=EVENT)
EVENTS_AT_ONCE = 100
TASKS_AT_ONCE = 10
"""Tasks held in memory at once: as objects they may take thirty times what they take as text."""
PAGE_BYTES = 256_000
"""Bytes. A page ends with the task that exceeds this, whatever its limit. A usual task has 1 to 2 KB."""
BATCH_BYTES = 64_000
"""Bytes of the events that one step of a stream renders, each with its task: a slow client holds that much."""
RECENT_TASKS = 100
"""The newest tasks, by which is judged whether the gateway calls back at all."""

READ_TIMEOUT_SECONDS = 20.0
"""Seconds. A query that takes longer is reported as an outage, as a commit is."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TaskDetail:
    """A task with everything that is shown of it."""

    row: TaskRow
    results: list[ResultRow]
    tags: list[str]
    queue_position: int | None = None
    """The place of a submission that waits for a slot: 1 is the next one."""


@dataclass(frozen=True, slots=True)
class TaskPage:
    """Rendered tasks. `last`: the (created_at, id) after which the next page begins, if there may be more.

    `examined`: tasks that were examined one by one for it, at most; 0: an index led to them. `is_full` False: the
    search stopped before the page was full, at `last`, or there are no more tasks.
    """

    items: list[bytes]
    last: Position | None
    examined: int = 0
    is_full: bool = True


class Reader:
    """Runs queries in its own threads. Every method raises Unavailable when the database cannot be read."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    async def close(self) -> None:
        """Wait for the queries that run, unless the database hangs: a closed one may have no connection in use."""
        ending = asyncio.create_task(run_in_daemon_thread(self._threads.shutdown))
        await asyncio.wait({ending}, timeout=BLOCKED_SECONDS)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """The result of a query. All its statements see the same moment."""

        def run() -> T:
            with self.database.read() as connection:
                return query(connection)

        try:
            async with asyncio.timeout(READ_TIMEOUT_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        except TimeoutError:
            raise Unavailable("The database does not answer.") from None
        except DBAPIError as error:
            if isinstance(error, STATEMENT_ERRORS):
                raise
            raise self.database.to_unavailable(error) from error

    async def task(self, task_id: str) -> TaskRow | None:
        """A task's row."""
        return await self.read(lambda connection: SELECT_TASKS.first(connection, task_ids=[task_id]))

    async def tasks(self, task_ids: Sequence[str]) -> list[TaskRow]:
        """The rows of tasks; those that do not exist are left out."""
        return await self.read(lambda connection: SELECT_TASKS.all(connection, task_ids=list(task_ids)))

    async def find_by_kling_id(self, kling_id: str) -> str | None:
        """Our id of the task that Kling's id belongs to."""
        task_id: str | None = await self.read(lambda connection: FIND_BY_KLING_ID.scalar(connection, kling_id=kling_id))
        return task_id

    async def find_by_other_id(self, other_id: str) -> list[str]:
        """Our ids of the tasks of which this is Kling's id, else the caller's; at most MAX_FOUND.

        A task that Kling has confirmed takes precedence: the caller's id may be the word of a callback, which proves
        nothing, and must neither hide another task nor make its id ambiguous.
        """
        return await self.read(functools.partial(_by_other_id, other_id=other_id))

    async def find(self, any_ids: Sequence[str]) -> dict[str, list[TaskDetail]]:
        """The tasks that each of these ids names: by our id, else by Kling's or the caller's; usually one or none."""
        return await self.read(lambda connection: {any_id: _find(connection, any_id) for any_id in any_ids})

    async def results(self, task_id: str) -> list[ResultRow]:
        """A task's results, in order."""
        return await self.read(lambda connection: SELECT_RESULTS.all(connection, task_ids=[task_id]))

    async def result(self, task_id: str, index: int) -> ResultRow | None:
        """A task's result number `index`."""
        return next((row for row in await self.results(task_id) if row["position"] == index), None)

    async def details(self, task_ids: Sequence[str]) -> dict[str, TaskDetail]:
        """Tasks with their results and tags, by id; those that do not exist are left out."""
        return await self.read(functools.partial(load_details, task_ids=task_ids))

    async def render_page(self, task_filter: TaskFilter, render: Callable[[TaskDetail], bytes]) -> TaskPage:
        """Tasks, newest first. `render` runs in the reader's thread."""

        def read(connection: Connection) -> TaskPage:
            return _render_page(connection, find_page(connection, task_filter), task_filter, render)

        return await self.read(read)

    async def render_list(self, task_filter: TaskFilter, render: Callable[[TaskDetail, int], bytes]) -> TaskPage:
        """As `render_page`; `render` is also given since when the task has its status (unix ms)."""

        def read(connection: Connection) -> TaskPage:
            found = find_page(connection, task_filter)
            times = STATUS_TIMES.all(connection, task_ids=found.ids) if found.ids else []
            since = {row["task_id"]: int(row["at"]) for row in times}

            def render_one(detail: TaskDetail) -> bytes:
                return render(detail, since.get(detail.row["id"], detail.row["created_at"]))

            return _render_page(connection, found, task_filter, render_one)

        return await self.read(read)

    async def render_family(self, family: str, render: Callable[[TaskDetail], T], *, skip: int, limit: int) -> list[T]:
        """A family's tasks among the newest, newest first, from number `skip` on. `render` runs in a thread."""

        def read(connection: Connection) -> list[T]:
            ids = ids_of_family(connection, family, skip=skip, limit=limit)
            return [render(detail) for detail in _iter_details(connection, ids) if detail]

        return await self.read(read)

    async def render_events(
        self, events: Sequence[EventRow], render: Callable[[EventRow, TaskDetail], bytes]
    ) -> list[bytes]:
        """Render events, each with its task, up to the byte limit; at least one. `render` runs in a thread.

        An event whose task was removed since it was read is b"".
        """
        return await self.read(functools.partial(_render_events, events=events, render=render))

    async def events(self, after: int, task_id: str | None = None) -> list[EventRow]:
        """Up to EVENTS_AT_ONCE events with ids above `after`, in order; of one task or of all."""
        query = functools.partial(events_after, after=after, task_id=task_id, limit=EVENTS_AT_ONCE)
        return await self.read(query)

    async def event(self, event_id: int) -> EventRow | None:
        """The event with this id, or None."""
        return await self.read(lambda connection: SELECT_EVENTS.first(connection, ids=[event_id]))

    async def any_recent_callback(self) -> bool:
        """Whether any of the newest tasks was ever called back."""
        newest = select(TASK.c.callback_count).order_by(TASK.c.created_at.desc(), TASK.c.id.desc())
        query = select(func.max(newest.limit(RECENT_TASKS).subquery().c.callback_count))
        return await self.read(lambda connection: bool(connection.execute(query).scalar()))


def _by_other_id(connection: Connection, other_id: str) -> list[str]:
    found = FIND_BY_OTHER_ID.all(connection, other_id=other_id, limit=MAX_FOUND)
    return [row["id"] for row in found if row["place"] == found[0]["place"]]


def _find(connection: Connection, any_id: str) -> list[TaskDetail]:
    if not IDENTIFIER.fullmatch(any_id):
        return []
    details = load_details(connection, [any_id]) or load_details(connection, _by_other_id(connection, any_id))
    return list(details.values())


def events_after(
    connection: Connection,
    after: int,
    task_id: str | None,
    *,
    limit: int,
    until: int | None = None,
    newest: bool = False,
) -> list[EventRow]:
    """Events with ids above `after`, up to `until`, in order or the `newest` first; of one task or of all."""
    where, parameters = "id > :after", Row(after=after, limit=limit)
    for name, condition, value in (
        ("task_id", "task_id = :task_id", task_id),
        ("until", "id <= :until", until),
    ):
        if value is not None:
            where, parameters[name] = f"{where} AND {condition}", value
    return _events_query(where, "DESC" if newest else "ASC").all(connection, **parameters)


@functools.cache
def _events_query(where: str, order: str) -> Statement[EventRow]:
    sql = f"SELECT {EVENT_COLUMNS} FROM event WHERE {where} ORDER BY id {order} LIMIT :limit"
    return Statement[EventRow](sql, table=EVENT)


def may_wait(task: TaskRow) -> bool:
    """Whether the task may have a submission in the queue."""
    return task["outcome"] == "pending" and task["status"] == "created" and task["create_token"].startswith(SENT_HERE)


def load_details(connection: Connection, task_ids: Sequence[str]) -> dict[str, TaskDetail]:
    """Tasks with their results and tags, by id; those that do not exist are left out."""
    if not task_ids:
        return {}
    tasks = SELECT_TASKS.all(connection, task_ids=list(task_ids))
    if not tasks:
        return {}
    waiting = [task["id"] for task in tasks if may_wait(task)]
    places = QUEUE_POSITIONS.all(connection, task_ids=waiting) if waiting else []
    positions = {row["task_id"]: int(row["place"]) for row in places}
    details = {task["id"]: TaskDetail(task, [], [], positions.get(task["id"])) for task in tasks}
    for result in SELECT_RESULTS.all(connection, task_ids=list(details)):
        details[result["task_id"]].results.append(result)
    for tag in SELECT_TAGS.all(connection, task_ids=list(details)):
        details[tag["task_id"]].tags.append(tag["tag"])
    return details


def _render_page(
    connection: Connection, found: Found, task_filter: TaskFilter, render: Callable[[TaskDetail], bytes]
) -> TaskPage:
    items: list[bytes] = []
    size, last = 0, None
    for detail in filter(None, _iter_details(connection, found.ids[: task_filter.limit])):
        items.append(render(detail))
        size, last = size + len(items[-1]), (detail.row["created_at"], detail.row["id"])
        if size > PAGE_BYTES:
            break
    is_full = len(items) < len(found.ids)
    return TaskPage(items, last if is_full else found.end, found.examined, is_full)


def _render_events(
    connection: Connection, events: Sequence[EventRow], render: Callable[[EventRow, TaskDetail], bytes]
) -> list[bytes]:
    items: list[bytes] = []
    size = 0
    details = _iter_details(connection, [event["task_id"] for event in events])
    for event, detail in zip(events, details, strict=True):
        items.append(render(event, detail) if detail else b"")
        size += len(items[-1])
        if size > BATCH_BYTES:
            break
    return items


def _iter_details(connection: Connection, task_ids: Sequence[str]) -> Iterator[TaskDetail | None]:
    """The tasks in this order, read a few at a time; None for one that was removed."""
    for first in range(0, len(task_ids), TASKS_AT_ONCE):
        few = task_ids[first : first + TASKS_AT_ONCE]
        details = load_details(connection, sorted(set(few)))
        yield from (details.get(task_id) for task_id in few)

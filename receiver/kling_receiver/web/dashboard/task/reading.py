"""Read everything that the page of one task shows, all of it at the same moment."""

from dataclasses import dataclass
from typing import Any, TypedDict

from sqlalchemy import Connection

from kling_receiver.hooks.delivery_list import Delivery, DeliveryFilter, list_deliveries
from kling_receiver.jobs.kinds import task_keys
from kling_receiver.store.reader import TaskDetail, events_after, load_details
from kling_receiver.store.rows import EventRow, JobRow, TaskRow
from kling_receiver.store.sql import Statement
from kling_receiver.store.tables import EVENT

MAX_EVENTS = 500
"""Events of a task that the page reads, the first ones. A usual task has ten."""
MAX_CALLBACKS = 50
"""Callbacks whose bodies are shown, the newest ones."""
MAX_BODY_BYTES = 16_000
"""Bytes of one callback's body that are shown. A usual one has 500."""
MAX_DELIVERIES = 50
"""Deliveries that are shown, of the newest events."""
MAX_JOBS = 20
"""Waiting jobs that are shown."""


class CallbackRow(TypedDict):
    """A stored callback. `body`: its first MAX_BODY_BYTES; `kept`: bytes that are stored of it."""

    id: int
    created_at: int
    data: Any
    repeat_count: int
    kept: int
    body: bytes


SELECT_CALLBACKS = Statement[CallbackRow](
    f"""
    SELECT id, created_at, data, repeat_count, length(body) AS kept, substr(body, 1, {MAX_BODY_BYTES}) AS body
    FROM event WHERE task_id = :task_id AND body_sha256 IS NOT NULL ORDER BY id DESC LIMIT {MAX_CALLBACKS}
    """,  # constants
    table=EVENT,
)
SELECT_JOBS = Statement[JobRow](f"""
    SELECT id, kind, unique_key, state, attempts, due_at, error FROM job
    WHERE unique_key IN :keys ORDER BY due_at, id LIMIT {MAX_JOBS}
""")  # a constant; without the args, which may be damaged
OLDER = Statement("""
    SELECT id FROM task WHERE (created_at, id) < (:created_at, :id) ORDER BY created_at DESC, id DESC LIMIT 1
""")
NEWER = Statement("""
    SELECT id FROM task WHERE (created_at, id) > (:created_at, :id) ORDER BY created_at, id LIMIT 1
""")


@dataclass(frozen=True, slots=True)
class TaskHistory:
    """A task and everything that happened to it. `events` and `callbacks` in order, `jobs` by their due time."""

    detail: TaskDetail
    events: list[EventRow]
    callbacks: list[CallbackRow]
    jobs: list[JobRow]
    deliveries: list[Delivery]
    """Newest event first; empty unless asked for."""
    has_more_deliveries: bool = False

    @property
    def task(self) -> TaskRow:
        """The task's row."""
        return self.detail.row


def load_history(connection: Connection, task_id: str, *, with_deliveries: bool) -> TaskHistory | None:
    """Everything about a task; None if it does not exist."""
    detail = load_details(connection, [task_id]).get(task_id)
    if detail is None:
        return None
    pending = [result["position"] for result in detail.results if result["status"] == "pending"]
    deliveries: list[Delivery] = []
    if with_deliveries:
        deliveries = list_deliveries(connection, DeliveryFilter(task_id=task_id, limit=MAX_DELIVERIES))
    return TaskHistory(
        detail,
        events_after(connection, 0, task_id, limit=MAX_EVENTS),
        SELECT_CALLBACKS.all(connection, task_id=task_id)[::-1],
        SELECT_JOBS.all(connection, keys=task_keys(task_id, pending[:MAX_JOBS])),
        deliveries[:MAX_DELIVERIES],
        len(deliveries) > MAX_DELIVERIES,
    )


def neighbours(connection: Connection, task: TaskRow) -> tuple[str | None, str | None]:
    """The ids of the next newer and the next older task in the list of all; None at its ends."""
    place = {"created_at": task["created_at"], "id": task["id"]}
    return NEWER.scalar(connection, **place), OLDER.scalar(connection, **place)

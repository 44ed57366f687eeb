"""Test events of every type, with a complete example task that does not exist.

What marks them: the event's id is 0, the task's id begins with `test`, and its tag is `test`.
"""

import hashlib
from typing import Any, cast

from kling_callback.protocol.ids import new_id
from kling_receiver.hooks.config import KLING_EVENTS
from kling_receiver.states import Status
from kling_receiver.store.reader import TaskDetail
from kling_receiver.store.rows import EventRow, ResultRow, TaskRow
from kling_receiver.store.transaction import TASK_DEFAULTS

TEST_TYPE = "hook.test"
"""The type of the event without a task: no other event has it."""

STATUSES: dict[str, Status] = {
    "task.created": "created",
    "task.queued": "created",
    "task.submitted": "submitted",
    "task.processing": "processing",
    "task.overdue": "processing",
    "callback.received": "processing",
    "task.failed": "failed",
}
"""The status of the example task by the type of its event; `succeed` for any other type."""
WITHOUT_FILES = ("task.succeed", "task.recovered")
"""Events of a success whose files are still to be stored."""

REQUEST = {
    "model_name": "kling-v3",
    "prompt": "a test of this hook: the kangaroo waves",
    "mode": "std",
    "duration": "5",
    "aspect_ratio": "16:9",
}
SIZE, SHA256 = 1_234_567, hashlib.sha256(b"a test of this hook").hexdigest()
KLING_ID = "0" * 18
"""Like Kling's ids, and none of them."""
AGE_MS, LIFE_MS = 90_000, 30 * 86_400_000
"""Milliseconds since the create of the example task, and for which Kling keeps its file."""


def plain_test(log_id: str, hook_format: str, *, receiver_url: str, now: int) -> tuple[EventRow, TaskDetail]:
    """The event `hook.test`. In Kling's format it is the test of Kling's console. `now`: unix ms."""
    columns: dict[str, Any] = {"id": "test", "family": "images/generations", "created_at": now, "updated_at": now}
    if hook_format == "kling":
        unknown_id = new_id()
        columns |= {"id": unknown_id, "kling_id": unknown_id, "family": "/text-to-video/kling-3.0"}
    task = cast(TaskRow, {**TASK_DEFAULTS, **columns})
    data = {"receiver": receiver_url}
    event = EventRow(id=0, log_id=log_id, task_id="test", type=TEST_TYPE, created_at=now, data=data)
    return event, TaskDetail(task, [], [])


def example(type_: str, log_id: str, *, now: int) -> tuple[EventRow, TaskDetail]:
    """An event of this type, and its example task as it would be then. `now`: unix ms."""
    status, task_id = STATUSES.get(type_, "succeed"), f"test-{new_id()}"
    is_done, reason = type_ == "task.done", "a test: Kling refused the prompt" if status == "failed" else ""
    is_known, is_final = status != "created", status in ("succeed", "failed")
    columns: dict[str, Any] = {
        "id": task_id,
        "kling_id": KLING_ID if is_known else None,
        "family": "videos/text2video",
        "model": REQUEST["model_name"],
        "request": REQUEST,
        "outcome": "created" if is_known else "pending",
        "status": status,
        "status_msg": reason,
        "origin": "kling" if is_final else None,
        "cost": "1" if status == "succeed" else None,
        "request_id": "test-request" if is_known else None,
        "kling_created_at": now - AGE_MS if is_known else None,
        "kling_updated_at": now if is_known else None,
        "done": is_done,
        "created_at": now - AGE_MS,
        "updated_at": now,
    }
    results = [_result(type_, task_id, now)] if status == "succeed" else []
    place = 1 if type_ == "task.queued" else None
    task = TaskDetail(cast(TaskRow, {**TASK_DEFAULTS, **columns}), results, ["test"], place)
    data = _data(type_, task_id, status, reason)
    return EventRow(id=0, log_id=log_id, task_id=task_id, type=type_, created_at=now, data=data), task


def _result(type_: str, task_id: str, now: int) -> ResultRow:
    """The task's video: pending, stored, or failed."""
    stored = type_ != "result.failed" and type_ not in WITHOUT_FILES
    return ResultRow(
        task_id=task_id,
        position=0,
        kind="video",
        kling_id=KLING_ID,
        duration=5.1,
        status="stored" if stored else "failed" if type_ == "result.failed" else "pending",
        content_type="video/mp4" if stored else None,
        size=SIZE if stored else None,
        sha256=SHA256 if stored else None,
        path=None,  # a command is given no file that does not exist
        source_url="https://example.com/test.mp4",
        expires_at=now + LIFE_MS,
        error="a test: the host answered 404" if type_ == "result.failed" else "",
        warning="",
    )


def _data(type_: str, task_id: str, status: Status, reason: str) -> Any:
    """The event's own data, as the receiver adds it."""
    return {
        "task.created": {"by": "client"},
        "task.queued": {},
        "task.overdue": {},
        "task.recovered": {"by": "deadline"},
        "task.done": {"status": status, "origin": "kling"},
        "result.stored": {
            "index": 0,
            "name": f"{task_id}/0.mp4",
            "content_type": "video/mp4",
            "size": SIZE,
            "sha256": SHA256,
        },
        "result.failed": {"index": 0, "reason": "a test: the host answered 404"},
        "callback.received": {"status": status, "signed": False, "size": 512},
        "callback.ignored": {"reason": "late", "status": "processing", "stands": status},
    }.get(type_, {"by": "kling", "message": reason})


def kling_problem(type_: str) -> str | None:
    """Why a hook in Kling's format receives no event of this type; None if it does."""
    if type_ in KLING_EVENTS:
        return None
    return f"A hook in Kling's format receives {', '.join(KLING_EVENTS)} only."

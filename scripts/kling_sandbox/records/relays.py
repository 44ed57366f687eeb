"""What relays make of Kling's answers about a task: more envelopes, other words, other shapes."""

from collections.abc import Callable
from typing import Any, Literal

from kling_sandbox.api.replies import envelope
from kling_sandbox.tasks import Task

Occasion = Literal["create", "query", "callback"]

OUTER_WORDS = {"submitted": "SUBMITTED", "processing": "IN_PROGRESS", "failed": "FAILURE"}
"""The words of relays with a record of their own around Kling's; every other status is SUCCESS."""

OPENAI_WORDS = {"submitted": "queued", "processing": "in_progress", "failed": "failed"}
"""OpenAI's words for the status of a video; every other status is completed."""


def task_answer(task: Task, fields: dict[str, Any], occasion: Occasion) -> dict[str, Any]:
    """The body that tells a task's record: as Kling (answers in an envelope, callbacks bare), or as a relay."""
    if occasion != "callback" and (shape := _shape(task, occasion)):
        return shape(task, fields.get("task_status") or fields["status"], _first_url(fields))
    if task.has("wrap-twice") or task.has("outer-failure"):
        return _wrap_twice(task, fields)
    once_more = task.has("wrap-once") and occasion != "create"
    for _ in range((occasion != "callback") + once_more):
        fields = envelope(fields)
    return fields


def _wrap_twice(task: Task, fields: dict[str, Any]) -> dict[str, Any]:
    status = OUTER_WORDS.get(fields.get("task_status") or fields["status"], "SUCCESS")
    failed = status == "FAILURE"
    outer = {
        "task_id": fields.get("task_id") or fields["id"],
        "status": status,
        "fail_reason": task.message("failed") if failed else "",
        "progress": "100%" if failed or status == "SUCCESS" else "30%",
        "data": None if failed and task.has("outer-failure") else envelope(fields),
    }
    return {"code": "success", "message": "", "data": outer}


Shape = Callable[[Task, str, str], dict[str, Any]]
"""The body that tells a task by its status and the address of its first file, which may be empty."""


def _shape(task: Task, occasion: Occasion) -> Shape | None:
    """The shape of an answer that has nothing of Kling's. Creates have only one such shape."""
    switches = SHAPES if occasion == "query" else {"relay-openai-video": _openai_video}
    return next((shape for switch, shape in switches.items() if task.has(switch)), None)


def _flat(task: Task, status: str, url: str) -> dict[str, Any]:
    return {
        "task_id": task.id,
        "status": OPENAI_WORDS.get(status, "completed"),
        "format": "mp4" if task.family.kind == "videos" else "",
        "metadata": {"duration": 5} if task.family.kind == "videos" else {},
        "error": {"message": task.failure} if status == "failed" else None,
        **({} if task.has("no-url") else {"url": url}),
    }


def _result_url(task: Task, status: str, url: str) -> dict[str, Any]:
    outer = {
        "task_id": task.id,
        "status": OUTER_WORDS.get(status, "SUCCESS"),
        "fail_reason": task.failure if status == "failed" else "",
        "data": None,
        **({} if task.has("no-url") else {"result_url": url}),
    }
    return {"code": "success", "message": "", "data": outer}


def _openai_video(task: Task, status: str, url: str) -> dict[str, Any]:
    return {
        "id": task.id,
        "object": "video",
        "model": task.model,
        "status": OPENAI_WORDS.get(status, "completed"),
        "progress": 100 if task.finished_at else 0,
        "created_at": task.created_at // 1000,
        **({"metadata": {"url": url}} if url else {}),
        **({"error": {"message": task.failure}} if status == "failed" else {}),
    }


SHAPES: dict[str, Shape] = {
    "relay-flat": _flat,
    "relay-result-url": _result_url,
    "relay-openai-video": _openai_video,
}
"""The answers to queries, by switch; the first switch that is on counts."""


def _first_url(value: Any) -> str:
    """The first address in a record."""
    if isinstance(value, str):
        return value if value.startswith("http") else ""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, map(_first_url, parts)), "")


def openai_images(url: str, created_at: int) -> dict[str, Any]:
    """What a relay's OpenAI endpoint for images answers. `created_at`: unix ms."""
    return {"created": created_at // 1000, "data": [{"url": url}]}

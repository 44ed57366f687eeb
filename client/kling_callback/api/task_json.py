"""The JSON of a task, checked once where it arrives: what reads it later relies on the types of its fields."""

import re
from collections.abc import Callable
from typing import Any, TypeGuard

from kling_callback.protocol.ids import is_id
from kling_callback.protocol.nesting import MAX_ANSWER_DEPTH, is_deeper

SHA256 = re.compile("[0-9a-f]{64}")


def is_task(value: Any, task_id: str | None = None) -> TypeGuard[dict[str, Any]]:
    """Whether `value` is the JSON of a task; with `task_id`, of that task. Files are named by its id."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("id"), str)
        and is_id(value["id"])
        and task_id in (None, value["id"])
        and isinstance(value.get("status"), str)
        and isinstance(value.get("results", []), list)
        and _fits(value, TASK_FIELDS)
        and not is_deeper(value, MAX_ANSWER_DEPTH)
    )


def has_id(task: dict[str, Any], any_id: str) -> bool:
    """Whether a task has this id: ours, Kling's, or the caller's at Kling. `task`: its JSON."""
    return any_id in (task["id"], task.get("task_id"), task.get("external_task_id"))


def _is_file(value: Any) -> bool:
    """Whether `value` is the JSON of a result file."""
    return isinstance(value, dict) and _is_natural(value.get("index")) and _fits(value, FILE_FIELDS)


def _fits(value: dict[str, Any], fields: dict[str, Callable[[Any], bool]]) -> bool:
    """Whether each of these fields is of its type, null or absent."""
    return all(value.get(name) is None or fits(value[name]) for name, fits in fields.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_natural(value: Any) -> bool:
    return type(value) is int and value >= 0  # True is an int as well


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and SHA256.fullmatch(value) is not None


def _is_list(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_item, value))


FILE_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("kind", "id", "status", "content_type", "href", "source_url", "expires_at", "error", "warning"), _is_text
    ),
    "duration": _is_number,
    "size": _is_natural,
    "sha256": _is_sha256,
}
"""By name: whether a value is of the field's type."""

TASK_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("task_id", "external_task_id", "family", "model", "status_msg", "request_id", "created_at", "updated_at"),
        _is_text,
    ),
    "done": lambda value: isinstance(value, bool),
    "queue_position": _is_natural,
    "tags": _is_list(_is_text),
    "outputs": _is_list(lambda value: isinstance(value, dict)),
    "results": _is_list(_is_file),
}
"""The same for tasks."""

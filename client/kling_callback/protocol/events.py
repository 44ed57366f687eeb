"""The types of events, and one event."""

from dataclasses import dataclass
from typing import Any

MAX_EVENT_CHARS = 16_000_000
"""Bytes: an event carries the task with its request."""


TYPES = (
    "task.created",
    "task.submitted",
    "task.processing",
    "task.succeed",
    "task.failed",
    "result.stored",
    "result.failed",
    "task.done",
    "task.overdue",
    "task.recovered",
    "callback.received",
    "callback.ignored",
)
"""What can happen."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a task; `task` is the task's JSON as it was when the event was sent to us."""

    id: int
    type: str
    at: str
    data: dict[str, Any]
    task: dict[str, Any]

    @property
    def ends(self) -> bool:
        """Whether nothing more is owed: an early `task.done` may have given way to Kling's later word."""
        return self.type == "task.done" and self.task.get("done") is True

    @property
    def document(self) -> dict[str, Any]:
        """The event as the receiver tells it."""
        return {"id": self.id, "type": self.type, "at": self.at, "data": self.data, "task": self.task}

"""The types of events, and the class of one event."""

from dataclasses import dataclass
from typing import Any

MAX_EVENT_BYTES = 16_000_000
"""Bytes of one event: it contains the task with its request."""

MAX_ID_DIGITS = 18
"""Digits of an event's id: a larger number does not fit into the database's 64 bits."""

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
"""All types of events."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a task.

    `id`: increases in commit order. `at`: when it happened, ISO 8601 in UTC. `data`: depends on the type.
    `task`: the task's JSON when the event was sent to this client.
    """

    id: int
    type: str
    at: str
    data: dict[str, Any]
    task: dict[str, Any]

    @property
    def ends(self) -> bool:
        """Whether this is the task's last event. After an early `task.done`, a later report of Kling may add events."""
        return self.type == "task.done" and self.task.get("done") is True

    @property
    def document(self) -> dict[str, Any]:
        """The event as JSON, as the receiver sends it."""
        return {"id": self.id, "type": self.type, "at": self.at, "data": self.data, "task": self.task}

"""The types of events, the class of one event, and positions in the event log."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

MAX_EVENT_BYTES = 16_000_000
"""Bytes of one event: it contains the task with its request."""

MAX_ID_DIGITS = 18
"""Digits of an event's id: a larger number does not fit into the database's 64 bits."""

TYPES = (
    "task.created",
    "task.queued",
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


LOG_ID = "[0-9a-z]{1,32}"
POSITION = f"{LOG_ID}-[0-9]{{1,{MAX_ID_DIGITS}}}(?:-[0-9]{{1,15}})?"
"""A position as text, as a regular expression."""
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class LogPosition:
    """A position in an event log: after the event `event_id`, or before the first (0).

    `log_id`: of the log; a restored database continues as another log, which uses the numbers of events again.
    `at`: when the event happened, unix milliseconds; None if it is not known.
    Its text, such as `8c1f2e3a5b6d7f90-17-1800000000123`, is the event's id outside the receiver, and a cursor.
    """

    log_id: str
    event_id: int
    at: int | None = None

    def __str__(self) -> str:
        return f"{self.log_id}-{self.event_id}" + ("" if self.at is None else f"-{self.at}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a position's text. Raises ValueError."""
        if not re.fullmatch(POSITION, text):
            raise ValueError("is not the cursor of an event.")
        log_id, event_id, *at = text.split("-")
        return cls(log_id, int(event_id), int(at[0]) if at else None)


def position_of(log_id: str, event_id: int, at: str) -> LogPosition:
    """The position after an event. `at`: ISO 8601 with a time zone. Raises ValueError if one of them is invalid."""
    try:
        milliseconds = (datetime.fromisoformat(at) - _EPOCH) // timedelta(milliseconds=1)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{at!r} is not a time") from error
    return LogPosition.parse(str(LogPosition(log_id, event_id, milliseconds)))


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a task.

    `id`: increases in commit order. `at`: when it happened, ISO 8601 in UTC. `data`: depends on the type.
    `task`: the task's JSON when the event was sent to this client. `log_id`: of the receiver's event log; a restored
    database continues as another log, which uses the ids of events again.
    """

    id: int
    type: str
    at: str
    data: dict[str, Any]
    task: dict[str, Any]
    log_id: str

    @property
    def position(self) -> LogPosition:
        """The position in the log after this event. Raises ValueError if the event has no valid time."""
        return position_of(self.log_id, self.id, self.at)

    @property
    def cursor(self) -> str:
        """The position as text: `events(after=event.cursor)` yields the later events. Raises ValueError."""
        return str(self.position)

    @property
    def ends(self) -> bool:
        """Whether this is the task's last event. After an early `task.done`, a later report of Kling may add events."""
        return self.type == "task.done" and self.task.get("done") is True

    @property
    def document(self) -> dict[str, Any]:
        """The event as JSON, as the receiver sends it."""
        return {
            "id": self.id,
            "log_id": self.log_id,
            "type": self.type,
            "at": self.at,
            "data": self.data,
            "task": self.task,
        }

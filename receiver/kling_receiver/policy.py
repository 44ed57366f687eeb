"""Deadlines of tasks and the time a failing hook is given before it is paused."""

from dataclasses import dataclass

DEFAULT_HOOK_PAUSE_SECONDS = 43_200
"""Seconds (half a day): while they last no event has come to the end of its attempts."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a change sets in motion besides itself.

    `overdue_seconds`: after how long a task that has not ended is asked about; None for the usual.
    `patience`: seconds for which a hook may fail before it is paused.
    """

    overdue_seconds: float | None = None
    hook_pause_seconds: float = DEFAULT_HOOK_PAUSE_SECONDS

    def overdue_ms(self, family: str) -> int:
        """The same in milliseconds, for one family: images take seconds, all else minutes (section 7)."""
        usual = 180 if family.startswith("images/") else 1200
        return int((self.overdue_seconds or usual) * 1000)

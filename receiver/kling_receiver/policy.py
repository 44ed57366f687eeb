"""What applies to every task and hook: deadlines, slots, and how long a hook may fail before it is paused."""

from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_HOOK_PAUSE_SECONDS = 43_200
"""Half a day. It must be shorter than the retry schedule: until then no event has become a dead letter."""


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """Slots of the account that tasks may hold at once: in `total`, and `by_model`; None: any number."""

    total: int | None = None
    by_model: Mapping[str, int] = field(default_factory=dict)

    @property
    def are_limited(self) -> bool:
        """Whether there is any limit."""
        return self.total is not None or bool(self.by_model)

    def problem(self, model: str, slots: int) -> str | None:
        """Why a task of a model never gets the slots that it needs; None if it may."""
        for limit, name in ((self.total, ""), (self.by_model.get(model), f"{model}=")):
            if limit is not None and slots > limit:
                return f"The task needs {slots} slots, but KLING_CONCURRENCY={name}{limit} allows fewer."
        return None


@dataclass(frozen=True, slots=True)
class Policy:
    """`overdue_seconds`: from the create to the deadline; None: by family.

    `hook_pause_seconds`: of continuous failure, before a hook is paused.
    """

    overdue_seconds: float | None = None
    hook_pause_seconds: float = DEFAULT_HOOK_PAUSE_SECONDS
    slots: SlotLimits = field(default_factory=SlotLimits)

    def overdue_ms(self, family: str) -> int:
        """Milliseconds from the create to the deadline. Images take seconds, everything else minutes."""
        default = 180 if family.startswith("images/") else 1200
        return int((self.overdue_seconds or default) * 1000)


DEFAULT_POLICY = Policy()

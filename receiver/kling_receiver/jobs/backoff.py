"""Delays between attempts, with jitter."""

import random
from collections.abc import Callable
from dataclasses import dataclass

MAX_RETRY_AFTER_SECONDS = 3600.0
"""Seconds up to which a `Retry-After` is believed."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between attempts, seconds: drawn from the upper half of each step, so that retries spread out."""

    steps: tuple[float, ...]
    draw: Callable[[], float] = random.random

    def next_at(self, attempts: int, now: int, *, at_least: float | None = None) -> int | None:
        """Unix ms of the next attempt after so many; None when that was the last.

        `at_least`: the seconds that the other side asked for (`Retry-After`).
        """
        if attempts > len(self.steps):
            return None
        step = self.steps[attempts - 1]
        wait = max(step * (0.5 + self.draw() / 2), min(at_least or 0.0, MAX_RETRY_AFTER_SECONDS))
        return now + int(wait * 1000)

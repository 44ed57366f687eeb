"""Retry delays: steps of seconds with jitter, lengthened by `Retry-After`."""

import random
from collections.abc import Callable
from dataclasses import dataclass

MAX_RETRY_AFTER_SECONDS = 3600.0
"""Seconds. A longer `Retry-After` is cut to this."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays between attempts, in seconds, each drawn from the upper half of its step, so that retries spread out."""

    steps: tuple[float, ...]
    draw: Callable[[], float] = random.random

    def next_at(self, attempts: int, now: int, *, at_least: float | None = None) -> int | None:
        """Unix ms of the next attempt, after `attempts` failed ones; None after the last one.

        `at_least`: the seconds of a `Retry-After`.
        """
        if attempts > len(self.steps):
            return None
        step = self.steps[attempts - 1]
        wait = max(step * (0.5 + self.draw() / 2), min(at_least or 0.0, MAX_RETRY_AFTER_SECONDS))
        return now + int(wait * 1000)

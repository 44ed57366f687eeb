"""How fast events go to one hook: so many at once, so many a second, and one at a time while it is dead."""

import asyncio
from collections import deque

from kling_receiver.jobs.backoff import MAX_RETRY_AFTER_SECONDS

FAILURE_THRESHOLD = 5
"""Failures one after the other, after which a hook is taken for dead until it takes something."""
SLOT_TIMEOUT_SECONDS = 60.0
"""Seconds for which anybody waits for a turn."""
PROBE_DELAYS = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds for which a dead hook is left alone, each time longer."""


class HookLimiter:
    """The pace of one hook. `rate`: attempts a second; None for any."""

    def __init__(self, concurrency: int, rate: float | None) -> None:
        self._concurrency, self._rate, self._next = concurrency, rate, 0.0
        self._active = self._failures = self._probes = 0
        self._retry_at = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_open(self) -> bool:
        """Whether it has taken nothing for a while."""
        return self._failures >= FAILURE_THRESHOLD

    def set_limits(self, concurrency: int, rate: float | None) -> None:
        """Go by other limits."""
        self._concurrency, self._rate = concurrency, rate
        self._admit()

    def reset(self) -> None:
        """Take it for alive, and wait no longer."""
        self._failures = self._probes = 0
        self._retry_at = 0.0
        self._admit()

    def record(self, delivered: bool, *, gone: bool = False, retry_after: float | None = None) -> None:
        """How an attempt ended. `gone`: the hook wants nothing any more; `retry_after`: nothing for so long."""
        self._failures = 0 if delivered else FAILURE_THRESHOLD if gone else self._failures + 1
        if delivered:
            self._probes = 0
        if retry_after:
            self._retry_at = asyncio.get_running_loop().time() + min(retry_after, MAX_RETRY_AFTER_SECONDS)

    @property
    def retry_after(self) -> float:
        """Seconds for which the hook asked to be left alone."""
        return max(self._retry_at - asyncio.get_running_loop().time(), 0.0)

    def next_probe_delay(self) -> float:
        """Seconds for which a dead hook is to be left alone."""
        self._probes += 1
        return max(PROBE_DELAYS[min(self._probes, len(PROBE_DELAYS)) - 1], self.retry_after)

    async def acquire(self) -> "Slot":
        """Wait for a turn; whoever has it gives it back by `leave`. Raises TimeoutError after LONGEST_TURN."""
        entered = self._enter()
        if entered and not self._rate:
            return Slot(self)
        async with asyncio.timeout(SLOT_TIMEOUT_SECONDS):
            if not entered:
                await self._wait()
            turn = Slot(self)
            if self._rate:
                await self._wait_rate(turn, self._rate)
        return turn

    def release(self) -> None:
        """End a turn."""
        self._active -= 1
        self._admit()

    def _has_room(self) -> bool:
        return self._active < (1 if self.is_open else self._concurrency)

    def _enter(self) -> bool:
        """Take a place at once, if there is one and nobody waits for it."""
        if self._waiting or not self._has_room():
            return False
        self._active += 1
        return True

    async def _wait(self) -> None:
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it was let in at the same moment
                self.release()
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def _admit(self) -> None:
        while self._waiting and self._has_room():
            place = self._waiting.popleft()
            if not place.done():
                self._active += 1
                place.set_result(None)

    async def _wait_rate(self, slot: "Slot", rate: float) -> None:
        now = asyncio.get_running_loop().time()
        wait, self._next = self._next - now, max(self._next, now) + 1 / rate
        try:
            await asyncio.sleep(max(wait, 0))
        except asyncio.CancelledError:
            self._next -= 1 / rate  # it was not used
            slot.release()
            raise


class Slot:
    """The right to one attempt."""

    def __init__(self, pace: HookLimiter) -> None:
        self.limiter, self._held = pace, True

    def release(self) -> None:
        """Let the next one have it; a second time does nothing."""
        if self._held:
            self._held = False
            self.limiter.release()

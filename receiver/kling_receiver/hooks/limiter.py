"""Limits deliveries to one hook: concurrency, rate, and a circuit breaker that probes a dead hook."""

import asyncio

from anyio import CapacityLimiter, WouldBlock

from kling_receiver.jobs.backoff import MAX_RETRY_AFTER_SECONDS

FAILURE_THRESHOLD = 5
"""Consecutive failures after which the circuit opens; the first success closes it."""
SLOT_TIMEOUT_SECONDS = 60.0
"""Seconds that an attempt waits for its slot."""
PROBE_DELAYS = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds between probes of a hook whose circuit is open; the last one repeats."""


class HookLimiter:
    """The limits of one hook. Slots are granted in the order of the calls. `rate`: attempts per second; None: any.

    While the circuit is open, one attempt runs at a time, whatever `concurrency` allows.
    """

    def __init__(self, concurrency: int, rate: float | None) -> None:
        self._slots = CapacityLimiter(concurrency)
        self._concurrency, self._rate, self._next_start = concurrency, rate, 0.0
        self._failures = self._probes = 0
        self._retry_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the circuit is open: the last attempts all failed."""
        return self._failures >= FAILURE_THRESHOLD

    def set_limits(self, concurrency: int, rate: float | None) -> None:
        """Change the limits. Running attempts keep their slots; waiting ones are admitted by the new limits."""
        self._concurrency, self._rate = concurrency, rate
        self._resize()

    def reset(self) -> None:
        """Close the circuit, and forget a `Retry-After`."""
        self._failures = self._probes = 0
        self._retry_at = 0.0
        self._resize()

    def record(self, delivered: bool, *, gone: bool = False, retry_after: float | None = None) -> None:
        """Count an attempt's outcome. `gone`: HTTP 410, which opens the circuit; `retry_after`: seconds."""
        self._failures = 0 if delivered else FAILURE_THRESHOLD if gone else self._failures + 1
        if delivered:
            self._probes = 0
        if retry_after:
            self._retry_at = asyncio.get_running_loop().time() + min(retry_after, MAX_RETRY_AFTER_SECONDS)
        self._resize()

    def _resize(self) -> None:
        self._slots.total_tokens = 1 if self.is_open else self._concurrency

    @property
    def retry_after(self) -> float:
        """Seconds that remain of the hook's last `Retry-After`."""
        return max(self._retry_at - asyncio.get_running_loop().time(), 0.0)

    def next_probe_delay(self) -> float:
        """Seconds until the next probe. Each call without a success in between returns the next longer delay."""
        self._probes += 1
        return max(PROBE_DELAYS[min(self._probes, len(PROBE_DELAYS)) - 1], self.retry_after)

    async def acquire(self) -> "Slot":
        """Wait for a slot, which the caller releases. Raises TimeoutError after SLOT_TIMEOUT_SECONDS."""
        slot = Slot(self)
        admitted = self._admit_now(slot)
        if admitted and not self._rate:
            return slot
        async with asyncio.timeout(SLOT_TIMEOUT_SECONDS):
            if not admitted:
                await self._slots.acquire_on_behalf_of(slot)
            if self._rate:
                await self._wait_rate(slot, self._rate)
        return slot

    def _admit_now(self, slot: "Slot") -> bool:
        """Admit an attempt without a turn of the event loop, unless the hook is busy or other attempts wait."""
        try:
            self._slots.acquire_on_behalf_of_nowait(slot)
        except WouldBlock:
            return False
        return True

    def release(self, slot: "Slot") -> None:
        """End a slot, and admit the attempt that has waited longest."""
        self._slots.release_on_behalf_of(slot)

    async def _wait_rate(self, slot: "Slot", rate: float) -> None:
        now = asyncio.get_running_loop().time()
        wait, self._next_start = self._next_start - now, max(self._next_start, now) + 1 / rate
        try:
            await asyncio.sleep(max(wait, 0))
        except asyncio.CancelledError:
            self._next_start -= 1 / rate  # the start was not used
            slot.release()
            raise


class Slot:
    """The right to one attempt."""

    def __init__(self, limiter: HookLimiter) -> None:
        self.limiter, self._held = limiter, True

    def release(self) -> None:
        """Let the next attempt have the slot. A second call does nothing."""
        if self._held:
            self._held = False
            self.limiter.release(self)

"""How fast events go to one hook: so many at once, so many a second, and one at a time while it is dead."""

import asyncio

import anyio

STREAK = 5
"""Failures one after the other, after which a hook is taken for dead until it takes something."""
PROBE = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds for which a dead hook is left alone, each time longer."""


class Pace:
    """The pace of one hook. `rate`: attempts a second; None for any."""

    def __init__(self, concurrency: int, rate: float | None) -> None:
        self._limiter = anyio.CapacityLimiter(concurrency)
        self._concurrency, self._rate, self._next = concurrency, rate, 0.0
        self._streak = self._put_off = 0

    @property
    def is_dead(self) -> bool:
        """Whether it has taken nothing for a while."""
        return self._streak >= STREAK

    def change(self, concurrency: int, rate: float | None) -> None:
        """Go by other limits."""
        self._concurrency, self._rate = concurrency, rate
        self._limit()

    def note(self, taken: bool) -> None:
        """How an attempt ended."""
        self._streak = 0 if taken else self._streak + 1
        if taken:
            self._put_off = 0
        self._limit()

    def put_off(self) -> float:
        """Seconds for which a dead hook is to be left alone."""
        self._put_off += 1
        return PROBE[min(self._put_off, len(PROBE)) - 1]

    async def turn(self) -> "Turn":
        """Wait for a turn; whoever has it gives it back by `leave`."""
        turn = Turn(self)
        await self._limiter.acquire_on_behalf_of(turn)
        if self._rate:
            now = asyncio.get_running_loop().time()
            wait, self._next = self._next - now, max(self._next, now) + 1 / self._rate
            try:
                await asyncio.sleep(max(wait, 0))
            except asyncio.CancelledError:
                self._next -= 1 / self._rate  # it was not used
                turn.leave()
                raise
        return turn

    def give_back(self, turn: "Turn") -> None:
        """End a turn."""
        self._limiter.release_on_behalf_of(turn)

    def _limit(self) -> None:
        self._limiter.total_tokens = 1 if self.is_dead else self._concurrency


class Turn:
    """The right to one attempt."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def leave(self) -> None:
        """Let the next one have it."""
        self.pace.give_back(self)

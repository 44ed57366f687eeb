"""How fast events go to one hook: so many at once, so many a second, and one at a time while it is dead."""

import asyncio
from collections import deque

from kling_receiver.jobs.backoff import LONGEST_ASKED

STREAK = 5
"""Failures one after the other, after which a hook is taken for dead until it takes something."""
LONGEST_TURN = 60.0
"""Seconds for which anybody waits for a turn."""
PROBE = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Seconds for which a dead hook is left alone, each time longer."""


class Pace:
    """The pace of one hook. `rate`: attempts a second; None for any."""

    def __init__(self, concurrency: int, rate: float | None) -> None:
        self._concurrency, self._rate, self._next = concurrency, rate, 0.0
        self._under_way = self._streak = self._put_off = 0
        self._held = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_dead(self) -> bool:
        """Whether it has taken nothing for a while."""
        return self._streak >= STREAK

    def change(self, concurrency: int, rate: float | None) -> None:
        """Go by other limits."""
        self._concurrency, self._rate = concurrency, rate
        self._let_in()

    def revive(self) -> None:
        """Take it for alive, and wait no longer."""
        self._streak = self._put_off = 0
        self._held = 0.0
        self._let_in()

    def note(self, taken: bool, *, gone: bool = False, retry_after: float | None = None) -> None:
        """How an attempt ended. `gone`: the hook wants nothing any more; `retry_after`: nothing for so long."""
        self._streak = 0 if taken else STREAK if gone else self._streak + 1
        if taken:
            self._put_off = 0
        if retry_after:
            self._held = asyncio.get_running_loop().time() + min(retry_after, LONGEST_ASKED)

    @property
    def held(self) -> float:
        """Seconds for which the hook asked to be left alone."""
        return max(self._held - asyncio.get_running_loop().time(), 0.0)

    def put_off(self) -> float:
        """Seconds for which a dead hook is to be left alone."""
        self._put_off += 1
        return max(PROBE[min(self._put_off, len(PROBE)) - 1], self.held)

    async def turn(self) -> "Turn":
        """Wait for a turn; whoever has it gives it back by `leave`. Raises TimeoutError after LONGEST_TURN."""
        entered = self._enter()
        if entered and not self._rate:
            return Turn(self)
        async with asyncio.timeout(LONGEST_TURN):
            if not entered:
                await self._queue()
            turn = Turn(self)
            if self._rate:
                await self._pause(turn, self._rate)
        return turn

    def give_back(self) -> None:
        """End a turn."""
        self._under_way -= 1
        self._let_in()

    def _has_room(self) -> bool:
        return self._under_way < (1 if self.is_dead else self._concurrency)

    def _enter(self) -> bool:
        """Take a place at once, if there is one and nobody waits for it."""
        if self._waiting or not self._has_room():
            return False
        self._under_way += 1
        return True

    async def _queue(self) -> None:
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():  # it was let in at the same moment
                self.give_back()
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def _let_in(self) -> None:
        while self._waiting and self._has_room():
            place = self._waiting.popleft()
            if not place.done():
                self._under_way += 1
                place.set_result(None)

    async def _pause(self, turn: "Turn", rate: float) -> None:
        now = asyncio.get_running_loop().time()
        wait, self._next = self._next - now, max(self._next, now) + 1 / rate
        try:
            await asyncio.sleep(max(wait, 0))
        except asyncio.CancelledError:
            self._next -= 1 / rate  # it was not used
            turn.leave()
            raise


class Turn:
    """The right to one attempt."""

    def __init__(self, pace: Pace) -> None:
        self.pace, self._is_ours = pace, True

    def leave(self) -> None:
        """Let the next one have it; a second time does nothing."""
        if self._is_ours:
            self._is_ours = False
            self.pace.give_back()

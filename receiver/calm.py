"""Callbacks first: what may wait a moment begins while none is being taken in."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 0.002
"""Seconds that anything waits, however many callbacks come."""


class Calm:
    """Whether callbacks are being taken in just now. `longest`: seconds."""

    def __init__(self, *, longest: float = LONGEST) -> None:
        self._longest, self._under_way = longest, 0
        self._came = asyncio.Event()
        self._came.set()

    @contextmanager
    def broken(self) -> Iterator[None]:
        """While a callback is taken in."""
        self._under_way += 1
        self._came.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._came.set()

    async def wait(self) -> None:
        """Wait until no callback is being taken in, or until this has lasted too long."""
        if self._came.is_set():
            return
        try:
            async with asyncio.timeout(self._longest):
                await self._came.wait()
        except TimeoutError:
            pass

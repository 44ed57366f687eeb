"""Callbacks first: what may wait a little begins while none is being taken in."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 0.02
"""Seconds that anything waits, however many callbacks come."""


class Calm:
    """Whether callbacks are being taken in just now."""

    def __init__(self) -> None:
        self._under_way = 0
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
        """Wait until none is taken in, or so long."""
        if self._came.is_set():
            return
        try:
            async with asyncio.timeout(LONGEST):
                await self._came.wait()
        except TimeoutError:
            pass

"""What is urgent first, callbacks above all: what may wait a moment begins while none of it is written."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 0.002
"""Seconds that anything waits, however much is written."""


class Calm:
    """Whether something urgent is being written just now. `longest`: seconds."""

    def __init__(self, *, longest: float = LONGEST) -> None:
        self._longest, self._under_way = longest, 0
        self._came = asyncio.Event()
        self._came.set()

    @contextmanager
    def broken(self) -> Iterator[None]:
        """While something urgent is written."""
        self._under_way += 1
        self._came.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._came.set()

    async def wait(self) -> None:
        """Wait until nothing urgent is being written, or until this has lasted too long."""
        if self._came.is_set():
            return
        try:
            async with asyncio.timeout(self._longest):
                await self._came.wait()
        except TimeoutError:
            pass

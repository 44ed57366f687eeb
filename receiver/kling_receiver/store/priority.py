"""What is urgent first, callbacks above all: what may wait a moment begins while none of it is written."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

MAX_WAIT_SECONDS = 0.002
"""Seconds that anything waits, however much is written."""


class ForegroundGate:
    """Whether something urgent is being written just now. `longest`: seconds."""

    def __init__(self, *, max_wait: float = MAX_WAIT_SECONDS) -> None:
        self._max_wait, self._active = max_wait, 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def foreground(self) -> Iterator[None]:
        """While something urgent is written."""
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until nothing urgent is being written, or until this has lasted too long."""
        if self._idle.is_set():
            return
        try:
            async with asyncio.timeout(self._max_wait):
                await self._idle.wait()
        except TimeoutError:
            pass

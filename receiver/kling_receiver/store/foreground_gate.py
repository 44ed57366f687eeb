"""Priority of callbacks: background work waits while foreground writes are in flight, but never for long."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

MAX_WAIT_SECONDS = 0.002
"""Seconds. The longest wait of background work, so that a flood of callbacks cannot stop it."""


class ForegroundGate:
    """Let background work wait until no foreground write is in flight. `max_wait`: seconds."""

    def __init__(self, *, max_wait: float = MAX_WAIT_SECONDS) -> None:
        self._max_wait, self._active = max_wait, 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def foreground(self) -> Iterator[None]:
        """Count one foreground write as in flight until the block ends."""
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until no foreground write is in flight, at most `max_wait` seconds."""
        if self._idle.is_set():
            return
        try:
            async with asyncio.timeout(self._max_wait):
                await self._idle.wait()
        except TimeoutError:
            pass

"""Events to whoever waits: a commit wakes the waiters of its tasks, and each reads on from where it was."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager

from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import EventRow

HEARTBEAT = 15.0
"""Seconds after which a silent stream shows that it lives."""


MAX_STREAMS = 5_000
"""Streams at once. They have no end, and hold half of the connections at most: the others are for callbacks."""


class EventBus:
    """The waiters of one process, `most` of them at once. `heartbeat`: seconds."""

    def __init__(self, reader: Reader, *, heartbeat: float = HEARTBEAT, max_streams: int = MAX_STREAMS) -> None:
        self._reader, self._heartbeat, self.max_streams = reader, heartbeat, max_streams
        self._streams = 0
        self._waiters: dict[str | None, set[asyncio.Event]] = {}
        self.closed = False

    @property
    def is_full(self) -> bool:
        """Whether there are as many streams as there may be."""
        return self._streams >= self.max_streams

    def notify(self, task_ids: Collection[str] | None) -> None:
        """Something was committed for these tasks; None: perhaps for any."""
        if not (self._waiters and (task_ids is None or task_ids)):
            return
        for task in list(self._waiters) if task_ids is None else (*task_ids, None):
            for waiter in self._waiters.get(task, ()):
                waiter.set()

    def close(self) -> None:
        """End every stream; their clients come back to the next process."""
        self.closed = True
        self.notify(None)

    async def follow(self, task_id: str | None, after: int) -> AsyncIterator[list[EventRow]]:
        """Events with ids above `after`, in batches: what there is, then what comes; empty as a heartbeat.

        A task's stream ends once all of a task that is done was sent; the stream of all never does.
        """
        with self.subscribe(task_id) as woken, self._count_stream():
            while not self.closed:
                woken.clear()
                ends = task_id is not None and await self._is_done(task_id)
                while rows := await self._reader.events(after, task_id):
                    yield rows
                    after = rows[-1]["id"]
                if ends:
                    return
                try:
                    async with asyncio.timeout(self._heartbeat):
                        await woken.wait()
                except TimeoutError:
                    yield []

    async def _is_done(self, task_id: str) -> bool:
        row = await self._reader.task(task_id)
        return row is None or bool(row["done"])

    @contextmanager
    def _count_stream(self) -> Iterator[None]:
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    @contextmanager
    def subscribe(self, task_id: str | None) -> Iterator[asyncio.Event]:
        """Set whenever something was committed for this task (None: for any), or the feed is closed."""
        woken = asyncio.Event()
        self._waiters.setdefault(task_id, set()).add(woken)
        try:
            yield woken
        finally:
            self._waiters[task_id].discard(woken)
            if not self._waiters[task_id]:
                del self._waiters[task_id]

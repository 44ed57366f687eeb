"""Wake waiting streams after a commit; each stream then reads the event log from its own cursor."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager

from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import EventRow

HEARTBEAT_SECONDS = 15.0
"""Seconds without an event after which a stream sends a heartbeat."""
HOOKS = "\0hooks"
"""What waits for changes of hooks subscribes to this; no task has such an id."""
MAX_STREAMS = 5_000
"""Streams at once. Streams may never end; the other half of the connections stays free for callbacks."""


def work_of(task_id: str) -> str:
    """What to subscribe to for changes of a task's jobs and deliveries, which add no event. No id has a space."""
    return f"work of {task_id}"


class EventBus:
    """The waiting streams of one process, at most `max_streams` at once. `heartbeat`: seconds."""

    def __init__(self, reader: Reader, *, heartbeat: float = HEARTBEAT_SECONDS, max_streams: int = MAX_STREAMS) -> None:
        self._reader, self._heartbeat, self.max_streams = reader, heartbeat, max_streams
        self._streams = 0
        self._waiters: dict[str | None, set[asyncio.Event]] = {}
        self.closed = False

    @property
    def is_full(self) -> bool:
        """Whether `max_streams` is reached."""
        return self._streams >= self.max_streams

    def notify(self, task_ids: Collection[str] | None, worked_on: Collection[str] = ()) -> None:
        """Wake the streams of these tasks, which have new events; None: any task may have some.

        `worked_on`: the tasks whose jobs or deliveries changed, which only those see who subscribed to `work_of`.
        """
        if not self._waiters:
            return
        wanted: list[str | None] = [work_of(task_id) for task_id in worked_on]
        if task_ids is None:
            wanted = list(self._waiters)
        elif task_ids:
            wanted += [*task_ids, None]
        for key in wanted:
            for waiter in self._waiters.get(key, ()):
                waiter.set()

    def notify_hooks(self) -> None:
        """Wake what waits for changes of hooks, and nothing else: each attempt at a delivery is one."""
        for waiter in self._waiters.get(HOOKS, ()):
            waiter.set()

    def close(self) -> None:
        """End every stream. Clients reconnect, to the next process."""
        self.closed = True
        self.notify(None)

    async def follow(
        self, task_id: str | None, after: int, *, seconds_left: Callable[[], float] = lambda: math.inf
    ) -> AsyncIterator[list[EventRow]]:
        """Yield events with ids above `after` in batches: past events, then new ones; an empty batch is a heartbeat.

        A task's stream ends after the last event of a task that is done; that of all tasks (None) does not end. Each
        ends once `seconds_left`, read before each batch, is 0: for how long its reader is still authorized.
        """
        with self.subscribe(task_id) as woken, self.count_stream():
            while not self.closed and seconds_left():
                woken.clear()
                ends = task_id is not None and await self._is_done(task_id)
                while seconds_left() and (rows := await self._reader.events(after, task_id)):
                    yield rows
                    after = rows[-1]["id"]
                if ends:
                    return
                try:
                    async with asyncio.timeout(min(self._heartbeat, seconds_left())):
                        await woken.wait()
                except TimeoutError:
                    if seconds_left():
                        yield []

    async def wait_until(
        self,
        is_over: Callable[[], Awaitable[bool]],
        task_ids: Collection[str],
        *,
        seconds: float,
        heartbeat: float = math.inf,
        seconds_left: Callable[[], float] = lambda: math.inf,
    ) -> AsyncIterator[None]:
        """Wait for a change of these tasks that `is_over` sees, for at most `seconds`; yield every `heartbeat` seconds.

        Counted as one stream, and ended as those are. `is_over` is called once, and after each commit with events of
        these tasks: a heartbeat reads nothing.
        """
        ends_at = time.monotonic() + seconds
        with self.subscribe(*task_ids) as woken, self.count_stream():
            while not self.closed:
                woken.clear()
                if await is_over():
                    return
                while not woken.is_set():
                    left = min(ends_at - time.monotonic(), seconds_left())
                    if left <= 0:
                        return
                    try:
                        async with asyncio.timeout(min(heartbeat, left)):
                            await woken.wait()
                    except TimeoutError:
                        if heartbeat < left:
                            yield

    @property
    def heartbeat(self) -> float:
        """Seconds of silence after which a stream sends a heartbeat."""
        return self._heartbeat

    async def _is_done(self, task_id: str) -> bool:
        row = await self._reader.task(task_id)
        return row is None or bool(row["done"])

    @contextmanager
    def count_stream(self) -> Iterator[None]:
        """Count one more open stream until the block ends."""
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    @contextmanager
    def subscribe(self, *task_ids: str | None) -> Iterator[asyncio.Event]:
        """An event that is set after each commit with events of one of these tasks (None: of any), and by `close`.

        HOOKS among them: also after each commit that changes a hook.
        """
        woken = asyncio.Event()
        for task_id in task_ids:
            self._waiters.setdefault(task_id, set()).add(woken)
        try:
            yield woken
        finally:
            for task_id in set(task_ids):
                self._waiters[task_id].discard(woken)
                if not self._waiters[task_id]:
                    del self._waiters[task_id]

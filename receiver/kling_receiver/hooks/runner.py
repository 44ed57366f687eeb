"""One run of one hook along the event log: what it wants is sent in order, several at once, at the hook's pace.

It keeps nobody else waiting, however slow its hook is; of a hook that is dead it leaves the events in the log.
"""

import asyncio
import functools
from collections.abc import Set
from dataclasses import dataclass
from typing import TypeGuard

from sqlalchemy import Connection

from kling_receiver.events.bus import EventBus
from kling_receiver.hooks import deliveries
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.limiter import Slot
from kling_receiver.hooks.matching import matches, wants_type
from kling_receiver.hooks.sender import Sender
from kling_receiver.store.reader import Reader, TaskDetail, events_after, load_details
from kling_receiver.store.rows import EventRow, HookRow
from kling_receiver.store.writer import Writer

MAX_RUN_SECONDS = 240.0
"""Seconds; with the longest turn and attempt less than the worker gives a job."""
MAX_EVENTS = 5_000
"""Events that one run looks at; at its end the cursor is kept."""
BATCH_EVENTS = 200
MIN_READ_INTERVAL = 0.02
"""Seconds from one look at the log to the next."""
RECHECK_SECONDS = 1.0
"""Seconds after which a run looks at its hook anew: it may have been paused, or removed."""


@dataclass(frozen=True, slots=True)
class EventRange:
    """A part of the log that a hook is to hear of: the events after `after`, up to `until` (None: no end).

    `task`: whose events alone. `seen`: events that were tried already. `linger`: seconds to wait for more.
    """

    after: int
    until: int | None = None
    task_id: str | None = None
    attempted: Set[int] = frozenset()
    idle_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RunResult:
    """All up to `cursor` was tried. `whole`: no more was there. `wait`: seconds to leave the hook alone."""

    cursor: int
    complete: bool = False
    retry_in: float = 0.0


class HookRun:
    """One run of one hook along a stretch of the log."""

    def __init__(
        self,
        hook: HookRow,
        events: EventRange,
        *,
        sender: Sender,
        reader: Reader,
        writer: Writer,
        bus: EventBus,
        unrecorded: asyncio.Semaphore,
    ) -> None:
        self._hook, self._range, self._cursor = hook, events, events.after
        self._sender, self._reader, self._writer = sender, reader, writer
        self._bus = bus
        self._unrecorded, self._active = unrecorded, 0
        self._woken = asyncio.Event()
        self._started, self._end, self._checked_at, self._read_at = 0, 0.0, 0.0, 0.0
        self._urgent = hook["task_id"] is not None  # such a run ends with its record

    async def run(self, group: asyncio.TaskGroup) -> RunResult:
        """Begin an attempt at each event that the hook wants; `group` has those under way."""
        try:
            return await self._loop(group)
        finally:  # the next run waits for what is recorded of this one
            if self._active and not self._urgent:
                self._writer.flush_lazy()
            self._urgent = True

    async def _loop(self, group: asyncio.TaskGroup) -> RunResult:
        looked = 0
        self._end = asyncio.get_running_loop().time() + MAX_RUN_SECONDS
        with self._bus.subscribe(self._range.task_id) as self._woken:
            while looked < MAX_EVENTS and not self._out_of_time():
                await self._throttle()
                self._woken.clear()
                hook, events, full = await self._reader.read(self._read_batch)
                if not self._is_same_hook(hook):
                    break
                self._hook, self._checked_at = hook, asyncio.get_running_loop().time()
                if not events and not await self._wait_for_more():
                    return RunResult(self._cursor, complete=True)
                looked += len(events)
                if ended := await self._send_batch(group, events, full):
                    return ended
                if len(events) < BATCH_EVENTS and not self._range.idle_seconds:
                    return RunResult(self._cursor, complete=True)
        return RunResult(self._cursor)

    async def _send_batch(
        self, group: asyncio.TaskGroup, events: list[EventRow], full: dict[str, TaskDetail]
    ) -> RunResult | None:
        """Begin an attempt at each that is wanted; how the run ends, if it does."""
        for event in events:
            if self._out_of_time():
                return RunResult(self._cursor)
            wanted = self._is_wanted(event, full)
            if wanted and (ended := await self._start_attempt(group, event, full[event["task_id"]])):
                return ended
            self._cursor = event["id"]
        return None

    async def _wait_for_more(self) -> bool:
        """Whether to look again: something came, or the last attempt under way has ended meanwhile."""
        if not self._active:
            return await _woken_within(self._woken, self._range.idle_seconds)
        await _woken_within(self._woken, self._end - asyncio.get_running_loop().time())
        return True

    def _is_same_hook(self, hook: HookRow | None) -> TypeGuard[HookRow]:
        """Whether the hook is there still, not paused, and not another one of its name."""
        return bool(hook and not hook["paused_at"] and hook["created_at"] == self._hook["created_at"])

    async def _throttle(self) -> None:
        """Under load, let some commits gather before the next look; a look after a quiet time is at once."""
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(max(self._read_at + MIN_READ_INTERVAL - now, 0))
        self._read_at = asyncio.get_running_loop().time()

    def _out_of_time(self) -> bool:
        return self._bus.closed or asyncio.get_running_loop().time() >= self._end

    def _read_batch(self, connection: Connection) -> tuple[HookRow | None, list[EventRow], dict[str, TaskDetail]]:
        hook = hook_records.hook(connection, self._hook["name"])
        if hook is None:
            return None, [], {}
        task, until = self._range.task_id, self._range.until
        events = events_after(connection, self._cursor, task, limit=BATCH_EVENTS, until=until)
        tasks = {event["task_id"] for event in events if wants_type(hook, event)}
        return hook, events, load_details(connection, sorted(tasks))

    def _is_wanted(self, event: EventRow, full: dict[str, TaskDetail]) -> bool:
        if event["id"] in self._range.attempted or event["task_id"] not in full:
            return False
        return matches(self._hook, event, full[event["task_id"]])

    async def _start_attempt(self, group: asyncio.TaskGroup, event: EventRow, full: TaskDetail) -> RunResult | None:
        """Begin an attempt when it is its turn; else how the run ends. One attempt a run shows a hook dead."""
        await self._writer.foreground.wait_idle()
        try:
            turn = await self._sender.acquire_slot(self._hook)
        except TimeoutError:
            return RunResult(self._cursor)
        try:
            ended = await self._should_stop(turn)
            if ended is None:
                await self._unrecorded.acquire()
        except BaseException:
            turn.release()
            raise
        if ended:
            turn.release()
            return ended
        self._started += 1
        self._active += 1
        attempt = group.create_task(self._attempt(turn, event, full))
        attempt.add_done_callback(functools.partial(self._attempt_finished, turn))
        await asyncio.sleep(0)  # callbacks come in between
        return None

    async def _should_stop(self, turn: Slot) -> RunResult | None:
        """How the run ends, when the turn that it waited for is of no use."""
        if turn.limiter.retry_after or (turn.limiter.is_open and self._started):
            return RunResult(self._cursor, retry_in=turn.limiter.next_probe_delay())
        return None if await self._still_active() else RunResult(self._cursor)

    def _attempt_finished(self, turn: Slot, attempt: asyncio.Task[None]) -> None:
        """However it ended: one that was cancelled before its first step too."""
        turn.release()
        self._unrecorded.release()
        self._active -= 1
        if not self._active:
            self._woken.set()

    async def _still_active(self) -> bool:
        """Whether the hook is still there, and not paused."""
        now = asyncio.get_running_loop().time()
        if now - self._checked_at < RECHECK_SECONDS:
            return True
        name = self._hook["name"]
        hook = await self._reader.read(lambda connection: hook_records.hook(connection, name))
        if not self._is_same_hook(hook):
            return False
        self._hook, self._checked_at = hook, now
        return True

    async def _attempt(self, turn: Slot, event: EventRow, full: TaskDetail) -> None:
        attempt = await self._sender.attempt(turn, self._hook, event, full)
        await self._writer.run_batched(
            deliveries.record_attempts, attempt, urgent=self._urgent or not attempt.delivered
        )


async def _woken_within(woken: asyncio.Event, seconds: float) -> bool:
    """Whether something was committed within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            return await woken.wait()
    except TimeoutError:
        return woken.is_set()

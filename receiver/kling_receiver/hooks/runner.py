"""One run of one hook along the event log: matching events are sent in order, several at once, within its limits.

A slow hook delays only itself. While its circuit is open, its events stay in the log.
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
"""Seconds; with the longest wait for a slot and the longest attempt still less than the worker gives a job."""
MAX_EVENTS = 5_000
"""Events that one run reads; at its end the cursor is saved."""
BATCH_EVENTS = 200
MIN_READ_INTERVAL_SECONDS = 0.02
"""Seconds between two reads of the log."""
RECHECK_SECONDS = 1.0
"""Seconds after which a run reads its hook again, because it may have been paused or removed."""


@dataclass(frozen=True, slots=True)
class EventRange:
    """The part of the log that a run sends: the events after `after`, up to `until` (None: no end).

    `task_id`: of this task only. `attempted`: events to skip. `idle_seconds`: how long to wait for more events.
    """

    after: int
    until: int | None = None
    task_id: str | None = None
    attempted: Set[int] = frozenset()
    idle_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RunResult:
    """Every event up to `cursor` was attempted or did not match. `complete`: the range ended there.

    `retry_in`: seconds to wait before the next run, because the hook is backing off.
    """

    cursor: int
    complete: bool = False
    retry_in: float = 0.0


class HookRun:
    """One run of one hook along a range of the log."""

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
        self._latest: dict[str, asyncio.Task[None]] = {}
        """In Kling's format, the last attempt of each task."""

    async def run(self, group: asyncio.TaskGroup) -> RunResult:
        """Start an attempt at each matching event. The attempts run in `group`, which waits for them."""
        try:
            return await self._loop(group)
        finally:  # the hook's next run waits until this one's attempts are recorded
            if self._active and not self._urgent:
                self._writer.flush_lazy()
            self._urgent = True

    async def _loop(self, group: asyncio.TaskGroup) -> RunResult:
        read = 0
        self._end = asyncio.get_running_loop().time() + MAX_RUN_SECONDS
        with self._bus.subscribe(self._range.task_id) as self._woken:
            while read < MAX_EVENTS and not self._out_of_time():
                await self._throttle()
                self._woken.clear()
                hook, events, details = await self._reader.read(self._read_batch)
                if not self._is_same_hook(hook):
                    break
                self._hook, self._checked_at = hook, asyncio.get_running_loop().time()
                if not events and not await self._wait_for_more():
                    return RunResult(self._cursor, complete=True)
                read += len(events)
                if result := await self._send_batch(group, events, details):
                    return result
                if len(events) < BATCH_EVENTS and not self._range.idle_seconds:
                    return RunResult(self._cursor, complete=True)
        return RunResult(self._cursor)

    async def _send_batch(
        self, group: asyncio.TaskGroup, events: list[EventRow], details: dict[str, TaskDetail]
    ) -> RunResult | None:
        """Start an attempt at each matching event. Returns the run's result when the run must end."""
        for event in events:
            if self._out_of_time():
                return RunResult(self._cursor)
            send = self._should_send(event, details)
            if send and (result := await self._start_attempt(group, event, details[event["task_id"]])):
                return result
            self._cursor = event["id"]
        return None

    async def _wait_for_more(self) -> bool:
        """Wait for a commit, or for the end of the last running attempt. Returns whether to read the log again."""
        if not self._active:
            return await _woken_within(self._woken, self._range.idle_seconds)
        await _woken_within(self._woken, self._end - asyncio.get_running_loop().time())
        return True

    def _is_same_hook(self, hook: HookRow | None) -> TypeGuard[HookRow]:
        """Whether the hook still exists and is not paused. Another hook may have its name meanwhile."""
        return bool(hook and not hook["paused_at"] and hook["created_at"] == self._hook["created_at"])

    async def _throttle(self) -> None:
        """Under load, let several commits gather before the next read; after an idle time, read at once."""
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(max(self._read_at + MIN_READ_INTERVAL_SECONDS - now, 0))
        self._read_at = asyncio.get_running_loop().time()

    def _out_of_time(self) -> bool:
        return self._bus.closed or asyncio.get_running_loop().time() >= self._end

    def _read_batch(self, connection: Connection) -> tuple[HookRow | None, list[EventRow], dict[str, TaskDetail]]:
        hook = hook_records.hook(connection, self._hook["name"])
        if hook is None:
            return None, [], {}
        task_id, until = self._range.task_id, self._range.until
        events = events_after(connection, self._cursor, task_id, limit=BATCH_EVENTS, until=until)
        task_ids = {event["task_id"] for event in events if wants_type(hook, event)}
        return hook, events, load_details(connection, sorted(task_ids))

    def _should_send(self, event: EventRow, details: dict[str, TaskDetail]) -> bool:
        if event["id"] in self._range.attempted or event["task_id"] not in details:
            return False
        return matches(self._hook, event, details[event["task_id"]])

    async def _start_attempt(self, group: asyncio.TaskGroup, event: EventRow, detail: TaskDetail) -> RunResult | None:
        """Start an attempt once there is a slot. Returns the run's result when the run must end instead."""
        await self._writer.foreground.wait_idle()
        try:
            slot = await self._sender.acquire_slot(self._hook)
        except TimeoutError:
            return RunResult(self._cursor)
        try:
            result = await self._should_stop(slot)
            if result is None:
                await self._unrecorded.acquire()
        except BaseException:
            slot.release()
            raise
        if result:
            slot.release()
            return result
        self._started += 1
        self._active += 1
        attempt = group.create_task(self._attempt(slot, event, detail, self._latest.get(event["task_id"])))
        if self._hook["format"] == "kling":  # its handlers may keep the last status that arrives
            self._latest[event["task_id"]] = attempt
        attempt.add_done_callback(functools.partial(self._attempt_finished, slot))
        await asyncio.sleep(0)  # let the event loop handle callbacks between two attempts
        return None

    async def _should_stop(self, slot: Slot) -> RunResult | None:
        """The run's result if the slot must not be used. While the circuit is open, a run makes one attempt."""
        if slot.limiter.retry_after or (slot.limiter.is_open and self._started):
            return RunResult(self._cursor, retry_in=slot.limiter.next_probe_delay())
        return None if await self._still_active() else RunResult(self._cursor)

    def _attempt_finished(self, slot: Slot, attempt: asyncio.Task[None]) -> None:
        """Release what an attempt holds, also one that was cancelled before its first step."""
        slot.release()
        self._unrecorded.release()
        self._active -= 1
        if not self._active:
            self._woken.set()

    async def _still_active(self) -> bool:
        """Whether the hook still exists and is not paused; read at most once per RECHECK_SECONDS."""
        now = asyncio.get_running_loop().time()
        if now - self._checked_at < RECHECK_SECONDS:
            return True
        name = self._hook["name"]
        hook = await self._reader.read(lambda connection: hook_records.hook(connection, name))
        if not self._is_same_hook(hook):
            return False
        self._hook, self._checked_at = hook, now
        return True

    async def _attempt(
        self, slot: Slot, event: EventRow, detail: TaskDetail, earlier: asyncio.Task[None] | None
    ) -> None:
        """Make an attempt, after an earlier one has ended."""
        if earlier:
            await asyncio.wait([earlier])
        attempt = await self._sender.attempt(slot, self._hook, event, detail)
        lazy = attempt.delivered and not self._urgent
        await self._writer.run_batched(deliveries.record_attempts, attempt, lazy=lazy)


async def _woken_within(woken: asyncio.Event, seconds: float) -> bool:
    """Whether the event was set within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            return await woken.wait()
    except TimeoutError:
        return woken.is_set()

"""One run of one hook along the event log: what it wants is sent in order, several at once, at the hook's pace.

It keeps nobody else waiting, however slow its hook is; of a hook that is dead it leaves the events in the log.
"""

import asyncio
import functools
from collections.abc import Set
from dataclasses import dataclass
from typing import TypeGuard

from sqlalchemy import Connection

from kling_receiver.events.bus import Feed
from kling_receiver.hooks import deliveries
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.limiter import Turn
from kling_receiver.hooks.matching import may_want, wants
from kling_receiver.hooks.sender import Sender
from kling_receiver.store.reader import Full, Reader, events_after, full_tasks
from kling_receiver.store.sql import Row
from kling_receiver.store.writer import Writer

LONGEST_RUN = 240.0
"""Seconds; with the longest turn and attempt less than the worker gives a job."""
MOST_EVENTS = 5_000
"""Events that one run looks at; at its end the cursor is kept."""
BATCH = 200
REST = 0.02
"""Seconds from one look at the log to the next."""
FRESH = 1.0
"""Seconds after which a run looks at its hook anew: it may have been paused, or removed."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the log that a hook is to hear of: the events after `after`, up to `until` (None: no end).

    `task`: whose events alone. `seen`: events that were tried already. `linger`: seconds to wait for more.
    """

    after: int
    until: int | None = None
    task: str | None = None
    seen: Set[int] = frozenset()
    linger: float = 0.0


@dataclass(frozen=True, slots=True)
class Ran:
    """All up to `cursor` was tried. `whole`: no more was there. `wait`: seconds to leave the hook alone."""

    cursor: int
    whole: bool = False
    wait: float = 0.0


class Run:
    """One run of one hook along a stretch of the log."""

    def __init__(
        self,
        hook: Row,
        stretch: Stretch,
        *,
        sender: Sender,
        reader: Reader,
        writer: Writer,
        feed: Feed,
        unrecorded: asyncio.Semaphore,
    ) -> None:
        self._hook, self._stretch, self._cursor = hook, stretch, stretch.after
        self._sender, self._reader, self._writer = sender, reader, writer
        self._feed = feed
        self._unrecorded, self._under_way = unrecorded, 0
        self._woken = asyncio.Event()
        self._tried, self._end, self._looked, self._rested = 0, 0.0, 0.0, 0.0
        self._hurries = hook["task"] is not None  # such a run ends with its record

    async def go(self, group: asyncio.TaskGroup) -> Ran:
        """Begin an attempt at each event that the hook wants; `group` has those under way."""
        try:
            return await self._along(group)
        finally:  # the next run waits for what is recorded of this one
            if self._under_way and not self._hurries:
                self._writer.hurry()
            self._hurries = True

    async def _along(self, group: asyncio.TaskGroup) -> Ran:
        looked = 0
        self._end = asyncio.get_running_loop().time() + LONGEST_RUN
        with self._feed.waiting(self._stretch.task) as self._woken:
            while looked < MOST_EVENTS and not self._is_over():
                await self._rest()
                self._woken.clear()
                hook, events, full = await self._reader.read(self._look)
                if not self._is_the_same(hook):
                    break
                self._hook, self._looked = hook, asyncio.get_running_loop().time()
                if not events and not await self._more():
                    return Ran(self._cursor, whole=True)
                looked += len(events)
                if ended := await self._try(group, events, full):
                    return ended
                if len(events) < BATCH and not self._stretch.linger:
                    return Ran(self._cursor, whole=True)
        return Ran(self._cursor)

    async def _try(self, group: asyncio.TaskGroup, events: list[Row], full: dict[str, Full]) -> Ran | None:
        """Begin an attempt at each that is wanted; how the run ends, if it does."""
        for event in events:
            if self._is_over():
                return Ran(self._cursor)
            wanted = self._is_wanted(event, full)
            if wanted and (ended := await self._begin(group, event, full[event["task"]])):
                return ended
            self._cursor = event["id"]
        return None

    async def _more(self) -> bool:
        """Whether to look again: something came, or the last attempt under way has ended meanwhile."""
        if not self._under_way:
            return await _came(self._woken, self._stretch.linger)
        await _came(self._woken, self._end - asyncio.get_running_loop().time())
        return True

    def _is_the_same(self, hook: Row | None) -> TypeGuard[Row]:
        """Whether the hook is there still, not paused, and not another one of its name."""
        return bool(hook and not hook["paused_at"] and hook["created_at"] == self._hook["created_at"])

    async def _rest(self) -> None:
        """Under load, let some commits gather before the next look; a look after a quiet time is at once."""
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(max(self._rested + REST - now, 0))
        self._rested = asyncio.get_running_loop().time()

    def _is_over(self) -> bool:
        return self._feed.closed or asyncio.get_running_loop().time() >= self._end

    def _look(self, connection: Connection) -> tuple[Row | None, list[Row], dict[str, Full]]:
        hook = hook_records.hook(connection, self._hook["name"])
        if hook is None:
            return None, [], {}
        task, until = self._stretch.task, self._stretch.until
        events = events_after(connection, self._cursor, task, limit=BATCH, until=until)
        tasks = {event["task"] for event in events if may_want(hook, event)}
        return hook, events, full_tasks(connection, sorted(tasks))

    def _is_wanted(self, event: Row, full: dict[str, Full]) -> bool:
        if event["id"] in self._stretch.seen or event["task"] not in full:
            return False
        return wants(self._hook, event, full[event["task"]])

    async def _begin(self, group: asyncio.TaskGroup, event: Row, full: Full) -> Ran | None:
        """Begin an attempt when it is its turn; else how the run ends. One attempt a run shows a hook dead."""
        await self._writer.calm.wait()
        try:
            turn = await self._sender.turn(self._hook)
        except TimeoutError:
            return Ran(self._cursor)
        try:
            ended = await self._ended(turn)
            if ended is None:
                await self._unrecorded.acquire()
        except BaseException:
            turn.leave()
            raise
        if ended:
            turn.leave()
            return ended
        self._tried += 1
        self._under_way += 1
        attempt = group.create_task(self._attempt(turn, event, full))
        attempt.add_done_callback(functools.partial(self._is_over_with, turn))
        await asyncio.sleep(0)  # callbacks come in between
        return None

    async def _ended(self, turn: Turn) -> Ran | None:
        """How the run ends, when the turn that it waited for is of no use."""
        if turn.pace.held or (turn.pace.is_dead and self._tried):
            return Ran(self._cursor, wait=turn.pace.put_off())
        return None if await self._goes_on() else Ran(self._cursor)

    def _is_over_with(self, turn: Turn, attempt: asyncio.Task[None]) -> None:
        """However it ended: one that was cancelled before its first step too."""
        turn.leave()
        self._unrecorded.release()
        self._under_way -= 1
        if not self._under_way:
            self._woken.set()

    async def _goes_on(self) -> bool:
        """Whether the hook is still there, and not paused."""
        now = asyncio.get_running_loop().time()
        if now - self._looked < FRESH:
            return True
        name = self._hook["name"]
        hook = await self._reader.read(lambda connection: hook_records.hook(connection, name))
        if not self._is_the_same(hook):
            return False
        self._hook, self._looked = hook, now
        return True

    async def _attempt(self, turn: Turn, event: Row, full: Full) -> None:
        attempt = await self._sender.attempt(turn, self._hook, event, full)
        await self._writer.share(deliveries.record, attempt, urgent=self._hurries or not attempt.taken)


async def _came(woken: asyncio.Event, linger: float) -> bool:
    """Whether something was committed within so many seconds."""
    try:
        async with asyncio.timeout(linger):
            return await woken.wait()
    except TimeoutError:
        return woken.is_set()

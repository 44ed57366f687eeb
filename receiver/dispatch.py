"""Brings events to hooks: runs along the event log, one for each hook, and tries again what was not taken.

A run begins when events were committed, and ends when no more came for a while. It keeps nobody else waiting,
however slow its hook is; of a hook that is dead it leaves the events in the log, and tries one now and then.
"""

import asyncio
import functools
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, TypeGuard

from sqlalchemy import Connection

from receiver import deliveries, hook_rows
from receiver.calm import Calm
from receiver.database import Unavailable
from receiver.deliveries import Attempt
from receiver.feed import Feed
from receiver.hooks import may_want, wants
from receiver.outbox import FAR, Claimed, Done, GiveUp, Outcome, RetryAt, Verdict, verdict
from receiver.pace import Turn
from receiver.reading import Full, Reader, events_after, full_tasks
from receiver.sender import Sender
from receiver.transaction import Row, Transaction
from receiver.writer import Writer

LINGER = 2.0
"""Seconds that a run waits for more events: the first event of a new run waits for a claim, a few ms."""
LONGEST_RUN = 240.0
LONGEST_TURN = 60.0
"""Seconds; with the longest attempt less than the worker gives a job."""
MOST_EVENTS = 5_000
"""Events that one run looks at; at its end the cursor is kept."""
BATCH = 200
REST = 0.02
"""Seconds from one look at the log to the next."""
FRESH = 1.0
"""Seconds after which a run looks at its hook anew: it may have been paused, or removed."""
UNRECORDED = 1_000
"""Attempts of all runs that may wait for their record: the writer has room for callbacks besides."""


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


class Dispatcher:
    """The handlers of `dispatch`, `replay` and `hook`."""

    def __init__(self, sender: Sender, *, reader: Reader, writer: Writer, feed: Feed, calm: Calm) -> None:
        self._sender, self._reader, self._writer = sender, reader, writer
        self._feed, self._calm = feed, calm
        self._unrecorded = asyncio.Semaphore(UNRECORDED)

    async def dispatch(self, job: Claimed) -> Verdict:
        """The handler of `dispatch`: all since the hook's cursor."""
        name = job.key.removeprefix("dispatch/")
        hook = await self._hook(name)
        if hook is None or hook["paused_at"]:
            return functools.partial(_dispatched, name=name, ran=NOT_RUN)
        seen = await self._reader.read(lambda connection: deliveries.tried(connection, name, hook["cursor"]))
        linger = 0 if hook["task"] else LINGER
        ran = await self._run(hook, Stretch(hook["cursor"], task=hook["task"], seen=seen, linger=linger))
        if hook["task"]:
            await self._sender.forget(name)
        return functools.partial(_dispatched, name=name, ran=ran)

    async def replay(self, job: Claimed) -> Verdict:
        """The handler of `replay`: a part of the log once more."""
        hook = await self._hook(job.data["hook"])
        if hook is None:
            return verdict(Done())
        if hook["paused_at"]:
            return functools.partial(_kept, name=hook["name"])
        ran = await self._run(hook, Stretch(*[job.data[key] for key in ("after", "until", "task")]))
        return functools.partial(_replayed, job=job, ran=ran)

    async def retry(self, job: Claimed) -> Verdict:
        """The handler of `hook`: one delivery once more."""
        hook, event = await self._hook(job.data["hook"]), await self._reader.event(int(job.data["event"]))
        if hook is None or event is None:
            return verdict(Done())
        if hook["paused_at"]:
            return functools.partial(_kept, name=hook["name"])
        full = (await self._reader.full([event["task"]])).get(event["task"])
        if full is None:
            return verdict(Done())
        try:
            async with asyncio.timeout(LONGEST_TURN):
                turn = await self._sender.turn(hook)
        except TimeoutError:  # it is dead or slow, and others are before us
            return _not_its_turn
        if wait := turn.pace.held:
            turn.leave()
            return functools.partial(_held, wait=wait)
        attempt = await self._sender.attempt(turn, hook, event, full, count=job.attempts)
        if hook["task"]:
            await self._sender.forget(hook["name"])
        return functools.partial(_tried_again, attempt=attempt)

    async def _hook(self, name: str) -> Row | None:
        return await self._reader.read(lambda connection: hook_rows.hook(connection, name))

    async def _run(self, hook: Row, stretch: Stretch) -> Ran:
        tools: Any = {"reader": self._reader, "writer": self._writer, "feed": self._feed, "calm": self._calm}
        run = Run(hook, stretch, sender=self._sender, unrecorded=self._unrecorded, **tools)
        try:
            async with asyncio.TaskGroup() as group:
                return await run.go(group)
        except* Unavailable as errors:
            raise Unavailable(str(errors.exceptions[0])) from errors


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
        calm: Calm,
        unrecorded: asyncio.Semaphore,
    ) -> None:
        self._hook, self._stretch, self._cursor = hook, stretch, stretch.after
        self._sender, self._reader, self._writer = sender, reader, writer
        self._feed, self._calm = feed, calm
        self._unrecorded, self._under_way = unrecorded, 0
        self._woken = asyncio.Event()
        self._tried, self._end, self._looked, self._rested = 0, 0.0, 0.0, 0.0

    async def go(self, group: asyncio.TaskGroup) -> Ran:
        """Begin an attempt at each event that the hook wants; `group` has those under way."""
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
        hook = hook_rows.hook(connection, self._hook["name"])
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
        await self._calm.wait()
        try:
            async with asyncio.timeout(LONGEST_TURN):
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
        hook = await self._reader.read(lambda connection: hook_rows.hook(connection, name))
        if not self._is_the_same(hook):
            return False
        self._hook, self._looked = hook, now
        return True

    async def _attempt(self, turn: Turn, event: Row, full: Full) -> None:
        attempt = await self._sender.attempt(turn, self._hook, event, full)
        hurry = not attempt.taken or self._hook["task"] is not None  # such a run ends with its record
        await self._writer.share(deliveries.record, attempt, urgent=hurry)


async def _came(woken: asyncio.Event, linger: float) -> bool:
    """Whether something was committed within so many seconds."""
    try:
        async with asyncio.timeout(linger):
            return await woken.wait()
    except TimeoutError:
        return woken.is_set()


LEFT_ALONE = "It takes nothing just now."
NOT_RUN = Ran(0)


def _dispatched(tx: Transaction, name: str, ran: Ran) -> Outcome:
    if not deliveries.advance(tx, name, ran.cursor):
        return Done()
    return RetryAt(tx.now + int(ran.wait * 1000), LEFT_ALONE if ran.wait else "", counts=False)


def _replayed(tx: Transaction, job: Claimed, ran: Ran) -> Outcome:
    if ran.whole:
        return Done()
    due = tx.now + int(ran.wait * 1000)
    return RetryAt(due, LEFT_ALONE, data={**job.data, "after": ran.cursor}, counts=False)


def _kept(tx: Transaction, name: str) -> Outcome:
    """A paused hook keeps what it is owed; one that was resumed while we looked does not."""
    hook = hook_rows.hook(tx.connection, name)
    due = FAR if hook and hook["paused_at"] else tx.now
    return RetryAt(due, "The hook is paused.", counts=False)


def _held(tx: Transaction, wait: float) -> Outcome:
    return RetryAt(tx.now + int(wait * 1000), "The hook asked for a rest.", counts=False)


def _not_its_turn(tx: Transaction) -> Outcome:
    return RetryAt(tx.now + int(LONGEST_TURN * 1000), "Others of this hook are before it.", counts=False)


def _tried_again(tx: Transaction, attempt: Attempt) -> Outcome:
    deliveries.keep(tx, [attempt])
    if attempt.taken or hook_rows.hook(tx.connection, attempt.hook["name"]) is None:
        return Done()
    return GiveUp(attempt.error) if attempt.due_at is None else RetryAt(attempt.due_at, attempt.error)

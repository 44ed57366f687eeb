"""Brings events to hooks: runs along the event log, one for each hook, and tries again what was not taken.

A run begins when events were committed, and ends when no more came for a while.
"""

import asyncio
import functools

from sqlalchemy import Connection

from kling_receiver.events.bus import Feed
from kling_receiver.hooks import deliveries
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.deliveries import Attempt
from kling_receiver.hooks.limiter import LONGEST_TURN
from kling_receiver.hooks.runner import Ran, Run, Stretch
from kling_receiver.hooks.sender import Sender
from kling_receiver.jobs.queue import FAR, Claimed, Done, GiveUp, Outcome, RetryAt, Verdict, verdict
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.reader import Reader
from kling_receiver.store.sql import Row
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer

LINGER = 2.0
"""Seconds that a run waits for more events: the first event of a new run waits for a claim, a few ms."""
UNRECORDED = 1_000
"""Attempts of all runs that may wait for their record: the writer has room for callbacks besides."""


class Dispatcher:
    """The handlers of `dispatch`, `replay` and `hook`."""

    def __init__(self, sender: Sender, *, reader: Reader, writer: Writer, feed: Feed) -> None:
        self._sender, self._reader, self._writer = sender, reader, writer
        self._feed = feed
        self._unrecorded = asyncio.Semaphore(UNRECORDED)

    async def dispatch(self, job: Claimed) -> Verdict:
        """The handler of `dispatch`: all since the hook's cursor."""
        name = job.key.removeprefix("dispatch/")
        hook, seen = await self._reader.read(functools.partial(_begun, name=name))
        if hook is None or hook["paused_at"]:
            return functools.partial(_dispatched, name=name, ran=NOT_RUN)
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
        return await self._reader.read(lambda connection: hook_records.hook(connection, name))

    async def _run(self, hook: Row, stretch: Stretch) -> Ran:
        run = Run(
            hook,
            stretch,
            sender=self._sender,
            reader=self._reader,
            writer=self._writer,
            feed=self._feed,
            unrecorded=self._unrecorded,
        )
        try:
            async with asyncio.TaskGroup() as group:
                return await run.go(group)
        except* Unavailable as errors:
            raise Unavailable(str(errors.exceptions[0])) from errors


def _begun(connection: Connection, name: str) -> tuple[Row | None, set[int]]:
    """A hook, and the events after its cursor that were tried already."""
    hook = hook_records.hook(connection, name)
    return hook, deliveries.tried(connection, name, hook["cursor"]) if hook else set()


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
    hook = hook_records.hook(tx.connection, name)
    due = FAR if hook and hook["paused_at"] else tx.now
    return RetryAt(due, "The hook is paused.", counts=False)


def _held(tx: Transaction, wait: float) -> Outcome:
    return RetryAt(tx.now + int(wait * 1000), "The hook asked for a rest.", counts=False)


def _not_its_turn(tx: Transaction) -> Outcome:
    return RetryAt(tx.now + int(LONGEST_TURN * 1000), "Others of this hook are before it.", counts=False)


def _tried_again(tx: Transaction, attempt: Attempt) -> Outcome:
    deliveries.keep(tx, [attempt])
    if attempt.taken or hook_records.hook(tx.connection, attempt.hook["name"]) is None:
        return Done()
    return GiveUp(attempt.error) if attempt.due_at is None else RetryAt(attempt.due_at, attempt.error)

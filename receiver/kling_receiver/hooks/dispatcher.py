"""Brings events to hooks: runs along the event log, one for each hook, and tries again what was not taken.

A run begins when events were committed, and ends when no more came for a while.
"""

import asyncio
import functools

from sqlalchemy import Connection

from kling_receiver.events.bus import EventBus
from kling_receiver.hooks import deliveries
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.deliveries import DeliveryAttempt
from kling_receiver.hooks.limiter import SLOT_TIMEOUT_SECONDS
from kling_receiver.hooks.runner import EventRange, HookRun, RunResult
from kling_receiver.hooks.sender import Sender
from kling_receiver.jobs.kinds import Kind
from kling_receiver.jobs.queue import NEVER, ClaimedJob, Done, GiveUp, Outcome, RetryAt, Settle, settle_as
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import HookRow
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer

IDLE_SECONDS = 2.0
"""Seconds that a run waits for more events: the first event of a new run waits for a claim, a few ms."""
MAX_UNRECORDED = 1_000
"""Attempts of all runs that may wait for their record: the writer has room for callbacks besides."""


class Dispatcher:
    """The handlers of `dispatch`, `replay` and `hook`."""

    def __init__(self, sender: Sender, *, reader: Reader, writer: Writer, bus: EventBus) -> None:
        self._sender, self._reader, self._writer = sender, reader, writer
        self._bus = bus
        self._unrecorded = asyncio.Semaphore(MAX_UNRECORDED)

    async def dispatch(self, job: ClaimedJob) -> Settle:
        """The handler of `dispatch`: all since the hook's cursor."""
        name = job.unique_key.removeprefix(f"{Kind.DISPATCH}/")
        hook, seen = await self._reader.read(functools.partial(_load_hook, name=name))
        if hook is None or hook["paused_at"]:
            return functools.partial(_settle_dispatch, name=name, result=NOT_RUN)
        linger = 0 if hook["task_id"] else IDLE_SECONDS
        ran = await self._run(
            hook, EventRange(hook["cursor"], task_id=hook["task_id"], attempted=seen, idle_seconds=linger)
        )
        if hook["task_id"]:
            await self._sender.close_hook(name)
        return functools.partial(_settle_dispatch, name=name, result=ran)

    async def replay(self, job: ClaimedJob) -> Settle:
        """The handler of `replay`: a part of the log once more."""
        hook = await self._hook(job.args["hook"])
        if hook is None:
            return settle_as(Done())
        if hook["paused_at"]:
            return functools.partial(_hook_paused, name=hook["name"])
        ran = await self._run(hook, EventRange(*[job.args[key] for key in ("after", "until", "task")]))
        return functools.partial(_settle_replay, job=job, result=ran)

    async def retry(self, job: ClaimedJob) -> Settle:
        """The handler of `hook`: one delivery once more."""
        hook, event = await self._hook(job.args["hook"]), await self._reader.event(int(job.args["event"]))
        if hook is None or event is None:
            return settle_as(Done())
        if hook["paused_at"]:
            return functools.partial(_hook_paused, name=hook["name"])
        full = (await self._reader.details([event["task_id"]])).get(event["task_id"])
        if full is None:
            return settle_as(Done())
        try:
            turn = await self._sender.acquire_slot(hook)
        except TimeoutError:  # it is dead or slow, and others are before us
            return _no_slot
        if wait := turn.limiter.retry_after:
            turn.release()
            return functools.partial(_hook_retry_after, wait=wait)
        attempt = await self._sender.attempt(turn, hook, event, full, count=job.attempts)
        if hook["task_id"]:
            await self._sender.close_hook(hook["name"])
        return functools.partial(_settle_retry, attempt=attempt)

    async def _hook(self, name: str) -> HookRow | None:
        return await self._reader.read(lambda connection: hook_records.hook(connection, name))

    async def _run(self, hook: HookRow, events: EventRange) -> RunResult:
        run = HookRun(
            hook,
            events,
            sender=self._sender,
            reader=self._reader,
            writer=self._writer,
            bus=self._bus,
            unrecorded=self._unrecorded,
        )
        try:
            async with asyncio.TaskGroup() as group:
                return await run.run(group)
        except* Unavailable as errors:
            raise Unavailable(str(errors.exceptions[0])) from errors


def _load_hook(connection: Connection, name: str) -> tuple[HookRow | None, set[int]]:
    """A hook, and the events after its cursor that were tried already."""
    hook = hook_records.hook(connection, name)
    return hook, deliveries.attempted_events(connection, name, hook["cursor"]) if hook else set()


BACKING_OFF = "It takes nothing just now."
NOT_RUN = RunResult(0)


def _settle_dispatch(tx: Transaction, name: str, result: RunResult) -> Outcome:
    if not deliveries.advance_cursor(tx, name, result.cursor):
        return Done()
    return RetryAt(tx.now + int(result.retry_in * 1000), BACKING_OFF if result.retry_in else "", counts=False)


def _settle_replay(tx: Transaction, job: ClaimedJob, result: RunResult) -> Outcome:
    if result.complete:
        return Done()
    due = tx.now + int(result.retry_in * 1000)
    return RetryAt(due, BACKING_OFF, args={**job.args, "after": result.cursor}, counts=False)


def _hook_paused(tx: Transaction, name: str) -> Outcome:
    """A paused hook keeps what it is owed; one that was resumed while we looked does not."""
    hook = hook_records.hook(tx.connection, name)
    due = NEVER if hook and hook["paused_at"] else tx.now
    return RetryAt(due, "The hook is paused.", counts=False)


def _hook_retry_after(tx: Transaction, wait: float) -> Outcome:
    return RetryAt(tx.now + int(wait * 1000), "The hook asked for a rest.", counts=False)


def _no_slot(tx: Transaction) -> Outcome:
    return RetryAt(tx.now + int(SLOT_TIMEOUT_SECONDS * 1000), "Others of this hook are before it.", counts=False)


def _settle_retry(tx: Transaction, attempt: DeliveryAttempt) -> Outcome:
    deliveries.save_attempts(tx, [attempt])
    if attempt.delivered or hook_records.hook(tx.connection, attempt.hook["name"]) is None:
        return Done()
    return GiveUp(attempt.error) if attempt.retry_at is None else RetryAt(attempt.retry_at, attempt.error)

"""Job handlers of hooks: dispatch the events behind a hook's cursor, replay past events, retry one delivery."""

import asyncio
import functools

from sqlalchemy import Connection

from kling_receiver.events.bus import EventBus
from kling_receiver.hooks import deliveries
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.limiter import SLOT_TIMEOUT_SECONDS
from kling_receiver.hooks.runner import EventRange, HookRun, RunResult
from kling_receiver.hooks.sender import Sender
from kling_receiver.jobs.kinds import Kind
from kling_receiver.jobs.queue import NEVER, ClaimedJob, Done, Effect, GiveUp, Outcome, RetryAt, settle_as
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import HookRow
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer

IDLE_SECONDS = 2.0
"""Seconds that a run waits for more events before it ends: the first event of a new run waits some ms for a claim."""
MAX_UNRECORDED = 1_000
"""Attempts of all runs whose record is not committed yet; the rest of the writer's queue is for callbacks."""
BACKING_OFF = "The hook is backing off."


class Dispatcher:
    """The handlers of `dispatch`, `replay` and `delivery`. `idle_seconds`: how long a run waits for more events."""

    def __init__(
        self,
        sender: Sender,
        *,
        reader: Reader,
        writer: Writer,
        bus: EventBus,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._sender, self._reader, self._writer = sender, reader, writer
        self._bus, self._idle_seconds = bus, idle_seconds
        self._unrecorded = asyncio.Semaphore(MAX_UNRECORDED)

    async def dispatch(self, job: ClaimedJob) -> Effect:
        """Send the events behind a hook's cursor, then those that are committed meanwhile."""
        name = job.unique_key.removeprefix(f"{Kind.DISPATCH}/")
        hook, attempted = await self._reader.read(functools.partial(_load_hook, name=name))
        result = RunResult(0)
        if hook and not hook["paused_at"]:
            idle_seconds = 0 if hook["task_id"] else self._idle_seconds
            events = EventRange(hook["cursor"], task_id=hook["task_id"], attempted=attempted, idle_seconds=idle_seconds)
            result = await self._run(hook, events)
            if hook["task_id"]:
                await self._sender.close_hook(name)

        def settle(tx: Transaction) -> Outcome:
            if hook:
                hook_records.pause_unreadable(tx, hook)
            if not deliveries.advance_cursor(tx, name, result.cursor):
                return Done()
            error = BACKING_OFF if result.retry_in else ""
            return RetryAt(tx.now + int(result.retry_in * 1000), error, counts=False)

        return settle

    async def replay(self, job: ClaimedJob) -> Effect:
        """Send a range of the event log to a hook again."""
        hook = await self._hook(job.args["hook"])
        if hook is None:
            return settle_as(Done())
        if hook["paused_at"]:
            return _retry_once_resumed(hook["name"])
        result = await self._run(hook, EventRange(*[job.args[key] for key in ("after", "until", "task")]))

        def settle(tx: Transaction) -> Outcome:
            if result.complete:
                return Done()
            rest = {**job.args, "after": result.cursor}
            return RetryAt(tx.now + int(result.retry_in * 1000), BACKING_OFF, args=rest, counts=False)

        return settle

    async def retry(self, job: ClaimedJob) -> Effect:
        """Make the next attempt at one delivery."""
        hook, event = await self._hook(job.args["hook"]), await self._reader.event(int(job.args["event"]))
        if hook is None or event is None:
            return settle_as(Done())
        if hook["paused_at"]:
            return _retry_once_resumed(hook["name"])
        detail = (await self._reader.details([event["task_id"]])).get(event["task_id"])
        if detail is None:
            return settle_as(Done())
        try:
            slot = await self._sender.acquire_slot(hook)
        except TimeoutError:  # the hook is dead or slow, and other attempts wait before this one
            return _retry_in(SLOT_TIMEOUT_SECONDS, "The hook had no free slot.")
        if wait := slot.limiter.retry_after:
            slot.release()
            return _retry_in(wait, "The hook answered with Retry-After.")
        attempt = await self._sender.attempt(slot, hook, event, detail, count=job.attempts, late=True)
        if hook["task_id"]:
            await self._sender.close_hook(hook["name"])

        def settle(tx: Transaction) -> Outcome:
            deliveries.save_attempts(tx, [attempt])
            if attempt.delivered or hook_records.hook(tx.connection, hook["name"]) is None:
                return Done()
            if attempt.retry_in_ms is None:
                return GiveUp(attempt.error)
            return RetryAt(tx.now + attempt.retry_in_ms, attempt.error)

        return settle

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
    """A hook, and the events behind its cursor that were attempted already."""
    hook = hook_records.hook(connection, name)
    return hook, deliveries.attempted_events(connection, name, hook["cursor"]) if hook else set()


def _retry_in(seconds: float, reason: str) -> Effect:
    return lambda tx: RetryAt(tx.now + int(seconds * 1000), reason, counts=False)


def _retry_once_resumed(name: str) -> Effect:
    """Suspend the job of a paused hook; if the hook was resumed since it was read, the job is due now."""

    def settle(tx: Transaction) -> Outcome:
        hook = hook_records.hook(tx.connection, name)
        due_at = NEVER if hook and hook["paused_at"] else tx.now
        return RetryAt(due_at, "The hook is paused.", counts=False)

    return settle

"""The worker: claim due jobs, run their handlers, settle them. It sleeps until the next job is due, or until woken."""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from kling_receiver.jobs import queue
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.kinds import UNLIMITED_KINDS, args_problem
from kling_receiver.jobs.queue import Capacity, ClaimedJob, Effect, GiveUp, RetryAt
from kling_receiver.store.database import BLOCKED_SECONDS
from kling_receiver.store.errors import InvalidRow, Unavailable, describe
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import CLOCK_JUMP_SECONDS, Writer

log = logging.getLogger("kling_receiver.worker")

Handler = Callable[[ClaimedJob], Awaitable[Effect]]

MAX_PER_KEY = 16
"""Running jobs with one concurrency key, so that one slow host cannot take every place."""
JOB_TIMEOUT_SECONDS = 900
"""Seconds. The longest attempt of a job, unless its kind has no limit."""
LEASE_MS = (JOB_TIMEOUT_SECONDS + 60) * 1000
"""Milliseconds. Many times longer than the time after which a live worker renews its leases."""
LEASE_CHECK_SECONDS = 60.0
"""Seconds between two renewals of the leases of running jobs, and searches for expired ones."""
CLOCK_CHECK_SECONDS = 5.0
"""Seconds for which the worker sleeps at most while a job waits: then it looks whether the wall clock jumped."""
MIN_CLAIM_INTERVAL_SECONDS = 0.01
"""Seconds between two claims, so that under load one claim takes several jobs."""
OUTAGE_RETRY_SECONDS = 2.0
"""Seconds between two attempts to use a database that is unavailable."""
UNEXPECTED_ERROR_BACKOFF = Backoff((1, 5, 30, 120, 600))
"""After an unexpected exception of a handler. The last step repeats: a bug must not make a job a dead letter."""


class Worker:
    """Runs the jobs of one process. `clock`: unix seconds; `outage_seconds`: between attempts during an outage.

    `clock_check_seconds`: the longest sleep while a job waits.
    """

    def __init__(
        self,
        writer: Writer,
        handlers: Mapping[str, Handler],
        *,
        clock: Callable[[], float] = time.time,
        outage_seconds: float = OUTAGE_RETRY_SECONDS,
        clock_check_seconds: float = CLOCK_CHECK_SECONDS,
        on_invalid: Callable[[str], None] = lambda kind: None,
    ) -> None:
        """`on_invalid`: called with the kind of each job that cannot be run, "unknown" for an unknown one."""
        self._writer, self._handlers, self._clock = writer, handlers, clock
        self._outage_seconds, self._clock_check_seconds = outage_seconds, clock_check_seconds
        self._on_invalid = on_invalid
        self._woken = asyncio.Event()
        self._running: dict[asyncio.Task[None], ClaimedJob] = {}
        self._unconfirmed_claim: str | None = None
        """Id of a claim whose commit may have succeeded although the database reported an error."""
        self._loop: asyncio.Task[None] | None = None
        self._sleeps_until: float | None = None
        self._leases_at = 0.0
        self._closing = False
        self._claim_problem: str | None = None

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._loop is not None

    @property
    def problem(self) -> str | None:
        """Why a started worker runs no jobs; None if it does."""
        if self._loop is None or self._closing:
            return None
        if self._loop.done():
            return "The worker has ended. Restart the receiver."
        return self._claim_problem

    def start(self) -> None:
        """Start to claim jobs."""
        self._loop = asyncio.create_task(self._run(), name="worker")

    def wake(self, due_at: int = 0) -> None:
        """Claim again by `due_at` (unix ms), when a job is due. No effect if the worker wakes earlier anyway."""
        # In the event loop's time: the wall clock may jump while the worker sleeps.
        due = asyncio.get_running_loop().time() + due_at / 1000 - self._clock()
        if self._sleeps_until is None or due < self._sleeps_until:
            self._woken.set()

    async def close(self, grace_seconds: float) -> None:
        """Stop claiming, let running jobs finish for `grace_seconds`, then cancel them and release their claims."""
        if self._loop is None:
            return
        self._closing = True
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        if self._running:
            await asyncio.wait(self._running, timeout=grace_seconds)
        for task in list(self._running):
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=BLOCKED_SECONDS)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            claimed_at = loop.time()
            clock_offset = self._clock() - claimed_at  # before the claim: a jump from here on is one for the sleep
            self._woken.clear()  # before the claim, so that a job enqueued during it wakes the loop again
            try:
                wait = await self._claim()
            except Unavailable:  # an outage of the database, which others report
                await asyncio.sleep(self._outage_seconds)
            except Exception as error:
                self._claim_problem = f"Jobs cannot be claimed: {describe(error)}."
                log.exception("jobs could not be claimed; retrying in %g s", self._outage_seconds)
                await asyncio.sleep(self._outage_seconds)
            else:
                self._claim_problem = None
                await self._sleep(wait, clock_offset)
                await asyncio.sleep(claimed_at + MIN_CLAIM_INTERVAL_SECONDS - loop.time())

    async def _sleep(self, seconds: float | None, clock_offset: float) -> None:
        """Sleep until woken, for at most `seconds`, and not on past a jump of the wall clock. None: until woken.

        `clock_offset`: seconds by which the wall clock was ahead of the event loop's before the claim.
        """
        loop = asyncio.get_running_loop()
        end = self._sleeps_until = math.inf if seconds is None else loop.time() + seconds
        try:
            while (rest := end - loop.time()) > 0:
                if abs(self._clock() - loop.time() - clock_offset) >= CLOCK_JUMP_SECONDS:
                    return  # a due time is a time of the wall clock: it may be now, or later than it should be
                with suppress(TimeoutError):
                    # While nothing waits, there is nothing to be late for: no need to wake up.
                    async with asyncio.timeout(None if rest == math.inf else min(rest, self._clock_check_seconds)):
                        await self._woken.wait()
                        return
        finally:
            self._sleeps_until = None

    async def _claim(self) -> float | None:
        """Claim and start the due jobs. Returns the seconds until the next claim; None: until woken."""
        running, unconfirmed = list(self._running.values()), self._unconfirmed_claim
        loop = asyncio.get_running_loop()
        leases = not running or loop.time() >= self._leases_at
        claim_id = self._unconfirmed_claim = unconfirmed or secrets.token_hex(8)

        def change(tx: Transaction) -> tuple[list[ClaimedJob], int | None]:
            if unconfirmed:
                queue.release_claim(tx, unconfirmed)
            if leases:
                queue.renew_leases(tx, running, lease_ms=LEASE_MS)
                queue.rescue(tx, tx.now)
            capacity = Capacity.of(running, per_key=MAX_PER_KEY)
            claimed = queue.claim_due(tx, capacity, claim_id=claim_id, lease_ms=LEASE_MS)
            return claimed, queue.next_due(tx, capacity, leases=leases)

        claimed, due = await self._writer.run(change, durable=False)  # a claim lost by a power failure is claimed again
        self._unconfirmed_claim = None
        if leases:
            self._leases_at = loop.time() + LEASE_CHECK_SECONDS
        for job in claimed:
            task = asyncio.create_task(self._run_job(job), name=job.unique_key)
            self._running[task] = job
            task.add_done_callback(self._ended)
        waits = [self._leases_at - loop.time()] if self._running else []
        if due is not None:
            waits.append(due / 1000 - self._clock())
        return max(min(waits), 0) if waits else None

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._woken.set()
        if not task.cancelled() and (error := task.exception()):
            log.error("a job could not be settled; it runs again when its lease expires", exc_info=error)

    async def _run_job(self, job: ClaimedJob) -> None:
        effect = await self._handle(job)
        try:
            await asyncio.shield(self._settle(job, effect))  # a stop must not lose the effect
        except Exception as error:
            await asyncio.shield(self._settle(job, self._failed(job, error)))

    async def _handle(self, job: ClaimedJob) -> Effect:
        if job.kind not in self._handlers:
            return self._invalid(job, f"its kind {job.kind!r} is unknown")
        if problem := args_problem(job.kind, job.args):
            return self._invalid(job, problem)
        try:
            async with asyncio.timeout(None if job.kind in UNLIMITED_KINDS else JOB_TIMEOUT_SECONDS):
                return await self._handlers[job.kind](job)
        except asyncio.CancelledError:
            return _interrupted("The receiver was stopped.", 0)
        except Unavailable as error:
            return _interrupted(str(error), self._outage_seconds)
        except Exception as error:
            return self._failed(job, error)

    async def _settle(self, job: ClaimedJob, effect: Effect) -> None:
        while True:
            try:
                if not await self._writer.run(lambda tx: queue.settle(tx, job, effect)):
                    log.warning(
                        "job %s was removed, or claimed by another worker; its result is discarded", job.unique_key
                    )
                return
            except Unavailable:
                if self._closing:  # the next start releases the claim
                    return
                await asyncio.sleep(self._outage_seconds)

    def _failed(self, job: ClaimedJob, error: Exception) -> Effect:
        """A row that this version cannot read stays so; any other error may be a bug that a later version fixes."""
        first: BaseException = error
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        return self._invalid(job, str(first)) if isinstance(first, InvalidRow) else self._unexpected_error(job, error)

    def _invalid(self, job: ClaimedJob, problem: str) -> Effect:
        log.error(
            "job %s is now a dead letter, because this version cannot run it: %s. The next start tries it again",
            job.unique_key,
            problem,
        )
        self._on_invalid(job.kind if job.kind in self._handlers else "unknown")
        return queue.settle_as(GiveUp(f"{queue.INVALID}{problem}."))

    def _unexpected_error(self, job: ClaimedJob, error: Exception) -> Effect:
        log.error("job %s raised an unexpected error; it is retried", job.unique_key, exc_info=error)
        reason = f"{type(error).__name__}: {error}"
        attempts = min(job.attempts, len(UNEXPECTED_ERROR_BACKOFF.steps))
        return lambda tx: RetryAt(UNEXPECTED_ERROR_BACKOFF.next_at(attempts, tx.now) or tx.now, reason)


def _interrupted(reason: str, delay_seconds: float) -> Effect:
    return lambda tx: RetryAt(tx.now + int(delay_seconds * 1000), reason, counts=False)

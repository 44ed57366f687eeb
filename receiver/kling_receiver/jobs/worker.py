"""The loop that does what is owed: claim, run the handler, settle. It sleeps until a job is due, or woken."""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping

from kling_receiver.jobs import queue
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.queue import Busy, Claimed, RetryAt, Verdict
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer

log = logging.getLogger("kling_receiver.worker")

Handler = Callable[[Claimed], Awaitable[Verdict]]

PER_LANE = 16
"""Jobs at once that may be held up by the same host."""
PER_KIND = 48
"""Jobs of one kind at once: however many slow hosts there are to download from, questions and hooks go on."""
TO_HOOKS = {"dispatch": 512, "hook": 256}
"""The same for what mostly waits for somebody else's answer: each hook has a lane, and a pace, of its own.
(Those of single tasks have kinds of their own, and share a lane with all of their host.)"""
LONGEST_RUN = 900
"""Seconds that one attempt may take."""
LEASE_MS = (LONGEST_RUN + 60) * 1000
LOOK_AT_LEASES = 60.0
"""Seconds between two looks for work of a dead process while work of our own goes on."""
REST = 0.01
"""Seconds from one claim to the next: under load one claim finds several jobs."""
OUTAGE_PAUSE = 2.0
"""Seconds until the next look at a database that could not be written."""

SURPRISE = Backoff((1, 5, 30, 120, 600))
"""For a handler that raised what it should not have: never given up, since that is no verdict on the task."""


class Worker:
    """One worker. `clock`: unix seconds; `pause`: until the next look after an outage."""

    def __init__(
        self,
        writer: Writer,
        handlers: Mapping[str, Handler],
        *,
        clock: Callable[[], float] = time.time,
        pause: float = OUTAGE_PAUSE,
    ) -> None:
        self._writer, self._handlers, self._clock, self._pause = writer, handlers, clock, pause
        self._woken = asyncio.Event()
        self._running: dict[asyncio.Task[None], Claimed] = {}
        self._unheard: str | None = None
        """The name of claims that may have been made, although we were told of an outage."""
        self._loop: asyncio.Task[None] | None = None
        self._sleeps_until: float | None = None
        self._leases_at = 0.0
        self._closing = False

    def start(self) -> None:
        """Begin to claim."""
        self._loop = asyncio.create_task(self._run(), name="worker")

    def wake(self, due_at: int = 0) -> None:
        """Look again: a job is due at `due_at` (unix ms), unless the loop looks again by then anyway."""
        # In the loop's own time, since the wall's clock may jump while we sleep.
        due = asyncio.get_running_loop().time() + due_at / 1000 - self._clock()
        if self._sleeps_until is None or due < self._sleeps_until:
            self._woken.set()

    async def close(self, grace: float) -> None:
        """Stop claiming, give what runs `grace` seconds, then cancel it and give it back."""
        if self._loop is None:
            return
        self._closing = True
        self._loop.cancel()
        await asyncio.gather(self._loop, return_exceptions=True)
        if self._running:
            await asyncio.wait(self._running, timeout=grace)
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            claimed_at = loop.time()
            self._woken.clear()  # before claiming: what comes from now on wakes the loop again
            try:
                wait = await self._claim()
            except Unavailable:
                await asyncio.sleep(self._pause)
            except Exception:
                log.exception("nothing could be claimed; looking again in %g s", self._pause)
                await asyncio.sleep(self._pause)
            else:
                await self._sleep(wait)
                await asyncio.sleep(claimed_at + REST - loop.time())

    async def _sleep(self, seconds: float | None) -> None:
        self._sleeps_until = math.inf if seconds is None else asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            pass
        finally:
            self._sleeps_until = None

    async def _claim(self) -> float | None:
        """Start what is due; seconds until the next job is, None when none waits."""
        running, unheard = list(self._running.values()), self._unheard
        loop = asyncio.get_running_loop()
        leases = not running or loop.time() >= self._leases_at
        name = self._unheard = unheard or secrets.token_hex(8)

        def change(tx: Transaction) -> tuple[list[Claimed], int | None]:
            if unheard:
                queue.give_back(tx, unheard)
            if leases:
                queue.rescue(tx, tx.now)
            busy = Busy.with_these(running, per_lane=PER_LANE, per_kind=PER_KIND, more=TO_HOOKS)
            claimed = queue.claim_due(tx, busy, name=name, lease_ms=LEASE_MS)
            return claimed, queue.next_due(tx, busy, leases=leases)

        claimed, due = await self._writer.run(change, durable=False)  # one that is undone is made anew
        self._unheard = None
        if leases:
            self._leases_at = loop.time() + LOOK_AT_LEASES
        for job in claimed:
            task = asyncio.create_task(self._do(job), name=job.key)
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
            log.error("a job was not settled, its lease brings it back", exc_info=error)

    async def _do(self, job: Claimed) -> None:
        decide = await self._handle(job)
        try:
            await asyncio.shield(self._settle(job, decide))
        except Exception as error:
            await asyncio.shield(self._settle(job, self._surprise(job, error)))

    async def _handle(self, job: Claimed) -> Verdict:
        try:
            async with asyncio.timeout(LONGEST_RUN):
                return await self._handlers[job.kind](job)
        except asyncio.CancelledError:
            return self._cut_off("The receiver was stopped.", 0)
        except Unavailable as error:
            return self._cut_off(str(error), self._pause)
        except Exception as error:
            return self._surprise(job, error)

    def _cut_off(self, why: str, pause: float) -> Verdict:
        return queue.verdict(RetryAt(int((self._clock() + pause) * 1000), why, counts=False))

    async def _settle(self, job: Claimed, decide: Verdict) -> None:
        while True:
            try:
                if not await self._writer.run(lambda tx: queue.settle(tx, job, decide)):
                    log.warning("job %s was taken over by another worker; nothing settled", job.key)
                return
            except Unavailable:
                if self._closing:  # its claim is taken back at the next start
                    return
                await asyncio.sleep(self._pause)

    def _surprise(self, job: Claimed, error: Exception) -> Verdict:
        log.error("job %s failed in an unforeseen way", job.key, exc_info=error)
        reason = f"{type(error).__name__}: {error}"
        due = SURPRISE.after(min(job.attempts, len(SURPRISE.steps)), int(self._clock() * 1000))
        assert due is not None
        return queue.verdict(RetryAt(due, reason))

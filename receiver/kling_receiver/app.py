"""Start the parts of the receiver in order, stop them in the opposite order."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from kling_receiver.filesystem import blame_setting
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config_file import default_hook
from kling_receiver.hooks.sync import detach, sync
from kling_receiver.jobs import queue
from kling_receiver.jobs.worker import OUTAGE_RETRY_SECONDS
from kling_receiver.parts import PRODUCTION_DELAYS, Clock, Delays, build_store, build_work
from kling_receiver.readiness import Readiness
from kling_receiver.results import records as result_records
from kling_receiver.results.owner import claim
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.database import BLOCKED_SECONDS
from kling_receiver.store.errors import DBAPIError, Unavailable, describe
from kling_receiver.store.transaction import CommitResult, Transaction
from kling_receiver.tasks import startup
from kling_receiver.threads import run_in_daemon_thread
from kling_receiver.web.errors import ApiError
from kling_receiver.web.middleware import (
    PathPrefix,
    StartErrors,
    api_error,
    http_error,
    internal_error,
    refused_by_database,
    unavailable,
)
from kling_receiver.web.routes import build_routes

log = logging.getLogger("kling_receiver")

STOP_SECONDS = 8.0
"""Seconds that running jobs are given when the receiver is told to stop."""
ORPHAN_SECONDS = 3.0
"""Seconds that the worker waits until unfinished files are removed; on a disk that answers, it takes milliseconds."""


class Receiver:
    """One receiver: `store` and `work` are its parts."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        clock: Clock = time.time,
        monotonic: Clock | None = None,
        delays: Delays = PRODUCTION_DELAYS,
    ) -> None:
        """`monotonic`: seconds, to find jumps of `clock`; None: the system's, beside the system's clock.

        Raises DatabaseError, OSError.
        """
        if monotonic is None:
            monotonic = time.monotonic if clock is time.time else clock
        self.settings, self.clock = settings, clock
        self.store = build_store(settings, self._on_commit, clock, monotonic)
        self.work = build_work(settings, self.store, clock, delays)
        self._readiness = Readiness(self.store.writer, self.store.storage, self._work_problem)
        self._startup: asyncio.Task[None] | None = None
        self._startup_problem: str | None = None
        self.has_enqueued = False
        """Whether a commit of this process enqueued a job."""
        self.on_stopped: Callable[[], None] = lambda: None
        """Called at the end of `stop`. Threads may then still be blocked by the disk or the database."""

    def _on_commit(self, committed: CommitResult) -> None:
        """Tell the parts that wait for events and jobs; runs in the event loop after each commit."""
        self.store.bus.notify(committed.task_ids, committed.worked_on)
        if committed.hooks_changed:
            self.store.bus.notify_hooks()
        if committed.task_ids != frozenset():
            self.store.recorder.events_committed()
        for type_, times in committed.event_counts.items():
            self.store.metrics.events.labels(type_).inc(times)
        for message in committed.messages:
            log.error("%s", message)
        if committed.next_due_at is not None:
            self.has_enqueued = True
            self.work.worker.wake(committed.next_due_at)

    def prepare(self) -> None:
        """Check the database, take the locks, migrate, make the results folder. Raises DatabaseError, OSError.

        After it `start` and `stop` follow, or `release`. If it raises, all is released.
        """
        try:
            self._prepare()
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Release the locks, and close the database, of a receiver that is not started."""
        self.store.recorder.close()
        self.store.storage.owner.release()
        self.store.database.close()

    def _prepare(self) -> None:
        with blame_setting(self.settings.storage_setting):
            self.store.storage.check_answers()
        with blame_setting(self.settings.database_setting):
            self.store.database.check(self.settings.results)
            self.store.database.acquire_lock()
            self.store.database.migrate()
        with blame_setting(self.settings.storage_setting):
            self._claim_folder()

    def _claim_folder(self) -> None:
        storage = self.store.storage
        storage.prepare()
        storage.owner.acquire()
        self.store.recorder.start(claim(self.store.database, storage.owner))

    async def start(self) -> None:
        """Start the writer, release jobs claimed by a previous process, then repair and start the worker.

        Raises DatabaseError if the database broke since `prepare`; `stop` is needed then, too.
        """
        writer = self.store.writer
        writer.start()
        with self.store.database.operator_errors():
            await writer.run(lambda tx: queue.rescue(tx, queue.NEVER))
            await writer.run(self._sync_hooks)
            await writer.run(hook_records.forget_downtime)
        started = int(self.clock() * 1000)
        self._startup = asyncio.create_task(self._repair_then_work(started), name="startup")

    def _sync_hooks(self, tx: Transaction) -> None:
        """Make the hooks equal to those of the settings. Without a hooks file, hooks added by commands stay."""
        url, secret = self.settings.hook_url, self.settings.hook_secret
        sync(tx, "settings", [default_hook(url, secret)] if url else [])
        if self.settings.hooks_file:
            sync(tx, "file", self.settings.hooks, also="added")
        else:
            detach(tx)

    async def _repair_then_work(self, started: int) -> None:
        """Enqueue missing jobs before the worker claims any: with many open tasks it takes seconds."""
        writer = self.store.writer
        while True:
            try:
                await writer.run(startup.repair)
                await writer.run(startup.correct_slots)
                await writer.run(startup.clamp_due_times)
                await writer.run(queue.retry_invalid)
                await writer.run(lambda tx: startup.schedule_sweep(tx, started))
                await self._remove_orphans()
                break
            except Exception as error:
                self._startup_problem = f"The worker cannot start: {describe(error)}."
                log.exception("the check after the start failed; it runs again in %g s", OUTAGE_RETRY_SECONDS)
                await asyncio.sleep(OUTAGE_RETRY_SECONDS)
        self.work.worker.start()

    async def _remove_orphans(self) -> None:
        """Remove what an earlier process left of files that nobody downloads any more."""
        pending = await self.store.writer.run(result_records.pending_parts)
        try:
            async with asyncio.timeout(ORPHAN_SECONDS):
                await run_in_daemon_thread(lambda: self.store.storage.remove_orphans(pending))
        except TimeoutError:
            log.warning("unfinished files could not be removed: their folder does not answer")
        except OSError as error:
            log.warning("unfinished files could not be removed: %s", error.strerror or error)

    async def stop(self) -> None:
        """Stop claiming, let running jobs end, write pending changes, close every connection."""
        self.store.bus.close()
        if self._startup:
            self._startup.cancel()
            await asyncio.wait({self._startup}, timeout=BLOCKED_SECONDS)
        await self.work.worker.close(STOP_SECONDS)
        await self.work.sender.close()
        await self.store.thumbnails.close()
        await self.store.writer.close()
        await asyncio.to_thread(self.store.recorder.close)
        self.store.storage.owner.release()
        await self.work.kling_client.aclose()
        for client in self.work.guarded_clients:
            await client.close()
        await self.store.reader.close()
        self.store.database.close()
        self.on_stopped()

    async def ready(self) -> str | None:
        """Why a callback would not be stored and processed at the moment; None if it would."""
        return await self._readiness.problem()

    def _work_problem(self) -> str | None:
        """Why jobs are not run. A start whose repair has not failed yet is no problem: the worker follows."""
        if self.work.worker.started:
            return self.work.worker.problem
        if self._startup is None or self._startup.done():
            return "The worker was not started. Restart the receiver."
        return self._startup_problem


def create_app(receiver: Receiver) -> Starlette:
    """The ASGI application; its lifespan starts and stops the receiver."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            await receiver.start()
            yield
        finally:
            await receiver.stop()

    settings = receiver.settings
    routes = build_routes(settings, receiver.store, receiver.work, receiver.ready, receiver.clock)
    prefixes = dict.fromkeys(urlsplit(address).path for address in (settings.receiver_url, settings.links_base))
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(StartErrors),
            *(Middleware(PathPrefix, prefix=prefix, routes=routes) for prefix in prefixes),
        ],
        exception_handlers={
            ApiError: api_error,
            Unavailable: unavailable,
            DBAPIError: refused_by_database,
            HTTPException: http_error,
            Exception: internal_error,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would lose the prefix, and the request's body
    return app

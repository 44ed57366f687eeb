"""The receiver put together: every part made once, started in order, stopped in the opposite order."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kling_callback.kling_api import KlingApi, auth_from
from kling_receiver import metrics
from kling_receiver.events.bus import EventBus
from kling_receiver.events.payloads import Payloads
from kling_receiver.filesystem import blame_setting
from kling_receiver.hooks.config_file import default_hook
from kling_receiver.hooks.dispatcher import IDLE_SECONDS, Dispatcher
from kling_receiver.hooks.sender import Sender
from kling_receiver.hooks.sync import detach, sync
from kling_receiver.jobs import queue
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.kinds import Kind
from kling_receiver.jobs.worker import OUTAGE_RETRY_SECONDS, Handler, Worker
from kling_receiver.net.client import GuardedClient
from kling_receiver.net.kling_http import create_kling_client
from kling_receiver.policy import Policy
from kling_receiver.results.download import DOWNLOAD_BACKOFF, Downloader
from kling_receiver.results.storage import LocalStorage
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.database import Database
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.reader import Reader
from kling_receiver.store.transaction import CommitResult, Transaction
from kling_receiver.store.writer import Writer
from kling_receiver.tasks import startup
from kling_receiver.tasks.overdue import OverdueTasks
from kling_receiver.tasks.reconcile import QUERY_BACKOFF, Reconciler
from kling_receiver.web.api.actions import TaskActions
from kling_receiver.web.api.deliveries import DeliveryRoutes
from kling_receiver.web.api.hooks import HookRoutes
from kling_receiver.web.api.results import ResultRoutes
from kling_receiver.web.api.stream import StreamRoutes
from kling_receiver.web.api.tasks import TaskRoutes
from kling_receiver.web.auth import require_role
from kling_receiver.web.body import BodyLimiter
from kling_receiver.web.callbacks import CallbackRoutes
from kling_receiver.web.errors import ApiError, error_response
from kling_receiver.web.middleware import PathPrefix, api_error, http_error, internal_error, unavailable
from kling_receiver.web.openapi.document import document

log = logging.getLogger("kling_receiver")

STOP_SECONDS = 8.0
"""Seconds that running jobs are given when the receiver is told to stop."""
NEVER = 1 << 62
HOOK_CONNECTIONS = 1_000
"""To all hooks together; each has its own limit, and who is slow keeps nobody waiting."""


class Receiver:
    """One receiver. `clock`: unix seconds. `download_backoff`: between attempts at a result file.

    `query_backoff`: between queries to Kling about a callback. `hook_idle_seconds`: of the dispatcher.
    """

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        clock: Callable[[], float] = time.time,
        download_backoff: Backoff = DOWNLOAD_BACKOFF,
        query_backoff: Backoff = QUERY_BACKOFF,
        hook_idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.settings, self._clock, self._download_backoff = settings, clock, download_backoff
        self._hook_idle_seconds = hook_idle_seconds
        self.metrics = metrics.Metrics()
        self._at = "KLING_DATABASE_URL" if settings.database_url else "KLING_DATA_DIR"
        with blame_setting(self._at):
            self.database = Database(settings.database)
        self.storage = LocalStorage(settings.results)
        self.reader = Reader(self.database)
        self.bus = EventBus(self.reader)
        self.payloads = Payloads(settings.signing_secrets, settings.receiver_url, clock=clock)
        rules = Policy(overdue_seconds=settings.overdue_seconds, hook_pause_seconds=settings.hook_pause_seconds)
        self.writer = Writer(self.database, policy=rules, on_commit=self._on_commit, clock=clock)
        self._readiness: asyncio.Task[str | None] | None = None
        self._http = create_kling_client()
        self._downloads = GuardedClient(settings.result_hosts)
        self._hooks = GuardedClient(settings.hook_hosts, connections=HOOK_CONNECTIONS)
        self._task_hooks = GuardedClient(settings.hook_hosts)
        gateway = KlingApi(settings.api_base, auth_from(settings), self._http)
        self.reconciler = Reconciler(gateway, self.reader, self.metrics, backoff=query_backoff)
        self.sender = Sender(
            self._hooks,
            self._task_hooks,
            self.storage,
            self.payloads,
            self.metrics,
            source=settings.receiver_url,
            secret=settings.hook_secret,
            clock=clock,
        )
        self.worker = Worker(self.writer, self._handlers(clock), clock=clock)
        bodies = BodyLimiter()
        self.callbacks = CallbackRoutes(
            settings,
            writer=self.writer,
            reader=self.reader,
            bodies=bodies,
            metrics=self.metrics,
            clock=clock,
        )
        self._startup: asyncio.Task[None] | None = None
        self.task_actions = TaskActions(
            settings,
            reconciler=self.reconciler,
            writer=self.writer,
            reader=self.reader,
            storage=self.storage,
            payloads=self.payloads,
        )
        self.hook_routes = HookRoutes(
            settings, reader=self.reader, writer=self.writer, sender=self.sender, bodies=bodies
        )
        self.delivery_routes = DeliveryRoutes(settings, reader=self.reader, writer=self.writer, bodies=bodies)
        self.task_routes = TaskRoutes(
            settings, writer=self.writer, reader=self.reader, bodies=bodies, payloads=self.payloads, clock=clock
        )
        self.stream_routes = StreamRoutes(settings, reader=self.reader, bus=self.bus, payloads=self.payloads)
        self.result_routes = ResultRoutes(settings, reader=self.reader, storage=self.storage, clock=clock)

    def _handlers(self, clock: Callable[[], float]) -> dict[str, Handler]:
        settings = self.settings
        overdue = OverdueTasks(self.reconciler, self.reader)
        downloader = Downloader(
            self._downloads,
            self.storage,
            self.reader,
            self.metrics,
            max_bytes=settings.result_max_bytes,
            backoff=self._download_backoff,
        )
        dispatcher = Dispatcher(
            self.sender,
            reader=self.reader,
            writer=self.writer,
            bus=self.bus,
            idle_seconds=self._hook_idle_seconds,
        )
        return {
            Kind.ASK: self.reconciler.reconcile,
            Kind.DOWNLOAD: downloader.download,
            Kind.OVERDUE: overdue.check,
            Kind.SWEEP: overdue.check_after_start,
            Kind.DISPATCH: dispatcher.dispatch,
            Kind.REPLAY: dispatcher.replay,
            Kind.DELIVERY: dispatcher.retry,
        }

    def _on_commit(self, committed: CommitResult) -> None:
        self.bus.notify(committed.task_ids)
        for type_, times in committed.event_counts.items():
            self.metrics.events.labels(type_).inc(times)
        for message in committed.messages:
            log.error("%s", message)
        if committed.next_due_at is not None:
            self.worker.wake(committed.next_due_at)

    def prepare(self) -> None:
        """Make folders and tables, keep other receivers away. Raises DatabaseError, OSError."""
        with blame_setting(self._at):
            self.database.acquire_lock()
            self.database.migrate()
        with blame_setting("KLING_STORAGE_URL" if self.settings.storage_url else "KLING_DATA_DIR"):
            self.storage.prepare()

    async def start(self) -> None:
        """Begin to write, and soon to work; what an earlier process had claimed is owed again."""
        self.writer.start()
        await self.writer.run(lambda tx: queue.rescue(tx, NEVER))
        await self.writer.run(self._sync_hooks)
        started = int(self._clock() * 1000)
        self._startup = asyncio.create_task(self._repair_then_work(started), name="sweep")

    def _sync_hooks(self, tx: Transaction) -> None:
        """Let there be the hooks that the settings want; those that commands added stay without a file."""
        url, secret = self.settings.hook_url, self.settings.hook_secret
        sync(tx, "settings", [default_hook(url, secret)] if url else [])
        if self.settings.hooks_file:
            sync(tx, "file", self.settings.hooks, also="added")
        else:
            detach(tx)

    async def _repair_then_work(self, started: int) -> None:
        """Look for work that is owed before the worker takes any: with many open tasks that takes its time."""
        while True:
            try:
                await self.writer.run(startup.repair)
                await self.writer.run(startup.clamp_due_times)
                await self.writer.run(lambda tx: startup.schedule_sweep(tx, started))
                break
            except Exception:
                log.exception("open tasks could not be looked for; looking again in %g s", OUTAGE_RETRY_SECONDS)
                await asyncio.sleep(OUTAGE_RETRY_SECONDS)
        self.worker.start()

    async def stop(self) -> None:
        """Stop claiming, let running jobs end, write what waits, close every connection."""
        self.bus.close()
        if self._startup:
            self._startup.cancel()
            await asyncio.gather(self._startup, return_exceptions=True)
        await self.worker.close(STOP_SECONDS)
        await self.sender.close()
        await self.writer.close()
        await self._http.aclose()
        await self._downloads.close()
        await self._hooks.close()
        await self._task_hooks.close()
        await self.reader.close()
        self.database.close()

    async def ready(self) -> str | None:
        """Why callbacks cannot be made durable just now, or None when they can.

        Whoever asks meanwhile is told the same: anybody may ask, and each look costs a commit.
        """
        if self._readiness is None:
            self._readiness = asyncio.create_task(self._check_ready())
            self._readiness.add_done_callback(self._readiness_done)
        return await asyncio.shield(self._readiness)

    def _readiness_done(self, task: asyncio.Task[str | None]) -> None:
        self._readiness = None

    async def _check_ready(self) -> str | None:
        try:
            await self.writer.probe()
        except Unavailable as error:
            return str(error)
        try:
            await run_in_threadpool(self.storage.probe)
        except OSError as error:
            return f"The folder for result files cannot be written: {error.strerror}."
        return None


def create_app(receiver: Receiver) -> Starlette:
    """The ASGI application; its lifespan starts and stops the receiver."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await receiver.start()
        try:
            yield
        finally:
            await receiver.stop()

    app = Starlette(
        routes=_routes(receiver),
        middleware=[Middleware(PathPrefix, prefix=urlsplit(receiver.settings.receiver_url).path)],
        exception_handlers={
            ApiError: api_error,
            Unavailable: unavailable,
            HTTPException: http_error,
            Exception: internal_error,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would lose the prefix, and what was sent
    return app


def _routes(receiver: Receiver) -> list[Route]:
    secrets = receiver.settings.signing_secrets

    async def alive(request: Request) -> Response:
        return JSONResponse({"ok": True})

    async def ready(request: Request) -> Response:
        if reason := await receiver.ready():
            return error_response(503, "not_ready", reason, "Once it is mended, all goes on by itself.")
        return JSONResponse({"ok": True})

    async def counted(request: Request) -> Response:
        return Response(receiver.metrics.text(), media_type=metrics.CONTENT_TYPE)

    async def described(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(document, receiver.settings.receiver_url))

    return [
        Route("/callbacks/{token:path}", receiver.callbacks.receive, methods=["POST"]),
        Route("/callbacks", receiver.callbacks.receive_signed, methods=["POST"]),
        *receiver.task_routes.routes(),
        *receiver.stream_routes.routes(),
        *receiver.result_routes.routes(),
        *receiver.task_actions.routes(),
        *receiver.hook_routes.routes(),
        *receiver.delivery_routes.routes(),
        Route("/healthz", alive, methods=["GET"]),
        Route("/readyz", ready, methods=["GET"]),
        Route("/metrics", require_role(secrets, "read", counted), methods=["GET"]),
        Route("/openapi.json", require_role(secrets, "admin", described), methods=["GET"]),
    ]

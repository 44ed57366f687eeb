"""Create each part of the receiver once, start the parts in order, stop them in the opposite order."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kling_callback.api.kling import KlingApi, auth_from
from kling_receiver.events.bus import EventBus
from kling_receiver.events.payloads import Payloads
from kling_receiver.filesystem import blame_setting
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config_file import default_hook
from kling_receiver.hooks.dispatcher import IDLE_SECONDS, Dispatcher
from kling_receiver.hooks.sender import Sender
from kling_receiver.hooks.sync import detach, sync
from kling_receiver.jobs import queue
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.kinds import Kind
from kling_receiver.jobs.worker import OUTAGE_RETRY_SECONDS, Handler, Worker
from kling_receiver.metrics import CONTENT_TYPE, Metrics
from kling_receiver.net.client import GuardedClient
from kling_receiver.net.kling_http import create_kling_client
from kling_receiver.policy import Policy
from kling_receiver.results import records as result_records
from kling_receiver.results.client import ResultClient
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
HOOK_CONNECTIONS = 1_000
"""Connections at once to all hooks of the operator. Each hook has a limit of its own: a slow one delays no other."""

Clock = Callable[[], float]
"""Unix seconds."""


@dataclass(frozen=True, slots=True)
class Delays:
    """The delays that tests shorten: between downloads, between queries, and at the end of a hook's run."""

    download: Backoff = DOWNLOAD_BACKOFF
    query: Backoff = QUERY_BACKOFF
    hook_idle_seconds: float = IDLE_SECONDS


PRODUCTION_DELAYS = Delays()


@dataclass(frozen=True, slots=True)
class Store:
    """The parts that hold data: database, writer, reader, result files, events, counters."""

    database: Database
    writer: Writer
    reader: Reader
    storage: LocalStorage
    bus: EventBus
    payloads: Payloads
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Work:
    """The parts that run jobs: handlers, worker, sender, and the HTTP clients that they use."""

    reconciler: Reconciler
    sender: Sender
    worker: Worker
    handlers: Mapping[str, Handler]
    kling_client: httpx.AsyncClient
    guarded_clients: tuple[GuardedClient, ...]


def build_store(
    settings: ReceiverSettings, on_commit: Callable[[CommitResult], None], clock: Clock, monotonic: Clock
) -> Store:
    """Create the parts that read and write. Raises DatabaseError, OSError."""
    policy = Policy(overdue_seconds=settings.overdue_seconds, hook_pause_seconds=settings.hook_pause_seconds)
    with blame_setting(_database_setting(settings)):
        database = Database(settings.database)
    reader = Reader(database)
    return Store(
        database=database,
        writer=Writer(
            database,
            policy=policy,
            on_commit=on_commit,
            clock=clock,
            monotonic=monotonic,
            on_clock_jump=startup.follow_clock,
        ),
        reader=reader,
        storage=LocalStorage(settings.results),
        bus=EventBus(reader),
        payloads=Payloads(settings.signing_secrets, settings.receiver_url, clock=clock),
        metrics=Metrics(),
    )


def build_work(settings: ReceiverSettings, store: Store, clock: Clock, delays: Delays) -> Work:
    """Create the handler of each kind of job, and the worker that calls them."""
    kling_client = create_kling_client()
    hooks = GuardedClient(settings.hook_hosts, connections=HOOK_CONNECTIONS)
    task_hooks = GuardedClient(settings.hook_hosts)
    kling_api = KlingApi(settings.api_base, auth_from(settings), kling_client)
    downloads = (
        ResultClient(settings.result_hosts, settings.api_base, kling_api.authorization)
        if settings.has_key
        else GuardedClient(settings.result_hosts)
    )
    reconciler = Reconciler(kling_api, store.reader, store.metrics, backoff=delays.query)
    sender = Sender(
        hooks,
        task_hooks,
        store.storage,
        store.payloads,
        store.metrics,
        source=settings.receiver_url,
        secret=settings.hook_secret,
        clock=clock,
    )
    downloader = Downloader(
        downloads,
        store.storage,
        store.reader,
        store.metrics,
        reconciler.query_files,
        max_bytes=settings.result_max_bytes,
        backoff=delays.download,
        clock=clock,
    )
    overdue = OverdueTasks(reconciler, store.reader)
    dispatcher = Dispatcher(
        sender, reader=store.reader, writer=store.writer, bus=store.bus, idle_seconds=delays.hook_idle_seconds
    )
    handlers: dict[str, Handler] = {
        Kind.ASK: reconciler.reconcile,
        Kind.DOWNLOAD: downloader.download,
        Kind.OVERDUE: overdue.check,
        Kind.SWEEP: overdue.check_after_start,
        Kind.DISPATCH: dispatcher.dispatch,
        Kind.REPLAY: dispatcher.replay,
        Kind.DELIVERY: dispatcher.retry,
    }
    worker = Worker(store.writer, handlers, clock=clock)
    return Work(reconciler, sender, worker, handlers, kling_client, (downloads, hooks, task_hooks))


def build_web(settings: ReceiverSettings, store: Store, work: Work, clock: Clock) -> list[Route]:
    """Create the callback route and the API."""
    bodies, reader, writer, payloads = BodyLimiter(), store.reader, store.writer, store.payloads
    callbacks = CallbackRoutes(
        settings, writer=writer, reader=reader, bodies=bodies, metrics=store.metrics, clock=clock
    )
    tasks = TaskRoutes(settings, writer=writer, reader=reader, bodies=bodies, payloads=payloads, clock=clock)
    stream = StreamRoutes(settings, reader=reader, bus=store.bus, payloads=payloads)
    results = ResultRoutes(settings, reader=reader, storage=store.storage, clock=clock)
    actions = TaskActions(
        settings,
        reconciler=work.reconciler,
        writer=writer,
        reader=reader,
        storage=store.storage,
        payloads=payloads,
        bodies=bodies,
    )
    hooks = HookRoutes(settings, reader=reader, writer=writer, sender=work.sender, bodies=bodies)
    deliveries = DeliveryRoutes(settings, reader=reader, writer=writer, bodies=bodies)
    return [
        Route("/callbacks/{token:path}", callbacks.receive, methods=["POST"]),
        Route("/callbacks", callbacks.receive_signed, methods=["POST"]),
        *(route for group in (tasks, stream, results, actions, hooks, deliveries) for route in group.routes()),
    ]


def _database_setting(settings: ReceiverSettings) -> str:
    return "KLING_DATABASE_URL" if settings.database_url else "KLING_DATA_DIR"


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
        self._startup: asyncio.Task[None] | None = None
        self._readiness: asyncio.Task[str | None] | None = None

    def _on_commit(self, committed: CommitResult) -> None:
        """Tell the parts that wait for events and jobs; runs in the event loop after each commit."""
        self.store.bus.notify(committed.task_ids)
        for type_, times in committed.event_counts.items():
            self.store.metrics.events.labels(type_).inc(times)
        for message in committed.messages:
            log.error("%s", message)
        if committed.next_due_at is not None:
            self.work.worker.wake(committed.next_due_at)

    def prepare(self) -> None:
        """Take the lock, migrate the database, make the results folder. Raises DatabaseError, OSError."""
        with blame_setting(_database_setting(self.settings)):
            self.store.database.acquire_lock()
            self.store.database.migrate()
        with blame_setting("KLING_STORAGE_URL" if self.settings.storage_url else "KLING_DATA_DIR"):
            self.store.storage.prepare()

    async def start(self) -> None:
        """Start the writer, release jobs claimed by a previous process, then repair and start the worker."""
        writer = self.store.writer
        writer.start()
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
                await writer.run(startup.clamp_due_times)
                await writer.run(lambda tx: startup.schedule_sweep(tx, started))
                await self._remove_orphans()
                break
            except Exception:
                log.exception("the check after the start failed; it runs again in %g s", OUTAGE_RETRY_SECONDS)
                await asyncio.sleep(OUTAGE_RETRY_SECONDS)
        self.work.worker.start()

    async def _remove_orphans(self) -> None:
        """Remove what an earlier process left of files that nobody downloads any more."""
        pending = await self.store.writer.run(result_records.pending_parts)
        try:
            await run_in_threadpool(self.store.storage.remove_orphans, pending)
        except OSError as error:
            log.warning("unfinished files could not be removed: %s", error.strerror or error)

    async def stop(self) -> None:
        """Stop claiming, let running jobs end, write pending changes, close every connection."""
        self.store.bus.close()
        if self._startup:
            self._startup.cancel()
            await asyncio.gather(self._startup, return_exceptions=True)
        await self.work.worker.close(STOP_SECONDS)
        await self.work.sender.close()
        await self.store.writer.close()
        await self.work.kling_client.aclose()
        for client in self.work.guarded_clients:
            await client.close()
        await self.store.reader.close()
        self.store.database.close()

    async def ready(self) -> str | None:
        """Why callbacks cannot be made durable at the moment; None when they can.

        Concurrent requests share one check: the route is public, and each check costs a commit.
        """
        if self._readiness is None:
            self._readiness = asyncio.create_task(self._check_ready())
            self._readiness.add_done_callback(self._readiness_done)
        return await asyncio.shield(self._readiness)

    def _readiness_done(self, task: asyncio.Task[str | None]) -> None:
        self._readiness = None

    async def _check_ready(self) -> str | None:
        try:
            await self.store.writer.probe()
        except Unavailable as error:
            return str(error)
        try:
            await run_in_threadpool(self.store.storage.probe)
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

    routes = [
        *build_web(receiver.settings, receiver.store, receiver.work, receiver.clock),
        *_operation_routes(receiver),
    ]
    prefix = urlsplit(receiver.settings.receiver_url).path
    app = Starlette(
        routes=routes,
        middleware=[Middleware(PathPrefix, prefix=prefix, routes=routes)],
        exception_handlers={
            ApiError: api_error,
            Unavailable: unavailable,
            HTTPException: http_error,
            Exception: internal_error,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a redirect would lose the prefix, and the request's body
    return app


def _operation_routes(receiver: Receiver) -> list[Route]:
    secrets = receiver.settings.signing_secrets

    async def healthz(request: Request) -> Response:
        return JSONResponse({"ok": True})

    async def readyz(request: Request) -> Response:
        if reason := await receiver.ready():
            return error_response(503, "not_ready", reason, "Fix the cause; no restart is needed.")
        return JSONResponse({"ok": True})

    async def metrics(request: Request) -> Response:
        return Response(receiver.store.metrics.text(), media_type=CONTENT_TYPE)

    async def openapi(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(document, receiver.settings.receiver_url))

    return [
        Route("/healthz", healthz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/metrics", require_role(secrets, "read", metrics, query=None), methods=["GET"]),
        Route("/openapi.json", require_role(secrets, "admin", openapi, query=None), methods=["GET"]),
    ]

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
from kling_callback.protocol.signing import task_hook_secrets
from kling_receiver.access.tokens import TokenCache
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
from kling_receiver.metrics import CONTENT_TYPE, Metrics
from kling_receiver.net.client import GuardedClient
from kling_receiver.net.kling_http import create_kling_client
from kling_receiver.policy import Policy
from kling_receiver.readiness import Readiness
from kling_receiver.results import records as result_records
from kling_receiver.results.client import ResultClient
from kling_receiver.results.download import DOWNLOAD_BACKOFF, Downloader
from kling_receiver.results.owner import claim
from kling_receiver.results.owner_recorder import OwnerRecorder
from kling_receiver.results.storage import LocalStorage
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.database import BLOCKED_SECONDS, Database
from kling_receiver.store.errors import DBAPIError, Unavailable, describe
from kling_receiver.store.reader import Reader
from kling_receiver.store.transaction import CommitResult, Transaction
from kling_receiver.store.writer import Writer
from kling_receiver.tasks import startup
from kling_receiver.tasks.overdue import OverdueTasks
from kling_receiver.tasks.reconcile import QUERY_BACKOFF, Reconciler
from kling_receiver.threads import run_in_daemon_thread
from kling_receiver.web.api.access import AccessRoutes
from kling_receiver.web.api.actions import TaskActions
from kling_receiver.web.api.deliveries import DeliveryRoutes
from kling_receiver.web.api.hooks import HookRoutes
from kling_receiver.web.api.results import ResultRoutes
from kling_receiver.web.api.stream import StreamRoutes
from kling_receiver.web.api.tasks import TaskRoutes
from kling_receiver.web.auth import Guard
from kling_receiver.web.body import BodyLimiter
from kling_receiver.web.callbacks import CallbackRoutes
from kling_receiver.web.errors import ApiError, error_response
from kling_receiver.web.middleware import (
    PathPrefix,
    StartErrors,
    api_error,
    http_error,
    internal_error,
    refused_by_database,
    unavailable,
)
from kling_receiver.web.openapi.document import document

log = logging.getLogger("kling_receiver")

STOP_SECONDS = 8.0
"""Seconds that running jobs are given when the receiver is told to stop."""
ORPHAN_SECONDS = 3.0
"""Seconds that the worker waits until unfinished files are removed; on a disk that answers, it takes milliseconds."""
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
    recorder: OwnerRecorder
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


def build_store(settings: ReceiverSettings, on_commit: Callable[[CommitResult], None], clock: Clock) -> Store:
    """Create the parts that read and write. Raises DatabaseError, OSError."""
    policy = Policy(overdue_seconds=settings.overdue_seconds, hook_pause_seconds=settings.hook_pause_seconds)
    with blame_setting(_database_setting(settings)):
        database = Database(settings.database)
    reader, storage = Reader(database), LocalStorage(settings.results)
    return Store(
        database=database,
        writer=Writer(database, policy=policy, on_commit=on_commit, clock=clock),
        reader=reader,
        storage=storage,
        recorder=OwnerRecorder(storage.owner, database),
        bus=EventBus(reader),
        payloads=Payloads(settings.signing_secrets, settings.receiver_url, clock=clock),
        metrics=Metrics(),
    )


def build_work(settings: ReceiverSettings, store: Store, clock: Clock, delays: Delays) -> Work:
    """Create the handler of each kind of job, and the worker that calls them."""
    kling_client = create_kling_client()
    hooks = GuardedClient(settings.hook_hosts, connections=HOOK_CONNECTIONS)
    task_hooks = GuardedClient(settings.client_hook_hosts)
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
        task_secrets=task_hook_secrets(settings.signing_secrets),
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
    worker = Worker(
        store.writer, handlers, clock=clock, on_invalid=lambda kind: store.metrics.invalid_jobs.labels(kind).inc()
    )
    return Work(reconciler, sender, worker, handlers, kling_client, (downloads, hooks, task_hooks))


def build_guard(settings: ReceiverSettings, store: Store, clock: Clock) -> Guard:
    """Create the parts that authorize requests. A revoked token ends the streams that it opened."""
    tokens = TokenCache(store.reader, store.writer, on_revoke=lambda: store.bus.notify(None), clock=clock)
    return Guard(settings.signing_secrets, tokens, store.writer, clock=clock)


def build_web(settings: ReceiverSettings, store: Store, work: Work, guard: Guard, clock: Clock) -> list[Route]:
    """Create the callback route and the API."""
    bodies, reader, writer, payloads = BodyLimiter(), store.reader, store.writer, store.payloads
    callbacks = CallbackRoutes(
        settings, writer=writer, reader=reader, bodies=bodies, metrics=store.metrics, clock=clock
    )
    tasks = TaskRoutes(settings, guard, writer=writer, reader=reader, bodies=bodies, payloads=payloads, clock=clock)
    stream = StreamRoutes(guard, reader=reader, bus=store.bus, payloads=payloads)
    results = ResultRoutes(settings, guard, reader=reader, storage=store.storage, clock=clock)
    actions = TaskActions(
        guard,
        reconciler=work.reconciler,
        writer=writer,
        reader=reader,
        storage=store.storage,
        payloads=payloads,
        bodies=bodies,
    )
    hooks = HookRoutes(settings, guard, reader=reader, writer=writer, sender=work.sender, bodies=bodies)
    deliveries = DeliveryRoutes(guard, reader=reader, writer=writer, bodies=bodies)
    access = AccessRoutes(guard, reader=reader, bodies=bodies)
    return [
        Route("/callbacks/{token:path}", callbacks.receive, methods=["POST"]),
        Route("/callbacks", callbacks.receive_signed, methods=["POST"]),
        *(route for group in (tasks, stream, results, actions, hooks, deliveries, access) for route in group.routes()),
    ]


def _database_setting(settings: ReceiverSettings) -> str:
    return "KLING_DATABASE_URL" if settings.database_url else "KLING_DATA_DIR"


class Receiver:
    """One receiver: `store` and `work` are its parts."""

    def __init__(
        self, settings: ReceiverSettings, *, clock: Clock = time.time, delays: Delays = PRODUCTION_DELAYS
    ) -> None:
        """Raises DatabaseError, OSError."""
        self.settings, self.clock = settings, clock
        self.store = build_store(settings, self._on_commit, clock)
        self.work = build_work(settings, self.store, clock, delays)
        self._readiness = Readiness(self.store.writer, self.store.storage, self._work_problem)
        self._startup: asyncio.Task[None] | None = None
        self._startup_problem: str | None = None
        self.on_stopped: Callable[[], None] = lambda: None
        """Called at the end of `stop`. Threads may then still be blocked by the disk or the database."""

    def _on_commit(self, committed: CommitResult) -> None:
        """Tell the parts that wait for events and jobs; runs in the event loop after each commit."""
        self.store.bus.notify(committed.task_ids)
        if committed.task_ids != frozenset():
            self.store.recorder.events_committed()
        for type_, times in committed.event_counts.items():
            self.store.metrics.events.labels(type_).inc(times)
        for message in committed.messages:
            log.error("%s", message)
        if committed.next_due_at is not None:
            self.work.worker.wake(committed.next_due_at)

    def prepare(self) -> None:
        """Check the database, take the locks, migrate, make the results folder. Raises DatabaseError, OSError."""
        storage_setting = "KLING_STORAGE_URL" if self.settings.storage_url else "KLING_DATA_DIR"
        with blame_setting(storage_setting):
            self.store.storage.check_answers()
        with blame_setting(_database_setting(self.settings)):
            self.store.database.check(self.settings.results)
            self.store.database.acquire_lock()
            self.store.database.migrate()
        with blame_setting(storage_setting):
            self._claim_folder()

    def _claim_folder(self) -> None:
        storage = self.store.storage
        storage.prepare()
        try:
            storage.owner.acquire()
            self.store.recorder.start(claim(self.store.database, storage.owner))
        except BaseException:
            storage.owner.release()
            raise

    async def start(self) -> None:
        """Start the writer, release jobs claimed by a previous process, then repair and start the worker.

        Raises DatabaseError if the database broke since `prepare`.
        """
        writer = self.store.writer
        writer.start()
        with self.store.database.operator_errors():
            await writer.run(lambda tx: queue.rescue(tx, queue.NEVER))
            await writer.run(self._sync_hooks)
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
        await receiver.start()
        try:
            yield
        finally:
            await receiver.stop()

    guard = build_guard(receiver.settings, receiver.store, receiver.clock)
    routes = [
        *build_web(receiver.settings, receiver.store, receiver.work, guard, receiver.clock),
        *_operation_routes(receiver, guard),
    ]
    prefix = urlsplit(receiver.settings.receiver_url).path
    app = Starlette(
        routes=routes,
        middleware=[Middleware(StartErrors), Middleware(PathPrefix, prefix=prefix, routes=routes)],
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


def _operation_routes(receiver: Receiver, guard: Guard) -> list[Route]:
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
        Route("/metrics", guard.require("read", metrics, query=None), methods=["GET"]),
        Route("/openapi.json", guard.require("admin", openapi, query=None), methods=["GET"]),
    ]

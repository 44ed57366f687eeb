"""The receiver put together: every part made once, started in order, stopped in the opposite order."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kling_callback.kling_api import Gateway, gateway_auth
from kling_receiver import metrics
from kling_receiver.events.bus import Feed
from kling_receiver.events.payloads import Views
from kling_receiver.filesystem import named
from kling_receiver.hooks.config_file import shortest
from kling_receiver.hooks.dispatcher import Dispatcher
from kling_receiver.hooks.sender import Sender
from kling_receiver.hooks.sync import align, release
from kling_receiver.jobs import queue
from kling_receiver.jobs.worker import OUTAGE_PAUSE, Handler, Worker
from kling_receiver.net.client import AGENT, Outbound, Transport
from kling_receiver.policy import Rules
from kling_receiver.results.download import Fetcher
from kling_receiver.results.storage import Folder
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.database import Database
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.reader import Reader, in_thread
from kling_receiver.store.transaction import Committed, Transaction
from kling_receiver.store.writer import Writer
from kling_receiver.tasks import startup
from kling_receiver.tasks.overdue import Overdue
from kling_receiver.tasks.reconcile import Asker
from kling_receiver.web.api.actions import Admin
from kling_receiver.web.api.deliveries import DeliveryRoutes
from kling_receiver.web.api.hooks import HookRoutes
from kling_receiver.web.api.results import ResultRoutes
from kling_receiver.web.api.stream import StreamRoutes
from kling_receiver.web.api.tasks import TaskRoutes
from kling_receiver.web.auth import for_role
from kling_receiver.web.body import Bodies
from kling_receiver.web.callbacks import CallbackRoutes
from kling_receiver.web.errors import ApiError, error_response
from kling_receiver.web.middleware import PathPrefix, _api_error, _http_error, _surprise, _unavailable
from kling_receiver.web.openapi.document import document

log = logging.getLogger("kling_receiver")

STOP_SECONDS = 8.0
"""Seconds that running jobs are given when the receiver is told to stop."""
FAR_FUTURE = 1 << 62
HOOK_CONNECTIONS = 1_000
"""To all hooks together; each has its own limit, and who is slow keeps nobody waiting."""


class Receiver:
    """One receiver. `clock`: unix seconds."""

    def __init__(self, settings: ReceiverSettings, *, clock: Callable[[], float] = time.time) -> None:
        self.settings, self._clock = settings, clock
        self.metrics = metrics.Metrics()
        self._at = "KLING_DATABASE_URL" if settings.database_url else "KLING_DATA_DIR"
        with named(self._at):
            self.database = Database(settings.database)
        self.folder = Folder(settings.results)
        self.reader = Reader(self.database)
        self.feed = Feed(self.reader)
        self.views = Views(settings.signing_secrets, settings.receiver_url, clock=clock)
        rules = Rules(overdue_seconds=settings.overdue_seconds, patience=settings.hook_pause_seconds)
        self.writer = Writer(self.database, rules=rules, on_commit=self._committed, clock=clock)
        self._looking: asyncio.Task[str | None] | None = None
        self._http = httpx.AsyncClient(transport=Transport(trust_env=False), trust_env=False, headers=AGENT)
        self._downloads = Outbound(settings.result_hosts)
        self._hooks = Outbound(settings.hook_hosts, connections=HOOK_CONNECTIONS)
        self._task_hooks = Outbound(settings.hook_hosts)
        gateway = Gateway(settings.api_base, gateway_auth(settings), self._http)
        self.asker = Asker(gateway, self.reader, self.metrics)
        self.sender = Sender(
            self._hooks,
            self._task_hooks,
            self.folder,
            self.views,
            self.metrics,
            source=settings.receiver_url,
            secret=settings.hook_secret,
            clock=clock,
        )
        self.worker = Worker(self.writer, self._handlers(clock), clock=clock)
        bodies = Bodies()
        self.callbacks = CallbackRoutes(
            settings,
            writer=self.writer,
            reader=self.reader,
            bodies=bodies,
            metrics=self.metrics,
            clock=clock,
        )
        self._beginning: asyncio.Task[None] | None = None
        self.admin = Admin(
            settings,
            asker=self.asker,
            writer=self.writer,
            reader=self.reader,
            folder=self.folder,
            views=self.views,
        )
        self.hook_routes = HookRoutes(
            settings, reader=self.reader, writer=self.writer, sender=self.sender, bodies=bodies
        )
        self.delivery_routes = DeliveryRoutes(settings, reader=self.reader, writer=self.writer, bodies=bodies)
        self.task_routes = TaskRoutes(
            settings, writer=self.writer, reader=self.reader, bodies=bodies, views=self.views, clock=clock
        )
        self.stream_routes = StreamRoutes(settings, reader=self.reader, feed=self.feed, views=self.views)
        self.result_routes = ResultRoutes(settings, reader=self.reader, folder=self.folder, clock=clock)

    def _handlers(self, clock: Callable[[], float]) -> dict[str, Handler]:
        settings = self.settings
        overdue = Overdue(self.asker, self.reader)
        fetcher = Fetcher(
            self._downloads, self.folder, self.reader, self.metrics, largest=settings.result_max_bytes
        )
        dispatcher = Dispatcher(self.sender, reader=self.reader, writer=self.writer, feed=self.feed)
        hooks = {"dispatch": dispatcher.dispatch, "replay": dispatcher.replay, "hook": dispatcher.retry}
        return {
            "ask": self.asker.ask,
            "download": fetcher.download,
            "overdue": overdue.look,
            "sweep": overdue.sweep,
            **hooks,
            **{f"{kind}-task": handler for kind, handler in hooks.items()},
        }

    def _committed(self, committed: Committed) -> None:
        self.feed.wake(committed.tasks)
        for type_, times in committed.happened.items():
            self.metrics.events.labels(type_).inc(times)
        for task in sorted(committed.lost):
            log.error(
                "task %s succeeded, but a file of it cannot be had; again: kling-receiver tasks fetch %s",
                task,
                task,
            )
        for said in committed.said:
            log.error("%s", said)
        if committed.due_at is not None:
            self.worker.wake(committed.due_at)

    def prepare(self) -> None:
        """Make folders and tables, keep other receivers away. Raises DatabaseError, OSError."""
        with named(self._at):
            self.database.hold()
            self.database.migrate()
        with named("KLING_STORAGE_URL" if self.settings.storage_url else "KLING_DATA_DIR"):
            self.folder.open()

    async def start(self) -> None:
        """Begin to write, and soon to work; what an earlier process had claimed is owed again."""
        self.writer.start()
        await self.writer.run(lambda tx: queue.rescue(tx, FAR_FUTURE))
        await self.writer.run(self._align_hooks)
        started = int(self._clock() * 1000)
        self._beginning = asyncio.create_task(self._begin(started), name="sweep")

    def _align_hooks(self, tx: Transaction) -> None:
        """Let there be the hooks that the settings want; those that commands added stay without a file."""
        url, secret = self.settings.hook_url, self.settings.hook_secret
        align(tx, "settings", [shortest(url, secret)] if url else [])
        if self.settings.hooks_file:
            align(tx, "file", self.settings.hooks, also="added")
        else:
            release(tx)

    async def _begin(self, started: int) -> None:
        """Look for work that is owed before the worker takes any: with many open tasks that takes its time."""
        while True:
            try:
                await self.writer.run(startup.restore)
                await self.writer.run(startup.bring_forward)
                await self.writer.run(lambda tx: startup.take_turns(tx, started))
                break
            except Exception:
                log.exception("open tasks could not be looked for; looking again in %g s", OUTAGE_PAUSE)
                await asyncio.sleep(OUTAGE_PAUSE)
        self.worker.start()

    async def stop(self) -> None:
        """Stop claiming, let running jobs end, write what waits, close every connection."""
        self.feed.close()
        if self._beginning:
            self._beginning.cancel()
            await asyncio.gather(self._beginning, return_exceptions=True)
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
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(self._looked)
        return await asyncio.shield(self._looking)

    def _looked(self, task: asyncio.Task[str | None]) -> None:
        self._looking = None

    async def _look(self) -> str | None:
        try:
            await self.writer.probe()
        except Unavailable as error:
            return str(error)
        try:
            await in_thread(self.folder.probe)
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
            ApiError: _api_error,
            Unavailable: _unavailable,
            HTTPException: _http_error,
            Exception: _surprise,
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
        return JSONResponse(document(receiver.settings.receiver_url))

    return [
        Route("/callbacks/{token:path}", receiver.callbacks.with_token, methods=["POST"]),
        Route("/callbacks", receiver.callbacks.without_token, methods=["POST"]),
        *receiver.task_routes.routes(),
        *receiver.stream_routes.routes(),
        *receiver.result_routes.routes(),
        *receiver.admin.routes(),
        *receiver.hook_routes.routes(),
        *receiver.delivery_routes.routes(),
        Route("/healthz", alive, methods=["GET"]),
        Route("/readyz", ready, methods=["GET"]),
        Route("/metrics", for_role(secrets, "read", counted), methods=["GET"]),
        Route("/openapi.json", for_role(secrets, "admin", described), methods=["GET"]),
    ]

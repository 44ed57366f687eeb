"""Create each part of the receiver once: those that hold data, and those that run jobs."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx

from kling_callback.api.kling import KlingApi, auth_from
from kling_callback.protocol.signing import CallbackSigner, task_hook_secrets
from kling_receiver.events.bus import EventBus
from kling_receiver.events.payloads import Payloads
from kling_receiver.filesystem import blame_setting
from kling_receiver.hooks.dispatcher import IDLE_SECONDS, Dispatcher
from kling_receiver.hooks.sender import Sender
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.kinds import Kind
from kling_receiver.jobs.worker import Handler, Worker
from kling_receiver.metrics import Metrics
from kling_receiver.net.client import GuardedClient
from kling_receiver.net.kling_http import create_kling_client
from kling_receiver.policy import Policy
from kling_receiver.results.client import ResultClient
from kling_receiver.results.download import DOWNLOAD_BACKOFF, Downloader
from kling_receiver.results.owner_recorder import OwnerRecorder
from kling_receiver.results.removal import FileRemover
from kling_receiver.results.storage import LocalStorage
from kling_receiver.results.thumbnails import Thumbnails
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.database import Database
from kling_receiver.store.reader import Reader
from kling_receiver.store.transaction import CommitResult
from kling_receiver.store.writer import Writer
from kling_receiver.tasks import startup
from kling_receiver.tasks.creating import PRODUCTION_CREATE_DELAYS, CreateDelays, Creator
from kling_receiver.tasks.overdue import OverdueTasks
from kling_receiver.tasks.reconcile import QUERY_BACKOFF, Reconciler

HOOK_CONNECTIONS = 1_000
"""Connections at once to all hooks of the operator. Each hook has a limit of its own: a slow one delays no other."""

Clock = Callable[[], float]
"""Unix seconds."""


@dataclass(frozen=True, slots=True)
class Delays:
    """The delays that tests shorten: between downloads, between queries, at the end of a hook's run, of creates."""

    download: Backoff = DOWNLOAD_BACKOFF
    query: Backoff = QUERY_BACKOFF
    hook_idle_seconds: float = IDLE_SECONDS
    create: CreateDelays = PRODUCTION_CREATE_DELAYS


PRODUCTION_DELAYS = Delays()


@dataclass(frozen=True, slots=True)
class Store:
    """The parts that hold data: database, writer, reader, result files and thumbnails, events, counters."""

    database: Database
    writer: Writer
    reader: Reader
    storage: LocalStorage
    thumbnails: Thumbnails
    recorder: OwnerRecorder
    bus: EventBus
    payloads: Payloads
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Work:
    """The parts that run jobs: handlers, worker, sender, and the HTTP clients that they use."""

    kling_api: KlingApi
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
    policy = Policy(
        overdue_seconds=settings.overdue_seconds,
        hook_pause_seconds=settings.hook_pause_seconds,
        slots=settings.slot_limits,
    )
    with blame_setting(settings.database_setting):
        database = Database(settings.database)
    reader, storage = Reader(database), LocalStorage(settings.results)
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
        storage=storage,
        thumbnails=Thumbnails(storage),
        recorder=OwnerRecorder(storage.owner, database),
        bus=EventBus(reader),
        payloads=Payloads(settings.signing_secrets, settings.links_base, clock=clock),
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
    creator = Creator(
        kling_api,
        store.reader,
        store.writer,
        store.metrics,
        callback_url=functools.partial(
            CallbackSigner(settings.signing_secrets, clock=clock).url, settings.receiver_url
        ),
        delays=delays.create,
    )
    overdue = OverdueTasks(reconciler, store.reader)
    dispatcher = Dispatcher(
        sender, reader=store.reader, writer=store.writer, bus=store.bus, idle_seconds=delays.hook_idle_seconds
    )
    handlers: dict[str, Handler] = {
        Kind.ASK: reconciler.reconcile,
        Kind.CREATE: creator.create,
        Kind.DOWNLOAD: downloader.download,
        Kind.REMOVE: FileRemover(store.storage).remove,
        Kind.OVERDUE: overdue.check,
        Kind.SWEEP: overdue.check_after_start,
        Kind.DISPATCH: dispatcher.dispatch,
        Kind.REPLAY: dispatcher.replay,
        Kind.DELIVERY: dispatcher.retry,
    }
    worker = Worker(
        store.writer, handlers, clock=clock, on_invalid=lambda kind: store.metrics.invalid_jobs.labels(kind).inc()
    )
    return Work(kling_api, reconciler, sender, worker, handlers, kling_client, (downloads, hooks, task_hooks))

"""Create the groups of routes, and the guard that authorizes their requests."""

from collections.abc import Awaitable, Callable

from starlette.routing import Route

from kling_receiver.access.logins import Logins
from kling_receiver.access.tokens import TokenCache
from kling_receiver.parts import Clock, Store, Work
from kling_receiver.settings import ReceiverSettings
from kling_receiver.web.api.access import AccessRoutes
from kling_receiver.web.api.actions import TaskActions
from kling_receiver.web.api.deliveries import DeliveryRoutes
from kling_receiver.web.api.hooks import HookRoutes
from kling_receiver.web.api.results import ResultRoutes
from kling_receiver.web.api.stream import StreamRoutes
from kling_receiver.web.api.submission import SubmissionRoutes
from kling_receiver.web.api.tasks import TaskRoutes
from kling_receiver.web.auth import Guard
from kling_receiver.web.body import BodyLimiter
from kling_receiver.web.callbacks import CallbackRoutes
from kling_receiver.web.compat.auth import CompatGuard
from kling_receiver.web.compat.creates import Creates
from kling_receiver.web.compat.forward import Forwarder
from kling_receiver.web.compat.holding import Holder
from kling_receiver.web.compat.queries import Queries
from kling_receiver.web.compat.routes import CompatRoutes
from kling_receiver.web.dashboard.routes import dashboard_routes
from kling_receiver.web.dashboard.signin.session import Sessions
from kling_receiver.web.doctor import DoctorRoutes
from kling_receiver.web.operations import operation_routes


def build_routes(
    settings: ReceiverSettings,
    store: Store,
    work: Work,
    ready: Callable[[], Awaitable[str | None]],
    clock: Clock,
) -> list[Route]:
    """Create every route. `ready`: why a callback would not be stored and processed; None if it would."""
    guard = _build_guard(settings, store, clock)
    bodies, reader, writer, payloads = BodyLimiter(), store.reader, store.writer, store.payloads
    callbacks = CallbackRoutes(
        settings, writer=writer, reader=reader, bodies=bodies, metrics=store.metrics, clock=clock
    )
    submissions = SubmissionRoutes(settings, writer=writer, reader=reader, payloads=payloads)
    actions = TaskActions(
        guard,
        reconciler=work.reconciler,
        writer=writer,
        reader=reader,
        storage=store.storage,
        payloads=payloads,
        bodies=bodies,
        cancel=submissions.cancel,
    )
    tasks = TaskRoutes(
        settings,
        guard,
        writer=writer,
        reader=reader,
        bodies=bodies,
        payloads=payloads,
        submit=submissions.submit,
        delete=actions.delete,
        clock=clock,
    )
    stream = StreamRoutes(guard, reader=reader, bus=store.bus, payloads=payloads)
    results = ResultRoutes(settings, guard, reader=reader, storage=store.storage, clock=clock)
    hooks = HookRoutes(settings, guard, reader=reader, writer=writer, sender=work.sender, bodies=bodies)
    deliveries = DeliveryRoutes(guard, reader=reader, writer=writer, bodies=bodies)
    doctor = DoctorRoutes(settings, guard, clock=clock)
    access = AccessRoutes(guard, reader=reader, bodies=bodies)
    own = [
        Route("/callbacks/{token:path}", callbacks.receive, methods=["POST"]),
        Route("/callbacks", callbacks.receive_signed, methods=["POST"]),
        *(
            route
            for group in (tasks, stream, results, actions, hooks, deliveries, access, doctor)
            for route in group.routes()
        ),
        *operation_routes(settings, guard, store.metrics, ready),
        *dashboard_routes(settings, guard, store, work, bodies, clock, ready=ready, doctor=doctor),
    ]
    if settings.compat_api == "off":
        return own
    return own + _compat_routes(settings, guard, store, work, submissions, {route.path.split("/")[1] for route in own})


def _compat_routes(
    settings: ReceiverSettings, guard: Guard, store: Store, work: Work, submissions: SubmissionRoutes, own: set[str]
) -> list[Route]:
    """Kling's own routes. `own`: the first segments of ours, which come first."""
    queries = Queries(store.reader, store.payloads, Holder(store.bus), hold_default=settings.compat_hold_seconds)
    creates = Creates(submissions, queries, reader=store.reader, writer=store.writer, bus=store.bus)
    forwarder = Forwarder(settings, work.kling_api)
    return CompatRoutes(CompatGuard(settings, guard), creates, queries, forwarder, own=own).routes()


def _build_guard(settings: ReceiverSettings, store: Store, clock: Clock) -> Guard:
    """Create the parts that authorize requests. A revoked token, and a session that ended, end their streams."""

    def end_streams() -> None:
        store.bus.notify(None)

    tokens = TokenCache(store.reader, store.writer, on_revoke=end_streams, clock=clock)
    logins = Logins(store.reader, store.writer, on_end=end_streams)
    sessions = Sessions(settings, logins, clock=clock)
    return Guard(settings.signing_secrets, tokens, sessions, store.writer, clock=clock)

"""Collect the routes of all pages."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from kling_receiver.parts import Clock, Store, Work
from kling_receiver.settings import ReceiverSettings
from kling_receiver.web.auth import Guard
from kling_receiver.web.body import BodyLimiter
from kling_receiver.web.dashboard.create.page import CreatePage
from kling_receiver.web.dashboard.health import HealthPage
from kling_receiver.web.dashboard.hooks import HooksPage
from kling_receiver.web.dashboard.live import LiveViews
from kling_receiver.web.dashboard.overview import OverviewPage
from kling_receiver.web.dashboard.pages import HEADERS, Pages, Visit, url_from
from kling_receiver.web.dashboard.signin.login import LoginRoutes
from kling_receiver.web.dashboard.task.page import TaskPage
from kling_receiver.web.dashboard.tasks import TasksPage
from kling_receiver.web.dashboard.thumbnails import ThumbnailRoutes
from kling_receiver.web.doctor import DoctorRoutes
from kling_receiver.web.errors import ApiError


class Group(Protocol):
    """The routes of a page."""

    def routes(self) -> list[Route]:
        """The routes of the page."""
        ...


def dashboard_routes(
    settings: ReceiverSettings,
    guard: Guard,
    store: Store,
    work: Work,
    bodies: BodyLimiter,
    clock: Clock,
    *,
    ready: Callable[[], Awaitable[str | None]],
    doctor: DoctorRoutes,
) -> list[Route]:
    """Create the routes of all pages. The last one answers for every other path below `/dashboard`.

    `ready`: why a callback would not be stored and processed; None if it would.
    The navigation has the pages in the order of `groups`.
    """
    pages, live = Pages(guard.sessions), LiveViews(store.bus)
    groups: list[Group] = [
        TasksPage(pages, live, reader=store.reader),
        ThumbnailRoutes(guard, reader=store.reader, thumbnails=store.thumbnails),
        CreatePage(settings, pages, reader=store.reader, payloads=store.payloads, bodies=bodies),
        TaskPage(pages, live, reader=store.reader, clock=clock),
        HooksPage(settings, pages, live, reader=store.reader, sender=work.sender),
        OverviewPage(pages, reader=store.reader, metrics=store.metrics, limits=settings.slot_limits, clock=clock),
        HealthPage(pages, settings, reader=store.reader, ready=ready, doctor=doctor, clock=clock),
        LoginRoutes(settings, pages, bodies, clock=clock),
    ]

    async def to_first_page(request: Request) -> Response:
        return RedirectResponse(url_from(request, ""), 303, headers=HEADERS)

    async def unknown(visit: Visit) -> Response:
        raise ApiError(404, "not_found", "There is no such page.", "Follow a link of the navigation.")

    return [
        *(route for group in groups for route in group.routes()),
        Route("/dashboard/static/{name}", pages.static.serve, methods=["GET"]),
        Route("/dashboard", to_first_page, methods=["GET"]),
        Route("/dashboard/{path:path}", pages.page("read", unknown, query=None), methods=["GET"]),
    ]

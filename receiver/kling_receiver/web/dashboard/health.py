"""The page of the receiver's health, at `/dashboard/health`: checks as lights, what runs here, settings in effect."""

import asyncio
import platform
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from kling_callback.config.effective import Setting, effective_settings
from kling_callback.display import Mask
from kling_receiver import __version__
from kling_receiver.doctor.checks import Check
from kling_receiver.doctor.local import disk_checks, settings_checks
from kling_receiver.parts import Clock
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.database import describe_engine
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.reader import Reader
from kling_receiver.threads import run_in_daemon_thread
from kling_receiver.web.dashboard.pages import NavLink, Pages, Visit
from kling_receiver.web.doctor import DoctorRoutes
from kling_receiver.web.shared import Shared

DISK_SECONDS = 3.0
"""Seconds after which a disk counts as one that does not answer."""
KEPT_SECONDS = 2.0
"""Seconds for which what was found is shown to others, too."""

TITLES = {
    "ready": "Ready for callbacks",
    "disk": "Disk space",
    "address": "Address for Kling",
    "settings": "Settings",
    "name": "Name of the host",
    "connection": "Connection",
    "callback": "Callback",
    "links": "Result links",
    "key": "Kling's key",
    "egress": "Outgoing proxy",
    "time": "Time",
}
"""What people call the checks."""


class HealthPage:
    """The page of the receiver's health. `ready`: why a callback would not be stored; None if it would."""

    def __init__(
        self,
        pages: Pages,
        settings: ReceiverSettings,
        *,
        reader: Reader,
        ready: Callable[[], Awaitable[str | None]],
        doctor: DoctorRoutes,
        clock: Clock,
    ) -> None:
        self._pages, self._settings, self._reader, self._ready, self._doctor = pages, settings, reader, ready, doctor
        self._started_at = int(clock() * 1000)
        self._mask = Mask(settings.secrets)
        self._effective = shown_settings(settings)  # as they were at the start: a `.env` that changes has no effect
        self._disks = Shared(lambda: run_in_daemon_thread(lambda: disk_checks(settings)), KEPT_SECONDS)
        self._database = Shared(lambda: reader.read(describe_engine), KEPT_SECONDS)
        pages.links.append(NavLink("Health", "dashboard/health", "s"))

    def routes(self) -> list[Route]:
        """The routes of this module."""
        return [Route("/dashboard/health", self._pages.page("read", self._show), methods=["GET"])]

    async def _show(self, visit: Visit) -> Response:
        checks, facts = await asyncio.gather(self._local_checks(), self._facts())
        is_admin = visit.may("admin")
        last = self._doctor.last
        sent = last.checks if last else []
        return self._pages.render(
            visit,
            "health.html",
            title="Health",
            titles=TITLES,
            failed=[check for check in (*checks, *sent) if not check.ok],
            checks=checks,
            sent=sent,
            sent_at=last.at if last else None,
            facts=facts,
            settings=self._effective if is_admin else [],
        )

    async def _local_checks(self) -> list[Check]:
        problem, disks = await asyncio.gather(self._ready(), self._check_disks())
        ready = Check("ready", problem is None, problem or "A callback would be stored and processed.")
        found = [ready, *disks, *settings_checks(self._settings)]
        return [Check(check.name, check.ok, self._mask(check.message)) for check in found]

    async def _check_disks(self) -> list[Check]:
        try:
            async with asyncio.timeout(DISK_SECONDS):
                return await self._disks.get()
        except TimeoutError:
            text = f"The disk did not answer within {DISK_SECONDS:g} s. Check its volume."
        except OSError as error:
            text = f"{error.filename or 'The disk'} cannot be read: {error.strerror}. Check its volume."
        return [Check("disk", False, text)]

    async def _facts(self) -> list[tuple[str, Any]]:
        try:
            engine, size = await self._database.get()
        except Unavailable:
            engine, size = "does not answer", None
        return [
            ("Version", __version__),
            ("Python", platform.python_version()),
            ("Database", engine),
            ("Size of the database", size),
            ("Started", self._started_at),
        ]


def shown_settings(settings: ReceiverSettings) -> list[Setting]:
    """The settings in effect without their secrets."""
    kind = type(settings)
    return effective_settings(kind, kind.sources({}), settings, addresses=settings.shown_addresses)

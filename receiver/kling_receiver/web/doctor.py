"""`POST /api/doctor`: run the doctor's checks from inside the receiver, for role admin, one run at a time.

That of the database is not among them: `/readyz` writes to it, and the page of health shows what that finds.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import TypedDict

from kling_callback.display import Mask
from kling_receiver.doctor.checks import Check, run_request_checks
from kling_receiver.events.payloads import Timestamp, iso
from kling_receiver.settings import ReceiverSettings
from kling_receiver.web.auth import Guard, route
from kling_receiver.web.errors import ApiError

PAUSE_SECONDS = 5.0
"""Seconds from the end of a run to the next one: each sends a megabyte through the proxy, and a query to Kling."""
MAX_SECONDS = 90.0
"""Seconds for a run; its own requests end sooner, unless Kling is asked about many keys."""


class CheckJson(TypedDict):
    """One check of the doctor."""

    name: str
    ok: bool
    message: Annotated[str, Field(description="what was found; of a failed check, what to do")]


class DoctorJson(TypedDict):
    """A run of the doctor. `ok`: whether all checks succeeded."""

    ok: bool
    at: Timestamp
    checks: list[CheckJson]


@dataclass(frozen=True, slots=True)
class Run:
    """A run that has ended. `at`: unix ms."""

    at: int
    checks: list[Check]


class DoctorRoutes:
    """The route, and what the last run found. `clock`: unix seconds."""

    def __init__(self, settings: ReceiverSettings, guard: Guard, *, clock: Callable[[], float] = time.time) -> None:
        self._settings, self._guard, self._clock = settings, guard, clock
        self._mask = Mask(settings.secrets)
        self._is_running = False
        self._free_at = 0.0
        self.last: Run | None = None
        """None: it has not run since the start."""

    def routes(self) -> list[Route]:
        """The routes of this module."""
        return [route("/api/doctor", POST=self._guard.audited("doctor", self._run))]

    async def _run(self, request: Request) -> Response:
        if self._is_running:
            raise ApiError(409, "doctor_is_running", "The checks run already.", "Wait for their end.")
        wait = self._free_at - time.monotonic()
        if wait > 0:
            hint = f"Try again in {wait:.0f} s."
            raise ApiError(429, "too_soon", "The checks have just run.", hint, Retry_After=f"{wait + 1:.0f}")
        self._is_running = True
        try:
            checks = await self._checks()
        finally:
            self._is_running, self._free_at = False, time.monotonic() + PAUSE_SECONDS
        self.last = Run(int(self._clock() * 1000), checks)
        document: DoctorJson = {
            "ok": all(check.ok for check in checks),
            "at": iso(self.last.at),
            "checks": [{"name": check.name, "ok": check.ok, "message": check.message} for check in checks],
        }
        return JSONResponse(document)

    async def _checks(self) -> list[Check]:
        checks: list[Check] = []
        try:
            async with asyncio.timeout(MAX_SECONDS):
                async for check in run_request_checks(self._settings):
                    message = self._mask(check.message)  # it may quote an answer
                    checks.append(Check(check.name, check.ok, message))
        except TimeoutError:
            text = f"The checks were stopped after {MAX_SECONDS:.0f} s. Check the network, and that Kling answers."
            checks.append(Check("time", False, text))
        return checks

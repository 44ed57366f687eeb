"""What an operator may order of hooks over `/api`, with a token of role admin.

Web addresses only: commands and brokers are set on the machine itself.
"""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any, cast

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kling_callback.protocol.reports import sanitize
from kling_callback.settings import HookSecret
from kling_receiver.hooks import deliveries
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import WEB_SCHEMES, InvalidHook, parse_hook
from kling_receiver.hooks.sender import Sender
from kling_receiver.settings import ReceiverSettings
from kling_receiver.sinks import scheme_of
from kling_receiver.store.reader import Reader, TaskDetail
from kling_receiver.store.rows import EventRow, HookRow, TaskRow
from kling_receiver.store.transaction import TASK_DEFAULTS, last_event
from kling_receiver.store.writer import Writer
from kling_receiver.web.api.hook_payloads import hook_payload, outcome_payload
from kling_receiver.web.auth import Endpoint, require_role
from kling_receiver.web.body import BodyLimiter
from kling_receiver.web.errors import ApiError
from kling_receiver.web.requests import RequestModel, parse, read_json

TEST_SECONDS = 25.0
"""For a test: whoever asked waits for it."""


class Rotation(RequestModel):
    """What `rotate` may be told: a secret of the caller's own, and for how long (seconds) the old one signs."""

    secret: HookSecret = Field("", repr=False)
    overlap: Annotated[float, Field(ge=0, le=30 * 86_400, allow_inf_nan=False)] = hook_records.SECRET_OVERLAP_SECONDS


class HookRoutes:
    """The routes of hooks."""

    def __init__(
        self, settings: ReceiverSettings, *, reader: Reader, writer: Writer, sender: Sender, bodies: BodyLimiter
    ) -> None:
        self._settings, self._reader, self._writer = settings, reader, writer
        self._sender, self._bodies = sender, bodies

    def routes(self) -> list[Route]:
        """Every route."""
        one = "/api/hooks/{name}"
        return [
            self._route("/api/hooks", GET=self._list, POST=self._add),
            self._route(one, GET=self._show, DELETE=self._remove),
            self._route(f"{one}/test", POST=self._test),
            self._route(f"{one}/pause", POST=self._pause),
            self._route(f"{one}/resume", POST=self._resume),
            self._route(f"{one}/rotate", POST=self._rotate),
        ]

    def _route(self, path: str, **by_method: Endpoint) -> Route:
        async def chosen(request: Request) -> Response:
            return await by_method["GET" if request.method == "HEAD" else request.method](request)

        endpoint = require_role(self._settings.signing_secrets, "admin", chosen)
        return Route(path, endpoint, methods=list(by_method))

    async def _list(self, request: Request) -> Response:
        def question(connection: Any) -> dict[str, Any]:
            rows = hook_records.hooks(connection)
            counts = deliveries.counts(connection, [row["name"] for row in rows])
            last = last_event(connection)
            found = [hook_payload(row, counts[row["name"]], last) for row in rows]
            return {"hooks": found, "database": self._reader.database.identity(connection)}

        found = await self._reader.read(question)
        return JSONResponse({**found, "kept_in_file": bool(self._settings.hooks_file)})

    async def _add(self, request: Request) -> Response:
        given = await read_json(request, self._bodies)
        if isinstance(given, dict) and scheme_of(str(given.get("address", ""))) not in WEB_SCHEMES:
            hint = "Add it where the receiver runs, with: kling-receiver hooks add"
            raise ApiError(422, "bad_hook", "Only https addresses are taken over the network.", hint)
        try:
            new = parse_hook(given, self._settings.hook_hosts)
        except InvalidHook as error:
            raise ApiError(422, "bad_hook", str(error), "Mend it and send it again.") from None
        self._reject_if_file_managed()
        row = await self._writer.run(lambda tx: hook_records.add(tx, new))
        if row is None:
            raise ApiError(409, "name_taken", f"There is a hook {new.name}.", "Choose another name.")
        hook = await self._view(row["name"])
        return JSONResponse({"hook": hook, "secret": row["secrets"][0][0]}, 201)

    def _reject_if_file_managed(self) -> None:
        if self._settings.hooks_file:
            said = "The hooks are kept in KLING_HOOKS_FILE."
            raise ApiError(409, "kept_in_file", said, "Change the file, and start the receiver anew.")

    async def _show(self, request: Request) -> Response:
        return JSONResponse(await self._view(_name(request)))

    async def _view(self, name: str) -> dict[str, Any]:
        def question(connection: Any) -> dict[str, Any] | None:
            row = hook_records.hook(connection, name)
            counts = deliveries.counts(connection, [name])[name]
            return row and hook_payload(row, counts, last_event(connection))

        if view := await self._reader.read(question):
            return view
        raise hook_not_found()

    async def _remove(self, request: Request) -> Response:
        row = await get_hook_or_404(self._reader, _name(request))
        _reject_managed(row)
        await self._writer.run(lambda tx: hook_records.remove(tx, row["name"]))
        await self._sender.close_hook(row["name"])
        return JSONResponse({"removed": row["name"]})

    async def _test(self, request: Request) -> Response:
        row = await get_hook_or_404(self._reader, _name(request))
        event, detail = _test_event(self._settings)
        try:
            async with asyncio.timeout(TEST_SECONDS):
                slot = await self._sender.acquire_slot(row)
                attempt = await self._sender.attempt(slot, row, event, detail)
        except TimeoutError:
            error = f"The hook had no free slot, or did not answer, within {TEST_SECONDS:g} s."
            return JSONResponse(outcome_payload(False, int(TEST_SECONDS * 1000), error=error))
        return JSONResponse(
            outcome_payload(
                attempt.delivered,
                attempt.duration_ms,
                status=attempt.response_status,
                body=attempt.response_body,
                error=attempt.error,
            )
        )

    async def _pause(self, request: Request) -> Response:
        row = await get_hook_or_404(self._reader, _name(request))
        await self._writer.run(lambda tx: hook_records.pause(tx, row["name"], "an operator paused it"))
        return JSONResponse(await self._view(row["name"]))

    async def _resume(self, request: Request) -> Response:
        row = await get_hook_or_404(self._reader, _name(request))
        self._sender.reset(row["name"])
        await self._writer.run(lambda tx: hook_records.resume(tx, row["name"]))
        return JSONResponse(await self._view(row["name"]))

    async def _rotate(self, request: Request) -> Response:
        row = await get_hook_or_404(self._reader, _name(request))
        _reject_managed(row)
        given = parse(Rotation, await read_json(request, self._bodies, empty={}))
        secret = await self._writer.run(
            lambda tx: hook_records.rotate(tx, row["name"], given.secret, overlap=given.overlap)
        )
        if secret is None:
            hint = "KLING_HOOK_SECRET signs for hooks of single tasks." if row["task_id"] else "Web addresses have one."
            raise ApiError(409, "no_secret", "This hook has no secret of its own.", hint)
        return JSONResponse({"hook": await self._view(row["name"]), "secret": secret})


def _name(request: Request) -> str:
    return sanitize(request.path_params["name"])


def _test_event(settings: ReceiverSettings) -> tuple[EventRow, TaskDetail]:
    """An event that says that it is a test, of a task that there is not."""
    now = int(datetime.now(UTC).timestamp() * 1000)
    known = {"id": "test", "family": "images/generations", "created_at": now, "updated_at": now}
    task = cast(TaskRow, {**TASK_DEFAULTS, **known})
    data = {"receiver": settings.receiver_url}
    event = EventRow(id=0, task_id="test", type="hook.test", created_at=now, data=data)
    return event, TaskDetail(task, [], [])


MANAGED_BY = {"file": "KLING_HOOKS_FILE", "settings": "KLING_HOOK_URL and KLING_HOOK_SECRET"}


def _reject_managed(row: HookRow) -> None:
    if where := MANAGED_BY.get(row["source"]):
        raise ApiError(409, "kept_elsewhere", f"This hook is kept in {where}.", "Change it there.")


async def get_hook_or_404(reader: Reader, name: str) -> HookRow:
    """A hook's row. Raises ApiError for a name that no hook has."""
    if row := await reader.read(lambda connection: hook_records.hook(connection, name)):
        return row
    raise hook_not_found()


def hook_not_found() -> ApiError:
    """For a name that no hook has."""
    return ApiError(404, "unknown_hook", "There is no such hook.", "Look at: kling-receiver hooks list")

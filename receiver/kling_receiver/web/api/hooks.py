"""Add, change, list, test, pause, resume, rotate and remove hooks, for role admin.

Only web addresses can be added: commands and brokers are configured on the receiver's own machine.
"""

import asyncio
import time
from functools import partial
from typing import Annotated, Any, cast

from pydantic import Field, field_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kling_callback.display import MASK
from kling_callback.protocol.events import TYPES
from kling_callback.protocol.values import sanitize
from kling_receiver.events import log as event_log
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import (
    WEB_SCHEMES,
    Concurrency,
    EventTypes,
    Families,
    HookConfig,
    HookFormat,
    InvalidHook,
    RateLimit,
    RetrySchedule,
    Secret,
    Statuses,
    Tags,
    Timeout,
    known_events,
    parse_hook,
)
from kling_receiver.hooks.examples import TEST_TYPE, example, kling_problem, plain_test
from kling_receiver.hooks.sender import Sender
from kling_receiver.jobs.enqueue import host_of
from kling_receiver.net.guard import Allowlist
from kling_receiver.settings import ReceiverSettings
from kling_receiver.sinks import scheme_of
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import HookRow, Row
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer
from kling_receiver.web.api.hook_payloads import (
    HookJson,
    HookListJson,
    HookSecretJson,
    RemovedJson,
    hook_payloads,
    outcome_payload,
)
from kling_receiver.web.auth import Guard, describe, route, shown_name
from kling_receiver.web.body import BodyLimiter
from kling_receiver.web.errors import ApiError
from kling_receiver.web.requests import RequestModel, parse, read_json

TEST_SECONDS = 25.0
"""Seconds that a test of a hook may take, because its caller waits for the outcome."""


class Rotation(RequestModel):
    """The new secret of a hook, and how long the old one still signs."""

    secret: Secret = ""
    overlap: float = Field(
        hook_records.SECRET_OVERLAP_SECONDS,
        ge=0,
        le=30 * 86_400,
        allow_inf_nan=False,
        description="seconds for which the old secret signs too",
    )


class Pause(RequestModel):
    """Why a hook is paused."""

    reason: str = Field("", max_length=hook_records.MAX_REASON_CHARS, description="shown with the hook")


class HookChanges(RequestModel):
    """The settings of a hook that are changed; the others stay. null stands for the default."""

    address: str | None = Field(None, max_length=2000, description="https://...")
    format: HookFormat | None = None
    events: EventTypes | None = None
    families: Families | None = None
    statuses: Statuses | None = None
    tags: Tags | None = None
    retry_schedule: RetrySchedule | None = None
    concurrency: Concurrency | None = None
    rate_limit: RateLimit | None = None
    timeout: Timeout | None = None


class HookTest(RequestModel):
    """Which event a test sends, and in which format: by default that of the hook."""

    event: Annotated[
        str,
        Field(
            description="its type; `hook.test` has no task, any other a complete example of one",
            json_schema_extra={"enum": [TEST_TYPE, *TYPES]},
        ),
    ] = TEST_TYPE
    format: HookFormat | None = Field(None, description="by default that of the hook")

    @field_validator("event")
    @classmethod
    def _event(cls, value: str) -> str:
        return value if value == TEST_TYPE else known_events([value])[0]


class HookRoutes:
    """The routes of hooks."""

    def __init__(
        self,
        settings: ReceiverSettings,
        guard: Guard,
        *,
        reader: Reader,
        writer: Writer,
        sender: Sender,
        bodies: BodyLimiter,
    ) -> None:
        self._settings, self._guard, self._reader, self._writer = settings, guard, reader, writer
        self._sender, self._bodies = sender, bodies

    def routes(self) -> list[Route]:
        """The routes of this module."""
        hook, read, audited = "/api/hooks/{name}", partial(self._guard.require, "admin"), self._guard.audited
        return [
            route("/api/hooks", GET=read(self._list), POST=audited("hooks add", self._add)),
            route(
                hook,
                GET=read(self._show),
                PATCH=audited("hooks change", self._change),
                DELETE=audited("hooks remove", self._remove),
            ),
            route(f"{hook}/test", POST=audited("hooks test", self._test)),
            route(f"{hook}/pause", POST=audited("hooks pause", self._pause)),
            route(f"{hook}/resume", POST=audited("hooks resume", self._resume)),
            route(f"{hook}/rotate", POST=audited("hooks rotate", self._rotate)),
        ]

    async def _list(self, request: Request) -> Response:
        def read(connection: Any) -> HookListJson:
            return {
                "hooks": hook_payloads(connection, hook_records.hooks(connection), self._sender.circuit_is_open),
                "database": self._reader.database.identity(connection),
                "kept_in_file": bool(self._settings.hooks_file),
            }

        return JSONResponse(await self._reader.read(read))

    async def _add(self, request: Request) -> Response:
        document = await read_json(request, self._bodies)
        describe(request, target=_claimed_name(document))
        if isinstance(document, dict) and scheme_of(str(document.get("address", ""))) not in WEB_SCHEMES:
            hint = "Add the hook on the receiver's machine, with: kling-receiver hooks add"
            raise ApiError(422, "bad_hook", "Only https addresses can be added over the network.", hint)
        try:
            config = parse_hook(document, self._settings.hook_hosts)
        except InvalidHook as error:
            raise ApiError(422, "bad_hook", str(error), "Fix the hook and send it again.") from None
        self._reject_if_file_managed()
        row = await self._writer.run(lambda tx: hook_records.add(tx, config))
        if row is None:
            raise ApiError(409, "name_taken", f"There is a hook {config.name} already.", "Set another name.")
        describe(request, target=row["name"], detail=f"to {host_of(row['address'])}")  # its path may be a secret
        hook = await self._payload(row["name"])
        return JSONResponse(HookSecretJson(hook=hook, secret=row["secrets"][0][0]), 201)

    def _reject_if_file_managed(self) -> None:
        if self._settings.hooks_file:
            message = "The hooks are kept in KLING_HOOKS_FILE."
            raise ApiError(409, "kept_in_file", message, "Change the file and restart the receiver.")

    async def _show(self, request: Request) -> Response:
        return JSONResponse(await self._payload(_name(request)))

    async def _payload(self, name: str) -> HookJson:
        def read(connection: Any) -> HookJson | None:
            row = hook_records.hook(connection, name)
            return hook_payloads(connection, [row], self._sender.circuit_is_open)[0] if row else None

        if payload := await self._reader.read(read):
            return payload
        raise hook_not_found()

    async def _change(self, request: Request) -> Response:
        name = _name(request)
        changes = parse(HookChanges, await read_json(request, self._bodies)).model_dump(exclude_unset=True)
        describe(request, detail=", ".join(changes))

        def change(tx: Transaction) -> Row:
            """Change the hook as it is now, so that what others changed meanwhile stays. Returns its new values."""
            row = hook_records.hook(tx.connection, name)
            if row is None:
                raise hook_not_found()
            _reject_managed(row)
            values = _changed(row, changes, self._settings.hook_hosts).columns()
            columns = {column: value for column, value in values.items() if value != cast(Row, row)[column]}
            if columns:
                hook_records.update(tx, name, columns)
            return columns

        columns = await self._writer.run(change)
        if "address" in columns:  # where events go from now on
            describe(request, detail=f"{', '.join(changes)}: to {host_of(columns['address'])}")
        return JSONResponse(await self._payload(name))

    async def _remove(self, request: Request) -> Response:
        row = await get_hook_or_404(self._reader, _name(request))
        _reject_managed(row)
        await self._writer.run(lambda tx: hook_records.remove(tx, row["name"]))
        await self._sender.close_hook(row["name"])
        return JSONResponse(RemovedJson(removed=row["name"]))

    async def _test(self, request: Request) -> Response:
        row = await get_hook_or_404(self._reader, _name(request))
        test = parse(HookTest, await read_json(request, self._bodies, empty={}))
        type_ = test.event
        describe(request, detail=type_)
        if test.format == "kling" and scheme_of(row["address"]) not in WEB_SCHEMES:
            message = "The format kling is for web addresses only."
            raise ApiError(422, "bad_request", message, "Test it without a format.")
        if test.format:
            row = {**row, "format": test.format}
        if row["format"] == "kling" and type_ != TEST_TYPE and (problem := kling_problem(type_)):
            raise ApiError(422, "bad_request", problem, "Test it with one of them, or without a type.")
        log_id, now = (await self._reader.read(event_log.newest)).log_id, int(time.time() * 1000)
        if type_ == TEST_TYPE:
            event, detail = plain_test(log_id, row["format"], receiver_url=self._settings.receiver_url, now=now)
        else:
            event, detail = example(type_, log_id, now=now)
        try:
            async with asyncio.timeout(TEST_SECONDS):
                slot = await self._sender.acquire_slot(row)
                attempt = await self._sender.attempt(slot, row, event, detail, is_test=True)
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
        pause = parse(Pause, await read_json(request, self._bodies, empty={}))
        reason = pause.reason.strip() or "an operator paused it"
        await self._writer.run(lambda tx: hook_records.pause(tx, row["name"], reason))
        return JSONResponse(await self._payload(row["name"]))

    async def _resume(self, request: Request) -> Response:
        row = await get_hook_or_404(self._reader, _name(request))
        self._sender.reset(row["name"])
        await self._writer.run(lambda tx: hook_records.resume(tx, row["name"]))
        return JSONResponse(await self._payload(row["name"]))

    async def _rotate(self, request: Request) -> Response:
        row = await get_hook_or_404(self._reader, _name(request))
        _reject_managed(row)
        rotation = parse(Rotation, await read_json(request, self._bodies, empty={}))
        secret = await self._writer.run(
            lambda tx: hook_records.rotate(tx, row["name"], rotation.secret, overlap=rotation.overlap)
        )
        if secret is None:
            task_hint = (
                "The hooks of single tasks are signed by secrets derived from KLING_SIGNING_SECRETS. Rotate those."
            )
            hint = task_hint if row["task_id"] else "Rotate the secret of a hook with a web address."
            raise ApiError(409, "no_secret", "This hook has no secret of its own.", hint)
        return JSONResponse(HookSecretJson(hook=await self._payload(row["name"]), secret=secret))


def _name(request: Request) -> str:
    return sanitize(request.path_params["name"])


def _claimed_name(document: Any) -> str:
    """The name of a hook that is to be added, for the audit log, also if the rest of the document is refused."""
    name = document.get("name") if isinstance(document, dict) else None
    return shown_name(name) if isinstance(name, str) and name else ""


def _changed(row: HookRow, changes: Row, allowed: Allowlist) -> HookConfig:
    """The configuration of a hook after these changes. Raises ApiError naming every problem."""
    hint = "Fix the hook and send it again."
    if row["task_id"]:
        message = "The hook of a single task cannot be changed."
        raise ApiError(409, "hook_of_task", message, "Pause or remove it. The next task can have another one.")
    address = changes.get("address")
    if address and address != row["address"]:
        if MASK in address:
            message = f"address: {MASK} stands for a part that is not shown."
            raise ApiError(422, "bad_hook", message, "Send the whole address.")
        if not {scheme_of(address), scheme_of(row["address"])} <= set(WEB_SCHEMES):
            message = "address: Only an https address can be changed over the network, to another one."
            raise ApiError(422, "bad_hook", message, "Remove the hook and add it on the receiver's machine.")
    document = {**HookConfig.document_of(row), **changes}
    try:
        return parse_hook({name: value for name, value in document.items() if value is not None}, allowed)
    except InvalidHook as error:
        raise ApiError(422, "bad_hook", str(error), hint) from None


MANAGED_BY: dict[str, str] = {"file": "KLING_HOOKS_FILE", "settings": "KLING_HOOK_URL and KLING_HOOK_SECRET"}
"""The settings in which the hooks of a source are kept."""


def _reject_managed(row: HookRow) -> None:
    if setting := MANAGED_BY.get(row["source"]):
        raise ApiError(409, "kept_elsewhere", f"This hook is kept in {setting}.", "Change it there.")


async def get_hook_or_404(reader: Reader, name: str) -> HookRow:
    """A hook's row. Raises ApiError for an unknown name."""
    if row := await reader.read(lambda connection: hook_records.hook(connection, name)):
        return row
    raise hook_not_found()


def hook_not_found() -> ApiError:
    """The error for an unknown name."""
    return ApiError(404, "unknown_hook", "There is no such hook.", "Check the name with: kling-receiver hooks list")

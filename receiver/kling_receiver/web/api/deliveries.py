"""What became of events on their way to hooks, and sending them again: over `/api`, by role admin."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kling_callback.protocol.ids import is_id
from kling_callback.protocol.reports import sanitize
from kling_receiver.hooks import deliveries, delivery_list
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import WHOLE, HookName
from kling_receiver.hooks.delivery_list import STATES, DeliveryFilter
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.reader import Reader
from kling_receiver.store.transaction import Transaction, last_event
from kling_receiver.store.writer import Writer
from kling_receiver.web.api.hook_payloads import delivery_payload
from kling_receiver.web.api.hooks import get_hook_or_404, hook_not_found
from kling_receiver.web.api.paging import decode_cursor, encode_cursor, parse_limit
from kling_receiver.web.auth import Endpoint, require_role
from kling_receiver.web.body import BodyLimiter
from kling_receiver.web.errors import ApiError
from kling_receiver.web.requests import RequestModel, parse, read_json


def _timestamp(said: Any) -> datetime:
    """A time as it is written; UTC, unless it says otherwise."""
    if not isinstance(said, str):
        raise ValueError("must be a time, such as 2026-01-31T12:00:00Z.")
    try:
        at = datetime.fromisoformat(said.upper())
    except ValueError:
        raise ValueError(f"{said} is no time, such as 2026-01-31T12:00:00Z.") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


Timestamp = Annotated[datetime, BeforeValidator(_timestamp)]


class Replay(RequestModel):
    """What is to be sent again: all from an event on, or since a time, or what happened to a task."""

    from_: Annotated[int, Field(ge=1, lt=1 << 62), WHOLE] | None = Field(None, alias="from")
    since: Timestamp | None = None
    task: str | None = None
    hook: HookName | None = None

    @field_validator("task")
    @classmethod
    def _task(cls, value: str | None) -> str | None:
        if value is not None and not is_id(value):
            raise ValueError("this is no task's id.")
        return value

    @model_validator(mode="after")
    def _one(self) -> "Replay":
        if sum(each is not None for each in (self.from_, self.since, self.task)) != 1:
            raise ValueError("give one of `from` (an event's id), `since` (a time) and `task`.")
        return self


class Retry(RequestModel):
    """Which dead deliveries are to be sent again: all, or those of one hook."""

    hook: HookName | None = None


class DeliveryRoutes:
    """The routes of deliveries."""

    def __init__(self, settings: ReceiverSettings, *, reader: Reader, writer: Writer, bodies: BodyLimiter) -> None:
        self._settings, self._reader, self._writer, self._bodies = settings, reader, writer, bodies

    def routes(self) -> list[Route]:
        """Every route."""
        one = "/api/deliveries/{event}/{name}"
        return [
            Route("/api/deliveries", self._for_admin(self._deliveries), methods=["GET"]),
            Route("/api/deliveries/retry", self._for_admin(self._retry_all_dead), methods=["POST"]),
            Route("/api/deliveries/replay", self._for_admin(self._replay), methods=["POST"]),
            Route(one, self._for_admin(self._delivery), methods=["GET"]),
            Route(f"{one}/retry", self._for_admin(self._retry), methods=["POST"]),
        ]

    def _for_admin(self, endpoint: Endpoint) -> Endpoint:
        return require_role(self._settings.signing_secrets, "admin", endpoint)

    async def _deliveries(self, request: Request) -> Response:
        wish = _parse_filter(request)
        found = await self._reader.read(lambda connection: delivery_list.list_deliveries(connection, wish))
        if (
            wish.hook_name
            and not found
            and not await self._reader.read(partial(delivery_list.hook_exists, hook_name=wish.hook_name))
        ):
            raise hook_not_found()
        more = len(found) > wish.limit
        shown = found[: wish.limit]
        last = encode_cursor((shown[-1].event["id"], shown[-1].hook_name)) if more else None
        return JSONResponse({"deliveries": [delivery_payload(each) for each in shown], "next": last})

    async def _delivery(self, request: Request) -> Response:
        event, name = _parse_key(request)
        found = await self._reader.read(lambda connection: delivery_list.get_delivery(connection, event, name))
        if found is None:
            raise delivery_not_found()
        return JSONResponse(delivery_payload(found, attempts=True))

    async def _retry(self, request: Request) -> Response:
        event, name = _parse_key(request)
        row = await get_hook_or_404(self._reader, name)
        known = await self._reader.event(event)
        if known is None:
            raise delivery_not_found()
        await self._writer.run(lambda tx: deliveries.redeliver(tx, event, row, known["task_id"]))
        return await self._delivery(request)

    async def _replay(self, request: Request) -> Response:
        given = parse(Replay, await read_json(request, self._bodies))
        names, count = await self._writer.run(lambda tx: _enqueue_replay(tx, given))
        if given.hook and not names:
            raise hook_not_found()
        return JSONResponse({"hooks": names, "events": count})

    async def _retry_all_dead(self, request: Request) -> Response:
        given = parse(Retry, await read_json(request, self._bodies, empty={}))
        if given.hook:
            await get_hook_or_404(self._reader, given.hook)
        count = await self._writer.run(lambda tx: deliveries.retry_dead(tx, given.hook))
        return JSONResponse({"deliveries": count})


def _enqueue_replay(tx: Transaction, replay: Replay) -> tuple[list[str], int]:
    """Owe a replay: to which hooks, and how many events of the log it goes through."""
    own = hook_records.hook(tx.connection, hook_records.task_hook_name(replay.task)) if replay.task else None
    there = hook_records.hooks(tx.connection) + ([own] if own else [])
    hooks = [row for row in there if replay.hook in (None, row["name"])]
    last = last_event(tx.connection)
    first = 1 if replay.task is not None else replay.from_
    if replay.since is not None:
        first = deliveries.first_event_since(tx.connection, int(replay.since.timestamp() * 1000)) or last + 1
    assert first is not None
    if first <= last:
        deliveries.replay(tx, hooks, first - 1, last, task_id=replay.task)
    count = deliveries.count_events(tx.connection, first, last, replay.task)
    return [row["name"] for row in hooks], count


def _parse_filter(request: Request) -> DeliveryFilter:
    """The filters of a list. Raises ApiError naming every problem."""
    asked, problems = request.query_params, []
    state, task = asked.get("state"), asked.get("task")
    if state and state not in STATES:
        problems.append(f"`state` is one of {', '.join(STATES)}.")
    if task and not is_id(task):
        problems.append("`task` is a task's id.")
    limit, place = parse_limit(asked.get("limit", "50"), problems), decode_cursor(asked.get("cursor"), problems)
    if problems:
        raise ApiError(422, "bad_filter", " ".join(problems), "Mend the address and send it again.")
    hook = sanitize(asked.get("hook") or "") or None
    return DeliveryFilter(hook_name=hook, state=state or None, task_id=task or None, before=place, limit=limit)


def _parse_key(request: Request) -> tuple[int, str]:
    said = request.path_params["event"]
    if not (said.isascii() and said.isdigit() and len(said) < 19):
        raise delivery_not_found()
    return int(said), sanitize(request.path_params["name"])


def delivery_not_found() -> ApiError:
    hint = "Look at: kling-receiver deliveries list"
    return ApiError(404, "unknown_delivery", "There is no such delivery.", hint)

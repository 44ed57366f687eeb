"""List deliveries, retry dead letters and replay events of the log, for role admin."""

from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kling_callback.protocol.values import IDENTIFIER, sanitize
from kling_receiver.hooks import deliveries, delivery_list
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import WHOLE, HookName
from kling_receiver.hooks.delivery_list import STATES, DeliveryFilter
from kling_receiver.store.reader import Reader
from kling_receiver.store.transaction import Transaction, last_event
from kling_receiver.store.writer import Writer
from kling_receiver.tasks.registration import KLING_ID_SCHEMA
from kling_receiver.web.api.hook_payloads import (
    DeliveryPageJson,
    ReplayedJson,
    RetriedJson,
    delivery_payload,
    delivery_summary,
)
from kling_receiver.web.api.hooks import get_hook_or_404, hook_not_found
from kling_receiver.web.api.paging import decode_cursor, encode_cursor, parse_limit
from kling_receiver.web.api.tasks import get_task_or_404
from kling_receiver.web.auth import MAX_ID_CHARS, Guard, describe, route
from kling_receiver.web.body import BodyLimiter
from kling_receiver.web.errors import ApiError
from kling_receiver.web.requests import RequestModel, parse, parse_time, query_problems, read_json

Timestamp = Annotated[datetime, BeforeValidator(parse_time)]


class Replay(RequestModel):
    """Which events of the log to deliver again: from an event on, since a time, or those of a task."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
                for name in ("from", "since", "task")
            ]
        }
    )

    from_: Annotated[int, Field(ge=1, lt=1 << 62), WHOLE] | None = Field(
        None, alias="from", description="from this event on"
    )
    since: Timestamp | None = Field(None, description="since this time, in UTC unless it names another zone")
    task: Annotated[str, Field(json_schema_extra=KLING_ID_SCHEMA)] | None = None
    hook: HookName | None = Field(None, description="only to this hook")

    @field_validator("task")
    @classmethod
    def _task(cls, value: str | None) -> str | None:
        if value is not None and not IDENTIFIER.fullmatch(value):
            raise ValueError("must be the id of a task.")
        return value

    @model_validator(mode="after")
    def _one(self) -> "Replay":
        if sum(value is not None for value in (self.from_, self.since, self.task)) != 1:
            raise ValueError("set one of `from` (an event's id), `since` (a time) and `task`.")
        return self


class Retry(RequestModel):
    """Which dead letters to deliver again: all, or those of one hook."""

    hook: HookName | None = Field(None, description="only those of this hook")


class DeliveryRoutes:
    """The routes of deliveries."""

    def __init__(self, guard: Guard, *, reader: Reader, writer: Writer, bodies: BodyLimiter) -> None:
        self._guard, self._reader, self._writer, self._bodies = guard, reader, writer, bodies

    def routes(self) -> list[Route]:
        """The routes of this module."""
        guard, delivery = self._guard, "/api/deliveries/{event}/{name}"
        return [
            route("/api/deliveries", GET=guard.require("admin", self._deliveries, query=None)),
            route("/api/deliveries/retry", POST=guard.audited("deliveries retry", self._retry_all_dead)),
            route("/api/deliveries/replay", POST=guard.audited("replay", self._replay)),
            route(delivery, GET=guard.require("admin", self._delivery)),
            route(f"{delivery}/retry", POST=guard.audited("deliveries retry", self._retry)),
        ]

    async def _deliveries(self, request: Request) -> Response:
        delivery_filter = _parse_filter(request)
        if delivery_filter.task_id:
            delivery_filter = replace(delivery_filter, task_id=await self._own_id(delivery_filter.task_id))
        rows = await self._reader.read(partial(delivery_list.list_deliveries, delivery_filter=delivery_filter))
        if not rows and delivery_filter.hook_name:
            await self._require_hook(delivery_filter.hook_name)
        page = rows[: delivery_filter.limit]
        cursor = encode_cursor((page[-1].event["id"], page[-1].hook_name)) if len(rows) > len(page) else None
        return JSONResponse(DeliveryPageJson(deliveries=[delivery_summary(row) for row in page], next=cursor))

    async def _own_id(self, any_id: str) -> str:
        """Our id of a task; an unknown id unchanged, because events of a removed task may remain."""
        try:
            return (await get_task_or_404(self._reader, any_id)).row["id"]
        except ApiError as error:
            if error.status != 404:
                raise
            return any_id

    async def _require_hook(self, hook_name: str) -> None:
        if not await self._reader.read(partial(delivery_list.hook_exists, hook_name=hook_name)):
            raise hook_not_found()

    async def _delivery(self, request: Request) -> Response:
        event_id, hook_name = _parse_key(request)
        query = partial(delivery_list.get_delivery, event_id=event_id, hook_name=hook_name)
        delivery = await self._reader.read(query)
        if delivery is None:
            raise delivery_not_found()
        return JSONResponse(delivery_payload(delivery))

    async def _retry(self, request: Request) -> Response:
        event_id, hook_name = _parse_key(request)
        hook = await get_hook_or_404(self._reader, hook_name)
        event = await self._reader.event(event_id)
        if event is None:
            raise delivery_not_found()
        await self._writer.run(lambda tx: deliveries.redeliver(tx, event_id, hook, event["task_id"]))
        return await self._delivery(request)

    async def _replay(self, request: Request) -> Response:
        replay = parse(Replay, await read_json(request, self._bodies))
        if replay.task:
            replay = replay.model_copy(update={"task": await self._own_id(replay.task)})
        chosen = replay.model_dump(mode="json", by_alias=True, exclude_none=True)
        hook, events = chosen.pop("hook", ""), [f"{key} {str(each)[:MAX_ID_CHARS]}" for key, each in chosen.items()]
        describe(request, target=hook, detail=" ".join(events))
        replayed = await self._writer.run(lambda tx: _enqueue_replay(tx, replay))
        if replay.hook and not replayed["hooks"]:
            raise hook_not_found()
        return JSONResponse(replayed)

    async def _retry_all_dead(self, request: Request) -> Response:
        retry = parse(Retry, await read_json(request, self._bodies, empty={}))
        describe(request, target=retry.hook or "", detail="all dead letters")
        if retry.hook:
            await get_hook_or_404(self._reader, retry.hook)
        count = await self._writer.run(lambda tx: deliveries.retry_dead(tx, retry.hook))
        return JSONResponse(RetriedJson(deliveries=count))


def _enqueue_replay(tx: Transaction, replay: Replay) -> ReplayedJson:
    """Enqueue a replay. Returns its hooks, and how many events of the log it covers."""
    hooks = hook_records.hooks(tx.connection)
    if replay.task and (task_hook := hook_records.hook(tx.connection, hook_records.task_hook_name(replay.task))):
        hooks = [*hooks, task_hook]
    hooks = [row for row in hooks if replay.hook in (None, row["name"])]
    last = last_event(tx.connection)
    first = 1 if replay.task is not None else replay.from_
    if replay.since is not None:
        first = deliveries.first_event_since(tx.connection, int(replay.since.timestamp() * 1000)) or last + 1
    assert first is not None
    if first <= last:
        deliveries.replay(tx, hooks, first - 1, last, task_id=replay.task)
    count = deliveries.count_events(tx.connection, first, last, replay.task)
    return {"hooks": [row["name"] for row in hooks], "events": count}


def _parse_filter(request: Request) -> DeliveryFilter:
    """The filter of a list. Raises ApiError naming every problem."""
    query, problems = request.query_params, query_problems(request, DELIVERY_PARAMETERS)
    state, task_id = query.get("state"), query.get("task")
    if state and state not in STATES:
        problems.append(f"`state` must be one of {', '.join(STATES)}.")
    if task_id and not IDENTIFIER.fullmatch(task_id):
        problems.append("`task` must be the id of a task.")
    limit, before = parse_limit(query.get("limit", "50"), problems), decode_cursor(query.get("cursor"), problems)
    if problems:
        raise ApiError(422, "bad_filter", " ".join(problems), "Fix the query and send it again.")
    hook_name = sanitize(query.get("hook") or "") or None
    return DeliveryFilter(hook_name=hook_name, state=state or None, task_id=task_id or None, before=before, limit=limit)


DELIVERY_PARAMETERS = ("hook", "state", "task", "limit", "cursor")
"""The query parameters of a list of deliveries."""


def _parse_key(request: Request) -> tuple[int, str]:
    """The event id and the hook name of a delivery. Raises ApiError."""
    text = request.path_params["event"]
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise delivery_not_found()
    return int(text), sanitize(request.path_params["name"])


def delivery_not_found() -> ApiError:
    """The error for an unknown event or a delivery that was never attempted."""
    hint = "Check the event and hook with: kling-receiver deliveries list"
    return ApiError(404, "unknown_delivery", "There is no such delivery.", hint)

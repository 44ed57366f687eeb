"""What became of events on their way to hooks, and sending them again: over `/api`, by role admin."""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kling_callback.protocol.ids import is_id
from kling_callback.protocol.reports import clean
from kling_receiver.hooks import deliveries, delivery_list
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import AnyName, Whole
from kling_receiver.hooks.delivery_list import STATES, Wish
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.reader import Reader
from kling_receiver.store.transaction import Transaction, last_event
from kling_receiver.store.writer import Writer
from kling_receiver.web.api.hook_payloads import delivery_view
from kling_receiver.web.api.hooks import known_hook, no_hook
from kling_receiver.web.api.paging import cursor_of, limit_of, place_of
from kling_receiver.web.auth import Endpoint, for_role
from kling_receiver.web.body import Bodies
from kling_receiver.web.errors import ApiError
from kling_receiver.web.requests import Order, json_body, read_order


def _moment(said: Any) -> datetime:
    """A time as it is written; UTC, unless it says otherwise."""
    if not isinstance(said, str):
        raise ValueError("must be a time, such as 2026-01-31T12:00:00Z.")
    try:
        at = datetime.fromisoformat(said.upper())
    except ValueError:
        raise ValueError(f"{said} is no time, such as 2026-01-31T12:00:00Z.") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


Moment = Annotated[datetime, BeforeValidator(_moment)]


class Replay(Order):
    """What is to be sent again: all from an event on, or since a time, or what happened to a task."""

    from_: Annotated[Whole, Field(ge=1, lt=1 << 62)] | None = Field(None, alias="from")
    since: Moment | None = None
    task: str | None = None
    hook: AnyName | None = None

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


class Retry(Order):
    """Which dead deliveries are to be sent again: all, or those of one hook."""

    hook: AnyName | None = None


class DeliveryRoutes:
    """The routes of deliveries."""

    def __init__(self, settings: ReceiverSettings, *, reader: Reader, writer: Writer, bodies: Bodies) -> None:
        self._settings, self._reader, self._writer, self._bodies = settings, reader, writer, bodies

    def routes(self) -> list[Route]:
        """Every route."""
        one = "/api/deliveries/{event}/{name}"
        return [
            Route("/api/deliveries", self._for_admin(self._deliveries), methods=["GET"]),
            Route("/api/deliveries/retry", self._for_admin(self._retry_dead), methods=["POST"]),
            Route("/api/deliveries/replay", self._for_admin(self._replay), methods=["POST"]),
            Route(one, self._for_admin(self._delivery), methods=["GET"]),
            Route(f"{one}/retry", self._for_admin(self._retry), methods=["POST"]),
        ]

    def _for_admin(self, endpoint: Endpoint) -> Endpoint:
        return for_role(self._settings.signing_secrets, "admin", endpoint)

    async def _deliveries(self, request: Request) -> Response:
        wish = _wish(request)
        found = await self._reader.read(lambda connection: delivery_list.listed(connection, wish))
        if wish.hook and not found and not await self._reader.read(partial(delivery_list.has, hook=wish.hook)):
            raise no_hook()
        more = len(found) > wish.limit
        shown = found[: wish.limit]
        last = cursor_of((shown[-1].event["id"], shown[-1].hook)) if more else None
        return JSONResponse({"deliveries": [delivery_view(each) for each in shown], "next": last})

    async def _delivery(self, request: Request) -> Response:
        event, name = _pair(request)
        found = await self._reader.read(lambda connection: delivery_list.delivery(connection, event, name))
        if found is None:
            raise _no_delivery()
        return JSONResponse(delivery_view(found, attempts=True))

    async def _retry(self, request: Request) -> Response:
        event, name = _pair(request)
        row = await known_hook(self._reader, name)
        known = await self._reader.event(event)
        if known is None:
            raise _no_delivery()
        await self._writer.run(lambda tx: deliveries.again(tx, event, row, known["task"]))
        return await self._delivery(request)

    async def _replay(self, request: Request) -> Response:
        given = read_order(Replay, await json_body(request, self._bodies))
        names, count = await self._writer.run(lambda tx: _owe(tx, given))
        if given.hook and not names:
            raise no_hook()
        return JSONResponse({"hooks": names, "events": count})

    async def _retry_dead(self, request: Request) -> Response:
        given = read_order(Retry, await json_body(request, self._bodies, empty={}))
        if given.hook:
            await known_hook(self._reader, given.hook)
        count = await self._writer.run(lambda tx: deliveries.revive(tx, given.hook))
        return JSONResponse({"deliveries": count})


def _owe(tx: Transaction, given: Replay) -> tuple[list[str], int]:
    """Owe a replay: to which hooks, and how many events of the log it goes through."""
    own = hook_records.hook(tx.connection, hook_records.of_task(given.task)) if given.task else None
    there = hook_records.hooks(tx.connection) + ([own] if own else [])
    hooks = [row for row in there if given.hook in (None, row["name"])]
    last = last_event(tx.connection)
    first = 1 if given.task is not None else given.from_
    if given.since is not None:
        first = deliveries.first_since(tx.connection, int(given.since.timestamp() * 1000)) or last + 1
    assert first is not None
    if first <= last:
        deliveries.replay(tx, hooks, first - 1, last, task=given.task)
    count = deliveries.count_between(tx.connection, first, last, given.task)
    return [row["name"] for row in hooks], count


def _wish(request: Request) -> Wish:
    """The filters of a list. Raises ApiError naming every problem."""
    asked, problems = request.query_params, []
    state, task = asked.get("state"), asked.get("task")
    if state and state not in STATES:
        problems.append(f"`state` is one of {', '.join(STATES)}.")
    if task and not is_id(task):
        problems.append("`task` is a task's id.")
    limit, place = limit_of(asked.get("limit", "50"), problems), place_of(asked.get("cursor"), problems)
    if problems:
        raise ApiError(422, "bad_filter", " ".join(problems), "Mend the address and send it again.")
    hook = clean(asked.get("hook") or "") or None
    return Wish(hook=hook, state=state or None, task=task or None, before=place, limit=limit)


def _pair(request: Request) -> tuple[int, str]:
    said = request.path_params["event"]
    if not (said.isascii() and said.isdigit() and len(said) < 19):
        raise _no_delivery()
    return int(said), clean(request.path_params["name"])


def _no_delivery() -> ApiError:
    hint = "Look at: kling-receiver deliveries list"
    return ApiError(404, "unknown_delivery", "There is no such delivery.", hint)

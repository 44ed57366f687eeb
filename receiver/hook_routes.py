"""What an operator may order of hooks and deliveries over `/api`, with a token of role admin.

Web addresses only: commands and brokers are set on the machine itself.
"""

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from client.ids import is_id
from receiver import deliveries, hook_rows
from receiver.access import require
from receiver.body import Bodies, Share, read_body
from receiver.deliveries import Wish
from receiver.errors import ApiError
from receiver.hook_views import delivery_view, hook_view
from receiver.hooks import WEB, BadHook, NewHook, problem, read_hook
from receiver.paging import cursor_of, limit_of, place_of
from receiver.reading import Full, Reader
from receiver.sender import Sender
from receiver.settings import ReceiverSettings
from receiver.sinks import scheme_of
from receiver.transaction import NEW_TASK, Row, Transaction
from receiver.writer import Writer

STATES = ("waiting", "delivered", "dead")
OVERLAP = 86_400.0

Endpoint = Callable[[Request], Awaitable[Response]]


class Rotation(BaseModel):
    """What `rotate` may be told: a secret of the caller's own, and for how long (seconds) the old one signs."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    secret: str = Field("", repr=False)
    overlap: Annotated[float, Field(ge=0, le=30 * 86_400, allow_inf_nan=False)] = OVERLAP


class Replay(BaseModel):
    """What is to be sent again: all from an event on, or since a time, or what happened to a task."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    from_: Annotated[int | None, Field(alias="from", ge=1, lt=1 << 62)] = None
    since: datetime | None = None
    task: str | None = None
    hook: str | None = None

    @model_validator(mode="after")
    def _one(self) -> "Replay":
        if sum(each is not None for each in (self.from_, self.since, self.task)) != 1:
            raise ValueError("give one of `from` (an event's id), `since` (a time) and `task`.")
        return self


class HookRoutes:
    """The routes of hooks and deliveries."""

    def __init__(
        self, settings: ReceiverSettings, *, reader: Reader, writer: Writer, sender: Sender, bodies: Bodies
    ) -> None:
        self._settings, self._reader, self._writer = settings, reader, writer
        self._sender, self._bodies = sender, bodies

    def routes(self) -> list[Route]:
        """Every route."""
        hook, delivery = "/api/hooks/{name}", "/api/deliveries/{event}/{name}"
        return [
            Route("/api/hooks", self._for_admin(self._list, self._add), methods=["GET", "POST"]),
            Route(hook, self._for_admin(self._show, delete=self._remove), methods=["GET", "DELETE"]),
            Route(f"{hook}/test", self._for_admin(post=self._test), methods=["POST"]),
            Route(f"{hook}/pause", self._for_admin(post=self._pause), methods=["POST"]),
            Route(f"{hook}/resume", self._for_admin(post=self._resume), methods=["POST"]),
            Route(f"{hook}/rotate", self._for_admin(post=self._rotate), methods=["POST"]),
            Route("/api/deliveries", self._for_admin(self._deliveries), methods=["GET"]),
            Route("/api/deliveries/replay", self._for_admin(post=self._replay), methods=["POST"]),
            Route(delivery, self._for_admin(self._delivery), methods=["GET"]),
            Route(f"{delivery}/retry", self._for_admin(post=self._retry), methods=["POST"]),
        ]

    def _for_admin(
        self, get: Endpoint | None = None, post: Endpoint | None = None, *, delete: Endpoint | None = None
    ) -> Endpoint:
        by_method = {"GET": get, "HEAD": get, "POST": post, "DELETE": delete}

        async def guarded(request: Request) -> Response:
            require(request, self._settings.signing_secrets, "admin")
            endpoint = by_method[request.method]
            assert endpoint
            return await endpoint(request)

        return guarded

    async def _list(self, request: Request) -> Response:
        def question(connection: Any) -> list[dict[str, Any]]:
            rows = hook_rows.hooks(connection)
            counts = deliveries.counts(connection, [row["name"] for row in rows])
            last = hook_rows.last_event(connection)
            return [hook_view(row, counts[row["name"]], last) for row in rows]

        return JSONResponse({"hooks": await self._reader.read(question)})

    async def _add(self, request: Request) -> Response:
        given = await self._body(request)
        if isinstance(given, dict) and scheme_of(str(given.get("address", ""))) not in WEB:
            hint = "Add it where the receiver runs, with: kling-receiver hooks add"
            raise ApiError(422, "bad_hook", "Only https addresses are taken over the network.", hint)
        try:
            new = read_hook(given, self._settings.hook_hosts)
        except BadHook as error:
            raise ApiError(422, "bad_hook", str(error), "Mend it and send it again.") from None
        self._refuse_beside_file()
        row = await self._writer.run(lambda tx: hook_rows.add(tx, new))
        if row is None:
            raise ApiError(409, "name_taken", f"There is a hook {new.name}.", "Choose another name.")
        hook = await self._view(row["name"])
        return JSONResponse({"hook": hook, "secret": row["secrets"][0][0]}, 201)

    def _refuse_beside_file(self) -> None:
        if self._settings.hooks_file:
            said = "The hooks are kept in KLING_HOOKS_FILE."
            raise ApiError(409, "kept_in_file", said, "Change the file, and start the receiver anew.")

    async def _show(self, request: Request) -> Response:
        return JSONResponse(await self._view(request.path_params["name"]))

    async def _view(self, name: str) -> dict[str, Any]:
        def question(connection: Any) -> dict[str, Any] | None:
            row = hook_rows.hook(connection, name)
            counts = deliveries.counts(connection, [name])[name]
            return row and hook_view(row, counts, hook_rows.last_event(connection))

        if view := await self._reader.read(question):
            return view
        raise _no_hook()

    async def _row(self, request: Request) -> Row:
        name = request.path_params["name"]
        if row := await self._reader.read(lambda connection: hook_rows.hook(connection, name)):
            return row
        raise _no_hook()

    async def _remove(self, request: Request) -> Response:
        row = await self._row(request)
        _refuse_foreign(row)
        await self._writer.run(lambda tx: hook_rows.remove(tx, row["name"]))
        await self._sender.forget(row["name"])
        return JSONResponse({"removed": row["name"]})

    async def _test(self, request: Request) -> Response:
        row = await self._row(request)
        event, full = _made_up(self._settings)
        turn = await self._sender.turn(row)
        attempt = await self._sender.attempt(turn, row, event, full)
        said = {"status": attempt.status, "answer": attempt.answer or None, "error": attempt.error or None}
        return JSONResponse({"taken": attempt.taken, "ms": attempt.ms, **said})

    async def _pause(self, request: Request) -> Response:
        row = await self._row(request)
        await self._writer.run(lambda tx: hook_rows.pause(tx, row["name"], "an operator paused it"))
        return JSONResponse(await self._view(row["name"]))

    async def _resume(self, request: Request) -> Response:
        row = await self._row(request)
        await self._writer.run(lambda tx: hook_rows.resume(tx, row["name"]))
        return JSONResponse(await self._view(row["name"]))

    async def _rotate(self, request: Request) -> Response:
        row = await self._row(request)
        _refuse_foreign(row)
        given = _read(Rotation, await self._body(request, empty={}))
        _check_secret(given.secret)
        secret = await self._writer.run(
            lambda tx: hook_rows.rotate(tx, row["name"], given.secret, overlap=given.overlap)
        )
        if secret is None:
            raise ApiError(409, "no_secret", "This hook is not signed.", "Only web addresses are.")
        return JSONResponse({"hook": await self._view(row["name"]), "secret": secret})

    async def _deliveries(self, request: Request) -> Response:
        wish = _wish(request)
        found = await self._reader.read(lambda connection: deliveries.listed(connection, wish))
        more = len(found) > wish.limit
        shown = found[: wish.limit]
        last = cursor_of((shown[-1].event["id"], shown[-1].hook)) if more else None
        return JSONResponse({"deliveries": [delivery_view(each) for each in shown], "next": last})

    async def _delivery(self, request: Request) -> Response:
        event, name = _pair(request)
        found = await self._reader.read(lambda connection: deliveries.delivery(connection, event, name))
        if found is None:
            raise _no_delivery()
        return JSONResponse(delivery_view(found, attempts=True))

    async def _retry(self, request: Request) -> Response:
        event = _pair(request)[0]
        row, known = await self._row(request), await self._reader.event(event)
        if known is None:
            raise _no_delivery()
        await self._writer.run(lambda tx: deliveries.again(tx, event, row, known["task"]))
        return await self._delivery(request)

    async def _replay(self, request: Request) -> Response:
        given = _read(Replay, await self._body(request))
        hooks = await self._reader.read(hook_rows.hooks)
        chosen = [row for row in hooks if given.hook in (None, row["name"])]
        if given.hook and not chosen:
            raise _no_hook()
        count = await self._writer.run(lambda tx: _owe(tx, given, chosen))
        return JSONResponse({"hooks": [row["name"] for row in chosen], "events": count})

    async def _body(self, request: Request, *, empty: Any = None) -> Any:
        with Share(self._bodies) as share:
            body = await read_body(request, share)
            if not body.kept and empty is not None:
                return empty
            try:
                return json.loads(body.kept)
            except (ValueError, RecursionError):
                raise ApiError(422, "bad_json", "The body is no JSON.", "Send a JSON object.") from None


def _owe(tx: Transaction, given: Replay, hooks: list[Row]) -> int:
    """Owe a replay; how many events of the log it goes through."""
    last = hook_rows.last_event(tx.connection)
    first = 1 if given.task else given.from_
    if given.since is not None:
        at = given.since if given.since.tzinfo else given.since.replace(tzinfo=UTC)
        first = deliveries.first_since(tx.connection, int(at.timestamp() * 1000)) or last + 1
    assert first is not None
    if first <= last:
        deliveries.replay(tx, hooks, first - 1, last, task=given.task)
    return deliveries.count_between(tx.connection, first, last, given.task)


def _made_up(settings: ReceiverSettings) -> tuple[Row, Full]:
    """An event that says that it is a test, of a task that there is not."""
    now = int(datetime.now(UTC).timestamp() * 1000)
    task = {**NEW_TASK, "id": "test", "family": "images/generations", "created_at": now, "updated_at": now}
    event = {
        "id": 0,
        "task": "test",
        "type": "hook.test",
        "at": now,
        "data": {"receiver": settings.receiver_url},
    }
    return event, Full({**task, "request": None, "cost": None}, [], [])


def _read(model: type[Any], given: Any) -> Any:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        said = " ".join(problem(each) for each in error.errors())
        raise ApiError(422, "bad_order", said, "Mend it and send it again.") from None


def _check_secret(secret: str) -> None:
    if secret:
        try:
            NewHook.check_secret(secret)
        except ValueError as error:
            raise ApiError(422, "bad_order", f"secret: {error}", "Leave it out to have one made.") from None


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
    hook = (asked.get("hook") or "").replace("\0", "\ufffd") or None
    return Wish(hook=hook, state=state or None, task=task or None, before=place, limit=limit)


def _pair(request: Request) -> tuple[int, str]:
    said = request.path_params["event"]
    if not (said.isascii() and said.isdigit() and len(said) < 19):
        raise _no_delivery()
    return int(said), request.path_params["name"].replace("\0", "\ufffd")


def _refuse_foreign(row: Row) -> None:
    if row["source"] in ("file", "settings"):
        where = "KLING_HOOKS_FILE" if row["source"] == "file" else "KLING_HOOK_URL and KLING_HOOK_SECRET"
        raise ApiError(409, "kept_elsewhere", f"This hook is kept in {where}.", "Change it there.")


def _no_hook() -> ApiError:
    return ApiError(404, "unknown_hook", "There is no such hook.", "Look at: kling-receiver hooks list")


def _no_delivery() -> ApiError:
    hint = "Look at: kling-receiver deliveries list"
    return ApiError(404, "unknown_delivery", "There is no such delivery.", hint)

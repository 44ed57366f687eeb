"""The routes: Kling's two standards, the result files, and the account of what happened here."""

import asyncio
import contextlib
import json
from typing import Any, cast

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.families import FAMILIES, Family, check, check_options
from gateway.files import Files
from gateway.keys import caller
from gateway.ledger import Ledger, Query
from gateway.life import Life
from gateway.misbehaviour import marked
from gateway.replies import Hangup, Refused, envelope, garbage
from gateway.tasks import Task, dressed, now, record

UNTIL_KNOWN = ("task_status_msg", "task_result")  # a create's answer has no such fields yet


class Api:
    def __init__(self, ledger: Ledger, life: Life) -> None:
        self.ledger = ledger
        self.life = life

    async def create(self, request: Request) -> Response:
        raw = await request.body()
        marks = marked(raw.decode(errors="replace"))
        body, has = parsed(raw), self.switches(marks)
        self.ledger.note(self.ledger.creates, body)
        path, family = family_of(request)
        self.admit(request, new=family.new, late=has("expired-token-once"))
        if has("drop-before-create"):
            return Hangup()
        options = body.get("options") or {} if family.new else body
        check(family, body)
        check_options(options)
        self.refuse(has, options.get("external_task_id"))
        task = self.take(request, family, path, body, has)
        return await self.answer(task)

    def switches(self, marks: frozenset[str]) -> Any:
        try:
            return self.ledger.switches(marks)
        except ValueError as error:
            raise Refused(1201, str(error)) from None

    def admit(self, request: Request, *, new: bool, late: bool = False) -> None:
        ledger = self.ledger
        name = caller(
            request.headers.get("authorization", ""),
            keys=ledger.keys,
            access_key=ledger.access_key,
            secret_key=ledger.secret_key,
            new=new,
        )
        late = late or "expired-token-once" in ledger.misbehave
        if late and ledger.first("expired-token-once", name):
            raise Refused(1004, "Authorization expired")

    def refuse(self, has: Any, external_id: str | None) -> None:
        for name, code, message in REFUSALS:
            if has(name):
                raise Refused(code, message)
        if has("busy-once") and self.ledger.first("busy-once", external_id or ""):
            raise Refused(1302, "Too many requests")
        if external_id in self.ledger.external and not has("drop-external-id"):
            raise Refused(1201, f"external_task_id {external_id} already exists")

    def take(self, request: Request, family: Family, path: str, body: dict[str, Any], has: Any) -> Task:
        ledger = self.ledger
        task = Task(
            id=ledger.number(),
            alias=ledger.number(),
            result_id=ledger.number(),
            variant=ledger.random.randrange(100),
            family=family,
            path=path,
            body=body,
            base_url=f"http://{request.url.netloc}{ledger.base_path}",
            lasts=ledger.result_seconds,
            has=has,
        )
        if ledger.concurrency is not None and ledger.busy() + task.slots > ledger.concurrency:
            raise Refused(1303, "Concurrency over the resource pack")
        ledger.add(task)
        return task

    async def answer(self, task: Task) -> Response:
        """Answer in one of many ways; the rest of the task's life comes after the answer."""
        if task.path == "audio/tts":
            self.ledger.turn(task, task.ending)
            return JSONResponse(dressed(task, record(task, new=False), callback=False))
        begun = task.has("early-callback") or task.has("early-final")
        if begun:
            await self.life.begin(task)
        if task.has("early-final"):
            await self.life.finish(task)
        reply = self.reply(task)
        if not task.has("early-final"):
            reply.background = BackgroundTask(self.life.start, task, begun=begun)
        return reply

    def reply(self, task: Task) -> Response:
        if task.has("drop-after-create"):
            return Hangup()
        if task.has("create-5002"):
            return Refused(5002, "Service timed out").reply()
        if task.has("create-504"):
            return HTMLResponse("<h1>504 Gateway Time-out</h1>", 504)
        if task.has("create-garbage"):
            return garbage()
        fields = record(task, "submitted", new=task.family.new)
        fields = {name: value for name, value in fields.items() if name not in UNTIL_KNOWN}
        return JSONResponse(dressed(task, fields, callback=False))

    async def query(self, request: Request) -> Response:
        self.admit(request, new=False)
        path, _, number = request.path_params["path"].rpartition("/")
        if request.path_params["path"] in FAMILIES:
            return self.list_family(request)
        task = self.ledger.find(number)
        found = [task] if task and task.path == path else []
        trouble = self.look(request, found, [number])
        return trouble or JSONResponse(dressed(found[0], self.seen(found[0], new=False), callback=False))

    def list_family(self, request: Request) -> Response:
        page, size = bounded(request, "pageNum", 1, 1000), bounded(request, "pageSize", 30, 500)
        self.ledger.note(self.ledger.queries, Query(request.url.path, [], now()))
        mine = [task for task in self.ledger.tasks.values() if task.path == request.path_params["path"]]
        chosen = mine[::-1][(page - 1) * size : page * size]
        return JSONResponse(envelope([record(task, new=False) for task in chosen]))

    async def batch(self, request: Request) -> Response:
        self.admit(request, new=True)
        by_id, by_external = (names(request, key) for key in ("task_ids", "external_task_ids"))
        if not 1 <= len(by_id + by_external) <= 20:
            raise Refused(1201, "Send 1 to 20 task_ids or external_task_ids")
        candidates = [*map(self.ledger.tasks.get, by_id), *map(self.ledger.external.get, by_external)]
        found = [task for task in candidates if task]
        trouble = self.look(request, found, by_id + by_external)
        return trouble or JSONResponse(envelope([self.seen(task, new=True) for task in found]))

    def look(self, request: Request, found: list[Task], ids: list[str]) -> Response | None:
        """Count a query; return what goes out in place of the answer, if anything."""
        for task in found:
            task.queries += 1
        self.ledger.note(self.ledger.queries, Query(request.url.path, ids, now()))
        if not found:
            raise Refused(1201, f"Task not found: {', '.join(ids)}")
        for task in found:
            once = task.has("query-5xx-once") and self.ledger.first("query-5xx-once", task.id)
            if once or task.has("query-5xx"):
                raise Refused(5001, "Service unavailable")
        return garbage() if any(task.has("query-garbage") for task in found) else None

    def seen(self, task: Task, *, new: bool) -> dict[str, Any]:
        told = any(posted["status"] == task.status for posted in task.posted)
        if task.finished_at and task.has("query-lag") and told and self.ledger.first("query-lag", task.id):
            return record(task, "processing", new=new)
        return record(task, new=new)

    async def account(self, request: Request) -> Response:
        return JSONResponse(self.ledger.account())


REFUSALS = (
    ("busy", 1302, "Too many requests"),
    ("full", 1303, "Concurrency over the resource pack"),
    ("arrears", 1101, "Account in arrears"),
    ("not-allowed", 1304, "This address is not on the allow-list"),
)


def parsed(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("options") or {}, dict):
        raise Refused(1200, "The body must be a JSON object")
    return body


def family_of(request: Request) -> tuple[str, Family]:
    parameters = request.path_params
    if "path" in parameters:
        path = name = parameters["path"]
    else:
        name, model = "/" + parameters["family"], parameters["model"]
        path = f"{name}/{model}"
        if not model.startswith("kling-"):
            raise Refused(1203, f"model {model} does not exist")
    if name not in FAMILIES:
        raise Refused(1202, f"nothing is made at {request.url.path}")
    return path, FAMILIES[name]


def bounded(request: Request, name: str, default: int, most: int) -> int:
    value = request.query_params.get(name, str(default))
    if not value.isdecimal() or not 1 <= int(value) <= most:
        raise Refused(1201, f"{name} must be 1 to {most}")
    return int(value)


def names(request: Request, key: str) -> list[str]:
    return [name for name in request.query_params.get(key, "").split(",") if name]


async def refused(request: Request, error: Exception) -> Response:
    return error.reply() if isinstance(error, Refused) else Refused(5000, "The sandbox broke").reply()


async def nowhere(request: Request, error: Exception) -> Response:
    return Refused(1202, f"{request.method} {request.url.path} does not exist").reply()


def application(ledger: Ledger, life: Life) -> ASGIApp:
    api, files = Api(ledger, life), Files(ledger)
    routes = [
        Route("/v1/{path:path}", api.create, methods=["POST"]),
        Route("/v1/{path:path}", api.query, methods=["GET"]),
        Route("/tasks", api.batch),
        Route("/files/{number}/{name}", files.get),
        Route("/sandbox/account", api.account),
        Route("/{family}/{model}", api.create, methods=["POST"]),
    ]
    handlers: Any = {Refused: refused, 404: nowhere, 405: nowhere}
    return with_transport(
        Starlette(routes=[Mount(ledger.base_path, routes=routes)], exception_handlers=handlers)
    )


def with_transport(app: ASGIApp) -> ASGIApp:
    """Show the connection to the replies that close it; and end quietly when the sandbox does."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        scope["transport"] = cast("Any", send).__self__.transport
        with contextlib.suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return wrapped

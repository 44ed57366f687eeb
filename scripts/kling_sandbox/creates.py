"""Create calls: what is refused, what is taken, and the many ways in which the answer may get lost."""

import json
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from kling_sandbox.families import FAMILIES, Family, check
from kling_sandbox.keys import admit
from kling_sandbox.ledger import Ledger
from kling_sandbox.life import Life
from kling_sandbox.misbehaviour import Has, marked
from kling_sandbox.replies import Hangup, Refused, garbage
from kling_sandbox.tasks import Task, dressed, record

UNTIL_KNOWN = ("task_status_msg", "task_result")  # a create's answer has no such fields yet
REFUSALS = {
    "busy": (1302, "Too many requests"),
    "full": (1303, "Concurrency over the resource pack"),
    "arrears": (1101, "Account in arrears"),
    "not-allowed": (1304, "This address is not on the allow-list"),
}


class Creates:
    def __init__(self, ledger: Ledger, life: Life) -> None:
        self.ledger = ledger
        self.life = life

    async def post(self, request: Request) -> Response:
        raw = await request.body()
        body = parsed(raw)
        self.ledger.note(self.ledger.creates, body)
        path, family = family_of(request)
        has = self.ledger.switches(marks(raw))
        admit(request, self.ledger, has, new=family.new)
        if has("drop-before-create"):
            return Hangup()
        check(family, body)
        task = self.task(request, path, family, body, has)
        self.refuse(task)
        self.ledger.add(task)
        return await self.answer(task)

    def task(self, request: Request, path: str, family: Family, body: dict[str, Any], has: Has) -> Task:
        ledger = self.ledger
        return Task(
            id=ledger.number(),
            alias=ledger.number(),
            result_id=ledger.number(),
            variant=ledger.random.randrange(100),
            path=path,
            family=family,
            body=body,
            has=has,
            base_url=f"http://{request.url.netloc}{ledger.base_path}",
            lasts=ledger.result_seconds,
        )

    def refuse(self, task: Task) -> None:
        for name, (code, message) in REFUSALS.items():
            if task.has(name):
                raise Refused(code, message)
        if task.has("busy-once") and self.ledger.first("busy-once", task.external_id or ""):
            raise Refused(*REFUSALS["busy"])
        if task.external_id in self.ledger.external and not task.has("drop-external-id"):
            raise Refused(1201, f"external_task_id {task.external_id} already exists")
        if self.ledger.concurrency and self.ledger.busy() + task.slots > self.ledger.concurrency:
            raise Refused(*REFUSALS["full"])

    async def answer(self, task: Task) -> Response:
        if task.path == "audio/tts":
            self.ledger.turn(task, task.ending)
            return JSONResponse(dressed(task, record(task, new=False), "create"))
        begun = task.has("early-callback") or task.has("early-final")
        if begun:
            await self.life.begin(task)
        if task.has("early-final"):
            await self.life.finish(task)
            return lost(task) or created(task)
        reply = lost(task) or created(task)
        reply.background = BackgroundTask(self.life.start, task, begun=begun)
        return reply


def lost(task: Task) -> Response | None:
    if task.has("drop-after-create"):
        return Hangup()
    if task.has("create-5002"):
        return Refused(5002, "Service timed out").reply()
    if task.has("create-504"):
        return HTMLResponse("<h1>504 Gateway Time-out</h1>", 504)
    return garbage() if task.has("create-garbage") else None


def created(task: Task) -> Response:
    fields = record(task, "submitted", new=task.family.new)
    fields = {name: value for name, value in fields.items() if name not in UNTIL_KNOWN}
    return JSONResponse(dressed(task, fields, "create"))


def parsed(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("options", {}), dict):
        raise Refused(1200, "The body must be a JSON object")
    return body


def marks(raw: bytes) -> frozenset[str]:
    try:
        return marked(raw.decode())
    except ValueError as error:
        raise Refused(1201, str(error)) from None


def family_of(request: Request) -> tuple[str, Family]:
    """Find the family by `images/generations`, or by `/text-to-video` in front of a model."""
    path = name = request.path_params["path"]
    if model := request.path_params.get("model"):
        name = f"/{path}"
        path = f"{name}/{model}"
    if name not in FAMILIES:
        raise Refused(1202, f"Nothing is made at {request.url.path}")
    if model and not model.startswith("kling-"):
        raise Refused(1203, f"Model {model} does not exist")
    return path, FAMILIES[name]

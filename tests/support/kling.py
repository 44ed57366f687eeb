"""A scripted Kling and receiver, at the transport: each kind of request gets the next step of its list."""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from inspect import isawaitable
from typing import Any

import anyio
import httpx

from kling_callback.api.retry import RetryPolicy
from kling_callback.kling import AsyncKling

SECRET = "a-signing-secret-for-tests-0123456789"
QUICK = RetryPolicy(
    initial_wait=0,
    max_wait=0,
    max_attempts=4,
    lookup_waits=(0, 0),
    unreachable_seconds=0,
    stream_timeout=5,
    interrupt_seconds=5,
)
"""No waits, few tries."""

SETTINGS: dict[str, Any] = {
    "api_base": "https://kling.test",
    "api_key": "the-kling-key",
    "signing_secrets": SECRET,
    "receiver_url": "https://receiver.test",
}

Step = httpx.Response | Exception | Callable[[httpx.Request], Any]


def task_json(own_id: str = "mine", status: str = "created", /, **more: Any) -> dict[str, Any]:
    """A task as the receiver sends it."""
    usual: dict[str, Any] = {
        "task_id": None,
        "family": "images/generations",
        "model": "",
        "tags": [],
        "results": [],
        "done": False,
    }
    return {"id": own_id, "status": status, **usual, **more}


def answer(status: int = 200, body: Any = None, **headers: str) -> httpx.Response:
    """A JSON response."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json=body, headers=named)


def refusal(status: int, code: str = "no", hint: str = "Do this.") -> httpx.Response:
    """The receiver's error shape."""
    return answer(status, {"error": {"code": code, "message": "It said no.", "hint": hint}})


def kling_says(code: int, message: str = "no", status: int = 400, **headers: str) -> httpx.Response:
    """An answer of Kling without data."""
    return answer(status, {"code": code, "message": message, "request_id": "r"}, **headers)


def taken(task_id: str = "kling-1", **more: Any) -> httpx.Response:
    """Kling's answer to a create or a query."""
    return answer(200, {"code": 0, "data": {"task_id": task_id, "task_status": "submitted", **more}})


LOG = "8c1f2e3a5b6d7f90"
"""The id of the receiver's event log."""


def cursor(number: int, log_id: str = LOG) -> str:
    """The cursor of an event that `event` made."""
    return f"{log_id}-{number}-1767225600000"


def event(number: int, kind: str, task: dict[str, Any], log_id: str = LOG) -> str:
    """One event of a stream."""
    document = {"id": number, "log_id": log_id, "type": kind, "at": "2026-01-01T00:00:00Z", "data": {}, "task": task}
    data = json.dumps(document)
    return f"id: {cursor(number, log_id)}\nevent: {kind}\ndata: {data}\n\n"


def stream(*parts: str | bytes | Exception) -> httpx.Response:
    """A stream of events; an exception breaks it."""

    async def content() -> AsyncIterator[bytes]:
        for part in parts:
            if isinstance(part, Exception):
                raise part
            yield part if isinstance(part, bytes) else part.encode()

    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=content())


async def forever(request: httpx.Request) -> httpx.Response:
    """Never answer."""
    await anyio.sleep_forever()
    raise AssertionError


class Stage:
    """A scripted Kling and receiver. `script`: answers by kind of request, then `usual` ones."""

    def __init__(self, **script: Iterable[Step]) -> None:
        self.script: dict[str, list[Step]] = defaultdict(list, {kind: list(steps) for kind, steps in script.items()})
        self.requests: dict[str, list[httpx.Request]] = defaultdict(list)
        self.order: list[str] = []
        self.came: dict[str, anyio.Event] = defaultdict(anyio.Event)

    def kling(self, *, retry: RetryPolicy = QUICK, **settings: Any) -> AsyncKling:
        """A client whose requests all come here."""
        return AsyncKling(http=self.http(), retry=retry, **{**SETTINGS, **settings})

    def http(self) -> httpx.AsyncClient:
        """The HTTP client for it."""
        return httpx.AsyncClient(transport=httpx.MockTransport(self.handle))

    def bodies(self, kind: str) -> list[Any]:
        """The JSON bodies of the requests of a kind."""
        return [json.loads(request.content) for request in self.requests[kind]]

    async def handle(self, request: httpx.Request) -> httpx.Response:
        """Answer a request by the next step for its kind."""
        kind = kind_of(request)
        self.requests[kind].append(request)
        self.order.append(kind)
        self.came[kind].set()
        step = self.script[kind].pop(0) if self.script[kind] else usual(kind, request)
        if callable(step):
            step = step(request)
        if isawaitable(step):
            step = await step
        if isinstance(step, Exception):
            raise step
        assert isinstance(step, httpx.Response)
        return step


def kind_of(request: httpx.Request) -> str:
    """`create`, `query`, `register`, `report`, `submit`, `cancel`, `task`, `list`, `events`, `all` or `file`."""
    if request.url.host == "kling.test":
        return "create" if request.method == "POST" else "query"
    if request.method == "PUT":
        return "report" if "outcome" in json.loads(request.content) else "register"
    if request.method in ("POST", "DELETE"):
        return "submit" if request.method == "POST" else "cancel"
    if request.url.path == "/api/events":
        return "all"
    last = request.url.path.split("/")[3:]
    return {0: "list", 1: "task", 2: "events"}.get(len(last), "file")


def usual(kind: str, request: httpx.Request) -> httpx.Response:
    """The answer without a script, that of a working Kling and receiver."""
    task_id = request.url.path.rpartition("/")[2]
    if kind == "create":
        return taken()
    if kind == "query":
        return kling_says(1201, "no such task")
    if kind == "list":
        return answer(200, {"tasks": [], "next": None})
    given = json.loads(request.content) if request.content else {}
    if kind == "submit":
        return answer(201, task_json(given["external_task_id"], family=given["family"]))
    if kind == "cancel":
        return answer(200, task_json(task_id, "failed", done=True, origin="local"))
    status = "submitted" if given.get("outcome") == "created" else "created"
    task = task_json(task_id, status, task_id=given.get("task_id"))
    registered = {
        "task": task,
        "callback_url": f"https://receiver.test/callbacks/{task_id}",
        "create": kind == "register",
    }
    return answer(200, task if kind == "task" else registered)

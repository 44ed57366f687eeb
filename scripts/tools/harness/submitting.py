"""Requests to a receiver and a sandbox: create tasks, post callbacks, wait for events, read rows and metrics."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
from sqlalchemy import text

from kling_callback.protocol.events import position_of
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import Role
from kling_sandbox import Sandbox
from kling_sandbox.receiver import API_KEY as KEY
from kling_sandbox.receiver import RunningReceiver as Running
from tools.harness.loopback import web

Json = dict[str, Any]
IMAGES = "images/generations"


class AnyReceiver(Protocol):
    """A receiver that is known by its address: in this process, or in one of its own."""

    url: str

    def headers(self, role: Role = "client") -> dict[str, str]:
        """The headers of a request with this role."""

    def callback_url(self, task_id: str, family: str = IMAGES) -> str:
        """A signed callback address."""


def register(running: AnyReceiver, task_id: str, /, family: str = IMAGES, **fields: Any) -> httpx.Response:
    """Send one `PUT /api/tasks/{id}`; without an `outcome`, the registration that precedes a create.

    `task_id` is positional only: a field of that name is Kling's id.
    """
    if "outcome" not in fields:
        fields = {"attempt": "one", **fields}
    return web.put(f"{running.url}/api/tasks/{task_id}", json={"family": family, **fields}, headers=running.headers())


def create(
    running: AnyReceiver, gateway: Sandbox, task_id: str, switches: str = "", family: str = IMAGES, **body: Any
) -> str:
    """Send one create to the sandbox, with the task's callback address. Returns Kling's id.

    `switches`: misbehaviours of the sandbox for this task.
    """
    document = {
        "prompt": f"a kangaroo [sandbox: {switches}]" if switches else "a kangaroo",
        "callback_url": running.callback_url(task_id, family),
        "external_task_id": task_id,
        **body,
    }
    response = web.post(
        f"{gateway.url}/v1/{family}", json=document, headers={"Authorization": f"Bearer {KEY}"}, timeout=20
    )
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    return str(data["task_id"])


def submit(
    running: AnyReceiver, gateway: Sandbox, switches: str = "", family: str = IMAGES, *, hook: str = "", **body: Any
) -> tuple[str, str]:
    """Register a task, create it and report the outcome. Returns our id and Kling's."""
    task_id = new_id()
    assert register(running, task_id, family, hook=hook).json()["create"]
    kling_id = create(running, gateway, task_id, switches, family, **body)
    assert register(running, task_id, family, outcome="created", task_id=kling_id).status_code == 200
    return task_id, kling_id


@contextmanager
def stream(running: AnyReceiver, path: str, last: str | None = None, timeout: float = 40) -> Iterator[Iterator[Json]]:
    """Open an event stream; each event is its JSON document. `last`: the cursor of the last event that is not sent."""
    headers = running.headers("read") | ({} if last is None else {"Last-Event-ID": last})
    with web.stream("GET", f"{running.url}{path}", headers=headers, timeout=timeout) as response:
        assert response.status_code == 200
        yield (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: "))


def cursor(event: Json) -> str:
    """The cursor of an event."""
    return str(position_of(event["log_id"], event["id"], event["at"]))


def events(running: AnyReceiver, task_id: str, until: str = "task.done", timeout: float = 40) -> list[Json]:
    """The events of a task, up to the first of type `until`, which is waited for."""
    received = []
    with stream(running, f"/api/tasks/{task_id}/events", timeout=timeout) as coming:
        for event in coming:
            received.append(event)
            if event["type"] == until:
                break
    assert received, "the stream ended without an event"
    return received


def types(events: list[Json]) -> list[str]:
    """The types of events, in order."""
    return [event["type"] for event in events]


def finished(running: AnyReceiver, task_id: str, timeout: float = 40) -> Json:
    """Wait until a task is done. Returns its JSON."""
    task: Json = events(running, task_id, timeout=timeout)[-1]["task"]
    assert task["done"], task
    return task


def show(running: AnyReceiver, task_id: str) -> Json:
    """The task's JSON as it is now."""
    task: Json = web.get(f"{running.url}/api/tasks/{task_id}", headers=running.headers("read")).json()
    return task


def post(
    running: AnyReceiver, task_id: str, content: bytes | Json, family: str = IMAGES, **options: Any
) -> httpx.Response:
    """Post one callback to the task's signed address. `options`: those of httpx."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return web.post(running.callback_url(task_id, family), content=body, **{"timeout": 20, **options})


def rows(running: Running, query: str, **values: Any) -> list[Json]:
    """Rows of the receiver's database, read while the receiver runs."""
    with running.receiver.store.database.read() as connection:
        return [dict(row) for row in connection.execute(text(query), values).mappings()]


def metric(running: AnyReceiver, name: str) -> float:
    """The value of a counter in `/metrics`; 0 if it is absent."""
    lines = web.get(f"{running.url}/metrics", headers=running.headers("read")).text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0)


def raw(url: str, request: bytes, *, end: bool = False) -> bytes:
    """Send bytes over a bare socket. Returns the response up to the end of its head, or more.

    `end`: shut down the sending side after the request.
    """
    parts = urlsplit(url)
    with closing(socket.create_connection((parts.hostname or "", parts.port or 80), timeout=20)) as connection:
        connection.sendall(request)
        if end:
            connection.shutdown(socket.SHUT_WR)
        response = b""
        while b"\r\n\r\n" not in response and (chunk := connection.recv(65536)):
            response += chunk
        return response


def eventually(predicate: Callable[[], Any], running: AnyReceiver) -> Any:
    """Wait until `predicate` is true, checking after each event of any task. Returns its value."""
    if value := predicate():
        return value
    with stream(running, "/api/events?after=latest") as coming:
        if value := predicate():
            return value
        for _ in coming:
            if value := predicate():
                return value
    raise AssertionError("the receiver ended before the condition was true")


def poll_until(predicate: Callable[[], Any], seconds: float = 20) -> Any:
    """Poll `predicate` until it is true: for conditions without an event. Returns its value."""
    end = time.monotonic() + seconds
    while not (value := predicate()):
        assert time.monotonic() < end, f"the condition was not true within {seconds:g} s"
        time.sleep(0.05)
    return value

"""Submitting jobs as a client does, and waiting for what the receiver says of them."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
from sqlalchemy import text

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import Role
from kling_sandbox import Sandbox
from kling_sandbox.receiver import API_KEY as KEY
from kling_sandbox.receiver import RunningReceiver as Running
from tools.harness.loopback import web

Json = dict[str, Any]
IMAGES = "images/generations"


class Reached(Protocol):
    """A receiver as those outside see it: in this process, or in one of its own."""

    url: str

    def headers(self, role: Role = "client") -> dict[str, str]:
        """The headers of a request by someone with this role."""

    def callback_url(self, task: str, family: str = IMAGES) -> str:
        """A signed callback address."""


def register(running: Reached, task: str, family: str = IMAGES, **given: Any) -> httpx.Response:
    """One `PUT /api/tasks/{id}`; by default what precedes a create."""
    if "outcome" not in given:
        given = {"attempt": "one", **given}
    return web.put(f"{running.url}/api/tasks/{task}", json={"family": family, **given}, headers=running.headers())


def create(running: Reached, gateway: Sandbox, task: str, switches: str = "", family: str = IMAGES, **body: Any) -> str:
    """One create at the gateway, with the task's callback address; Kling's id."""
    given = {
        "prompt": f"a kangaroo [sandbox: {switches}]" if switches else "a kangaroo",
        "callback_url": running.callback_url(task, family),
        "external_task_id": task,
        **body,
    }
    response = web.post(
        f"{gateway.url}/v1/{family}", json=given, headers={"Authorization": f"Bearer {KEY}"}, timeout=20
    )
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    return str(data["task_id"])


def submit(
    running: Reached, gateway: Sandbox, switches: str = "", family: str = IMAGES, *, hook: str = "", **body: Any
) -> tuple[str, str]:
    """Register, create, report: our id and Kling's."""
    task = new_id()
    assert register(running, task, family, hook=hook).json()["create"]
    theirs = create(running, gateway, task, switches, family, **body)
    assert register(running, task, family, outcome="created", task_id=theirs).status_code == 200
    return task, theirs


@contextmanager
def stream(running: Reached, path: str, last: int | None = None, timeout: float = 40) -> Iterator[Iterator[Json]]:
    """The events of a stream, each as its JSON document."""
    headers = running.headers("read") | ({} if last is None else {"Last-Event-ID": str(last)})
    with web.stream("GET", f"{running.url}{path}", headers=headers, timeout=timeout) as response:
        assert response.status_code == 200
        yield (json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: "))


def events(running: Reached, task: str, until: str = "task.done", timeout: float = 40) -> list[Json]:
    """What happened to a task, up to the first event of type `until`."""
    found = []
    with stream(running, f"/api/tasks/{task}/events", timeout=timeout) as coming:
        for event in coming:
            found.append(event)
            if event["type"] == until:
                break
    assert found, "the stream ended without an event"
    return found


def types(happened: list[Json]) -> list[str]:
    """The types of events, in order."""
    return [event["type"] for event in happened]


def finished(running: Reached, task: str, timeout: float = 40) -> Json:
    """The task's JSON once it is done."""
    done: Json = events(running, task, timeout=timeout)[-1]["task"]
    assert done["done"], done
    return done


def show(running: Reached, task: str) -> Json:
    """The task's JSON as it is now."""
    shown: Json = web.get(f"{running.url}/api/tasks/{task}", headers=running.headers("read")).json()
    return shown


def post(running: Reached, task: str, content: bytes | Json, family: str = IMAGES, **more: Any) -> httpx.Response:
    """One callback to the task's signed address."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return web.post(running.callback_url(task, family), content=body, **{"timeout": 20, **more})


def rows(running: Running, query: str, **values: Any) -> list[Json]:
    """Rows of the receiver's database, read beside it."""
    with running.receiver.database.read() as connection:
        return [dict(row) for row in connection.execute(text(query), values).mappings()]


def counted(running: Reached, name: str) -> float:
    """A counter in `/metrics`, 0 when it is not there yet."""
    lines = web.get(f"{running.url}/metrics", headers=running.headers("read")).text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0)


def raw(url: str, sent: bytes, *, end: bool = False) -> bytes:
    """The beginning of what a server answers on a bare socket; `end`: nothing more will be sent."""
    parts = urlsplit(url)
    with closing(socket.create_connection((parts.hostname or "", parts.port or 80), timeout=20)) as connection:
        connection.sendall(sent)
        if end:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while b"\r\n\r\n" not in answer and (more := connection.recv(65536)):
            answer += more
        return answer


def eventually(predicate: Callable[[], Any], running: Reached) -> Any:
    """Wait until the predicate holds, looking again after each thing that happens to any task."""
    if found := predicate():
        return found
    with stream(running, "/api/events?after=latest") as coming:
        if found := predicate():
            return found
        for _ in coming:
            if found := predicate():
                return found
    raise AssertionError("the receiver ended before it was so")


def looked(predicate: Callable[[], Any], seconds: float = 20) -> Any:
    """Look again and again, with a rest between, until the predicate holds: for what no event tells of."""
    end = time.monotonic() + seconds
    while not (found := predicate()):
        assert time.monotonic() < end, "it was not so in time"
        time.sleep(0.05)
    return found

"""Held queries: answered when the task ends; spaces come before the JSON."""

import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest
from starlette.requests import Request

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import api_token
from kling_receiver.web.compat import holding
from kling_sandbox import Sandbox
from tests.support.compat import data
from tests.support.receiver import SECRET, Running, Start
from tools.harness.submitting import IMAGES, finished, poll_until, post, register, submit

WAIT = {"Prefer": "wait=30"}


def in_thread(action: Callable[[], Any]) -> Callable[[], Any]:
    """Start a call in a thread. Returns a function that waits for its result."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(action()))
    thread.start()

    def join() -> Any:
        thread.join(20)
        return results[0]

    return join


def streams(running: Running) -> int:
    """The streams that are open, held queries included."""
    return running.receiver.store.bus._streams


def test_a_query_is_held_until_the_task_ends(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """Not only until its next status: programs expect a result. Batches too, until the first of their tasks ends."""
    door_gateway.hold()
    task, kling_id = submit(door, door_gateway)
    other, _ = submit(door, door_gateway)
    calls = [
        in_thread(lambda: data(api.get(f"/v1/{IMAGES}/{kling_id}", headers=WAIT))["task_status"]),
        in_thread(lambda: data(api.get(f"/tasks?task_ids={task},{other}", headers=WAIT))[0]["status"]),
    ]
    poll_until(lambda: streams(door) == 2)
    door_gateway.advance(kling_id)
    poll_until(lambda: data(api.get(f"/v1/{IMAGES}/{kling_id}"))["task_status"] == "processing")
    assert streams(door) == 2
    door_gateway.advance(kling_id)
    assert [call() for call in calls] == ["succeed", "succeeded"]
    poll_until(lambda: streams(door) == 0)
    door_gateway.release()
    finished(door, other)


def test_spaces_come_before_the_json(monkeypatch: pytest.MonkeyPatch, start: Start, gateway: Sandbox) -> None:
    """The setting holds each query; `Prefer: wait=0` does not. After its time, the query is answered as it is."""
    monkeypatch.setattr(holding, "SPACE_SECONDS", 0.02)
    monkeypatch.setattr(holding.Holder.__init__, "__kwdefaults__", {"space_seconds": 0.02})
    running = start(api_base=gateway.url, compat_api="on", compat_hold_seconds=0.2)
    task = new_id()
    register(running, task, outcome="created", task_id="k1")
    with httpx.Client(base_url=running.url, headers=running.headers()) as client:
        held = client.get(f"/v1/{IMAGES}/k1")
        assert held.text.startswith("  ")
        assert held.headers["Content-Type"] == "application/json"
        assert data(held)["task_status"] == "submitted"
        assert not client.get(f"/v1/{IMAGES}/k1", headers={"Prefer": "wait=0"}).text.startswith(" ")
        assert not client.head(f"/v1/{IMAGES}/k1").content
        assert not client.get("/tasks?task_ids=unknown").text.startswith(" ")


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=10", 10),
        ('respond-async, wait="7"', 7),
        ("WAIT = 5; x=1", 5),
        ("wait=99999", 3600),
        ("wait=-1", 2),
        ("await=9", 2),
        ("wait=x", 2),
        ("wait=9999999999", 2),
        ("", 2),
    ],
)
def test_the_preference(prefer: str, seconds: float) -> None:
    """`Prefer: wait=N`, up to an hour; what is no preference is ignored."""
    request = Request({"type": "http", "method": "GET", "headers": [(b"prefer", prefer.encode())]})
    assert holding.hold_seconds(request, 2) == seconds


def test_held_queries_count_as_streams(start: Start, gateway: Sandbox) -> None:
    """Past the limit they are answered at once; a client that leaves frees its place; a shutdown answers them."""
    running = start(api_base=gateway.url, compat_api="on", compat_hold_seconds=30)
    running.receiver.store.bus.max_streams = 1
    register(running, new_id(), outcome="created", task_id="k1")
    with httpx.Client(base_url=running.url, headers=running.headers(), timeout=20) as client:
        with client.stream("GET", f"/v1/{IMAGES}/k1") as held:
            assert held.status_code == 200
            poll_until(lambda: streams(running) == 1)
            assert data(client.get(f"/v1/{IMAGES}/k1"))["task_status"] == "submitted"
            assert client.get("/api/events").status_code == 503
        poll_until(lambda: streams(running) == 0)
        call = in_thread(lambda: data(client.get(f"/v1/{IMAGES}/k1"))["task_status"])
        poll_until(lambda: streams(running) == 1)
        running.stop()
        assert call() == "submitted"


def test_a_revoked_token_sees_nothing_more(start: Start, gateway: Sandbox) -> None:
    """The query that it holds ends with Kling's code for an expired one."""
    running = start(api_base=gateway.url, compat_api="on", compat_hold_seconds=30)
    register(running, new_id(), outcome="created", task_id="k1")
    token = api_token([SECRET], "client", 300, name="program", token_id="p1")
    httpx.post(f"{running.url}/api/tokens", json={"token": token}, headers=running.headers("admin"))
    headers = {"Authorization": f"Bearer {token}"}
    call = in_thread(lambda: httpx.get(f"{running.url}/v1/{IMAGES}/k1", headers=headers, timeout=20).json())
    poll_until(lambda: streams(running) == 1)
    httpx.delete(f"{running.url}/api/tokens/program", headers=running.headers("admin"))
    assert call()["code"] == 1004


def test_an_end_between_the_query_and_its_wait_is_seen(start: Start, gateway: Sandbox) -> None:
    """The bus is subscribed to before the task is read."""
    running = start(api_base=gateway.url, compat_api="on")
    task = new_id()
    register(running, task, outcome="created", task_id="k1")
    bus = running.receiver.store.bus

    async def wait() -> int:
        reads = 0

        async def is_over() -> bool:
            nonlocal reads
            reads += 1
            bus.notify([task])  # a commit while the task is read
            return reads == 3

        async for _ in bus.wait_until(is_over, [task], seconds=5):
            raise AssertionError("no heartbeat")
        return reads

    started = time.monotonic()
    assert anyio.run(wait) == 3
    assert time.monotonic() - started < 5
    post(running, task, {"task_id": "k1", "task_status": "processing"})

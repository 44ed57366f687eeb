"""The main path on both databases: whatever holds on the one holds on the other."""

import hashlib

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_sandbox import Sandbox
from tests.support.receiver import Running, Start
from tools.harness.submitting import (
    create,
    events,
    eventually,
    finished,
    metric,
    post,
    register,
    rows,
    show,
    submit,
    types,
)


@pytest.fixture
def running(start: Start, gateway: Sandbox, database_url: str) -> Running:
    """A receiver on each kind of database in turn."""
    return start(api_base=gateway.url, database_url=database_url)


def test_the_normal_course(running: Running, gateway: Sandbox) -> None:
    """Registered, created, called back, asked once, stored, served, done."""
    task, theirs = submit(running, gateway, n=2)
    happened = events(running, task)
    assert types(happened)[0] == "task.created"
    assert types(happened)[-1] == "task.done"
    assert gateway.tasks[theirs].queries == 1
    for result in happened[-1]["task"]["results"]:
        content = httpx.get(result["href"]).content
        assert hashlib.sha256(content).hexdigest() == result["sha256"]
    assert metric(running, 'kling_callbacks_total{outcome="accepted"}') == 3


@pytest.mark.parametrize(
    "switches",
    ["early-final", "repeat, reorder", "nul", "wrap-twice", "unreadable", "relay-id", "failed", "file-403"],
)
def test_misbehaviours(running: Running, gateway: Sandbox, switches: str) -> None:
    """Each ends as it should."""
    done = finished(running, submit(running, gateway, switches)[0])
    assert done["status"] == ("failed" if switches == "failed" else "succeed")
    assert done["origin"] == "kling"


def test_bodies_that_no_text_column_takes(running: Running) -> None:
    """NUL, surrogates and bytes that are no text are answered 200 and kept."""
    for body in (
        b"\0",
        b"\xff\xfe",
        b'{"task_id":"\\u0000","task_status":"failed","task_status_msg":"\\ud800\\u0000"}',
    ):
        task = new_id()
        assert post(running, task, body).status_code == 200
        [kept] = rows(running, "SELECT body FROM event WHERE body_sha256 IS NOT NULL AND task_id = :t", t=task)
        assert bytes(kept["body"]) == body
    assert register(running, new_id(), model="\0", tags=["\0a"], request={"\0": "\0"}).status_code in (
        201,
        422,
    )


def test_an_unregistered_task(running: Running, gateway: Sandbox) -> None:
    """Made by its first callback."""
    task = new_id()
    create(running, gateway, task)
    eventually(lambda: show(running, task).get("done"), running)
    assert show(running, task)["status"] == "succeed"


def test_an_overdue_task(start: Start, gateway: Sandbox, database_url: str) -> None:
    """Found at its deadline."""
    running = start(api_base=gateway.url, database_url=database_url, overdue_seconds=0.3)
    assert "task.recovered" in types(events(running, submit(running, gateway, "no-callback")[0]))


def test_a_restart(start: Start, gateway: Sandbox, database_url: str) -> None:
    """What one receiver began the next one ends."""
    gateway.hold()
    first = start(api_base=gateway.url, database_url=database_url)
    task, _ = submit(first, gateway)
    port = httpx.URL(first.url).port
    first.stop()
    second = start(api_base=gateway.url, database_url=database_url, port=port)
    gateway.release()
    assert finished(second, task)["results"][0]["status"] == "stored"


def test_lists_and_pages(running: Running) -> None:
    """Filtered by tag, newest first, from page to page."""
    made = [new_id() for _ in range(5)]
    for n, task in enumerate(made):
        register(running, task, tags=["odd"] if n % 2 else [])
    url, seen = f"{running.url}/api/tasks?limit=2", []
    page = httpx.get(url, headers=running.headers()).json()
    while True:
        seen += [task["id"] for task in page["tasks"]]
        if not page["next"]:
            break
        page = httpx.get(f"{url}&cursor={page['next']}", headers=running.headers()).json()
    assert seen == made[::-1]
    odd = httpx.get(f"{running.url}/api/tasks?tag=odd", headers=running.headers()).json()["tasks"]
    assert [task["id"] for task in odd] == [made[3], made[1]]

"""DELETE /api/tasks/{id} for role admin: what a removed task leaves, for its streams, callbacks, clients and links."""

import concurrent.futures
import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from kling_callback.protocol.signing import CallbackSigner
from kling_receiver.store.tables import AUDIT, RESULT
from kling_sandbox import Sandbox
from tests.support.api import error_of, get
from tests.support.database import Ledger
from tests.support.receiver import SECRET, Running, Start
from tests.support.submitting import cancel
from tools.harness.submitting import cursor, finished, poll_until, register, stream, submit


def remove(running: Running, task: str, role: Any = "admin", only: str | None = "finished") -> httpx.Response:
    """One removal."""
    query = {} if only is None else {"only": only}
    return httpx.delete(f"{running.url}/api/tasks/{task}", params=query, headers=running.headers(role), trust_env=False)


def stored(running: Running, task: str) -> list[Path]:
    """The files of a task."""
    root: Path = running.receiver.settings.results
    return [root / row["path"] for row in Ledger(running.receiver.store.database).rows(RESULT, task_id=task)]


def test_a_finished_task_is_removed(running: Running, gateway: Sandbox) -> None:
    """With its files. Its link, its late callbacks and its clients are answered; the audit log says who did it."""
    task, kling_id = submit(running, gateway, n=2)
    other, _ = submit(running, gateway)
    before = finished(running, task)
    finished(running, other)
    paths, kept = stored(running, task), stored(running, other)
    assert [path.exists() for path in (*paths, *kept)] == [True] * 3
    response = remove(running, kling_id)
    assert (response.status_code, response.json()["id"]) == (200, task)
    poll_until(lambda: not paths[0].parent.exists())
    assert kept[0].exists()
    assert httpx.get(before["results"][0]["href"], trust_env=False).status_code == 404
    late = httpx.post(
        CallbackSigner([SECRET]).url(running.url, task, "images/generations"), json={"any": 1}, trust_env=False
    )
    assert (late.status_code, late.json()) == (200, {"ok": True})
    assert error_of(get(running, f"/api/tasks/{task}")) == (404, "unknown_task")
    message = get(running, f"/api/tasks/{task}").json()["error"]["message"]
    assert message.startswith(f"Task {task} was removed on ")
    assert message.endswith(" UTC. 1 callback of it came later and were not stored.")
    assert [listed["id"] for listed in get(running, "/api/tasks").json()["tasks"]] == [other]
    refused = httpx.put(
        f"{running.url}/api/tasks/{task}",
        json={"family": "images/generations", "attempt": "again"},
        headers=running.headers(),
        trust_env=False,
    )
    assert error_of(refused) == (409, "conflict")
    assert "was removed on" in refused.text
    resubmitted = httpx.post(
        f"{running.url}/api/tasks",
        json={"family": "images/generations", "body": {"prompt": "x"}, "external_task_id": task},
        headers=running.headers(),
        trust_env=False,
    )
    assert error_of(resubmitted) == (409, "conflict")
    assert remove(running, task).status_code == 404
    entries = Ledger(running.receiver.store.database).rows(AUDIT, action="tasks remove")
    assert [(entry["target"], entry["detail"], entry["result"]) for entry in entries] == [
        (task, "images/generations, 2 files", "done"),
        (task, "", "unknown_task"),
    ]


def test_who_may_remove_what(running: Running, gateway: Sandbox) -> None:
    """A client cancels, and removes nothing; nobody removes a task that has not ended."""
    task, _ = submit(running, gateway)
    finished(running, task)
    opened = "opened-by-a-client"
    register(running, opened)
    assert error_of(remove(running, task, "read")) == (403, "forbidden")
    assert error_of(remove(running, task, "client")) == (403, "forbidden")
    assert error_of(remove(running, task, "client", only=None)) == (409, "already_ended")
    assert error_of(remove(running, task, "admin", only="queued")) == (409, "already_ended")
    assert error_of(remove(running, task, only="all")) == (422, "bad_query")
    assert error_of(remove(running, opened)) == (409, "not_finished")
    assert error_of(remove(running, opened, only=None)) == (409, "already_sent")
    assert error_of(cancel(running, task)) == (409, "already_ended")
    assert "tasks remove" in cancel(running, task).text
    assert get(running, f"/api/tasks/{task}").status_code == 200
    assert remove(running, task, only=None).status_code == 200


def test_streams_end_with_their_task(start: Start, gateway: Sandbox) -> None:
    """Its own: at once, also one that waits; that of all tasks goes on, past events that are gone."""
    running = start(api_base=gateway.url)
    first, _ = submit(running, gateway)
    finished(running, first)
    ledger = Ledger(running.receiver.store.database)
    waiting = "waits"
    register(running, waiting)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        url = f"{running.url}/api/tasks/{waiting}/events"
        held = pool.submit(httpx.get, url, headers=running.headers(), timeout=20, trust_env=False)
        poll_until(lambda: running.receiver.store.bus._waiters.get(waiting))
        with ledger.database.write() as connection:  # done without an event: only the removal can wake the stream
            connection.exec_driver_sql(
                f"UPDATE task SET status = 'failed', origin = 'kling', done = true WHERE id = '{waiting}'"
            )
        assert remove(running, waiting).status_code == 200
        assert "task.created" in held.result(5).text
    with stream(running, "/api/events") as coming:
        assert next(event["task"]["id"] for event in coming if event["type"] == "task.done") == first
        assert remove(running, first).status_code == 200
        second, _ = submit(running, gateway)
        assert next(event["task"]["id"] for event in coming if event["type"] == "task.done") == second


def test_a_held_query_ends_with_its_task(start: Start, gateway: Sandbox) -> None:
    """Of Kling's own API."""
    running = start(api_base=gateway.url, compat_api="on")
    register(running, "held")
    ledger = Ledger(running.receiver.store.database)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        url, headers = f"{running.url}/v1/images/generations/held", {**running.headers(), "Prefer": "wait=30"}
        held = pool.submit(httpx.get, url, headers=headers, timeout=20, trust_env=False)
        poll_until(lambda: running.receiver.store.bus._waiters.get("held"))
        with ledger.database.write() as connection:
            connection.exec_driver_sql(
                "UPDATE task SET status = 'failed', origin = 'kling', done = true WHERE id = 'held'"
            )
        began = time.monotonic()
        assert remove(running, "held").status_code == 200
        assert held.result(5).status_code == 200
        assert time.monotonic() - began < 5


def test_the_next_start_goes_on(start: Start, gateway: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """The newest events are gone, and the database is no restored one; files that were left are removed."""
    running = start(api_base=gateway.url)
    task, _ = submit(running, gateway)
    finished(running, task)
    with stream(running, f"/api/tasks/{task}/events") as past:
        last = cursor(list(past)[-1])
    (path,) = stored(running, task)
    copy = running.receiver.settings.results.parent / "copy"
    shutil.copytree(path.parent, copy)
    running.receiver.work.worker._handlers = {}  # killed before the files are removed
    assert remove(running, task).status_code == 200
    running.stop()
    if not path.parent.exists():
        shutil.copytree(copy, path.parent)
    again = start(api_base=gateway.url)
    poll_until(lambda: not path.parent.exists())
    assert "was restored" not in caplog.text
    with stream(again, "/api/events", last=last) as coming:
        other, _ = submit(again, gateway)
        assert next(coming)["task"]["id"] == other

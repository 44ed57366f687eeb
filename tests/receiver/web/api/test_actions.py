"""The actions `ask` and `fetch`: over the API, and by commands with and without a running receiver."""

import httpx

from kling_callback.protocol.ids import new_id
from kling_sandbox import Sandbox
from tests.support.receiver import Running
from tools.harness.submitting import create, events, eventually, finished, register, show, submit, types


def act(running: Running, task: str, name: str) -> httpx.Response:
    """One action, with role admin."""
    return httpx.post(f"{running.url}/api/tasks/{task}/{name}", headers=running.headers("admin"), timeout=40)


def test_ask_queries_kling_now(running: Running, gateway: Sandbox) -> None:
    """Without a callback and long before the deadline: the response has the final status, and the files follow."""
    task, kling_id = submit(running, gateway, "no-callback")
    gateway.wait_for(lambda: gateway.tasks[kling_id].finished_at)
    response = act(running, task, "ask")
    assert (response.status_code, response.json()["kling"], response.json()["task"]["status"]) == (
        200,
        "succeed",
        "succeed",
    )
    recovered = [event for event in events(running, task) if event["type"] == "task.recovered"]
    assert recovered[0]["data"] == {"by": "operator"}
    assert finished(running, task)["results"][0]["status"] == "stored"


def test_kling_replaces_a_local_status(running: Running, gateway: Sandbox) -> None:
    """The client reported that the create failed; Kling, queried by an operator, knows the task."""
    task = new_id()
    register(running, task)
    register(running, task, outcome="not_created", reason="refused")
    kling_id = create(running, gateway, task, "no-callback")
    gateway.wait_for(lambda: gateway.tasks[kling_id].finished_at)
    assert act(running, task, "ask").json()["task"]["origin"] == "kling"


def test_ask_changes_nothing_about_a_task_that_is_done(running: Running, gateway: Sandbox) -> None:
    """No event is added."""
    task, _ = submit(running, gateway)
    before = types(events(running, task))
    assert act(running, task, "ask").json()["task"]["done"] is True
    assert types(events(running, task)) == before


def test_ask_reports_an_unknown_task_and_a_failing_kling(running: Running, gateway: Sandbox) -> None:
    """Each has an error code of its own; the task stays as it is."""
    unknown = new_id()
    register(running, unknown)
    failing, _ = submit(running, gateway, "no-callback,query-5xx")
    assert act(running, unknown, "ask").json()["error"]["code"] == "unknown_at_kling"
    refused = act(running, failing, "ask")
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "kling_failed")
    assert act(running, "no-such-task", "ask").status_code == 404
    assert show(running, unknown)["status"] == "created"


def test_fetch_downloads_failed_files_again(running: Running, gateway: Sandbox) -> None:
    """From the addresses in Kling's new answer."""
    task, kling_id = submit(running, gateway, "redirect-private", n=2)
    failed = finished(running, task)
    assert [result["status"] for result in failed["results"]] == ["failed", "failed"]
    gateway.tasks[kling_id].has = lambda name: False
    response = act(running, task, "fetch")
    assert (response.status_code, response.json()["task"]["done"]) == (200, False)
    eventually(lambda: show(running, task)["done"], running)
    assert [result["status"] for result in show(running, task)["results"]] == ["stored", "stored"]
    assert types(events(running, task, "never")).count("task.done") == 2


def test_fetch_downloads_no_stored_file_again(running: Running, gateway: Sandbox) -> None:
    """A task for which Kling names no file is refused."""
    task, _ = submit(running, gateway)
    finished(running, task)
    downloads = len(gateway.downloads)
    assert act(running, task, "fetch").json()["task"]["done"] is True
    failed, _ = submit(running, gateway, "failed")
    finished(running, failed)
    assert act(running, failed, "fetch").json()["error"]["code"] == "no_files"
    assert len(gateway.downloads) == downloads


def test_fetch_refuses_a_failed_task(running: Running, gateway: Sandbox) -> None:
    """Kling's first final status stands, whatever files it names afterwards."""
    task, kling_id = submit(running, gateway, "failed")
    finished(running, task)
    gateway.tasks[kling_id].has = lambda name: False
    gateway.tasks[kling_id].status = "succeed"
    assert act(running, task, "fetch").json()["error"]["code"] == "no_files"
    shown = show(running, task)
    assert (shown["status"], shown["done"], shown["results"]) == ("failed", True, [])

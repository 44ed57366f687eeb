"""Every route of one task accepts our id, Kling's, and the caller's `external_task_id` at Kling."""

from typing import Any

import httpx
import pytest

from kling_sandbox import Sandbox
from tests.support.api import error_of, get
from tests.support.receiver import Running
from tools.harness.submitting import IMAGES, events, finished, post, register, show, stream, submit


def test_a_task_is_found_by_kling_s_id(running: Running, gateway: Sandbox) -> None:
    """By every route: its JSON, its events, its files and the actions."""
    task, kling_id = submit(running, gateway)
    done = finished(running, task)
    assert show(running, kling_id)["id"] == task
    assert [event["id"] for event in events(running, kling_id)] == [event["id"] for event in events(running, task)]
    by_ours, by_kling_s = (get(running, f"/api/tasks/{any_id}/results/0") for any_id in (task, kling_id))
    assert by_ours.content == by_kling_s.content
    assert by_kling_s.headers["Content-Disposition"] == by_ours.headers["Content-Disposition"]
    assert httpx.get(done["results"][0]["href"]).content == by_ours.content
    for action in ("ask", "fetch"):
        acted = httpx.post(f"{running.url}/api/tasks/{kling_id}/{action}", headers=running.headers("admin"))
        assert (acted.status_code, acted.json()["task"]["id"]) == (200, task)


def test_deliveries_and_replays_know_the_same_ids(running: Running, gateway: Sandbox) -> None:
    """The filter `task`, and the task of a replay."""
    task, kling_id = submit(running, gateway)
    finished(running, task)
    headers = running.headers("admin")
    counts = [
        httpx.post(f"{running.url}/api/deliveries/replay", json={"task": any_id}, headers=headers).json()["events"]
        for any_id in (task, kling_id, "nobody")
    ]
    assert counts[0] == counts[1] > 0
    assert counts[2] == 0
    assert get(running, f"/api/deliveries?task={kling_id}", headers=headers).json()["deliveries"] == []


def signed_elsewhere(running: Running, task: str, external: str | None, **more: Any) -> None:
    """A callback of a task that a program of somebody created, with an id of its own."""
    post(
        running,
        task,
        {"task_id": f"k-{task}", "task_status": "processing", "task_info": {"external_task_id": external}, **more},
    )


def test_a_task_is_found_by_the_caller_s_id(running: Running) -> None:
    """Which a callback names, of a task that only signing made known."""
    signed_elsewhere(running, "signed", "order-42")
    shown = show(running, "order-42")
    assert (shown["id"], shown["external_task_id"]) == ("signed", "order-42")
    with stream(running, "/api/tasks/order-42/events") as coming:
        assert next(coming)["task"]["id"] == "signed"
    signed_elsewhere(running, "signed", "order-43")
    assert show(running, "signed")["external_task_id"] == "order-42"  # an unconfirmed callback replaces nothing


def test_our_own_id_is_no_second_id(running: Running, gateway: Sandbox) -> None:
    """Of a task that this client created, the external id is ours."""
    task, _ = submit(running, gateway)
    assert finished(running, task)["external_task_id"] is None


def test_a_callback_cannot_rename_a_task_that_a_client_registered(running: Running) -> None:
    """Its create named our id."""
    register(running, "registered")
    signed_elsewhere(running, "registered", "order-42")
    assert show(running, "registered")["external_task_id"] is None


def test_our_id_takes_precedence(running: Running) -> None:
    """Whatever ids other tasks have, at Kling or by a callback's word."""
    register(running, "mine", IMAGES)
    register(running, "other", IMAGES, outcome="created", task_id="mine")
    signed_elsewhere(running, "signed", "mine")
    assert show(running, "mine")["id"] == "mine"


def test_an_id_of_several_tasks_is_refused(running: Running) -> None:
    """With their ids: nothing is done to the wrong one."""
    for task in ("a", "b"):
        register(running, task, outcome="created", task_id="shared")
    signed_elsewhere(running, "c", "shared")  # the word of a callback changes nothing about it
    for path in ("", "/events", "/results/0"):
        refused = get(running, f"/api/tasks/shared{path}")
        assert error_of(refused) == (409, "ambiguous_id")
        assert refused.json()["error"]["message"].endswith(": a, b.")
    acted = httpx.post(f"{running.url}/api/tasks/shared/ask", headers=running.headers("admin"))
    assert error_of(acted) == (409, "ambiguous_id")


@pytest.mark.parametrize("odd", ["~", "x" * 256, "%E8%A2%8B%E9%BC%A0", "a%2Fb", "%00", "a%20b", "x" * 300])
def test_an_id_that_no_task_has(shared: Running, odd: str) -> None:
    """Is answered 404, by every route."""
    for path in ("", "/events", "/results/0"):
        assert error_of(get(shared, f"/api/tasks/{odd}{path}"))[0] == 404

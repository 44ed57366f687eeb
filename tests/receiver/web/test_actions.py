"""Orders of an operator: ask Kling now, fetch lost files again; to a receiver that runs, or to its database."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_sandbox import Sandbox
from tests.support.receiver import Running, Start
from tools.harness.process import Process, environment, run
from tools.harness.submitting import create, events, eventually, finished, register, show, submit, types


@pytest.fixture
def running(start: Start, gateway: Sandbox) -> Running:
    """A receiver whose Kling is the sandbox."""
    return start(api_base=gateway.url)


def order(running: Running, task: str, name: str) -> httpx.Response:
    """One order, by an admin."""
    return httpx.post(f"{running.url}/api/tasks/{task}/{name}", headers=running.headers("admin"), timeout=40)


def test_kling_is_asked_now(running: Running, gateway: Sandbox) -> None:
    """No callback, the deadline far: the answer holds the end, and the files follow."""
    task, theirs = submit(running, gateway, "no-callback")
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    answer = order(running, task, "ask")
    assert (answer.status_code, answer.json()["kling"], answer.json()["task"]["status"]) == (
        200,
        "succeed",
        "succeed",
    )
    happened = events(running, task)
    assert next(each for each in happened if each["type"] == "task.recovered")["data"] == {"by": "operator"}
    assert finished(running, task)["results"][0]["status"] == "stored"


def test_an_end_of_our_own_making_gives_way(running: Running, gateway: Sandbox) -> None:
    """The client said that it was not taken; Kling, asked by an operator, knows it after all."""
    task = new_id()
    register(running, task)
    register(running, task, outcome="not_created", reason="refused")
    theirs = create(running, gateway, task, "no-callback")
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    assert order(running, task, "ask").json()["task"]["origin"] == "kling"


def test_what_is_known_stays(running: Running, gateway: Sandbox) -> None:
    """Asking about a task that is done changes nothing."""
    task, _ = submit(running, gateway)
    before = types(events(running, task))
    assert order(running, task, "ask").json()["task"]["done"] is True
    assert types(events(running, task)) == before


def test_a_kling_that_does_not_know_or_does_not_answer(running: Running, gateway: Sandbox) -> None:
    """Each is said; the task stays as it is."""
    nobody = new_id()
    register(running, nobody)
    silent, _ = submit(running, gateway, "no-callback,query-5xx")
    assert order(running, nobody, "ask").json()["error"]["code"] == "unknown_at_kling"
    refused = order(running, silent, "ask")
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "kling_failed")
    assert order(running, "no-such-task", "ask").status_code == 404
    assert show(running, nobody)["status"] == "created"


def test_lost_files_are_fetched_again(running: Running, gateway: Sandbox) -> None:
    """They were given up; asked again, Kling names them anew, and they come."""
    task, theirs = submit(running, gateway, "redirect-private", n=2)
    lost = finished(running, task)
    assert [each["status"] for each in lost["results"]] == ["failed", "failed"]
    gateway.tasks[theirs].has = lambda name: False
    answer = order(running, task, "fetch")
    assert (answer.status_code, answer.json()["task"]["done"]) == (200, False)
    eventually(lambda: show(running, task)["done"], running)
    assert [each["status"] for each in show(running, task)["results"]] == ["stored", "stored"]
    assert types(events(running, task, "never")).count("task.done") == 2


def test_what_is_stored_is_not_fetched_again(running: Running, gateway: Sandbox) -> None:
    """Nor is anything where Kling names no file."""
    task, _ = submit(running, gateway)
    finished(running, task)
    downloads = len(gateway.downloads)
    assert order(running, task, "fetch").json()["task"]["done"] is True
    failed, _ = submit(running, gateway, "failed")
    finished(running, failed)
    assert order(running, failed, "fetch").json()["error"]["code"] == "no_files"
    assert len(gateway.downloads) == downloads


def test_only_what_succeeded_is_fetched(running: Running, gateway: Sandbox) -> None:
    """Kling's first final word stands, whatever it names afterwards."""
    task, theirs = submit(running, gateway, "failed")
    finished(running, task)
    gateway.tasks[theirs].has = lambda name: False
    gateway.tasks[theirs].status = "succeed"
    assert order(running, task, "fetch").json()["error"]["code"] == "no_files"
    shown = show(running, task)
    assert (shown["status"], shown["done"], shown["results"]) == ("failed", True, [])


def command(receiver: Process, *arguments: str, **settings: str) -> Any:
    """What a `tasks` command says as JSON, a document a line."""
    done = run("tasks", *arguments, "--json", env={**receiver.env, **settings})
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_commands_reach_a_receiver_that_runs_and_a_database_that_nobody_serves(
    gateway: Sandbox, tmp_path: Path
) -> None:
    """list, show, ask and fetch say the same either way; what is ordered offline is done at the next start."""
    with Process(tmp_path / "data", KLING_API_BASE=gateway.url) as receiver:
        task, theirs = submit(receiver, gateway, "no-callback")
        gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
        assert [each["id"] for each in command(receiver, "list")] == [task]
        assert command(receiver, "list", "--status", "failed") == []
        receiver.kill()
        assert command(receiver, "show", task)[0]["status"] == "submitted"
        assert command(receiver, "ask", task)[0]["status"] == "succeed"
        assert command(receiver, "list")[0]["done"] is False
        receiver.start()
        assert finished(receiver, task)["results"][0]["status"] == "stored"
        plain = run("tasks", "ask", task, env=receiver.env)
        assert (plain.returncode, "Kling says succeed." in plain.stderr, task in plain.stdout) == (
            0,
            True,
            True,
        )


def test_what_is_wrong_is_said_in_a_line(gateway: Sandbox, tmp_path: Path) -> None:
    """An unknown task, a receiver that runs but is not reached, no database at all: exit 1, and what to do."""
    with Process(tmp_path / "data", KLING_API_BASE=gateway.url) as receiver:
        unknown = run("tasks", "show", "nobody", env=receiver.env)
        elsewhere = run("tasks", "list", env={**receiver.env, "KLING_RECEIVER_URL": "http://127.0.0.1:1"})
    nothing = run("tasks", "list", env=environment(tmp_path / "none", KLING_RECEIVER_URL="http://127.0.0.1:1"))
    for said, hint in (
        (unknown, "no such task"),
        (elsewhere, "KLING_RECEIVER_INTERNAL_URL"),
        (nothing, "no database"),
    ):
        assert (said.returncode, said.stdout, hint in said.stderr) == (1, "", True), said.stderr
        assert said.stderr.count("\n") == 1, said.stderr
    assert not (tmp_path / "none").exists()

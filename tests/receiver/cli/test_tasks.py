"""The commands `kling-receiver tasks ...`: with a running receiver, without one, and their errors."""

import json
from pathlib import Path
from typing import Any

import httpx

from kling_sandbox import Sandbox
from tests.support.api import get
from tests.support.commands import run_here
from tests.support.receiver import KEY, Start
from tests.support.submitting import submit as submit_here
from tools.harness.process import environment
from tools.harness.submitting import finished, poll_until, register, submit


def test_the_commands_work_with_a_running_receiver_and_without(start: Start, gateway: Sandbox, tmp_path: Path) -> None:
    """list, show, ask and fetch print the same; jobs enqueued offline run after the next start."""
    running = start(api_base=gateway.url)
    env = environment(tmp_path / "data", KLING_RECEIVER_URL=running.url, KLING_API_BASE=gateway.url)

    def output(*arguments: str) -> Any:
        """The JSON output of a command, one document per line."""
        completed = run_here("tasks", *arguments, "--json", env=env)
        assert completed.returncode == 0, completed.stderr
        return [json.loads(line) for line in completed.stdout.splitlines()]

    task, kling_id = submit(running, gateway, "no-callback")
    gateway.wait_for(lambda: gateway.tasks[kling_id].finished_at)
    assert [listed["id"] for listed in output("list")] == [task]
    assert output("list", "--status", "failed") == []
    running.stop()
    assert output("show", task)[0]["status"] == "submitted"
    assert output("ask", task)[0]["status"] == "succeed"
    assert output("list")[0]["done"] is False
    again = start(api_base=gateway.url, port=int(running.url.rpartition(":")[2]))
    assert finished(again, task)["results"][0]["status"] == "stored"
    plain = run_here("tasks", "ask", task, env=env)
    assert (plain.returncode, "Kling says succeed." in plain.stderr, task in plain.stdout) == (0, True, True)


def test_tasks_are_cancelled(start: Start, gateway: Sandbox, tmp_path: Path) -> None:
    """Those that wait; the others are named, and the exit code says so."""
    running = start(api_base=gateway.url, concurrency="1")
    env = environment(tmp_path / "data", KLING_RECEIVER_URL=running.url, KLING_API_BASE=gateway.url)
    gateway.hold()
    sent, *waiting = [submit_here(running) for _ in range(3)]
    gateway.wait_for(lambda: gateway.creates)
    completed = run_here("tasks", "cancel", waiting[0], sent, "nobody", env=env)
    assert completed.returncode == 1
    assert waiting[0] in completed.stdout
    assert "Kling has no cancel" in completed.stderr
    assert "There is no such task" in completed.stderr
    completed = run_here("tasks", "cancel", *waiting, "--json", env=env)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert [json.loads(line)["status"] for line in completed.stdout.splitlines()] == ["failed", "failed"]
    gateway.release()
    assert finished(running, sent)["status"] == "succeed"
    assert len(gateway.creates) == 1


def test_tasks_are_removed(start: Start, gateway: Sandbox, tmp_path: Path) -> None:
    """By the running receiver, or in its database: the files then go after the next start. `cancel` removes nothing."""
    running = start(api_base=gateway.url)
    env = environment(tmp_path / "data", KLING_RECEIVER_URL=running.url, KLING_API_BASE=gateway.url)
    ended, later = [submit(running, gateway)[0] for _ in range(2)]
    opened = "opened"
    register(running, opened)
    for task in (ended, later):
        finished(running, task)
    cancelled = run_here("tasks", "cancel", ended, env=env)
    assert (cancelled.returncode, "There is nothing to cancel" in cancelled.stderr) == (1, True)
    completed = run_here("tasks", "remove", ended, opened, "nobody", env=env)
    assert completed.returncode == 1
    said = completed.stderr.splitlines()
    assert said[0] == f"Task {ended} is removed."
    assert f"Task {opened} has not ended" in said[1]
    assert "There is no such task" in said[2]
    running.stop()
    folder = tmp_path / "data" / "results" / later
    assert folder.exists()
    offline = run_here("tasks", "remove", later, "--json", env=env)
    assert (offline.returncode, json.loads(offline.stdout)["id"]) == (0, later)
    assert "done after the next start" in offline.stderr
    assert folder.exists()
    again = start(api_base=gateway.url, port=int(running.url.rpartition(":")[2]))
    poll_until(lambda: not folder.exists())
    assert [task["id"] for task in get(again, "/api/tasks").json()["tasks"]] == [opened]


def test_a_task_of_elsewhere_is_adopted(start: Start, gateway: Sandbox, tmp_path: Path) -> None:
    """By the running receiver, or in its database: with its files, and once."""
    running = start(api_base=gateway.url)
    env = environment(tmp_path / "data", KLING_RECEIVER_URL=running.url, KLING_API_BASE=gateway.url)

    def run(*arguments: str) -> Any:
        return run_here("tasks", *arguments, env=env)

    elsewhere = [create_elsewhere(gateway, f"order-{number}") for number in range(2)]
    adopted = run("adopt", "images/generations", elsewhere[0])
    assert (adopted.returncode, adopted.stderr) == (0, "Kling says succeed.\n")
    assert finished(running, "order-0")["results"][0]["status"] == "stored"
    again = run("adopt", "images/generations", elsewhere[0])
    assert (again.returncode, "known already" in again.stderr, "order-0" in again.stdout) == (0, True, True)
    running.stop()
    offline = run("adopt", "images/generations", elsewhere[1], "--json")
    assert (offline.returncode, json.loads(offline.stdout)["id"]) == (0, "order-1")
    refused = run("adopt", "images/generations", "nobody")
    assert (refused.returncode, "Kling does not know this task" in refused.stderr) == (1, True)
    listed = run("list", "--task-id", elsewhere[1], "--json")
    assert [json.loads(line)["id"] for line in listed.stdout.splitlines()] == ["order-1"]
    assert json.loads(run("show", elsewhere[1], "--json").stdout)["id"] == "order-1"
    started = start(api_base=gateway.url, port=int(running.url.rpartition(":")[2]))
    assert finished(started, "order-1")["results"][0]["status"] == "stored"


def create_elsewhere(gateway: Sandbox, external_task_id: str) -> str:
    """A finished task that another program created, without a callback. Returns Kling's id."""
    response = httpx.post(
        f"{gateway.url}/v1/images/generations",
        json={"prompt": "a kangaroo", "external_task_id": external_task_id},
        headers={"Authorization": f"Bearer {KEY}"},
    )
    kling_id: str = response.json()["data"]["task_id"]
    gateway.wait_for(lambda: gateway.tasks[kling_id].finished_at)
    return kling_id


def test_an_id_that_is_no_part_of_a_path_is_2(tmp_path: Path) -> None:
    """Before anything is called."""
    env = environment(tmp_path / "none", KLING_RECEIVER_URL="http://127.0.0.1:1")
    for arguments in (("show", "a/b"), ("ask", ".."), ("fetch", "a b"), ("adopt", "images/generations", "a?b")):
        completed = run_here("tasks", *arguments, env=env)
        assert (completed.returncode, "one part of a path" in completed.stderr) == (2, True), completed.stderr


def test_an_error_of_a_command_is_one_line(start: Start, gateway: Sandbox, tmp_path: Path) -> None:
    """For an unknown task, a running receiver at another address and a missing database: exit 1 and what to do."""
    running = start(api_base=gateway.url)
    env = environment(tmp_path / "data", KLING_RECEIVER_URL=running.url, KLING_API_BASE=gateway.url)
    unknown = run_here("tasks", "show", "nobody", env=env)
    elsewhere = run_here("tasks", "list", env={**env, "KLING_RECEIVER_URL": "http://127.0.0.1:1"})
    missing = run_here("tasks", "list", env=environment(tmp_path / "none", KLING_RECEIVER_URL="http://127.0.0.1:1"))
    for completed, hint in (
        (unknown, "no such task"),
        (elsewhere, "KLING_RECEIVER_INTERNAL_URL"),
        (missing, "no database"),
    ):
        assert (completed.returncode, completed.stdout, hint in completed.stderr) == (1, "", True), completed.stderr
        assert completed.stderr.count("\n") == 1, completed.stderr
    assert not (tmp_path / "none").exists()

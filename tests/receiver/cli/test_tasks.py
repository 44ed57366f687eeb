"""The commands `kling-receiver tasks ...`: with a running receiver, without one, and their errors."""

import json
from pathlib import Path
from typing import Any

from kling_sandbox import Sandbox
from tests.support.commands import run_here
from tests.support.receiver import Start
from tools.harness.process import environment
from tools.harness.submitting import finished, submit


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

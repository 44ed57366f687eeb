"""Commands without a Kling key, through a real receiver that sends the creates: the queue, and `kling cancel`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kling_callback import Kling, ReceiverError, TaskFailed
from kling_sandbox import Sandbox
from tests.client.cli.commands.test_batch import run as run  # a fixture
from tests.client.cli.test_main import Run, Terminal, terminal
from tests.client.jobs.test_catalog import picture
from tests.support.receiver import SECRET, Running, Start
from tests.support.submitting import QUICK_CREATES

__all__ = ["run", "terminal"]


@pytest.fixture
def receiver(start: Start, gateway: Sandbox) -> Running:
    """With one slot."""
    return start(api_base=gateway.url, concurrency="1", delays=QUICK_CREATES)


@pytest.fixture
def settings(receiver: Running) -> dict[str, str]:
    """Without a key, and without the address of Kling."""
    return {"KLING_RECEIVER_URL": receiver.url, "KLING_SIGNING_SECRETS": SECRET}


def occupy(run: Run) -> str:
    """Give the slot to a task that does not end. Returns its id."""
    ran = run("text-to-video", "x [sandbox: no-callback]", "--no-wait", "--external-task-id", "first")
    assert ran.code == 0, ran.err
    return ran.out.strip()


def test_the_commands_work_without_a_key(run: Run, gateway: Sandbox, tmp_path: Path) -> None:
    """Typed and other jobs, their files and images; nothing is on stderr."""
    (tmp_path / "in.png").write_bytes(picture())
    ran = run("image-to-image", "x", "--image", "in.png", "--output", "out", "--external-task-id", "a")
    assert (ran.code, ran.out, ran.err) == (0, "out/a-0.png\n", "")
    assert run("create", "videos/effects", "--body", '{"effect_scene": "squish"}').code == 0
    assert gateway.creates[0]["image"].startswith("iVBOR")
    failed = run("text-to-image", "x [sandbox: failed]")
    assert (failed.code, "asked to fail" in failed.err) == (1, True)
    refused = run("text-to-image", "x [sandbox: arrears]")
    assert (refused.code, "1101" in refused.err) == (1, True)


def test_the_same_id_again_continues(run: Run, gateway: Sandbox) -> None:
    """With other parameters it is refused, as when the client creates."""
    first, second = (run("text-to-image", "x", "--external-task-id", "a", "--json").json["task_id"] for _ in range(2))
    assert first == second
    assert len(gateway.creates) == 1
    ran = run("text-to-image", "another", "--external-task-id", "a")
    assert (ran.code, "external_task_id" in ran.err) == (1, True)


def test_a_queued_task_has_a_place_and_can_be_cancelled(run: Run, gateway: Sandbox) -> None:
    """By priority, then in the order of arrival. What is cancelled is never sent, and its waiters get the reason."""
    occupy(run)
    for task_id, priority in (("low", "-1"), ("second", "0"), ("urgent", "5")):
        assert run("text-to-image", "x", "--no-wait", "--external-task-id", task_id, "--priority", priority).code == 0
    places = {name: run("show", name, "--json").json["queue_position"] for name in ("first", "urgent", "second", "low")}
    assert places == {"first": None, "urgent": 1, "second": 2, "low": 3}
    assert "queue_position    1" in run("show", "urgent").out
    assert "second\tcreated\t" in run("list").out
    ran = run("cancel", "urgent", "first", "nobody", "low")
    assert (ran.code, ran.out) == (1, "urgent\nlow\n")
    assert "Kling has no cancel" in ran.err
    assert "nobody: The receiver refused: There is no such task" in ran.err
    again = run("cancel", "urgent", "--json")
    assert (again.code, json.loads(again.out)["status"]) == (0, "failed")
    waited = run("wait", "urgent")
    assert (waited.code, "Cancelled before it was sent" in waited.err) == (1, True)
    assert run("show", "second", "--json").json["queue_position"] == 1
    assert len(gateway.creates) == 1
    assert run("cancel").code == run("cancel", "a/b").code == 2


def test_in_python(receiver: Running, run: Run) -> None:
    """The same, with the blocking client."""
    with Kling(receiver_url=receiver.url, signing_secrets=SECRET) as kling:
        first = kling.text_to_video("x [sandbox: no-callback]", external_task_id="first")
        task = kling.text_to_image("x", priority=1)
        assert (first.refresh().queue_position, task.queue_position, task.outcome) == (None, 1, "unknown")
        assert kling.cancel(task.id).done
        with pytest.raises(TaskFailed, match="Cancelled"):
            task.wait(timeout=20)
        with pytest.raises(ReceiverError) as error:
            kling.cancel(first.id)
        assert error.value.http_status == 409


def test_a_priority_with_a_key_is_refused(run: Run, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would create the task itself, at once."""
    monkeypatch.setenv("KLING_API_KEY", "key")
    ran = run("text-to-image", "x", "--priority", "1", "--tag", "")
    assert (ran.code, [line.split(":")[0] for line in ran.err.splitlines()]) == (2, ["tags", "priority"])
    assert run("text-to-image", "x", "--priority", "high").code == 2
    assert gateway.creates == []


def test_the_live_display_shows_the_place(
    settings: dict[str, str], run: Run, terminal: Callable[..., Terminal]
) -> None:
    """And Ctrl-C says how to wait on."""
    occupy(run)
    shown = terminal("text-to-image", "x", "--external-task-id", "queued")
    shown.until("place 1 in the queue")
    assert shown.interrupt() == 130
    shown.until("If the receiver took the task, it continues.")
    shown.until("kling wait queued")

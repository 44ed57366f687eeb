"""`kling wait` with several ids and `--tag`: one display, results as tasks end, exit codes 1 and 3."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kling_sandbox import Sandbox
from tests.client.cli.test_main import Run, Terminal
from tests.client.cli.test_main import bare as bare  # a fixture
from tests.client.cli.test_main import offline as offline
from tests.client.cli.test_main import receiver as receiver
from tests.client.cli.test_main import run as run
from tests.client.cli.test_main import settings as settings
from tests.client.cli.test_main import terminal as terminal


def created(run: Run, own_id: str, *options: str, prompt: str = "x") -> str:
    """Create a task without waiting for it. Returns Kling's id."""
    ran = run("text-to-image", prompt, "--external-task-id", own_id, "--no-wait", "--json", *options)
    return str(ran.json["task_id"])


def test_several_tasks_are_waited_for_together(run: Run) -> None:
    """Each file is written, and printed as its task ends; one that is named twice counts once."""
    ids = ["order-1", "order-2", "order-3"]
    kling_id, *_ = [created(run, each) for each in ids]
    ran = run("wait", *ids, kling_id, "order-2", "--output", "out")
    assert (ran.code, ran.err) == (0, "")
    assert sorted(ran.out.splitlines()) == [f"out/{each}-0.png" for each in ids]
    assert all(Path(line).read_bytes().startswith(b"\x89PNG") for line in ran.out.splitlines())
    documents = [json.loads(line) for line in run("wait", *ids, "--json").out.splitlines()]
    assert sorted(each["id"] for each in documents) == ids
    assert all(each["done"] for each in documents)


def test_a_tag_waits_for_what_is_unfinished(run: Run, gateway: Sandbox) -> None:
    """Not for tasks that are done, and not for those of other tags; with nothing left it ends at once."""
    created(run, "before", "--tag", "spring")
    assert run("wait", "before").code == 0
    gateway.hold()
    for own_id, tag in (("a", "spring"), ("b", "spring"), ("c", "autumn")):
        created(run, own_id, "--tag", tag)
    threading.Timer(0.3, gateway.release).start()
    ran = run("wait", "--tag", "spring")
    assert ran.code == 0, ran.err
    assert sorted(line.split("/")[-3] for line in ran.out.splitlines()) == ["a", "b"]
    again = run("wait", "--tag", "spring")
    assert (again.code, again.out, again.err) == (0, "", "No unfinished task has the tag spring.\n")


def test_one_failure_is_1_and_the_others_are_printed(run: Run) -> None:
    """stderr has the reason of each, an id that nothing has among them."""
    created(run, "good")
    created(run, "bad", prompt="x [sandbox: failed]")
    ran = run("wait", "bad", "good", "missing")
    assert (ran.code, ran.out.count("\n")) == (1, 1)
    assert "/good/results/0?" in ran.out
    heading, *reasons = ran.err.splitlines()
    assert heading == "2 of 3 tasks failed:"
    assert [line.partition(":")[0] for line in sorted(reasons)] == ["bad", "missing"]
    assert "asked to fail" in ran.err
    assert "no such task" in ran.err
    assert run("wait", "nothing", "missing").code == 1


def test_the_time_out_of_several_is_3(run: Run, gateway: Sandbox) -> None:
    """With the same command to wait again; --json has the unfinished tasks as well, and the others are printed."""
    created(run, "early")
    assert run("wait", "early").code == 0
    gateway.hold()
    created(run, "late")
    ran = run("wait", "early", "late", "--timeout", "0.5", "--json")
    assert (ran.code, [(each["id"], each["done"]) for each in map(json.loads, ran.out.splitlines())]) == (
        3,
        [("early", True), ("late", False)],
    )
    assert ran.err.splitlines() == [
        "1 of 2 tasks are not done after 0.5 seconds. They continue.",
        "Wait again with:",
        "kling wait early late --timeout 0.5 --json",
    ]
    gateway.release()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Name tasks by their ids, or set --tag."),
        (["a", "b", "--output", "x.png"], "output: 'x.png' is a file"),
        (["a", "b/c", "--timeout", "0"], "one part of a path"),
    ],
)
def test_wrong_usage_is_2(offline: Run, arguments: list[str], says: str) -> None:
    """With what to do, and before a request."""
    ran = offline("wait", *arguments)
    assert (ran.code, ran.out, says in ran.err) == (2, "", True), ran.err


def test_several_tasks_have_one_display(run: Run, terminal: Callable[..., Terminal], gateway: Sandbox) -> None:
    """On a terminal, with the number that has ended; Ctrl-C says how to go on."""
    created(run, "early")
    assert run("wait", "early").code == 0
    gateway.hold()
    for own_id in ("b", "c"):
        created(run, own_id)
    screen = terminal("wait", "early", "b", "c")
    screen.until("1/3")
    screen.until("2 at Kling")
    assert screen.interrupt() == 130
    screen.until("kling wait early b c")
    gateway.release()


def test_progress_shows_how_long_such_a_task_takes(
    run: Run, terminal: Callable[..., Terminal], gateway: Sandbox
) -> None:
    """Once three of the same family and model are done; those of another model do not count."""
    for number in range(3):
        assert run("text-to-image", "x", "--model-name", "kling-v3", "--external-task-id", f"t{number}").code == 0
    gateway.hold()
    screen = terminal("text-to-image", "x", "--model-name", "kling-v3", "--external-task-id", "next")
    screen.until(" of ~0:")
    other = terminal("text-to-image", "x", "--model-name", "kling-v1", "--external-task-id", "other")
    other.until("other submitted")
    gateway.release()
    assert other.process.wait(60) == 0
    assert b" of ~" not in other.output

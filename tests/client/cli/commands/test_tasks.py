"""The commands `kling show` and `kling list`: any id of a task, filters, and Kling's own list."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kling_sandbox import Sandbox
from tests.client.cli.test_main import Ran, piped
from tests.client.cli.test_main import bare as bare  # a fixture
from tests.client.cli.test_main import receiver as receiver
from tests.client.cli.test_main import run as run
from tests.client.cli.test_main import settings as settings
from tests.support.receiver import Running, Start
from tests.support.web import Host, Visit, host
from tools.harness.submitting import register, submit

Run = Callable[..., Ran]


def test_a_task_is_found_by_any_id(run: Run, receiver: Running, gateway: Sandbox) -> None:
    """show and wait print the same task for Kling's id as for ours."""
    task, kling_id = submit(receiver, gateway)
    assert run("wait", task).code == 0
    assert run("show", kling_id, "--json").json["id"] == task
    waited = run("wait", kling_id, "--json")
    assert (waited.code, waited.json["id"]) == (0, task)


def test_the_page_of_a_task_is_opened(start: Start, gateway: Sandbox, settings: dict[str, str], tmp_path: Path) -> None:
    """By any id, at the address of KLING_LINKS_URL, which only the receiver knows; without a browser it is printed."""
    receiver = start(api_base=gateway.url, links_url="https://people.example.com/kling", data_dir=tmp_path / "links")
    task, kling_id = submit(receiver, gateway)
    page = f"https://people.example.com/kling/dashboard/tasks/{task}"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/opened\n')
    browser.chmod(0o700)
    changed = {"KLING_RECEIVER_URL": receiver.url, "DISPLAY": "", "WAYLAND_DISPLAY": ""}
    ran = piped(settings, "show", kling_id, "--open", **changed, BROWSER=f"{browser} %s")
    assert (ran.returncode, ran.stdout.decode(), ran.stderr) == (0, f"{page}\n", b"")
    assert (tmp_path / "opened").read_text() == page
    browser.write_text("#!/bin/sh\nexit 1\n")
    ran = piped(settings, "show", task, "--open", **changed, BROWSER=f"{browser} %s", PATH="/nowhere")
    assert (ran.returncode, ran.stdout.decode()) == (0, f"{page}\n")
    assert b"No browser can be started here" in ran.stderr


def test_a_page_is_not_json(run: Run) -> None:
    """--open prints an address."""
    ran = run("show", "order-42", "--open", "--json")
    assert (ran.code, ran.out, "--open and --json" in ran.err) == (2, "", True)


@pytest.mark.parametrize("link", [None, "<javascript:alert(1)>; rel=alternate", "<file:///etc/passwd>; rel=alternate"])
def test_an_address_that_is_no_page_is_not_opened(bare: Run, link: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an older receiver, or of another server: the message says what to do instead."""

    def respond(visit: Visit) -> None:
        task = {"id": "a", "status": "succeed"}
        visit.answer(200, json.dumps(task).encode(), **({"Link": link} if link else {}))

    with host(respond) as web:
        monkeypatch.setenv("KLING_RECEIVER_URL", web.url)
        monkeypatch.setenv("KLING_RECEIVER_TOKEN", "a-token")
        ran = bare("show", "a", "--open")
    assert (ran.code, ran.out) == (1, "")
    assert "names no page" in ran.err
    assert "kling show" in ran.err


@pytest.mark.parametrize("name", ["show", "wait"])
def test_an_id_that_is_no_part_of_a_path_is_2(run: Run, name: str) -> None:
    """With the reason, not the answer of another route."""
    for odd in ("a/b", "..", "a b", "a?b", ""):
        ran = run(name, odd)
        assert (ran.code, ran.out) == (2, "")
        assert "one part of a path" in ran.err


def test_a_list_is_filtered_by_model_and_kling_s_id(run: Run, receiver: Running) -> None:
    """With options of these names."""
    for number in range(2):
        register(receiver, f"t{number}", model=f"m{number}", outcome="created", task_id=f"k{number}")

    def listed(*options: str) -> list[str]:
        return [json.loads(line)["id"] for line in run("list", "--json", *options).out.splitlines()]

    assert listed("--model", "m1") == listed("--task-id", "k1") == ["t1"]
    assert listed("--model", "m1", "--task-id", "k0") == []


def test_kling_s_own_list(run: Run, receiver: Running, gateway: Sandbox) -> None:
    """A table, newest first, of all families or of one; with --json Kling's records, each with its family."""
    gateway.hold()
    tasks = [submit(receiver, gateway, family=family) for family in ("images/generations", "videos/text2video") * 2]
    ran = run("list", "--at-kling")
    heading, *lines = ran.out.splitlines()
    assert heading.split("  ")[0] == "KLING'S ID"
    assert {line.split()[0] for line in lines} == {kling_id for _, kling_id in tasks}
    assert all(task in ran.out for task, _ in tasks)
    one = run("list", "--at-kling", "videos/text2video", "--json").out.splitlines()
    assert {json.loads(line)["task_id"] for line in one} == {tasks[1][1], tasks[3][1]}
    assert {json.loads(line)["family"] for line in one} == {"videos/text2video"}
    assert one == run("list", "--at-kling", "--family", "videos/text2video", "--json").out.splitlines()
    assert len(run("list", "--at-kling", "--limit", "3", "--json").out.splitlines()) == 3


@pytest.fixture
def relay(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A relay that has one family, and the settings of a caller without a receiver."""

    def respond(visit: Visit) -> None:
        if "text2video" in visit.path:
            records = [{"task_id": "k1", "created_at": 10**30}, {"task_id": "k2\x1b", "created_at": None}]
            visit.answer(200, json.dumps({"code": 0, "data": records}).encode())
        elif "image2video" in visit.path:
            visit.answer(401, b'{"code": 1000, "message": "who are you"}')
        else:
            visit.answer(404, b"")

    with host(respond) as web:
        monkeypatch.setenv("KLING_API_BASE", web.url)
        monkeypatch.setenv("KLING_API_KEY", "the-kling-key")
        yield web


def test_families_that_a_relay_lacks_are_named(bare: Run, relay: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, unless one was asked for, which is an error; so is any other refusal."""
    monkeypatch.setattr("kling_callback.cli.commands.tasks.ASYNCHRONOUS", ("images/generations", "videos/text2video"))
    ran = bare("list", "--at-kling")
    assert (ran.code, [line.split()[0] for line in ran.out.splitlines()[1:]]) == (0, ["k1", "k2\\x1b"])
    assert "No list at this API base: images/generations." in ran.err
    assert bare("list", "--at-kling", "images/generations").code == 1
    assert "1000" in bare("list", "--at-kling", "videos/image2video").err
    monkeypatch.setattr("kling_callback.cli.commands.tasks.ASYNCHRONOUS", ("images/generations",))
    assert bare("list", "--at-kling").code == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--at-kling", "--tag", "a", "--model", "m"], "--model, --tag"),
        (["videos/text2video"], "--family videos/text2video"),
        (["--at-kling", "/text-to-video/kling-3.0-turbo"], "the new standard has none"),
        (["--at-kling", "audio/tts"], "kling call"),
    ],
)
def test_what_kling_cannot_list_is_2(bare: Run, relay: Host, arguments: list[str], says: str) -> None:
    """With the option to use."""
    ran = bare("list", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err, ran.err
    assert relay.visits == []

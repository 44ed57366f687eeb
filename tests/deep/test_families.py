"""A job of every family, by the real commands: create, callback, question, result."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from kling_callback.cli.main import main as kling
from kling_callback.protocol.families import ASYNCHRONOUS, SYNCHRONOUS_GET, SYNCHRONOUS_POST
from kling_receiver.cli.main import main as kling_receiver
from kling_sandbox import Sandbox
from tests.support.commands import leaves_no_trace
from tests.support.receiver import KEY, SECRET, Running, Start
from tests.support.sandbox import picture

Command = Callable[[list[str]], None]
IMAGE, VIDEO = picture(300, 300), "https://files.example.com/a.mp4"

NEW: list[tuple[str, list[dict[str, Any]], dict[str, Any]]] = [
    ("/image-to-video/kling-3.0-turbo", [{"type": "first_frame", "url": IMAGE}], {}),
    ("/image-to-video/kling-3.0", [{"type": "first_frame", "url": IMAGE}], {}),
    ("/image-to-video/kling-2.6", [{"type": "first_frame", "url": IMAGE}], {}),
    ("/image-to-video/kling-2.5-turbo", [{"type": "first_frame", "url": IMAGE}], {}),
    ("/omni-video/kling-3.0-omni", [{"type": "base_video", "url": VIDEO}], {"multi_shot": False}),
    ("/omni-video/kling-o1", [{"type": "base_video", "url": VIDEO}], {}),
    *(
        (
            f"/motion-control/{model}",
            [{"type": "image", "url": IMAGE}, {"type": "video", "url": VIDEO}],
            {"character_orientation": "video"},
        )
        for model in ("kling-3.0", "kling-2.6")
    ),
]

JOBS: list[tuple[str, dict[str, Any]]] = [
    *((family, {"prompt": "x", "image": IMAGE} if "image" in family else {"prompt": "x"}) for family in ASYNCHRONOUS),
    *((f"/text-to-video/kling-{name}", {"prompt": "x"}) for name in ("3.0-turbo", "3.0", "2.6", "2.5-turbo")),
    *(
        (family, {"contents": [{"type": "prompt", "text": "x"}, *contents], "settings": settings})
        for family, contents, settings in NEW
    ),
]

OUTPUTS = {"general/advanced-custom-elements": "element_id", "general/custom-voices": "voice_id"}
"""Families whose result is an id, with its name."""


CALL = {
    "text": "x",
    "voice_id": "1",
    "video_url": VIDEO,
    "image": IMAGE,
    "session_id": "1",
    "element_id": 1,
    "frame_index": 0,
    "points": [{"x": 0.5, "y": 0.5}],
    "start_time": 1764000000000,
    "end_time": 1764600000000,
}
"""Parameters of all endpoints that answer at once: each takes its own, and ignores the others."""


@pytest.fixture
def receiver(start: Start, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Running:
    """A receiver, and the settings of its client in the environment."""
    running = start(api_base=gateway.url)
    settings = {"API_BASE": gateway.url, "API_KEY": KEY, "SIGNING_SECRETS": SECRET, "RECEIVER_URL": running.url}
    for name, value in settings.items():
        monkeypatch.setenv(f"KLING_{name}", value)
    return running


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command in this process; its output."""

    def run_command(command: Command, *arguments: str) -> str:
        with leaves_no_trace(), pytest.raises(SystemExit) as exited:
            command(list(arguments))
        captured = capsys.readouterr()
        assert exited.value.code in (0, None), captured.err
        return captured.out

    return run_command


@pytest.mark.parametrize(("family", "body"), JOBS, ids=[family for family, _ in JOBS])
def test_a_job_of_this_family(
    receiver: Running, run: Callable[..., str], gateway: Sandbox, family: str, body: dict[str, Any]
) -> None:
    """Called back, asked about once, done; its files or ids are printed, and both commands show the task."""
    task = json.loads(run(kling, "create", family, "--body", json.dumps(body), "--json"))
    assert (task["status"], task["done"], task["family"]) == ("succeed", True, family)
    assert [each["status"] for each in task["results"]] == ["stored"] * len(task["results"])
    if family in OUTPUTS:
        assert [OUTPUTS[family] in each for each in task["outputs"]] == [True]
    else:
        assert task["results"]
    (created,) = gateway.tasks.values()
    assert (created.queries, len(created.posted)) == (1, 3)
    shown = json.loads(run(kling_receiver, "tasks", "show", str(task["task_id"])))
    assert shown["id"] == task["id"]
    assert str(task["id"]) in run(kling, "show", task["id"])
    if "prompt" in body and family in ("images/generations", "videos/text2video"):
        typed = run(kling, "text-to-image" if family.startswith("images") else "text-to-video", "x")
        assert typed.startswith(f"{receiver.url}/api/tasks/")


@pytest.mark.parametrize("path", [*SYNCHRONOUS_GET, *SYNCHRONOUS_POST])
def test_an_endpoint_that_answers_at_once(
    receiver: Running, run: Callable[..., str], gateway: Sandbox, path: str
) -> None:
    """Its answer is printed, and it was called once."""
    body = () if path in SYNCHRONOUS_GET else ("--body", json.dumps(CALL))
    target = f"{path}?start_time=1764000000000&end_time=1764600000000" if path == "account/costs" else path
    assert json.loads(run(kling, "call", target, *body))["code"] == 0
    assert len(gateway.calls) == 1
    assert gateway.tasks == {}

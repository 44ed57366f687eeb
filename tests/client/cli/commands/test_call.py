"""The command `kling call`: JSON on stdout, and an exit code for each kind of failure."""

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.client.cli.test_main import KLING, Ran
from tests.client.cli.test_main import bare as bare  # a fixture
from tests.support.web import Host, Visit, host

Run = Callable[..., Ran]

RELEASE = threading.Event()
"""Ends a silence."""

VOICES = {"code": 0, "message": "SUCCEED", "request_id": "r", "data": [{"voice_id": "v", "name": "袋鼠"}]}


def respond(visit: Visit) -> None:
    """Voices for a GET, the body for a POST; a refusal, or an answer that says nothing, if the path asks for it."""
    if "silent" in visit.path:
        RELEASE.wait(60)
    elif "refuse" in visit.path:
        visit.answer(429, b'{"code": 1102, "message": "used up", "request_id": "r-1"}')
    elif "list" in visit.path:
        visit.answer(200, b'["https://files.example.com/a.mp3?sig=1"]')
    elif "garbage" in visit.path:
        visit.answer(200, b"<html>")
    else:
        visit.answer(200, visit.body or json.dumps(VOICES).encode())


@pytest.fixture
def kling_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A Kling, and the settings of a caller without a receiver."""
    with host(respond) as web:
        monkeypatch.setenv("KLING_API_BASE", web.url)
        monkeypatch.setenv("KLING_API_KEY", "the-kling-key")
        yield web


def test_the_answer_is_printed_as_json(bare: Run, kling_host: Host) -> None:
    """Indented by default, on one line with --json; the receiver's settings are not needed."""
    indented, line = bare("call", "general/presets-voices"), bare("call", "general/presets-voices", "--json")
    assert (indented.code, line.code, indented.err) == (0, 0, "")
    assert indented.json == line.json == VOICES
    assert indented.out.count("\n") > 5
    assert line.out.count("\n") == 1
    assert [visit.method for visit in kling_host.visits] == ["GET", "GET"]


def test_a_body_is_an_argument_a_file_or_stdin(bare: Run, kling_host: Host, tmp_path: Path) -> None:
    """`JSON`, `@FILE` and `@-`."""
    body = '{"prompt": "袋鼠"}'
    (tmp_path / "body.json").write_text(body, encoding="utf-8")
    for given in (body, "@body.json"):
        assert bare("call", "videos/identify-face", "--body", given, "--json").json == json.loads(body)
    piped = subprocess.run(
        [KLING, "call", "videos/identify-face", "--body", "@-"],
        input=body.encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (piped.returncode, json.loads(piped.stdout)) == (0, json.loads(body))
    assert [visit.method for visit in kling_host.visits] == ["POST"] * 3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["general/refuse"], 1, ["1102", "used up", "r-1", "resource pack"]),
        (["general/garbage"], 1, ["may have been carried out and paid for"]),
        (["images/generations", "--body", "{}"], 2, ["kling create"]),
        (["audio/tts"], 2, ["body: audio/tts needs one"]),
        (["videos/identify-face", "--body", "{"], 2, ["not valid JSON"]),
        ([], 2, ["PATH"]),
    ],
)
def test_an_error_is_one_message(bare: Run, kling_host: Host, arguments: list[str], code: int, says: list[str]) -> None:
    """On stderr, with Kling's code and what to do."""
    ran = bare("call", *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert all(text in ran.err for text in says), ran.err
    assert "Traceback" not in ran.err


def test_an_answer_that_may_be_paid_is_printed(bare: Run, kling_host: Host) -> None:
    """Whole, on stdout, although it is not Kling's."""
    ran = bare("call", "general/list")
    assert (ran.code, ran.json) == (1, ["https://files.example.com/a.mp3?sig=1"])
    assert "may have been carried out and paid for" in ran.err


def test_create_names_call(bare: Run, kling_host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A create on a synchronous endpoint is refused before anything is sent."""
    monkeypatch.setenv("KLING_RECEIVER_URL", kling_host.url)
    monkeypatch.setenv("KLING_SIGNING_SECRETS", "x" * 32)
    for family in ("audio/tts", "videos/multi-elements/init-selection", "/account/costs"):
        ran = bare("create", family, "--body", "{}")
        assert ran.code == 2
        assert "kling call" in ran.err
    assert kling_host.visits == []


def test_a_key_is_needed(bare: Run) -> None:
    """And nothing else."""
    ran = bare("call", "general/presets-voices")
    assert ran.code == 2
    assert "KLING_API_KEY is missing" in ran.err
    assert "RECEIVER" not in ran.err


def test_ctrl_c_says_that_it_may_be_paid(kling_host: Host) -> None:
    """The call was sent and not answered."""
    process = subprocess.Popen([KLING, "call", "general/silent"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    kling_host.wait_for(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    RELEASE.set()
    assert (process.returncode, out) == (130, b"")
    assert b"may have been carried out and paid for" in err
    assert b"Traceback" not in err

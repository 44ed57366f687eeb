"""What Kling and a receiver say is one line in the client's log, in its errors and on the terminal."""

import logging
from collections.abc import Callable
from typing import Any

import pytest

from kling_callback import errors
from kling_callback.cli import terminal
from kling_callback.display import escape, json_text, logger
from kling_callback.sync import Kling
from tests.support.kling import SETTINGS, Stage, answer, event, stream, task_json

FORGED = "2026-11-26 00:00:00,000 ERROR app: forged"
HOSTILE = [f"x\n{FORGED}", f"x\r{FORGED}\x1b[2J", f"x\u2028{FORGED}\u2029", f"x\x85{FORGED}\u202e"]
FORBIDDEN = set("\n\r\x85\u2028\u2029\x1b\u202e")


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_a_log_message_is_one_line(caplog: pytest.LogCaptureFixture, hostile: str) -> None:
    """Whatever format the program has chosen for its log."""
    with caplog.at_level(logging.INFO):
        logger("kling_callback.test").warning("Kling said %s", hostile)
    (record,) = caplog.records
    assert record.getMessage() == f"Kling said {escape(hostile)}"
    assert not set(record.getMessage()) & FORBIDDEN


@pytest.mark.parametrize("name", ["settings", "creation", "events", "api.retry"])
def test_every_logger_of_the_client_does_so(caplog: pytest.LogCaptureFixture, name: str) -> None:
    """Each module that logs has such a logger."""
    logging.getLogger(f"kling_callback.{name}").error("%s", HOSTILE[0])
    assert caplog.records[-1].getMessage() == escape(HOSTILE[0])


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_the_message_of_an_error_is_one_line(hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A task's reason, a file's, and the receiver's refusal: programs log them, and commands print them."""
    failed = task_json("mine", "failed", done=True, status_msg=hostile)
    file = {"index": 0, "kind": "image", "status": "failed", "error": hostile}
    lost = task_json("mine", "succeed", done=True, results=[file])
    refused = {"error": {"code": hostile, "message": hostile, "hint": hostile}}
    for task, replies in ((failed, []), (lost, []), (None, [answer(404, refused)])):
        done = [stream(event(9, "task.done", task))] if task else []
        stage = Stage(events=done, task=[answer(200, task)] if task else replies)
        with Kling(http=stage.http(), **SETTINGS) as kling, pytest.raises(errors.KlingError) as raised:
            kling.task("mine").wait()
        assert "forged" in str(raised.value)
        assert not set(str(raised.value)) & FORBIDDEN
        terminal.print_message(terminal.format_error(raised.value))
    assert not [line for line in capsys.readouterr().err.splitlines() if line.startswith(FORGED)]


@pytest.mark.parametrize("show", [escape, lambda text: json_text({"a": text})])
def test_data_is_one_line(show: Callable[[Any], str]) -> None:
    """Text and JSON."""
    for hostile in HOSTILE:
        assert len(show(hostile).splitlines()) == 1

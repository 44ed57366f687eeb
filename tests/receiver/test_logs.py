"""The log: what Kling, hosts, hooks and drivers say forges no line, controls no terminal and shows no secret."""

import io
import logging
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from kling_receiver.logs import LineFormatter, use_line_format
from kling_sandbox import Sandbox
from tests.support.commands import run_here
from tests.support.receiver import Start
from tools.harness.process import Process, environment
from tools.harness.submitting import poll_until, submit

FORGED = "2026-11-26 00:00:00,000 ERROR kling_receiver: forged"
HOSTILE = [
    f"x\n{FORGED}",
    f"x\r\n{FORGED}",
    f"x\x85{FORGED}",
    f"x\u2028{FORGED}",
    f"x\x0b{FORGED}",
    f"\x1b[2K\x1b[1G{FORGED}",
    f"x\u202e{FORGED}\u202c",
    f"x\x9b2J\x07\x08\x00{FORGED}\ud800",
]
FORBIDDEN = set("\r\x85\u2028\u2029\x0b\x0c\x1b\x9b\x07\x08\0\u202e\u202c\ud800")


def formatted(message: str, *arguments: object, hidden: tuple[str, ...] = (), **options: object) -> str:
    """The text of one record."""
    record = logging.LogRecord("kling_receiver.x", logging.WARNING, "x.py", 1, message, arguments, None)
    for name, value in options.items():
        setattr(record, name, value)
    return LineFormatter(hidden=hidden).format(record)


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_a_message_is_one_line(hostile: str) -> None:
    """With every control character visible."""
    for text in (
        formatted("Kling said %s.", hostile),
        formatted(hostile),
        formatted("%s", {"a": hostile, "b": [hostile]}),
    ):
        assert len(text.splitlines()) == 1
        assert not set(text) & FORBIDDEN


@pytest.mark.parametrize("hostile", HOSTILE, ids=ascii)
def test_a_traceback_is_indented(hostile: str) -> None:
    """No line of it looks like the beginning of another message, also where another handler formatted it first."""
    try:
        raise ValueError(hostile) from KeyError(hostile)
    except ValueError:
        error = sys.exc_info()
    text = formatted("failed", exc_info=error, exc_text=f"cached\n{FORGED}", stack_info=f"Stack\n{hostile}")
    first, *rest = text.split("\n")
    assert first.endswith("WARNING kling_receiver.x: failed")
    assert len(rest) > 3
    assert all(line.startswith("    ") for line in rest)
    assert "cached" not in text
    assert not set(text) & FORBIDDEN


def test_secrets_are_masked_in_messages_and_tracebacks() -> None:
    """A long one wherever it stands, a short one where it is quoted; no other word loses a part."""
    try:
        raise ValueError("invalid value \"tiny\" in 'a-long-password-1'")
    except ValueError:
        error = sys.exc_info()
    text = formatted("x a-long-password-1: tiny", hidden=("a-long-password-1", "tiny", ""), exc_info=error)
    assert "a-long-password-1" not in text
    assert text.splitlines()[0].endswith("x ***: tiny")
    assert text.splitlines()[-1].endswith("invalid value \"***\" in '***'")
    assert formatted("postgresql", hidden=("postgres",)).endswith(": postgresql")


def test_commands_that_set_up_no_log_use_the_format_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that opens the database runs the receiver's code, whose warnings go to stderr."""
    assert isinstance(logging.lastResort, logging.Handler)
    monkeypatch.setattr(logging.lastResort, "formatter", None)
    use_line_format(["a-long-password-1"])
    record = logging.LogRecord("x", logging.WARNING, "x.py", 1, f"a-long-password-1\n{FORGED}", (), None)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logging.lastResort.handle(record)
    assert len(stream.getvalue().splitlines()) == 1
    assert "a-long-password-1" not in stream.getvalue()


@pytest.mark.usefixtures("processes_are_forked")
def test_serve_logs_in_this_format(start: Start, gateway: Sandbox, tmp_path: Path) -> None:
    """A hook's name with a forged line, whose kind of address no package knows any more."""
    before = start(api_base=gateway.url)
    env = environment(tmp_path / "data", KLING_RECEIVER_URL=before.url)
    assert run_here("hooks", "add", "command:true", "--name", "old", env=env).returncode == 0
    before.stop()
    with closing(sqlite3.connect(tmp_path / "data" / "kling.db")) as database, database:
        database.execute("UPDATE hook SET name = ?, address = 'gone://x'", (HOSTILE[0],))
    with Process(tmp_path / "data", KLING_API_BASE=gateway.url) as receiver:
        submit(receiver, gateway)
        poll_until(lambda: "forged" in receiver.log_text())
        log = receiver.log_text()
    assert [line for line in log.splitlines() if " kling_receiver" in line and "forged" in line]
    assert not [line for line in log.splitlines() if line.startswith(FORGED)]

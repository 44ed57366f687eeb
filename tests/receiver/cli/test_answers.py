"""Answers that are not the receiver's: a message, whichever command reads them."""

from pathlib import Path

import pytest

from kling_callback.errors import ReceiverError
from kling_receiver.cli.answers import NewSecret, QueriedTask, checked
from tests.support.commands import run_here
from tests.support.web import host
from tools.harness.process import environment

COMMANDS = [
    *("tasks list", "tasks ask a", "tasks fetch a"),
    *("hooks list", "hooks add https://x.example/", "hooks add command:/bin/true"),
    *("hooks test a", "hooks pause a", "hooks resume a", "hooks rotate a"),
    *("deliveries list", "deliveries retry --dead", "replay --from 1"),
]


@pytest.mark.parametrize(
    "body", ["{}", '{"hooks": [{}], "deliveries": null, "task": {}, "hook": 1, "tasks": [1]}', "[]"]
)
def test_another_server_answers(tmp_path: Path, body: str) -> None:
    """One line, and exit code 1."""
    with host(lambda visit: visit.answer(200, body.encode())) as server:
        env = environment(tmp_path, KLING_RECEIVER_URL=server.url)
        for command in COMMANDS:
            ran = run_here(*command.split(), env=env)
            assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1), command
            assert "cannot be read" in ran.stderr


def test_an_answer_may_have_more_fields() -> None:
    """Those of a newer receiver; the whole answer is passed on."""
    answer = {"task": {"id": "a", "status": "failed", "new": 1}, "kling": None, "new": 2}
    assert checked(QueriedTask, answer) == answer
    with pytest.raises(ReceiverError, match="cannot be read"):
        checked(NewSecret, {"secret": 1})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400", "x"])
def test_numbers_that_no_json_has(tmp_path: Path, value: str) -> None:
    """Wrong usage, before anything is sent."""
    for option in ("--timeout", "--rate-limit", "--retry-schedule"):
        ran = run_here("hooks", "add", "https://x.example/", f"{option}={value}", env=environment(tmp_path))
        assert (ran.returncode, ran.stdout, option in ran.stderr) == (2, "", True)


def test_an_argument_that_is_no_text(tmp_path: Path) -> None:
    """Bytes of another encoding are wrong usage."""
    with host(lambda visit: visit.answer(200, b'{"tasks": []}')) as server:
        ran = run_here("hooks", "show", "caf\udce9", env=environment(tmp_path, KLING_RECEIVER_URL=server.url))
    assert ran.returncode == 2
    assert ran.stderr == "An argument contains bytes that are not UTF-8 text, near 'caf\\udce9'.\n"

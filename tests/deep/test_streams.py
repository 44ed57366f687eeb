"""What the commands print: on terminals with other encodings, and into streams that cannot be written."""

import json
import os
import pty
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.deep.conftest import Run
from tools.harness import forkserver
from tools.harness.process import COMMAND

TAG = "\N{KANGAROO}"


@pytest.mark.parametrize("command", ["kling list", "kling-receiver tasks list"])
@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "gbk"},
        {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_text_in_any_locale(run: Run, command: str, variables: dict[str, str]) -> None:
    """A tag that the locale's encoding does not have is printed as UTF-8."""
    assert run(f"kling text-to-image x --no-wait --tag {TAG}").returncode == 0
    ran = run(command, **variables)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert TAG in ran.stdout.decode()


@pytest.mark.parametrize("encoding", ["gbk", "ascii:strict"])
def test_the_sandbox_in_any_locale(run: Run, encoding: str) -> None:
    """Its list of switches is printed, too."""
    assert run("kling-sandbox --misbehave list", PYTHONIOENCODING=encoding, PYTHONUTF8="0").returncode == 0


COMMANDS_THAT_PRINT = [
    *(
        "kling list",
        "kling list --json",
        "kling show order-1",
        "kling show order-1 --json",
        "kling wait order-1",
        "kling wait order-1 --json 2> /dev/null",
    ),
    *("kling-receiver tasks list", "kling-receiver tasks show order-1", "kling-receiver doctor", "kling --help"),
    *("kling-receiver --help", "kling-sandbox --help", "kling-sandbox --misbehave list", f"kling show {TAG}"),
]


def run_on_terminal(command: list[str], environment: dict[str, str], stderr: int | None = None) -> tuple[int, bytes]:
    """Run a command whose streams are a terminal. Returns its exit code and what the terminal shows."""
    terminal, stream = pty.openpty()
    try:
        process = forkserver.start(
            [COMMAND.with_name(command[0]), *command[1:]],
            environment,
            stdin=stream,
            stdout=stream,
            stderr=stream if stderr is None else stderr,
        )
    finally:
        os.close(stream)
    shown = b""
    with suppress(OSError):  # the end of the last process on the terminal
        while part := os.read(terminal, 1 << 16):
            shown += part
    os.close(terminal)
    return process.wait(60), shown


@pytest.mark.parametrize("encoding", ["gbk", "cp936", "cp1252", "ascii:strict"])
def test_text_on_a_terminal_with_another_encoding(run: Run, shell: dict[str, str], encoding: str) -> None:
    """It gets its own encoding, with escapes for what that does not have; JSON stays JSON.

    ASCII stands for a locale that is missing: the text is UTF-8.
    """
    line = f"kling text-to-image '\u4f60\u597d {TAG}' --tag \u4f60{TAG} --external-task-id order-1"
    assert run(line).returncode == 0
    codec = "utf-8" if "ascii" in encoding else encoding
    with Path("/dev/null").open("wb") as nothing:
        for command in COMMANDS_THAT_PRINT:
            words, _, errors = command.partition(" 2> ")
            environment = {**shell, "PYTHONIOENCODING": encoding}
            code, output = run_on_terminal(shlex.split(words), environment, nothing.fileno() if errors else None)
            check(command, code, output.decode(codec), codec)


def test_text_on_the_terminal_of_a_shell(run: Run) -> None:
    """The same as a user runs it: a new interpreter, on the terminal of its session."""
    assert run(f"kling text-to-image x --tag \u4f60{TAG}").returncode == 0
    ran = run("script -qefc 'kling list' /dev/null < /dev/null", PYTHONIOENCODING="gbk")
    check("kling list", ran.returncode, ran.stdout.decode("gbk"), "gbk")


def check(command: str, code: int, shown: str, codec: str) -> None:
    """What a terminal shows of the task."""
    assert code == (1 if TAG in command else 0), shown
    assert "Traceback" not in shown
    if "--json" in command:
        assert json.loads(shown)["tags"] == [f"\u4f60{TAG}"]
    elif command.endswith("list") and "sandbox" not in command:
        for letter in f"\u4f60{TAG}":
            has_it = letter.encode(codec, "ignore")
            assert (letter if has_it else letter.encode("ascii", "backslashreplace").decode()) in shown


COMMANDS = [
    *("kling list", "kling --help", "kling wait order-1", "kling wait order-1 --output out"),
    *("kling-receiver tasks list", "kling-receiver --help", "kling-receiver token", "kling-sandbox --help"),
]


@pytest.fixture
def submitted(run: Run) -> None:
    """The task order-1."""
    assert run("kling text-to-image x --external-task-id order-1").returncode == 0


@pytest.fixture
def full() -> Iterator[int]:
    """A descriptor on a full disk."""
    with Path("/dev/full").open("wb", buffering=0) as file:
        yield file.fileno()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("submitted")
def test_a_full_disk(run: Run, full: int, command: str, tmp_path: Path) -> None:
    """It is a message and exit code 1; a message that cannot be written either is none."""
    ran = run(command, stdout=full)
    assert (ran.returncode, b"cannot be written: No space left on device" in ran.stderr) == (1, True)
    if "wait" in command:
        assert b"kling wait order-1" in ran.stderr
    if "output" in command:
        assert (tmp_path / "out" / "order-1-0.png").exists()
    assert run(f"{command} --no-such-option", stderr=full).returncode in (0, 1, 2)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("submitted")
def test_a_closed_pipe(run: Run, command: str) -> None:
    """The command ends without a message."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert run(command, stdout=writing).stderr == b""
    finally:
        os.close(writing)


@pytest.mark.parametrize("command", ["kling list", "kling --help", "kling-receiver token", "kling-sandbox --help"])
def test_closed_streams(run: Run, command: str) -> None:
    """They are no error."""
    assert run(f"{command} >&- 2>&-").returncode == 0


def test_a_shell_whose_pipe_is_closed(run: Run) -> None:
    """The same as a user runs it."""
    assert run("kling --help | true").stderr == b""

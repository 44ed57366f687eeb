"""The fork server of these tests: its processes are like new ones, and one that cannot be is a new one."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tools.harness import forkserver
from tools.harness.forkserver import Forked, ForkServer
from tools.harness.process import CLIENT, COMMAND, Process, environment, run


def test_a_receiver_is_a_fork_that_can_be_killed(tmp_path: Path) -> None:
    """It has a process of its own, and its end is reported, whether by a signal or in order."""
    with Process(tmp_path / "data", KLING_API_BASE="http://127.0.0.1:9") as receiver:
        assert isinstance(receiver._process, Forked)
        first = receiver.pid
        assert first not in (os.getpid(), os.getppid())
        receiver.signal(signal.SIGKILL)
        assert receiver.wait()[0] == -signal.SIGKILL
        assert receiver.ended
        receiver.start()
        assert receiver.pid != first
        receiver.signal(signal.SIGTERM)
        assert receiver.wait()[0] == 0
        assert receiver.log_text().count("reached by Kling as") == 2


def test_a_command_has_its_own_arguments_streams_and_folder(tmp_path: Path) -> None:
    """So do several, one after the other: nothing is left of the one before."""
    names = "KLING_HOOK_URL", "KLING_OVERDUE_SECONDS"
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        os.chdir(folder)
        Path(".env").write_text(f"{name}=nonsense\n")
        ran = run("serve", env=environment(folder / "data", KLING_RECEIVER_URL="http://127.0.0.1:9"))
        assert (ran.returncode, ran.stdout) == (2, "")
        assert [each for each in names if each in ran.stderr] == [name]
    assert run("--version", env=environment(tmp_path), command=CLIENT).stdout.startswith("kling, version")
    assert run("token", env=environment(tmp_path, KLING_SIGNING_SECRETS="")).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        ([COMMAND, "--version"], {"PYTHONUTF8": "0"}),
        ([COMMAND, "--version"], {"LC_ALL": "C"}),
        (["/bin/true"], {}),
    ],
)
def test_what_a_fork_cannot_do_is_a_new_process(arguments: list[Any], variables: dict[str, str]) -> None:
    """Another program, or variables that only the start of an interpreter reads."""
    process = forkserver.start(arguments, {**os.environ, **variables}, stdout=1, stderr=2)
    assert isinstance(process, subprocess.Popen)
    assert process.wait(60) == 0


def test_a_process_that_must_inherit_is_new(fork_server: ForkServer, tmp_path: Path) -> None:
    """As one under a filter of its thread, which `scripts/crash everywhere` sets."""
    with Process(tmp_path / "data", KLING_API_BASE="http://127.0.0.1:9") as receiver:
        receiver.kill()
        receiver.launch(fork=False)
        assert isinstance(receiver._process, subprocess.Popen)
        receiver.await_ready()


def test_a_command_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    """And the caller hears of it."""
    env = environment(tmp_path / "data", KLING_RECEIVER_URL="http://127.0.0.1:9", KLING_API_BASE="http://127.0.0.1:9")
    with pytest.raises(subprocess.TimeoutExpired):
        forkserver.run([COMMAND, "serve", "--port", "0"], env, timeout=0.5)

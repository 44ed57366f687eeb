"""Deep tests start hundreds of processes; what is measured of coverage is what runs in the tests' own."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kling_sandbox import Sandbox
from tests.support.receiver import Running, Start
from tools.harness import forkserver
from tools.harness.forkserver import ForkServer
from tools.harness.process import environment

MEASURING = ("COV_", "COVERAGE_")
PROXIES = [f"{kind}_proxy" for kind in ("http", "https", "all", "no")]
PLAIN = re.compile(r"[\w:/. -]+")
"""A line without quotes and operators of a shell."""

Ran = subprocess.CompletedProcess[bytes]
Run = Callable[..., Ran]


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """That of the deep tests is not measured."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(MEASURING)}
    with forkserver.server(environment) as server:
        yield server


@pytest.fixture(autouse=True)
def all_processes_are_forked(processes_are_forked: None) -> None:
    """Receivers and commands are no new interpreters. `scripts/crash` starts new ones."""


@pytest.fixture(autouse=True)
def children_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process under measurement takes half as long again; most are killed, and would report nothing."""
    for name in [name for name in os.environ if name.startswith(MEASURING)]:
        monkeypatch.delenv(name)


@pytest.fixture
def receiver(start: Start, gateway: Sandbox) -> Running:
    """A receiver of the sandbox."""
    return start(api_base=gateway.url)


@pytest.fixture
def shell(receiver: Running, gateway: Sandbox, tmp_path: Path) -> dict[str, str]:
    """The environment of a shell with the commands on its path, the settings of the receiver, and no proxy."""
    settings = {
        "KLING_API_BASE": gateway.url,
        "KLING_RECEIVER_URL": receiver.url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    inherited = environment(tmp_path / "data", **settings)
    return {name: value for name, value in inherited.items() if name.lower() not in PROXIES}


@pytest.fixture
def run(shell: dict[str, str]) -> Run:
    """Run a line in the shell. A line that is one command needs none.

    Its streams are captured, except one that is given as a descriptor.
    """

    def run(line: str, *, stdout: int | None = None, stderr: int | None = None, **variables: str) -> Ran:
        program, *arguments = line.split(" ") if PLAIN.fullmatch(line) else ["bash", "-c", line]
        command = [shutil.which(program, path=shell["PATH"]) or program, *arguments]
        ran = forkserver.run(command, {**shell, **variables}, stdout=stdout, stderr=stderr, timeout=60)
        assert b"Traceback" not in ran.stderr + ran.stdout, ran.stderr.decode()
        return ran

    return run

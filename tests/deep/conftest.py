"""Deep tests start hundreds of processes; what is measured of coverage is what runs in the tests' own."""

import os
from collections.abc import Iterator

import pytest

from tools.harness import forkserver
from tools.harness.forkserver import ForkServer

MEASURING = ("COV_", "COVERAGE_")


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """One interpreter with the imports of all commands, for all tests of this process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(MEASURING)}
    with forkserver.server(environment) as server:
        yield server


@pytest.fixture(autouse=True)
def processes_are_forked(fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers and commands are processes of their own, but no new interpreters. `scripts/crash` starts new ones."""
    monkeypatch.setattr(forkserver, "running", fork_server)


@pytest.fixture(autouse=True)
def children_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process under measurement takes half as long again; most are killed, and would report nothing."""
    for name in [name for name in os.environ if name.startswith(MEASURING)]:
        monkeypatch.delenv(name)

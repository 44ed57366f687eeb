"""Deep tests start hundreds of processes; what is measured of coverage is what runs in the tests' own."""

import os

import pytest


@pytest.fixture(autouse=True)
def children_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process under measurement takes half as long again; most are killed, and would report nothing."""
    for name in [name for name in os.environ if name.startswith(("COV_", "COVERAGE_"))]:
        monkeypatch.delenv(name)

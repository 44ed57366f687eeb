"""`scripts/crash` in short: killed at some calls of each kind, at some moments, and traced once."""

from pathlib import Path

import pytest
from crashes import randomly, strace
from crashes.everywhere import KINDS, run
from crashes.order import witnessed

from tests.conftest import ABSENT

NAMED = {kind.name: kind for kind in KINDS}


@pytest.fixture
def traced() -> None:
    """Only where strace may trace."""
    if not strace.present():
        pytest.skip(f"{ABSENT}strace")


@pytest.mark.parametrize(
    ("kind", "n"),
    [
        ("first start: sync", 5),
        ("commit (fdatasync)", 16),
        ("fsync of file or folder", 2),
        ("rename", 1),
        ("send, or write to a file", 24),
    ],
)
@pytest.mark.usefixtures("traced")
def test_killed_at_a_call(kind: str, n: int) -> None:
    """After the restart every promise is kept: what is open is scheduled at once, and then done."""
    done = run(NAMED[kind], n)
    assert done.killed
    assert done.problems == []


@pytest.mark.usefixtures("traced")
def test_nothing_is_said_before_it_is_on_disk() -> None:
    """In a trace of every call: each callback synced before its 200, each file and folder before its event."""
    rows = witnessed()
    assert [(row.what, row.wrong) for row in rows] == [(row.what, []) for row in rows]
    assert [row.seen for row in rows] == [9, 4, 4]


def test_killed_at_some_moments(tmp_path: Path, database_url: str) -> None:
    """Again and again on the same data, on both databases: nothing is lost, and nobody is created twice."""
    told: list[str] = []
    done = randomly.run(tmp_path, database_url, kills=3, seed=4, tell=told.extend)
    assert done.problems == told == []
    assert done.tasks

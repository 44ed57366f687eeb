"""`scripts/crash` in short: killed at some calls of each kind, at some moments, and traced once."""

from pathlib import Path

import pytest

from tests.support.receiver import ABSENT
from tools.crash import gate, randomly, strace
from tools.crash.everywhere import KINDS, run
from tools.crash.order import witnessed

NAMED = {kind.name: kind for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "n"),
    [
        ("first start: sync", 5),
        ("commit (fdatasync)", 10),
        ("fsync of file or folder", 7),
        ("rename", 3),
        ("send, or write to a file", 60),
    ],
)
@pytest.mark.skipif(not gate.present(), reason=f"{ABSENT}seccomp's user notification")
def test_killed_at_a_call(kind: str, n: int) -> None:
    """After the restart every promise is kept: what is open is scheduled at once, and then done."""
    done = run(NAMED[kind], n)
    assert (done.killed, done.calls) == (True, n)
    assert done.problems == []


@pytest.mark.skipif(not strace.present(), reason=f"{ABSENT}strace")
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

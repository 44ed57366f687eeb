"""The short form of `scripts/crash`: kills at some calls of each kind and at random moments, and one trace."""

import inspect
from pathlib import Path

import pytest

from kling_receiver.tasks import startup
from tests.support.receiver import ABSENT
from tools.crash import gate, random_kills, soak, strace, submitted
from tools.crash.checks import REPAIRED
from tools.crash.durability import trace_run
from tools.crash.everywhere import KINDS, run

pytestmark = pytest.mark.no_cover  # the receiver is another process, which is not measured

KIND_BY_NAME = {kind.name: kind for kind in KINDS}
SUBMITTED_KIND_BY_NAME = {kind.name: kind for kind in submitted.KINDS}


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
@pytest.mark.skipif(not gate.available(), reason=f"{ABSENT}seccomp's user notification")
def test_killed_at_a_call(kind: str, n: int) -> None:
    """After the restart every promise is kept: open work has its job at once, and is then done."""
    done = run(KIND_BY_NAME[kind], n)
    assert (done.killed, done.calls) == (True, n)
    assert done.problems == []


@pytest.mark.parametrize(
    ("kind", "n"),
    [
        ("submitted: commit (fdatasync)", 2),
        ("submitted: commit (fdatasync)", 4),
        ("submitted: commit (fdatasync)", 6),
        ("submitted: commit (fdatasync)", 8),
        ("submitted: send, or write to a file", 12),
        ("submitted: send, or write to a file", 24),
        ("submitted: write to the database", 25),
    ],
)
@pytest.mark.skipif(not gate.available(), reason=f"{ABSENT}seccomp's user notification")
def test_killed_while_it_sends_creates(kind: str, n: int) -> None:
    """No task is created twice, whatever was sent before the kill; each one is done after the restart."""
    done = submitted.run(SUBMITTED_KIND_BY_NAME[kind], n)
    assert (done.killed, done.calls) == (True, n)
    assert done.problems == []


def test_a_repair_at_start_is_recognized_in_the_log() -> None:
    """The checks find a repair by the words that the receiver logs."""
    assert inspect.getsource(startup.repair).count(REPAIRED) == 2


@pytest.mark.skipif(not strace.available(), reason=f"{ABSENT}strace")
def test_nothing_is_acknowledged_before_it_is_on_disk() -> None:
    """In a trace of all calls, each callback is synced before its 200, each file and folder before its event."""
    rows = trace_run()
    assert [(row.what, row.wrong) for row in rows] == [(row.what, []) for row in rows]
    assert [row.checked for row in rows] == [9, 4, 4]


def test_killed_at_random_moments(tmp_path: Path, database_url: str) -> None:
    """Killed again and again on the same data, on both databases: nothing is lost, no task is created twice."""
    reported: list[str] = []
    done = random_kills.run(tmp_path, database_url, kills=3, seed=4, report=reported.extend)
    assert done.problems == reported == []
    assert done.tasks


@pytest.mark.timeout(300)
def test_a_steady_load(tmp_path: Path) -> None:
    """Half a minute of `scripts/crash soak`: all was told to all, and the process can be measured."""
    samples: list[soak.Sample] = []
    done = soak.run(tmp_path, minutes=0.4, rate=2, seed=1, report=samples.append)
    assert done.problems == []
    assert done.samples == samples
    assert done.visits > 10
    assert all(each.rss_mb > 10 and each.descriptors > 5 and each.threads > 1 for each in samples)

"""The short form of `scripts/crash power`: cuts of one traced run, with and without a planted fault."""

from pathlib import Path

import pytest

from tests.support.receiver import ABSENT
from tools.crash import power, strace

CUTS, SEED = 150, 7

pytestmark = [
    pytest.mark.skipif(not strace.available(), reason=f"{ABSENT}strace"),
    pytest.mark.no_cover,  # the receiver is another process, which is not measured
]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace of one run, whose cuts lost nothing; a receiver was started after one of them."""
    file = tmp_path_factory.mktemp("power") / "trace"
    done = list(power.run(cuts=CUTS, starts=1, seed=SEED, keep=file))
    assert [problem for each in done for problem in each.problems] == []
    assert len(done) == CUTS
    assert sum(each.started for each in done) == 1
    for name in ("callbacks", "permissions", "events", "files"):
        assert sum(getattr(each, name) for each in done) > CUTS, name
    return file


@pytest.mark.timeout(600)
def test_a_seed_makes_the_same_cuts_again(trace: Path) -> None:
    """In a kept trace, so that a lost callback can be looked into."""
    first, second = (list(power.repeat(trace, cuts=20, seed=SEED)) for _ in range(2))
    assert first == second
    assert len({each.line for each in first}) > 10


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("plant", "promises"),
    [
        ("wal", {"1", "5", "6"}),
        ("database", {"1", "5"}),
        ("files", {"4"}),
        ("folders", {"1", "4", "5"}),
    ],
)
def test_a_sync_that_never_happened_is_found(trace: Path, plant: str, promises: set[str]) -> None:
    """By the promises that it breaks: the WAL holds callbacks and permissions, the files their bytes."""
    done = power.repeat(trace, cuts=CUTS, seed=SEED, plant=plant)
    assert {problem[0] for each in done for problem in each.problems} >= promises

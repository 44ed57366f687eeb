"""The benches start, with the processes that they name. How fast anything is, no test asks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bench.__main__ import main

pytestmark = pytest.mark.no_cover  # the receiver is another process, which is not measured

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (("hooks", "--rate=10", "--seconds=1", "--backlog=100", "--rounds=1"), ("drained",)),
        (
            ("pages", "--tasks=300", "--rounds=1", "--open-pages=3", "--pairs=1", "--requests=60"),
            ("tasks: family, rare", "overview, 24h, shown again", "3 open pages", "CPU of a callback", "PostgreSQL: "),
        ),
        (
            ("pages", "--tasks=300", "--rounds=1", "--reads"),
            ("family, rare, deep", "the slowest of ", "tasks by outcome, 24 hours", "A search of all prompts"),
        ),
        (
            ("door", "--creates=5", "--rate=50", "--seconds=1", "--held=10", "--queued=12", "--slots=3"),
            ("the receiver adds", "queries, ", "held answer", "idle time of a slot"),
        ),
    ],
)
def test_a_bench_runs_to_its_end(
    arguments: tuple[str, ...], rows: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """With little to do, each prints its rows."""
    main(arguments, standalone_mode=False)
    printed = capsys.readouterr().out
    assert [row for row in rows if row not in printed] == []


def test_the_command_runs_a_bench() -> None:
    """It starts processes of its own, without a fork server."""
    ran = subprocess.run(
        [sys.executable, "-m", "tools.bench", "callbacks", "--rounds=1", "--requests=60", "--connections=4"],
        env={**os.environ, "PYTHONPATH": str(SCRIPTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert [row for row in ("bare route", "SQLite", "PostgreSQL") if row not in ran.stdout] == []


def test_each_process_of_a_bench_is_there() -> None:
    """The benches name them by their modules."""
    bench = SCRIPTS / "tools" / "bench"
    named = {
        name for path in bench.rglob("*.py") for name in re.findall(r"tools\.bench\.processes\.(\w+)", path.read_text())
    }
    assert named
    assert named <= {path.stem for path in (bench / "processes").glob("*.py")}

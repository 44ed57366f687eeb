"""`scripts/crash`: where to kill, and how often."""

import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import click
from benches.servers import postgresql

from crashes import everywhere as everywhere_crash
from crashes import randomly, strace
from crashes.order import witnessed
from crashes.table import KILLED, TRACED, show

markdown_option = click.option("--markdown", is_flag=True, help="The table as Markdown.")


@click.group()
def main() -> None:
    """Kill the receiver with SIGKILL from outside, start it again, and check that it kept its promises.

    `lost` counts broken promises, each told on stderr. `worst s` is the longest from ready until all is done,
    what was left to submit and the deadline of a callback that a kill cut off (1 s) included; at random, where
    the next kill may come sooner, until all is seen to be scheduled.
    """


@main.command()
@click.option("--step", default=0, help="Every so many-th call only. Default: each (writes to files: some).")
@markdown_option
def everywhere(step: int, markdown: bool) -> None:
    """At its N-th sync, commit, rename, send and write, for every N that the scripted run has."""
    _need_strace()
    rows = []
    for kind in everywhere_crash.KINDS:
        done = []
        for each in everywhere_crash.runs(kind, step=step):
            done.append(each)
            _tell(f"{kind.name} {each.n}: {problem}" for problem in each.problems)
        killed = [each for each in done if each.killed]
        rows.append((kind.name, len(killed), sum(len(each.problems) for each in done), f"{_worst(done):.1f}"))
        places = Counter(each.place for each in killed)
        click.echo(f"{kind.name}: {', '.join(f'{n} x {place}' for place, n in places.items())}", err=True)
    _end(rows, markdown=markdown)


def _worst(done: list[everywhere_crash.Run]) -> float:
    return max(each.seconds for each in done)


@main.command()
@click.option("--kills", default=200, show_default=True)
@click.option("--seed", type=int, help="Repeats an earlier run's choices. Default: drawn, and told.")
@click.option("--database", type=click.Choice(["sqlite", "postgresql"]), default="sqlite", show_default=True)
@markdown_option
def random(kills: int, seed: int | None, database: str, markdown: bool) -> None:
    """At random moments under load."""
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kling-crash-")))
        url = stack.enter_context(postgresql()) if database == "postgresql" else ""
        done = randomly.run(folder, url, kills=kills, seed=seed, tell=_tell)
    name = f"random moments, {done.tasks} tasks, {database}, seed {seed}"
    _end([(name, kills, len(done.problems), f"{done.seconds:.1f}")], markdown=markdown)


@main.command()
@markdown_option
def trace(markdown: bool) -> None:
    """In a run that nobody kills: what was synced before each 200, and before each stored file was told of."""
    _need_strace()
    rows = witnessed()
    for row in rows:
        _tell(f"{row.what}: not so at {where}" for where in row.wrong)
    click.echo(show(TRACED, [(row.what, row.seen, len(row.wrong)) for row in rows], markdown=markdown))
    sys.exit(any(row.wrong for row in rows))


def _need_strace() -> None:
    if not strace.present():
        raise click.ClickException("strace is absent, or may not trace here (Debian: apt install strace).")


def _tell(problems: Iterable[str]) -> None:
    for problem in problems:
        click.echo(problem, err=True)


def _end(rows: Sequence[tuple[object, ...]], *, markdown: bool) -> None:
    click.echo(show(KILLED, rows, markdown=markdown))
    sys.exit(any(row[2] for row in rows))


main(prog_name="scripts/crash")

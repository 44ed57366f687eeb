"""`scripts/crash`: where to kill, and how often."""

import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import click

from tools.bench.servers import postgresql
from tools.crash import cuts, gate, link, randomly, strace
from tools.crash import everywhere as everywhere_crash
from tools.crash.order import witnessed
from tools.crash.table import CUT, EVERYWHERE, RANDOMLY, TRACED, show

markdown_option = click.option("--markdown", is_flag=True, help="The table as Markdown.")


@click.group()
def main() -> None:
    """Kill the receiver with SIGKILL from outside, start it again, and check that it kept its promises.

    `lost` counts broken promises, each told on stderr. `worst s` is the longest from ready until all is done,
    what was left to submit and the deadline of a callback that a kill cut off (1 s) included; at random, where
    the next kill may come sooner, until all is seen to be scheduled.
    """


@main.command()
@click.option("--step", default=1, show_default=True, help="Only every so many-th call.")
@markdown_option
def everywhere(step: int, markdown: bool) -> None:
    """At its N-th sync, commit, rename, send and write, for every N that the scripted run has."""
    if not gate.present():
        raise click.ClickException(
            "libseccomp is absent, or the kernel older than 5.9 (Debian: apt install libseccomp2)."
        )
    rows = []
    for kind in everywhere_crash.KINDS:
        done = []
        for each in everywhere_crash.runs(kind, step=step):
            done.append(each)
            _tell(f"{kind.name} {each.calls}: {problem}" for problem in each.problems)
        rows.append(_row(kind.name, done))
        places = Counter(each.place for each in done if each.killed)
        click.echo(f"{kind.name}: {', '.join(f'{n} x {place}' for place, n in places.items())}", err=True)
    _end(EVERYWHERE, rows, markdown=markdown)


def _row(name: str, done: list[everywhere_crash.Run]) -> tuple[object, ...]:
    """`kills` counts different calls: the one before which a run was killed, by its place in the run."""
    calls = max(each.calls for each in done if not each.killed)
    kills = {each.calls for each in done if each.killed}
    lost = sum(len(each.problems) for each in done)
    return name, calls, len(kills), lost, f"{max(each.seconds for each in done):.1f}"


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
    _end(RANDOMLY, [(name, kills, len(done.problems), f"{done.seconds:.1f}")], markdown=markdown)


@main.command()
@markdown_option
def trace(markdown: bool) -> None:
    """In a run that nobody kills: what was synced before each 200, and before each stored file was told of."""
    if not strace.present():
        raise click.ClickException("strace is absent, or may not trace here (Debian: apt install strace).")
    rows = witnessed()
    for row in rows:
        _tell(f"{row.what}: not so at {where}" for where in row.wrong)
    click.echo(show(TRACED, [(row.what, row.seen, len(row.wrong)) for row in rows], markdown=markdown))
    sys.exit(any(row.wrong for row in rows))


@main.command()
@markdown_option
def cut(markdown: bool) -> None:
    """In no way: its link to PostgreSQL is cut in silence. Until when does its hold keep others away?"""
    if not link.present():
        raise click.ClickException("Networks of our own need root, and `ip` (Debian: apt install iproute2).")
    rows = [(each.when, "never" if each.seconds is None else f"{each.seconds:.0f}") for each in cuts.measured()]
    click.echo(show(CUT, rows, markdown=markdown))
    sys.exit(any(row[1] == "never" for row in rows))


def _tell(problems: Iterable[str]) -> None:
    for problem in problems:
        click.echo(problem, err=True)


def _end(head: Sequence[str], rows: Sequence[tuple[object, ...]], *, markdown: bool) -> None:
    click.echo(show(head, rows, markdown=markdown))
    sys.exit(any(row[head.index("lost")] for row in rows))


main(prog_name="scripts/crash")

"""The command `scripts/crash`: where to kill the receiver, and how often."""

import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from tools.crash import clock as clock_jumps
from tools.crash import cuts, gate, link, random_kills, strace, submitted, surroundings
from tools.crash import everywhere as everywhere_crash
from tools.crash import power as power_cuts
from tools.crash import soak as soaking
from tools.crash.durability import trace_run
from tools.crash.table import CLOCK, CUT, EVERYWHERE, POWER, RANDOM, SOAK, SURROUNDINGS, TRACED, render
from tools.harness import hung
from tools.harness.postgresql import postgresql

seed_option = click.option(
    "--seed",
    default=lambda: secrets.randbelow(1 << 32),
    type=int,
    help="Repeat the choices of an earlier run. Default: random, and printed.",
)
database_option = click.option(
    "--database", type=click.Choice(["sqlite", "postgresql"]), default="sqlite", show_default=True
)
markdown_option = click.option("--markdown", is_flag=True, help="Print the table as Markdown.")


@click.group()
def main() -> None:
    """Kill the receiver with SIGKILL from outside, restart it, and check that it kept its promises.

    `lost` counts broken promises; each is printed to stderr. `worst s` is the longest time from ready until all
    work is done, including submissions that were left and the deadline (1 s) of a callback that a kill cut off.
    For random kills, where the next kill may come sooner, it is the time until all open work has a job.
    """


@main.command()
@click.option("--step", default=1, show_default=True, help="Kill at each STEP-th call only.")
@markdown_option
def everywhere(step: int, markdown: bool) -> None:
    """Kill at the N-th sync, commit, rename, send and write, for every N of the scenario."""
    if not gate.available():
        raise click.ClickException(
            "libseccomp is missing, or the kernel is older than 5.9. Install it (Debian: apt install libseccomp2)."
        )
    rows = []
    scenarios = ((everywhere_crash.run, everywhere_crash.KINDS), (submitted.run, submitted.KINDS))
    for run, kind in ((run, kind) for run, kinds in scenarios for kind in kinds):
        done = []
        for each in everywhere_crash.runs(run, kind, step=step):
            done.append(each)
            _print_problems(f"{kind.name} {each.calls}: {problem}" for problem in each.problems)
        rows.append(_row(kind.name, done))
        places = Counter(each.place for each in done if each.killed)
        click.echo(f"{kind.name}: {', '.join(f'{n} x {place}' for place, n in places.items())}", err=True)
    _print_and_exit(EVERYWHERE, rows, markdown=markdown)


def _row(name: str, done: list[everywhere_crash.Run]) -> tuple[object, ...]:
    """A row of the table. `kills` counts distinct calls, by their number in the run."""
    calls = max(each.calls for each in done if not each.killed)
    kills = {each.calls for each in done if each.killed}
    lost = sum(len(each.problems) for each in done)
    return name, calls, len(kills), lost, f"{max(each.seconds for each in done):.1f}"


@contextmanager
def _place(database: str) -> Iterator[tuple[Path, str]]:
    """A folder for a run, and the address of a new PostgreSQL server, or "" for SQLite."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kling-crash-")))
        yield folder, stack.enter_context(postgresql()) if database == "postgresql" else ""


@main.command()
@click.option("--kills", default=200, show_default=True)
@seed_option
@database_option
@markdown_option
def random(kills: int, seed: int, database: str, markdown: bool) -> None:
    """Kill at random moments under load."""
    click.echo(f"seed {seed}", err=True)
    with _place(database) as (folder, url):
        done = random_kills.run(folder, url, kills=kills, seed=seed, report=_print_problems)
    name = f"random moments, {done.tasks} tasks, {database}, seed {seed}"
    _print_and_exit(RANDOM, [(name, kills, len(done.problems), f"{done.seconds:.1f}")], markdown=markdown)


@main.command()
@click.option("--jumps", default=100, show_default=True)
@seed_option
@database_option
@markdown_option
def clock(jumps: int, seed: int, database: str, markdown: bool) -> None:
    """Set the receiver's clock forward and back under load, by up to three years, and stop its process for a while."""
    if not clock_jumps.library():
        raise click.ClickException("libfaketime is missing. Install it (Debian: apt install faketime).")
    click.echo(f"seed {seed}", err=True)
    with _place(database) as (folder, url):
        done = clock_jumps.run(folder, url, jumps=jumps, seed=seed, report=_print_problems)
    name = f"at random moments, {database}, seed {seed}"
    _print_and_exit(CLOCK, [(name, done.tasks, done.jumps, done.stops, len(done.problems))], markdown=markdown)


@main.command()
@markdown_option
def trace(markdown: bool) -> None:
    """Trace a run without a kill: was all data synced before each 200 and each `result.stored`?"""
    _require_strace()
    rows = trace_run()
    for row in rows:
        _print_problems(f"{row.what}: not so at {where}" for where in row.wrong)
    click.echo(render(TRACED, [(row.what, row.checked, len(row.wrong)) for row in rows], markdown=markdown))
    sys.exit(any(row.wrong for row in rows))


@main.command()
@click.option("--cuts", default=1000, show_default=True)
@click.option(
    "--starts", default=10, show_default=True, help="After so many cuts a receiver is started on what is left."
)
@seed_option
@click.option(
    "--plant", type=click.Choice(list(power_cuts.PLANTS)), help="As if these were never synced: must be found."
)
@click.option("--keep", type=click.Path(path_type=Path), help="Write the trace of the run to this file.")
@click.option("--trace", type=click.Path(path_type=Path, exists=True), help="Make the cuts in a file of --keep.")
@markdown_option
def power(
    cuts: int, starts: int, seed: int, plant: str | None, keep: Path | None, trace: Path | None, markdown: bool
) -> None:
    """Cut the power: replay the traced writes of a run up to random moments, in a model of the page cache."""
    _require_strace()
    click.echo(f"seed {seed}", err=True)
    done = []
    for each in (
        power_cuts.repeat(trace, cuts=cuts, seed=seed, plant=plant or "")
        if trace
        else power_cuts.run(cuts=cuts, starts=starts, seed=seed, plant=plant or "", keep=keep)
    ):
        done.append(each)
        _print_problems(f"cut {each.seed} before line {each.line}: {problem}" for problem in each.problems)
    told = (sum(getattr(each, name) for each in done) for name in ("callbacks", "permissions", "events", "files"))
    lost = sum(bool(each.problems) for each in done)
    name = f"seed {seed}" + f", {plant} not synced" * bool(plant)
    row = (name, len(done), sum(each.started for each in done), *told, lost)
    _print_and_exit(POWER, [row], markdown=markdown)


@main.command()
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--rate", default=2.0, show_default=True, help="Tasks submitted a second.")
@click.option("--seed", default=0, show_default=True)
@markdown_option
def soak(minutes: float, rate: float, seed: int, markdown: bool) -> None:
    """Load a receiver steadily, without a kill: does it grow, and does it keep its promises?"""

    def report(sample: soaking.Sample) -> None:
        click.echo(
            f"{sample.seconds:6.0f} s {sample.rss_mb:6.1f} MB, {sample.descriptors} descriptors, "
            f"{sample.threads} threads, WAL {sample.wal_mb:.1f} MB, {sample.tasks} tasks",
            err=True,
        )

    with tempfile.TemporaryDirectory(prefix="kling-soak-") as name:
        done = soaking.run(Path(name), minutes=minutes, rate=rate, seed=seed, report=report)
    _print_problems(done.problems)
    last = done.samples[-1]
    first = next(each for each in done.samples if each.seconds >= soaking.WARM_UP * last.seconds)
    changes = (
        f"{getattr(first, name):.0f} → {getattr(last, name):.0f}" for name in ("rss_mb", "descriptors", "threads")
    )
    rss, descriptors, threads = changes
    wal = f"{max(each.wal_mb for each in done.samples):.1f}"
    slope = f"{done.mb_per_hour:+.1f}"
    row = (f"{minutes:g}", last.tasks, done.visits, rss, slope, descriptors, threads, wal, len(done.problems))
    _print_and_exit(SOAK, [row], markdown=markdown)


def _require_strace() -> None:
    if not strace.available():
        raise click.ClickException("strace is missing, or may not trace here. Install it (Debian: apt install strace).")


@main.command()
@markdown_option
def cut(markdown: bool) -> None:
    """Cut the link to PostgreSQL silently: how long does the lock of the receiver keep another one out?"""
    if not link.available():
        raise click.ClickException(
            "Network namespaces need root and `ip`. Run as root, install it (Debian: apt install iproute2)."
        )
    rows = [(each.when, "never" if each.seconds is None else f"{each.seconds:.0f}") for each in cuts.measure()]
    click.echo(render(CUT, rows, markdown=markdown))
    sys.exit(any(row[1] == "never" for row in rows))


@main.command("surroundings")
@click.option("--engines", is_flag=True, help="Also download old engines (100 MB) and build them. Needs `cc`.")
@click.option("--name", default="", help="Only surroundings with this text in their name.")
@markdown_option
def run_surroundings(engines: bool, name: str, markdown: bool) -> None:
    """Run a receiver with other engines, encodings, poolers and rights: it works, is refused, or is not ready."""
    chosen = [each for each in surroundings.SURROUNDINGS if name in each.name and (engines or not each.downloads)]
    if not hung.available():
        raise click.ClickException("A file system that hangs needs root and /dev/fuse. Run as root.")
    rows = []
    for each in chosen:
        click.echo(each.name, err=True)
        problems = surroundings.check(each)
        _print_problems(f"{each.name}: {problem}" for problem in problems)
        rows.append((each.name, each.must, each.reason, len(problems)))
    click.echo(render(SURROUNDINGS, rows, markdown=markdown))
    sys.exit(any(row[-1] for row in rows))


def _print_problems(problems: Iterable[str]) -> None:
    for problem in problems:
        click.echo(problem, err=True)


def _print_and_exit(head: Sequence[str], rows: Sequence[tuple[object, ...]], *, markdown: bool) -> None:
    click.echo(render(head, rows, markdown=markdown))
    sys.exit(any(row[head.index("lost")] for row in rows))


main(prog_name="scripts/crash")

"""The command: fill a database of each engine, measure, and print one table."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing

from tools.bench.pages.reads import Times, filled_database, measure_reads
from tools.bench.pages.served import Browser, measure_pages, prepare, settle
from tools.bench.pages.watched import Watched, measure_watched
from tools.harness import servers

ENGINES = ("SQLite", "PostgreSQL")
NAME_CHARS = 50


def run(tasks: int, rounds: int, open_pages: int, pairs: int, requests: int, engines: Sequence[str]) -> None:
    """Measure the pages of a receiver with so many tasks, and print a table of all engines."""
    times: dict[str, dict[str, Times]] = {}
    watched: dict[str, Watched] = {}
    for engine in engines:
        with filled_database(engine, tasks) as database:
            prepare(database)
            with servers.receiver(database.url.render_as_string(hide_password=False)) as url:
                settle(database)
                with closing(Browser(url)) as browser:
                    times[engine] = measure_pages(browser, database, rounds)
                    watched[engine] = measure_watched(browser, open_pages, pairs, requests)
                times[engine][f"{open_pages} open pages: to all, a callback now and then"] = watched[engine].rare
                times[engine][f"{open_pages} open pages: to all, 20 callbacks/s"] = watched[engine].frequent
    _print_times(times)
    _print_watched(watched, open_pages)


def run_reads(tasks: int, rounds: int, engines: Sequence[str]) -> None:
    """Print how long each read of the pages takes, without a receiver."""
    for engine in engines:
        with filled_database(engine, tasks) as database:
            asyncio.run(measure_reads(database, rounds))


def _print_times(times: dict[str, dict[str, Times]]) -> None:
    heads = "".join(f"{engine:>20}" for engine in times)
    print(f"\n{'milliseconds':{NAME_CHARS}}{heads}")
    print(" " * NAME_CHARS + f"{'median':>12}{'p99':>8}" * len(times))
    for name in next(iter(times.values())):
        cells = "".join(f"{each[name].median:12.1f}{each[name].p99:8.1f}" for each in times.values())
        print(f"{name:{NAME_CHARS}}{cells}")


def _print_watched(watched: dict[str, Watched], open_pages: int) -> None:
    heads = f"{'without':>12}{'with':>8}" * len(watched)
    print(f"\n{f'without and with {open_pages} open pages':{NAME_CHARS}}{heads}")
    rows: dict[str, Callable[[Watched, int], str]] = {
        "callbacks accepted a second": lambda each, side: f"{each.median_of(side).rate:.0f}",
        "CPU of a callback, ms": lambda each, side: f"{each.median_of(side).cpu_ms:.3f}",
        "memory, MB": lambda each, side: f"{each.memory[side]}",
    }
    for name, cell in rows.items():
        cells = "".join(f"{cell(each, 0):>12}{cell(each, 1):>8}" for each in watched.values())
        print(f"{name:{NAME_CHARS}}{cells}")
    for engine, each in watched.items():
        print(
            f"{engine}: callbacks a second {each.rate_ratio:.2f}, CPU of a callback {each.cpu_ratio:.2f} of that "
            f"without (medians of {len(each.rounds)} pairs); the pages were sent {each.megabytes_per_second:.1f} MB/s"
        )

"""The command `scripts/bench`: what to measure, and for how long."""

import click

from tools.bench import abuse as abuse_bench
from tools.bench import callbacks as callback_bench
from tools.bench import door as door_bench
from tools.bench import gate as gate_bench
from tools.bench import hooks as hooks_bench
from tools.bench import idle as idle_bench
from tools.bench import starting as starting_bench
from tools.bench import waiting as waiting_bench
from tools.bench.pages import report as pages_bench


@click.group()
def main() -> None:
    """Measure on this machine. Quote ratios and medians: absolute figures depend on the machine."""


@main.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--requests", default=8000, show_default=True, help="Callbacks a round, each of a new task.")
@click.option("--connections", default=128, show_default=True)
@click.option("--library", is_flag=True, help="Send the load by an HTTP library instead of bare sockets.")
def callbacks(rounds: int, requests: int, connections: int, library: bool) -> None:
    """Callbacks accepted a second, durable before the 200, as a ratio to a bare route; both databases."""
    callback_bench.run(rounds, requests, connections, "load_library" if library else "load_sockets")


@main.command()
@click.option("--tasks", default=40, show_default=True)
def waiting(tasks: int) -> None:
    """Seconds from "Kling finished" to "file saved", and requests per task: with callbacks, and with polling."""
    waiting_bench.run(tasks)


@main.command()
@click.option("--tasks", default=100_000, show_default=True, help="Open tasks; the deadline of half has passed.")
@click.option("--seconds", default=10.0, show_default=True, help="Duration of the measurement.")
def starting(tasks: int, seconds: float) -> None:
    """A start with many open tasks: until ready, queries a second, callbacks meanwhile; both databases."""
    starting_bench.run(tasks, seconds)


@main.command()
@click.option("--connections", default=5000, show_default=True)
def abuse(connections: int) -> None:
    """The receiver's memory before and after floods, and the duration of callbacks meanwhile."""
    abuse_bench.run(connections)


@main.command()
@click.option("--seconds", default=10.0, show_default=True)
def idle(seconds: float) -> None:
    """An idle receiver with open tasks: CPU, wakeups, queries to Kling."""
    idle_bench.run(seconds)


@main.command()
@click.option("--rate", default=50.0, show_default=True, help="Finished tasks a second.")
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--backlog", default=20_000, show_default=True, help="Events that wait for the hook.")
@click.option("--rounds", default=3, show_default=True, help="How often the backlog is drained.")
def hooks(rate: float, seconds: float, backlog: int, rounds: int) -> None:
    """Delivery of events to a hook: latency, its cost for callbacks, and the rate at which a backlog drains."""
    hooks_bench.run(rate, seconds, backlog, rounds)


@main.command()
@click.option("--pairs", default=10, show_default=True)
@click.option("--rate", default=25.0, show_default=True, help="Finished tasks a second.")
@click.option("--seconds", default=12.0, show_default=True, help="Duration of one run.")
def gate(pairs: int, rate: float, seconds: float) -> None:
    """Callback latency under hook traffic with and without the foreground gate, in alternating runs."""
    gate_bench.run(pairs, rate, seconds)


@main.command()
@click.option("--creates", default=500, show_default=True)
@click.option("--rate", default=1000.0, show_default=True, help="Queries a second.")
@click.option("--seconds", default=10.0, show_default=True, help="Duration of the queries.")
@click.option("--held", default=1000, show_default=True, help="Held queries.")
@click.option("--queued", default=1000, show_default=True, help="Tasks in the queue.")
@click.option("--slots", default=20, show_default=True)
@click.option("--task-seconds", default=1.0, show_default=True, help="Mean duration of a queued task.")
def door(creates: int, rate: float, seconds: float, held: int, queued: int, slots: int, task_seconds: float) -> None:
    """Kling's own API at the receiver: added latency of a create, queries, held queries, idle time of slots."""
    door_bench.run(creates, rate, seconds, held, queued, slots, task_seconds)


@main.command()
@click.option("--tasks", default=1_000_000, show_default=True)
@click.option("--rounds", default=50, show_default=True, help="How often each page is opened.")
@click.option("--open-pages", default=200, show_default=True, help="Pages that are open at once.")
@click.option("--pairs", default=7, show_default=True, help="Runs of callbacks without and with the open pages.")
@click.option("--requests", default=8000, show_default=True, help="Callbacks of each run.")
@click.option("--engine", type=click.Choice(pages_bench.ENGINES), help="Only this one.")
@click.option("--reads", is_flag=True, help="Instead: what the pages read, also pairs of filters, without a receiver.")
def pages(
    tasks: int, rounds: int, open_pages: int, pairs: int, requests: int, engine: str | None, *, reads: bool
) -> None:
    """The pages of a receiver with many tasks: each page, many open ones, callbacks meanwhile; both databases."""
    engines = [engine] if engine else list(pages_bench.ENGINES)
    if reads:
        pages_bench.run_reads(tasks, rounds, engines)
    else:
        pages_bench.run(tasks, rounds, open_pages, pairs, requests, engines)


if __name__ == "__main__":
    main(prog_name="scripts/bench")

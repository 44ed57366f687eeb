"""An idle receiver with some open tasks: CPU seconds, wakeups and queries to Kling."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx

from tools.bench.starting import fill
from tools.harness import servers

OPEN_TASKS = 50
SWEEP_SECONDS = 8
"""Seconds until the queries after a start, ten a second, are done; the measurement begins then."""


def run(seconds: float) -> None:
    """Measure for so long. Half of the open tasks are overdue at the start; the other deadlines are far away."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        fill(f"sqlite:///{folder}/kling.db", OPEN_TASKS)
        sandbox = stack.enter_context(servers.sandbox())
        url = stack.enter_context(servers.receiver(api_base=sandbox, folder=folder))
        time.sleep(SWEEP_SECONDS)
        pid = servers.pids[url]
        queries, cpu, wakeups = _queries(sandbox), servers.cpu_seconds(pid), _wakeups(pid)
        time.sleep(seconds)
        print(
            f"in {seconds:g} s: {servers.cpu_seconds(pid) - cpu:.2f} s of CPU, {_wakeups(pid) - wakeups} wakeups, "
            f"{_queries(sandbox) - queries} queries ({queries} after the start)"
        )


def _wakeups(pid: int) -> int:
    """How often the threads of a process have gone to sleep."""
    lines = [line for each in Path(f"/proc/{pid}").glob("task/*/status") for line in each.read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def _queries(sandbox: str) -> int:
    queries: int = httpx.get(f"{sandbox}/sandbox/account").json()["totals"]["queries"]
    return queries

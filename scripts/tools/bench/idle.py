"""A receiver with nothing to do: CPU seconds, times awake and questions to Kling, while some tasks are open."""

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx

from tools.bench import servers
from tools.bench.starting import fill
from tools.harness.loopback import free_port

OPEN = 50
SWEEP_SECONDS = 8
"""For the questions after the start, ten a second; the watch begins then."""


def run(seconds: float) -> None:
    """Half of the open tasks are overdue at the start, and asked about then; the others' deadlines are far."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        fill(f"sqlite:///{folder}/kling.db", OPEN)
        port = free_port()
        command = [sys.executable, "-m", "gateway", "--port", str(port)]
        gateway = stack.enter_context(servers.process(command, f"http://127.0.0.1:{port}"))
        stack.enter_context(servers.receiver(api_base=gateway, folder=folder))
        time.sleep(SWEEP_SECONDS)
        proc = _proc("kling-receiver")
        asked, cpu, awake = _asked(gateway), _cpu(proc), _awake(proc)
        time.sleep(seconds)
        print(
            f"in {seconds:g} s: {_cpu(proc) - cpu:.2f} s of CPU, {_awake(proc) - awake} times awake, "
            f"{_asked(gateway) - asked} questions ({asked} after the start)"
        )


def _proc(command: str) -> Path:
    """What the kernel says of our child that runs this command."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return next(Path("/proc", child) for child in children if command in Path("/proc", child, "cmdline").read_text())


def _cpu(proc: Path) -> float:
    """Seconds, of all its threads."""
    user, system = proc.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _awake(proc: Path) -> int:
    """How often any of its threads went to sleep again."""
    lines = [line for each in proc.glob("task/*/status") for line in each.read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def _asked(gateway: str) -> int:
    asked: int = httpx.get(f"{gateway}/sandbox/account").json()["totals"]["queries"]
    return asked

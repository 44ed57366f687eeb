"""Repeat one scenario, killing the receiver at another of its calls each time, and restart it."""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path

import httpx

from tools.crash.checks import broken_promises, may_be_created_twice, unscheduled
from tools.crash.completion import Unfinished, wait_until_done
from tools.crash.gate import Gate
from tools.crash.scenario import Stage, stage, three_jobs
from tools.harness.process import Ended

EXIT_SECONDS = 60
"""Seconds until a receiver has exited: a busy disk delays even a killed process."""
DONE_SECONDS = 60
"""Seconds until all work must be done; the real duration is measured."""
PARALLEL_RUNS = os.cpu_count() or 1
"""Runs at a time, each with a sandbox, a hook, a receiver and data of its own."""


@dataclass(frozen=True)
class Kind:
    """A kind of system call. `first_start`: count those of the very first start, else those of the scenario."""

    name: str
    calls: str
    first_start: bool = False


KINDS = (
    Kind("first start: sync", "fsync,fdatasync", first_start=True),
    Kind("first start: write", "write,pwrite64", first_start=True),
    Kind("commit (fdatasync)", "fdatasync"),
    Kind("fsync of file or folder", "fsync"),
    Kind("rename", "rename,renameat,renameat2"),
    Kind("send, or write to a file", "write,writev,sendto,sendmsg"),
    Kind("write to the database", "pwrite64"),
)


@dataclass(frozen=True)
class Run:
    """One run. `calls`: its calls, up to the kill or its end; `place`: the call before which it was killed.

    `seconds`: from ready after the restart until all work was done, submissions that were left included.
    """

    calls: int
    killed: bool
    place: str
    seconds: float
    problems: list[str]


def run(kind: Kind, n: int) -> Run:
    """Run the scenario, kill the receiver as any thread enters its n-th call of a kind, restart and check."""
    with tempfile.TemporaryDirectory(prefix="kling-crash-") as name, stage(Path(name)) as scene:
        scene.jobs = three_jobs()
        gate = Gate(kind.calls)
        killed = _run_until_killed(scene, kind, gate, n)
        assert killed == gate.killed
        seconds, problems = restart_and_check(scene)
        return Run(gate.count, killed, gate.place, seconds, problems)


def runs(run_once: Callable[[Kind, int], Run], kind: Kind, *, step: int = 1) -> Iterator[Run]:
    """One run for every call of a kind (or each `step`-th), until a run ends without that many calls."""
    numbers = count(1, step)
    with ThreadPoolExecutor(PARALLEL_RUNS) as pool:
        while True:
            done = list(pool.map(partial(run_once, kind), islice(numbers, PARALLEL_RUNS)))
            yield from done
            if not all(each.killed for each in done):
                return


def _run_until_killed(scene: Stage, kind: Kind, gate: Gate, n: int) -> bool:
    """Run up to the kill, or to an orderly end. Returns whether the receiver was killed."""
    receiver = scene.receiver
    try:
        if kind.first_start:
            gate.begin(n)
        gate.launch(partial(receiver.launch, fork=False))
        receiver.await_ready()
        if not kind.first_start:
            gate.begin(n)
            submit_all(scene)
            wait_until_done(scene, DONE_SECONDS)
        receiver.signal(signal.SIGTERM)
        return receiver.wait(EXIT_SECONDS)[0] == -signal.SIGKILL
    except (Ended, Unfinished, httpx.TransportError):
        return receiver.wait(EXIT_SECONDS)[0] == -signal.SIGKILL


def submit_all(scene: Stage) -> None:
    """Do the remaining steps of every job. Raises httpx.TransportError when the receiver is down."""
    for job in scene.jobs:
        scene.resume(job)


def restart_and_check(scene: Stage) -> tuple[float, list[str]]:
    """Restart the receiver, finish the run. Returns the seconds from ready to done, and broken promises."""
    scene.receiver.start()
    started = time.monotonic()
    problems = unscheduled(scene)
    submit_all(scene)
    try:
        wait_until_done(scene, DONE_SECONDS)
    except Unfinished as error:
        problems.append(f"7: {error}")
    seconds = time.monotonic() - started
    return seconds, problems + may_be_created_twice(scene) + broken_promises(scene)

"""One scripted run, repeated: each time the receiver is killed at another of its calls, and started again."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path

import httpx

from tools.crash.checks import broken, may_pay_twice, unscheduled
from tools.crash.gate import Gate
from tools.crash.script import Stage, stage, three
from tools.crash.waiting import Unfinished, all_done
from tools.harness.process import Ended

LONGEST_END = 60
"""Seconds that a receiver may take to end: a disk that is busy keeps even a killed one."""
PATIENCE = 60
"""Seconds for all to be done; how long it really took is measured."""
AT_ONCE = os.cpu_count() or 1
"""Runs side by side, each with a gateway, a hook, a receiver and data of its own."""


@dataclass(frozen=True)
class Kind:
    """A kind of call. `fresh`: those of the very first start, else those of the run itself."""

    name: str
    calls: str
    fresh: bool = False


KINDS = (
    Kind("first start: sync", "fsync,fdatasync", fresh=True),
    Kind("first start: write", "write,pwrite64", fresh=True),
    Kind("commit (fdatasync)", "fdatasync"),
    Kind("fsync of file or folder", "fsync"),
    Kind("rename", "rename,renameat,renameat2"),
    Kind("send, or write to a file", "write,writev,sendto,sendmsg"),
    Kind("write to the database", "pwrite64"),
)


@dataclass(frozen=True)
class Run:
    """One run. `calls`: how many it had, to the kill or to its end; `place`: the call that was never made.

    `seconds`: from ready after the restart until all is done, what was left to submit included.
    """

    calls: int
    killed: bool
    place: str
    seconds: float
    problems: list[str]


def run(kind: Kind, n: int) -> Run:
    """The scripted run, killed as it enters its n-th call of a kind, in whichever thread, and gone on with."""
    with tempfile.TemporaryDirectory(prefix="kling-crash-") as name, stage(Path(name)) as scene:
        scene.jobs = three()
        gate = Gate(kind.calls)
        killed = _first(scene, kind, gate, n)
        assert killed == gate.killed
        seconds, problems = restarted(scene)
        return Run(gate.count, killed, gate.place, seconds, problems)


def runs(kind: Kind, *, step: int = 1) -> Iterator[Run]:
    """Killed at every call of a kind (or each `step`-th), until a run has no such call left."""
    numbers = count(1, step)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while True:
            done = list(pool.map(partial(run, kind), islice(numbers, AT_ONCE)))
            yield from done
            if not all(each.killed for each in done):
                return


def _first(scene: Stage, kind: Kind, gate: Gate, n: int) -> bool:
    """Up to the kill, or to an orderly end; whether it was killed."""
    receiver = scene.receiver
    try:
        if kind.fresh:
            gate.begin(n)
        gate.launch(receiver.launch)
        receiver.await_ready()
        if not kind.fresh:
            gate.begin(n)
            submitted(scene)
            all_done(scene, PATIENCE)
        receiver.signal(signal.SIGTERM)
        return receiver.wait(LONGEST_END)[0] == -signal.SIGKILL
    except (Ended, Unfinished, httpx.TransportError):
        return receiver.wait(LONGEST_END)[0] == -signal.SIGKILL


def submitted(scene: Stage) -> None:
    """Do what is left of every job. Raises httpx.TransportError when the receiver dies."""
    for job in scene.jobs:
        scene.go_on(job)


def restarted(scene: Stage) -> tuple[float, list[str]]:
    """Start again, and see that nothing was lost: seconds from ready until all is done, broken promises."""
    scene.receiver.start()
    began = time.monotonic()
    problems = unscheduled(scene)
    submitted(scene)
    try:
        all_done(scene, PATIENCE)
    except Unfinished as error:
        problems.append(f"7: {error}")
    seconds = time.monotonic() - began
    return seconds, problems + may_pay_twice(scene) + broken(scene)

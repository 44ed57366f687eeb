"""One scripted run, repeated: each time the receiver is killed at another of its calls, and started again."""

import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import httpx

from crashes import strace
from crashes.checks import broken, may_pay_twice, unscheduled
from crashes.script import Stage, stage, three
from crashes.waiting import Unfinished, all_done
from tests.processes import Ended

PATIENCE = 60
"""Seconds for all to be done; how long it really took is measured."""


@dataclass(frozen=True)
class Kind:
    """A kind of call. `fresh`: those of the very first start, else those of the run itself."""

    name: str
    calls: str
    fresh: bool = False
    step: int = 1


KINDS = (
    Kind("first start: sync", "fsync,fdatasync", fresh=True),
    Kind("first start: write", "write,pwrite64", fresh=True, step=4),
    Kind("commit (fdatasync)", "fdatasync"),
    Kind("fsync of file or folder", "fsync"),
    Kind("rename", "rename,renameat,renameat2"),
    Kind("send, or write to a file", "write,writev,sendto,sendmsg"),
    Kind("write to the database", "pwrite64", step=8),
)


@dataclass(frozen=True)
class Run:
    """One run. `seconds`: from ready after the restart until all is done, what was left to submit included."""

    n: int
    killed: bool
    place: str
    seconds: float
    problems: list[str]


def run(kind: Kind, n: int) -> Run:
    """The scripted run, killed at the n-th call of a kind (by each thread's own count), and gone on with."""
    with tempfile.TemporaryDirectory(prefix="kling-crash-") as name, stage(Path(name)) as scene:
        scene.jobs = three()
        trace = Path(name, "trace")
        killed = _first(scene, kind, strace.command(trace, kind.calls, *strace.kill_at(kind.calls, n)))
        seconds, problems = restarted(scene)
        return Run(n, killed, strace.landed(trace) if killed else "", seconds, problems)


def runs(kind: Kind, *, step: int = 0) -> Iterator[Run]:
    """Killed at every call of a kind (or each `step`-th), until a run has no such call left."""
    for n in count(1, step or kind.step):
        done = run(kind, n)
        yield done
        if not done.killed:
            return


def _first(scene: Stage, kind: Kind, tracing: list[str]) -> bool:
    """Up to the kill, or to an orderly end; whether it was killed."""
    receiver = scene.receiver
    try:
        # As a grandchild, strace leaves us the receiver itself as our child.
        receiver.start(*([*tracing, "-D"] if kind.fresh else []))
        with nullcontext() if kind.fresh else strace.attached(receiver, tracing):
            if not kind.fresh:
                submitted(scene)
                all_done(scene, PATIENCE)
            receiver.signal(signal.SIGTERM)
            return receiver.wait()[0] == -signal.SIGKILL
    except (Ended, Unfinished, httpx.TransportError):
        return receiver.wait()[0] == -signal.SIGKILL


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

"""End every process that a command has started, also those that left its process group or outlived their parent.

On Linux they are found in /proc: as descendants of the command, and by a variable that all of them inherit. One that
both outlives its parent and clears its environment is not found. Elsewhere only the command's process group is known.
"""

import os
import secrets
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

VARIABLE = "KLING_RUN_ID"
"""The variable that marks the processes of one run of a command."""

PROC = Path("/proc")
MAX_ROUNDS = 20
"""Searches, each of which kills what the one before did not see yet: a process may start another one meanwhile."""


class Process(NamedTuple):
    """A process of a run."""

    pid: int
    parent: int
    started: str
    """Together with the pid, the identity of a process: pids are used again."""


def new_run_id() -> str:
    """The value of VARIABLE for a new run."""
    return secrets.token_hex(16)


def kill_run(run_id: str, root: int | None, known: Sequence[Process] = ()) -> None:
    """Kill every process of a run. `root`: the pid of its first one, unless that has ended. Blocks for milliseconds.

    `known`: what `signal_run` has found before. They are killed also if they are no longer descendants of `root`.
    """
    for process in known:
        _send(process, signal.SIGKILL)
    found = signal_run(run_id, root, signal.SIGKILL)
    for _ in range(MAX_ROUNDS):
        if not found:
            return
        found = signal_run(run_id, None, signal.SIGKILL)  # `root` may have been reaped, and its pid given away


def signal_run(run_id: str, root: int | None, number: signal.Signals) -> list[Process]:
    """Send a signal to every process of a run, `root` last. Returns those that were found, apart from `root`."""
    found = _find(run_id, root)
    for process in found:
        _send(process, number)
    if root is not None:
        with suppress(ProcessLookupError):
            os.kill(root, number)
    return found


def _find(run_id: str, root: int | None) -> list[Process]:
    """The processes of a run that are alive, apart from `root`."""
    processes = [process for entry in _pids() if (process := _read(entry))]
    family = {root} if root is not None else set[int]()
    while grown := {each.pid for each in processes if each.parent in family} - family:
        family |= grown
    family |= {each.pid for each in processes if _is_marked(each.pid, run_id)}
    return [each for each in processes if each.pid in family and each.pid not in (root, os.getpid())]


def _pids() -> list[int]:
    try:
        return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdecimal()]
    except OSError:  # not Linux
        return []


def _read(pid: int) -> Process | None:
    """A process that is alive; None for a zombie."""
    try:
        fields = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    state, parent, started = fields[0], fields[1], fields[19]
    return None if state in (b"Z", b"X") else Process(pid, int(parent), started.decode())


def _is_marked(pid: int, run_id: str) -> bool:
    try:
        return f"{VARIABLE}={run_id}".encode() in (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # another user's, or gone
        return False


def _send(process: Process, number: signal.Signals) -> None:
    with suppress(OSError):
        handle = os.pidfd_open(process.pid)
        try:
            same = _read(process.pid)  # it was before the handle was opened; since then its pid stays its own
            if same and same.started == process.started:
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)

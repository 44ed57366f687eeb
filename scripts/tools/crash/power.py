"""Cut the power: replay the traced writes of a real receiver up to a random moment, and start it on what is left.

One run is traced, with a kill in its middle; then any number of cuts is made in a model of the disk (`disk.py`).
"""

import hashlib
import os
import random
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import httpx

from tools.crash import strace
from tools.crash.checks import may_be_created_twice
from tools.crash.completion import Unfinished, wait_until_done
from tools.crash.disk import KNOWN, SHARED_MEMORY, UNKNOWN, Disk, Image, Sync
from tools.crash.exchanges import SOCKETS, Told, told
from tools.crash.history import Event, History, contradictions, omissions
from tools.crash.hook import Hook
from tools.crash.scenario import Job, Stage, stage, three_jobs
from tools.harness.process import Ended, Process
from tools.harness.submitting import register

DATA = "data"
TRACED_JOBS = 4 * 3
"""Enough commits that SQLite copies its WAL into the database more than once."""
CLIENTS = 4
DONE_SECONDS = 60
WHOLE = "16000000"
"""Bytes of an argument that strace prints: all that a call may write."""
PLANTS: dict[str, Callable[[Sync], bool]] = {
    "wal": lambda sync: sync.call.file.endswith("-wal"),
    "database": lambda sync: sync.call.file.endswith(".db"),
    "files": lambda sync: "/.parts/" in sync.call.file,
    "folders": lambda sync: sync.node.is_folder,
}
"""Faults: the syncs that never happened. `wal` is `synchronous = NORMAL`."""


@dataclass
class Run:
    """A traced run. `moments`: the lines of the trace at which a change, a sync or an answer began or ended.

    `scene`: the sandbox and the jobs of the run; None for a trace from a file, after which no receiver can be started.
    """

    scene: Stage | None
    disk: Disk
    told: Told
    moments: list[int]


STOPPED_LOOKS, STOPPED_SECONDS = 20, 0.01
"""How often a process is seen stopped before it is taken for stopped, and the seconds between two looks."""


@dataclass(frozen=True)
class Cut:
    """One cut. `line`: of the trace; `started`: whether a receiver was started on what it left."""

    seed: int
    line: int
    started: bool
    callbacks: int
    permissions: int
    events: int
    files: int
    problems: list[str]


def run(*, cuts: int, starts: int, seed: int, plant: str = "", keep: Path | None = None) -> Iterator[Cut]:
    """Trace one run, then make this many cuts; the receiver is started after `starts` of them.

    `keep`: a file for the trace; the same seed makes the same cuts in it again.
    """
    with tempfile.TemporaryDirectory(prefix="kling-power-") as name, stage(Path(name, "traced")) as scene:
        text = _trace(scene, Path(name), random.Random(seed))
        if keep:
            keep.write_text(text)
        traced = replace(_parse(text), scene=scene)
        _check_model(traced.disk, scene.data.parent)
        yield from _cuts(traced, cuts, starts, seed, plant)


def repeat(trace: Path, *, cuts: int, seed: int, plant: str = "") -> Iterator[Cut]:
    """Make the cuts of an earlier run again, in its trace."""
    yield from _cuts(_parse(trace.read_text()), cuts, 0, seed, plant)


def _cuts(traced: Run, cuts: int, starts: int, seed: int, plant: str) -> Iterator[Cut]:
    ignore = PLANTS[plant] if plant else lambda sync: False
    for number in range(cuts):
        start = number * starts // cuts != (number + 1) * starts // cuts
        yield _cut(traced, seed * 1_000_000 + number, ignore, start=start)


def _trace(scene: Stage, folder: Path, draw: random.Random) -> str:
    """Run the scenario under strace: kill the receiver under load, start it again, end it in order.

    Returns the folder of the run, then the trace.
    """
    root = scene.data.parent
    root.mkdir()
    calls = f"{SOCKETS},{','.join({*KNOWN, *UNKNOWN} - set(SOCKETS.split(',')))}"
    scene.jobs = [job for _ in range(TRACED_JOBS // 3) for job in three_jobs()]
    kill_at = draw.randrange(TRACED_JOBS // 3, TRACED_JOBS)
    text = f"{root}\n"
    for part, jobs in enumerate((scene.jobs[:kill_at], scene.jobs)):
        trace = folder / f"trace-{part}"
        scene.receiver.start(*strace.command(trace, calls, "-s", WHOLE))
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(scene.resume, jobs))
        if part:
            wait_until_done(scene, DONE_SECONDS)
        _signal_traced(scene.receiver, signal.SIGTERM if part else signal.SIGKILL)
        text += trace.read_text(errors="replace") + "\n"
    return text


def _parse(text: str) -> Run:
    traced = strace.parse_calls(text)
    disk, heard = Disk(Path(text.partition("\n")[0])), told(traced)
    disk.replay(traced)
    written = [each.call for each in disk.changes] + [each.call for each in disk.syncs]
    moments = {line for call in written for line in (call.started, call.ended)}
    moments |= heard.lines
    return Run(None, disk, heard, sorted(moments))


def _signal_traced(receiver: Process, number: signal.Signals) -> None:
    """End the receiver, not strace around it, and wait until strace has written the whole trace."""
    child = int(Path(f"/proc/{receiver.pid}/task/{receiver.pid}/children").read_text().split()[0])
    if number == signal.SIGKILL:
        os.kill(child, signal.SIGSTOP)  # a write that a kill interrupts is partly done, and strace does not say how far
        _wait_until_stopped(child)
    os.kill(child, number)
    receiver.wait()


def _wait_until_stopped(pid: int) -> None:
    """Wait until no thread of a traced process has run for a while: strace stops one shortly at each of its calls."""
    quiet = 0
    while quiet < STOPPED_LOOKS:
        stats = (path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat"))
        quiet = quiet + 1 if {stat.rpartition(")")[2].split()[0] for stat in stats} <= {"t", "T"} else 0
        time.sleep(STOPPED_SECONDS)


def _check_model(disk: Disk, root: Path) -> None:
    """Without a cut, the model must hold the same files as the disk of this machine."""
    model = dict(disk.everything().files(disk.root))
    real = {
        PurePosixPath(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in (root / DATA, *root.glob(f"{DATA}/**/*"))
        if not path.name.endswith(SHARED_MEMORY)
    }
    different = [
        str(path) for path in model | real if (path in model, model.get(path)) != (path in real, real.get(path))
    ]
    assert real, "the receiver wrote nothing"
    assert not different, f"the model of the disk is wrong: {different}"


def _cut(traced: Run, seed: int, ignore: Callable[[Sync], bool], *, start: bool) -> Cut:
    draw = random.Random(seed)
    line = draw.choice(traced.moments) + draw.randrange(2)
    image = traced.disk.after_cut(line, draw, ignore=ignore)
    history = traced.told.before(line)
    counts = len(history.acknowledged), len(history.granted), sum(map(len, history.delivered.values()))
    with tempfile.TemporaryDirectory(prefix="kling-cut-") as name:
        image.save(traced.disk.root, Path(name))
        files, problems = check_folder(Path(name, DATA), history)
    if start:
        with tempfile.TemporaryDirectory(prefix="kling-cut-") as name:
            problems += _start(traced, image, history, Path(name))
    return Cut(seed, line, start, *counts, files, problems)


def check_folder(data: Path, history: History) -> tuple[int, list[str]]:
    """What a data folder lacks of what others were told. Returns also how many files it stores, all checked."""
    database = data / "kling.db"
    log: list[Event] = []
    files = 0
    problems: list[str] = []
    if database.exists():
        with closing(sqlite3.connect(database)) as connection:
            try:
                log, files, problems = _check_database(connection, data, history)
            except sqlite3.Error as error:
                problems.append(f"0: {error}")
    return files, problems + contradictions(history, log)


def _check_database(connection: sqlite3.Connection, data: Path, history: History) -> tuple[list[Event], int, list[str]]:
    integrity = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    problems = [f"0: {line}" for line in integrity if line != "ok"]
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    if not {"event", "task", "result"} <= tables:
        return [], 0, problems
    log = [Event(*row) for row in connection.execute("SELECT id, task_id, type, body_sha256 FROM event")]
    attempts = dict(connection.execute("SELECT id, create_token FROM task").fetchall())
    lost = [task_id for task_id, attempt in history.granted if attempts.get(task_id) != attempt]
    problems += [f"6: the permission to create is forgotten: {task_id}" for task_id in lost]
    stored = connection.execute("SELECT path, sha256 FROM result WHERE status = 'stored'").fetchall()
    for path, sha256 in stored:
        content = b""
        with suppress(OSError):
            content = (data / "results" / path).read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            problems.append(f"4: not as stored: {path}")
    return log, len(stored), problems


def _start(traced: Run, image: Image, history: History, folder: Path) -> list[str]:
    """Start a receiver on what a cut left, let it finish all jobs, and check that it kept its promises."""
    image.save(traced.disk.root, folder)
    scene = traced.scene
    assert scene
    with Hook(history) as hook:
        settings = {"KLING_HOOK_URL": hook.url}
        data = folder / DATA
        kept = {name: value for name, value in scene.receiver.env.items() if name.startswith("KLING_")}
        receiver = Process(data, **{**kept, **settings, "KLING_DATA_DIR": str(data), "KLING_RECEIVER_URL": ""})
        receiver.env["KLING_RECEIVER_URL"] = receiver.url
        jobs = [Job(job.family, job.body, job.task_id) for job in scene.jobs]
        url = f"sqlite:///{data / 'kling.db'}"
        after = replace(scene, hook=hook, receiver=receiver, data=data, database=url, history=history, jobs=jobs)
        try:
            receiver.start()
            for job in jobs:  # the client still knows its tasks; the receiver may have forgotten those after the cut
                kling_id = scene.gateway.external[job.task_id].id
                register(receiver, job.task_id, job.family, outcome="created", task_id=kling_id).raise_for_status()
            wait_until_done(after, DONE_SECONDS)
            twice = may_be_created_twice(after)
        except (Ended, Unfinished, httpx.HTTPError) as error:
            return [f"7: after the cut: {type(error).__name__} {error}"]
        finally:
            if not receiver.ended:
                receiver.kill()
    _, problems = check_folder(data, history)
    with closing(sqlite3.connect(data / "kling.db")) as connection:
        log = [Event(*row) for row in connection.execute("SELECT id, task_id, type FROM event")]
        ends = dict(connection.execute("SELECT id, status FROM task").fetchall())
    problems += [
        f"4: {job.task_id} ended {ends.get(job.task_id)}" for job in jobs if ends.get(job.task_id) != "succeed"
    ]
    return problems + twice + omissions(history, log, scene.wanted)

"""A steady load for an hour: whether memory, descriptors, threads and the WAL stay flat, and all promises are kept."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import linear_regression

import httpx

from tools.crash.checks import broken_promises, read_rows
from tools.crash.completion import Unfinished, wait_until_done
from tools.crash.listener import Listener
from tools.crash.scenario import Job, Stage, stage, three_jobs
from tools.harness.loopback import web

WARM_UP = 0.25
"""The part of the run that is not judged: caches fill, threads start."""
MAX_GROWTH_MB_PER_HOUR = 30
"""Megabytes an hour, fitted to all samples after the warm-up. A leak of 5 KB a task is 36 at two tasks a second."""
MIN_GROWTH_MB = 6
"""Megabytes. Less is noise: in a short run its slope means nothing."""
MAX_MORE = {"descriptors": 20, "threads": 10}
"""How many more there may be at the end than after the warm-up, by the fitted line."""
MAX_WAL_MB = 64
"""SQLite copies the WAL back from 4 MB on, once no reader needs it."""
VISITORS = 6
"""Clients that connect, read for a moment, and disconnect."""
MAX_VISIT_SECONDS = 2.0
TASK_SECONDS = 0.5
DONE_SECONDS = 120
LISTENER_SECONDS = 30


@dataclass(frozen=True)
class Sample:
    """The receiver's process at one moment. `seconds`: since the load began."""

    seconds: float
    rss_mb: float
    descriptors: int
    threads: int
    wal_mb: float
    tasks: int


@dataclass
class Outcome:
    """`mb_per_hour`: the slope of the memory after the warm-up; `visits`: streams and downloads."""

    samples: list[Sample] = field(default_factory=list)
    visits: int = 0
    mb_per_hour: float = 0
    problems: list[str] = field(default_factory=list)


def run(folder: Path, *, minutes: float, rate: float, seed: int, report: Callable[[Sample], None]) -> Outcome:
    """Submit `rate` tasks a second for so long, take samples, let the receiver finish, check."""
    outcome, stop = Outcome(), threading.Event()
    with stage(folder, seed=seed, task_seconds=TASK_SECONDS, two_hooks=True) as scene:
        scene.receiver.start()
        with (
            Listener(scene.receiver, scene.history) as listener,
            ThreadPoolExecutor(VISITORS + 2) as pool,
        ):
            submitting = pool.submit(_submit, scene, rate, random.Random(seed), stop)
            visiting = [pool.submit(_visit, scene, random.Random(seed + n), stop) for n in range(VISITORS)]
            try:
                _sample(scene, minutes * 60, outcome, report)
            finally:
                stop.set()
            submitting.result()
            outcome.visits = sum(each.result() for each in visiting)
            try:
                wait_until_done(scene, DONE_SECONDS)
            except Unfinished as error:
                outcome.problems.append(f"7: {error}")
            listener.wait_for(max(event["id"] for event in read_rows(scene).events), LISTENER_SECONDS)
        outcome.problems += broken_promises(scene)
    outcome.mb_per_hour, grown = growth(outcome.samples)
    outcome.problems += grown
    return outcome


def growth(samples: list[Sample]) -> tuple[float, list[str]]:
    """Megabytes an hour after the warm-up, and what grew too much."""
    judged = [each for each in samples if each.seconds >= WARM_UP * samples[-1].seconds]
    hours = (judged[-1].seconds - judged[0].seconds) / 3600
    slopes = {
        name: linear_regression(
            [each.seconds / 3600 for each in judged], [getattr(each, name) for each in judged]
        ).slope
        for name in ("rss_mb", *MAX_MORE)
    }
    problems = [
        f"{name} grew by {slopes[name] * hours:.0f} in {hours * 60:.0f} minutes"
        for name, most in MAX_MORE.items()
        if slopes[name] * hours > most
    ]
    if slopes["rss_mb"] > MAX_GROWTH_MB_PER_HOUR and slopes["rss_mb"] * hours > MIN_GROWTH_MB:
        problems.append(f"memory grew by {slopes['rss_mb']:.0f} MB an hour")
    if (worst := max(each.wal_mb for each in samples)) > MAX_WAL_MB:
        problems.append(f"the WAL had {worst:.0f} MB")
    return slopes["rss_mb"], problems


def _submit(scene: Stage, rate: float, draw: random.Random, stop: threading.Event) -> None:
    """Submit tasks at a steady rate; one that is late is not made up for."""
    with ThreadPoolExecutor(4) as clients:
        submitted = []
        while not stop.wait(1 / rate):
            job = draw.choice(three_jobs())
            scene.jobs.append(job)
            submitted.append(clients.submit(scene.resume, job))
    for each in submitted:
        each.result()


def _visit(scene: Stage, draw: random.Random, stop: threading.Event) -> int:
    """Follow streams for a moment, and download results, until told to stop. Returns how often."""
    visits = 0
    while not stop.wait(draw.uniform(0, 0.5)):
        if jobs := [job for job in scene.jobs if job.reported]:
            with suppress(httpx.ReadTimeout):
                draw.choice((_follow, _follow, _download))(scene, draw.choice(jobs), draw.uniform(0, MAX_VISIT_SECONDS))
            visits += 1
    return visits


def _follow(scene: Stage, job: Job, seconds: float) -> None:
    """Open a stream, of one task or of all, and close the connection while it is open."""
    path = f"/api/tasks/{job.task_id}/events" if seconds < MAX_VISIT_SECONDS / 2 else "/api/events?after=latest"
    end = time.monotonic() + seconds
    headers = scene.receiver.headers("read")
    with web.stream("GET", f"{scene.receiver.url}{path}", headers=headers, timeout=MAX_VISIT_SECONDS) as response:
        assert response.status_code == 200, response.status_code
        for _ in response.iter_lines():
            if time.monotonic() > end:
                return


def _download(scene: Stage, job: Job, seconds: float) -> None:
    """Show a task, and download its files that are stored."""
    headers = scene.receiver.headers("read")
    task = web.get(f"{scene.receiver.url}/api/tasks/{job.task_id}", headers=headers).raise_for_status().json()
    for index, result in enumerate(task["results"]):
        if result["status"] == "stored":
            url = f"{scene.receiver.url}/api/tasks/{job.task_id}/results/{index}"
            assert len(web.get(url, headers=headers, timeout=20).raise_for_status().content) == result["size"]


def _sample(scene: Stage, seconds: float, outcome: Outcome, report: Callable[[Sample], None]) -> None:
    """Take 120 samples in so many seconds, but not more than one each half second."""
    started = time.monotonic()
    while (now := time.monotonic() - started) < seconds:
        time.sleep(max(0.5, seconds / 120))
        outcome.samples.append(measure(scene, now + max(0.5, seconds / 120)))
        report(outcome.samples[-1])


def measure(scene: Stage, seconds: float) -> Sample:
    """The receiver's process now."""
    process = Path(f"/proc/{scene.receiver.pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    wal = scene.data / "kling.db-wal"
    return Sample(
        seconds,
        int(status["VmRSS"].split()[0]) / 1000,
        len(list((process / "fd").iterdir())),
        int(status["Threads"]),
        wal.stat().st_size / 1e6 if wal.exists() else 0,
        len(scene.jobs),
    )

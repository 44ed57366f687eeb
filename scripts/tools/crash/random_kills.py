"""Kill the receiver at random moments under load, again and again on the same data."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tools.crash.checks import broken_promises, may_be_created_twice, read_rows, unscheduled
from tools.crash.completion import Unfinished, wait_until_done
from tools.crash.listener import Listener
from tools.crash.scenario import Job, Stage, stage, three_jobs

CLIENTS = 6
MAX_LIFE_SECONDS = 0.7
"""Seconds at most from ready to the next kill."""
MAX_START_SECONDS = 1.2
"""Seconds at most from the start to the kill, for one kill in six: usually before ready."""
TASK_SECONDS = 0.2
DONE_SECONDS = 300
LISTENER_SECONDS = 30
"""Seconds at most until the listener has the last event."""


@dataclass
class Outcome:
    """`seconds`: the longest time from ready until a check showed that all open work had a job."""

    tasks: int = 0
    seconds: float = 0
    problems: list[str] = field(default_factory=list)


def run(folder: Path, database: str, *, kills: int, seed: int, report: Callable[[list[str]], None]) -> Outcome:
    """Kill the receiver `kills` times, let it finish, check. `report` is called with problems as they are found."""
    draw, outcome = random.Random(seed), Outcome()

    def note(problems: list[str]) -> None:
        report(problems)
        outcome.problems += problems

    with (
        stage(folder, database, seed=seed, task_seconds=TASK_SECONDS, two_hooks=True) as scene,
        ThreadPoolExecutor(CLIENTS) as clients,
        Listener(scene.receiver, scene.history) as listener,
    ):
        for _ in range(kills):
            if draw.random() < 1 / 6:
                _kill_while_starting(scene, draw.uniform(0, MAX_START_SECONDS))
                continue
            note(_start_and_check(scene, outcome))
            _kill_under_load(scene, clients, draw)
        note(_start_and_check(scene, outcome))
        list(clients.map(scene.resume, scene.jobs))
        try:
            wait_until_done(scene, DONE_SECONDS)
        except Unfinished as error:
            note([f"7: {error}"])
        listener.wait_for(max(event["id"] for event in read_rows(scene).events), LISTENER_SECONDS)
        note(may_be_created_twice(scene) + broken_promises(scene))
    outcome.tasks = len(scene.jobs)
    return outcome


def _start_and_check(scene: Stage, outcome: Outcome) -> list[str]:
    """Start the receiver. Returns open work without a job."""
    scene.receiver.start()
    started = time.monotonic()
    problems = unscheduled(scene)
    outcome.seconds = max(outcome.seconds, time.monotonic() - started)
    return problems


def _kill_under_load(scene: Stage, clients: ThreadPoolExecutor, draw: random.Random) -> None:
    """Kill the receiver while clients resume interrupted jobs and start new ones."""
    scene.jobs += [draw.choice(three_jobs()) for _ in range(draw.randrange(2, 7))]
    resumed = [clients.submit(_resume_until_killed, scene, job) for job in scene.jobs if not job.reported]
    time.sleep(draw.uniform(0, MAX_LIFE_SECONDS))
    scene.receiver.kill()
    for each in resumed:
        each.result()


def _resume_until_killed(scene: Stage, job: Job) -> None:
    with suppress(httpx.TransportError):
        scene.resume(job)


def _kill_while_starting(scene: Stage, seconds: float) -> None:
    """Kill the receiver so long after its start, usually before it is ready."""
    scene.receiver.launch()
    time.sleep(seconds)
    scene.receiver.kill()

"""Killed at random moments while tasks come and go, again and again on the same data."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tools.crash.checks import broken, may_pay_twice, unscheduled
from tools.crash.script import Job, Stage, stage, three
from tools.crash.waiting import Unfinished, all_done

CLIENTS = 6
LONGEST_LIFE = 0.7
"""Seconds at most from ready to the next kill."""
LONGEST_START = 1.2
"""The same from the start, for one kill in six: before ready, as a rule."""
TASK_SECONDS = 0.2
PATIENCE = 300


@dataclass
class Outcome:
    """`seconds`: the longest from ready until all that was open was seen to be scheduled."""

    tasks: int = 0
    seconds: float = 0
    problems: list[str] = field(default_factory=list)


def run(folder: Path, database: str, *, kills: int, seed: int, tell: Callable[[list[str]], None]) -> Outcome:
    """So many kills, then an end in peace, and the questions. `tell`: hears each problem as it is found."""
    draw, done = random.Random(seed), Outcome()

    def note(problems: list[str]) -> None:
        tell(problems)
        done.problems += problems

    with stage(folder, database, seed=seed, pace=TASK_SECONDS) as scene, ThreadPoolExecutor(CLIENTS) as clients:
        for _ in range(kills):
            if draw.random() < 1 / 6:
                _killed_at_start(scene, draw.uniform(0, LONGEST_START))
                continue
            note(_started(scene, done))
            _killed_at_work(scene, clients, draw)
        note(_started(scene, done))
        list(clients.map(scene.go_on, scene.jobs))
        try:
            all_done(scene, PATIENCE)
        except Unfinished as error:
            note([f"7: {error}"])
        note(may_pay_twice(scene) + broken(scene))
    done.tasks = len(scene.jobs)
    return done


def _started(scene: Stage, done: Outcome) -> list[str]:
    """Start it; what is open then and not scheduled."""
    scene.receiver.start()
    began = time.monotonic()
    problems = unscheduled(scene)
    done.seconds = max(done.seconds, time.monotonic() - began)
    return problems


def _killed_at_work(scene: Stage, clients: ThreadPoolExecutor, draw: random.Random) -> None:
    """Kill it while clients go on with what an earlier kill cut off, and begin some more."""
    scene.jobs += [draw.choice(three()) for _ in range(draw.randrange(2, 7))]
    busy = [clients.submit(_until_it_dies, scene, job) for job in scene.jobs if not job.reported]
    time.sleep(draw.uniform(0, LONGEST_LIFE))
    scene.receiver.kill()
    for each in busy:
        each.result()


def _until_it_dies(scene: Stage, job: Job) -> None:
    with suppress(httpx.TransportError):
        scene.go_on(job)


def _killed_at_start(scene: Stage, seconds: float) -> None:
    """Kill it before it is ready, as a rule."""
    scene.receiver.launch()
    time.sleep(seconds)
    scene.receiver.kill()

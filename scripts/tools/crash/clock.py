"""Set the clock of a running receiver forward and back, and stop its process for a while, as a suspend does."""

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from kling_callback.protocol.signing import CallbackSigner, Role, api_token
from kling_sandbox.receiver import SIGNING_SECRET
from tools.crash.checks import broken_promises, may_be_created_twice, read_rows
from tools.crash.completion import Unfinished, wait_until_done
from tools.crash.scenario import Stage, stage, three_jobs

LIBRARIES = tuple(
    Path("/usr/lib") / folder / "faketime/libfaketimeMT.so.1"
    for folder in ("x86_64-linux-gnu", "aarch64-linux-gnu", "arm-linux-gnueabihf", "")
)
HOUR, DAY = 3_600, 86_400
JUMPS = (60, HOUR, 5 * HOUR, 2 * DAY, 20 * DAY, 3 * 365 * DAY)
"""Seconds of a jump, in either direction. A callback address is valid for 30 days: after the last one it is refused."""
MAX_SECONDS = 0.7
"""Seconds at most between two jumps, and of a stop of the process."""
PAUSE_SECONDS = 120
"""Seconds of failure after which a hook is paused: fewer than most jumps have."""
HOOK_FAILURES = 0.2
"""The share of the deliveries that the hook refuses."""
CLIENTS = 6
TASK_SECONDS = 0.2
DONE_SECONDS = 300


def library() -> Path | None:
    """The library that shows a process another time; None when it is not installed."""
    return next((path for path in LIBRARIES if path.exists()), None)


@dataclass
class Outcome:
    """The tasks of a run, its jumps and stops, and what went wrong."""

    tasks: int = 0
    jumps: int = 0
    stops: int = 0
    problems: list[str] = field(default_factory=list)


class Clock:
    """The wall clock of a receiver that runs under faketime; the monotonic clock is left alone.

    `offset`: seconds by which it is ahead of the machine's.
    """

    def __init__(self, folder: Path) -> None:
        self.offset = 0
        self._file = folder / "faketime"
        self._write()

    def set(self, offset: int) -> None:
        """Set the clock, while the receiver runs."""
        self.offset = offset
        self._write()

    def environment(self) -> dict[str, str]:
        """What a process needs to run by this clock."""
        found = library()
        assert found, "faketime is not installed"
        return {
            "LD_PRELOAD": str(found),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            # No workaround for other versions of glibc: it ends each wait for the interpreter's lock at once: a spin.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
        }

    def _write(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{self.offset:+d}\n")
        new.replace(self._file)


def prepare(scene: Stage, clock: Clock, draw: random.Random) -> None:
    """Run the stage's receiver by this clock, and its clients; its hook fails now and then."""
    receiver, hook = scene.receiver, scene.hook
    receiver.env |= clock.environment() | {"KLING_HOOK_PAUSE_SECONDS": str(PAUSE_SECONDS)}
    receiver.headers = lambda role="client": _headers(role, clock)  # type: ignore[method-assign]
    receiver.callback_url = lambda task_id, family="images/generations": CallbackSigner(  # type: ignore[method-assign]
        [SIGNING_SECRET], clock=lambda: time.time() + clock.offset
    ).url(receiver.url, task_id, family)
    hook.now = lambda headers: float(headers["webhook-timestamp"])  # the clock may be set while a message is under way
    hook.refuses = lambda: draw.random() < HOOK_FAILURES


def _headers(role: Role, clock: Clock) -> dict[str, str]:
    # The longest lifetime: a request may be on its way while the clock is set.
    token = api_token((SIGNING_SECRET,), role, 10 * 365 * DAY, now=time.time() + clock.offset)
    return {"Authorization": f"Bearer {token}"}


def run(folder: Path, database: str, *, jumps: int, seed: int, report: Callable[[list[str]], None]) -> Outcome:
    """Set the clock `jumps` times under load, let the receiver finish by the right one, check."""
    draw, outcome, clock = random.Random(seed), Outcome(jumps=jumps), Clock(folder)

    def note(problems: list[str]) -> None:
        report(problems)
        outcome.problems += problems

    with stage(folder, database, seed=seed, task_seconds=TASK_SECONDS) as scene, ThreadPoolExecutor(CLIENTS) as clients:
        prepare(scene, clock, random.Random(seed))
        scene.receiver.start()
        for _ in range(jumps):
            new = [draw.choice(three_jobs()) for _ in range(draw.randrange(1, 4))]
            scene.jobs += new
            running = [clients.submit(scene.resume, job) for job in new]
            time.sleep(draw.uniform(0, MAX_SECONDS))
            clock.set(draw.choice((0, 1, -1)) * draw.choice(JUMPS))
            if draw.random() < 1 / 3:
                outcome.stops += 1
                _stop_process(scene, draw.uniform(0, MAX_SECONDS))
            for each in running:
                with suppress(httpx.TransportError):
                    each.result()
        clock.set(0)
        scene.hook.refuses = lambda: False
        list(clients.map(scene.resume, scene.jobs))
        try:
            wait_until_done(scene, DONE_SECONDS)
        except Unfinished as error:
            note([f"7: {error}"])
        note(may_be_created_twice(scene) + broken_promises(scene) + _paused_hooks(scene))
    outcome.tasks = len(scene.jobs)
    return outcome


def _stop_process(scene: Stage, seconds: float) -> None:
    os.kill(scene.receiver.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(scene.receiver.pid, signal.SIGCONT)


def _paused_hooks(scene: Stage) -> list[str]:
    return [
        f"5: paused: {hook['name']} {hook['paused_because']}" for hook in read_rows(scene).hooks if hook["paused_at"]
    ]

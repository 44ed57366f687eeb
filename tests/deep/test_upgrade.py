"""The previous version of this program, beside the new one: it is replaced under load, on the same data and port."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.receiver import ABSENT
from tools.crash.checks import broken_promises, may_be_created_twice
from tools.crash.completion import wait_until_done
from tools.crash.scenario import Stage, stage, three_jobs
from tools.harness.loopback import web

pytestmark = pytest.mark.no_cover  # the receiver is another process, which is not measured

ROOT = Path(__file__).parents[2]
PREVIOUS = "b5bc76e129ff148863c1e3caf337822cbd5999ae"
"""The commit of the previous version. A clone without its history does not have it."""
DONE_SECONDS = 90
MAX_POSTS = 150
"""Fewer than the callbacks of one task that a receiver keeps."""


def _archive() -> bytes:
    """The client and the receiver of the previous version, as a tar file; empty if there is none here."""
    if not shutil.which("git"):
        return b""
    command = ["git", "-C", str(ROOT), "archive", PREVIOUS, "client", "receiver"]
    return subprocess.run(command, capture_output=True, check=False).stdout


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the installed commands run the previous version."""
    if not (archive := _archive()):
        pytest.skip(f"{ABSENT}the commit of the previous version ({PREVIOUS[:7]})")
    folder = tmp_path_factory.mktemp("previous")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    environment = {"PYTHONPATH": f"{folder / 'receiver'}{os.pathsep}{folder / 'client'}"}
    program = [
        sys.executable,
        "-c",
        "import kling_callback, kling_receiver as r; print(kling_callback.__file__, r.__file__)",
    ]
    run = subprocess.run(program, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    assert run.stdout.count(str(folder)) == 2
    return environment


@contextmanager
def posting(scene: Stage, task_id: str, url: str) -> Iterator[list[int]]:
    """Post callbacks of one task without a pause, whether or not a receiver runs. Gives the answers; 0 is none."""
    answers: list[int] = []
    stop = threading.Event()

    def post() -> None:
        while not stop.wait(0.1) and answers.count(200) < MAX_POSTS:
            body = b'{"task_status":"processing","n":%d}' % len(answers)
            try:
                status = web.post(url, content=body, timeout=30).status_code
            except httpx.TransportError:
                status = 0
            if status == 200:
                scene.history.acknowledge(task_id, body)
            answers.append(status)

    thread = threading.Thread(target=post)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()


def resume_until_done(scene: Stage) -> None:
    """What a client does whose receiver is replaced: it tries again."""
    for job in scene.jobs:
        while not job.reported:
            try:
                scene.resume(job)
            except httpx.TransportError:
                time.sleep(0.1)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_previous_version_is_replaced_under_load(
    previous: dict[str, str], tmp_path: Path, bare_database_url: str, number: signal.Signals
) -> None:
    """Ended in order, or killed: the new version continues its tasks, jobs, hooks and files; no promise is broken.

    A callback is answered 200, or 503, or not at all while no receiver runs, and then 200 again.
    """
    with stage(tmp_path, bare_database_url, task_seconds=0.5, two_hooks=True) as scene:
        new = dict(scene.receiver.env)
        scene.receiver.env = {**new, **previous}
        scene.receiver.start()
        scene.jobs = three_jobs() + three_jobs()
        resume_until_done(scene)
        first = scene.jobs[0]
        with posting(scene, first.task_id, scene.receiver.callback_url(first.task_id, first.family)) as answers:
            scene.jobs += three_jobs()
            client = threading.Thread(target=resume_until_done, args=[scene])
            client.start()
            scene.receiver.signal(number)
            scene.receiver.wait()
            while 0 not in answers:
                time.sleep(0.05)
            scene.receiver.env = new
            scene.receiver.start()
            client.join()
            wait_until_done(scene, DONE_SECONDS)
        assert set(answers) <= {200, 503, 0}
        assert answers[-1] == 200
        assert may_be_created_twice(scene) == []
        assert broken_promises(scene) == []

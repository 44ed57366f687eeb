"""kill -9 at any moment, then a restart: every callback answered 200 is stored, every job is done."""

import hashlib
import random
import signal
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text

from kling_callback.protocol.ids import new_id
from kling_sandbox import Sandbox
from tools.harness.process import Process
from tools.harness.submitting import Json, create, finished, post, register, submit

pytestmark = pytest.mark.no_cover  # the receiver is another process, which is not measured

DONE_SECONDS = 5
"""Seconds after a restart in which open jobs are done (contract, promise 7)."""


def logged_callbacks(data: Path) -> set[tuple[str, str]]:
    """Task id and digest of every callback in the event log."""
    engine = create_engine(f"sqlite:///{data / 'kling.db'}")
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT task_id, body_sha256 FROM event WHERE body_sha256 IS NOT NULL")).all()
    engine.dispose()
    return {(row.task_id, row.body_sha256) for row in rows}


def is_stored(task: Json, data: Path) -> bool:
    """Whether the storage has every file of a task with its checksum, and no partial file."""
    checksums = [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((data / "results" / task["id"]).iterdir())
    ]
    return checksums == [result["sha256"] for result in task["results"]] and not list(
        (data / "results" / ".parts").iterdir()
    )


@pytest.mark.parametrize("registered", [False, True])
def test_killed_between_the_200_and_the_download(gateway: Sandbox, tmp_path: Path, registered: bool) -> None:
    """Killed after the 200: the restarted receiver queries Kling and downloads the file."""
    data = tmp_path / "data"
    with Process(data, KLING_API_BASE=gateway.url) as receiver:
        task_id = new_id()
        if registered:
            assert register(receiver, task_id).status_code == 201
        kling_id = create(receiver, gateway, task_id, "no-callback")
        gateway.wait_for(lambda: gateway.tasks[kling_id].finished_at)
        if registered:
            register(receiver, task_id, outcome="created", task_id=kling_id)
        assert post(receiver, task_id, {"task_id": kling_id, "task_status": "succeed"}).status_code == 200
        receiver.kill()
        receiver.start()
        started = time.monotonic()
        done = finished(receiver, task_id)
        assert time.monotonic() - started < DONE_SECONDS
        assert (done["status"], done["origin"]) == ("succeed", "kling")
        assert is_stored(done, data)


def test_killed_in_the_middle_of_a_download(tmp_path: Path) -> None:
    """The partial file is deleted, and the download starts again."""
    data = tmp_path / "data"
    with Sandbox(video_bytes=30_000_000) as gateway, Process(data, KLING_API_BASE=gateway.url) as receiver:
        task_id, _ = submit(receiver, gateway, family="videos/text2video")
        gateway.wait_for(lambda: gateway.downloads)
        receiver.kill()
        receiver.start()
        done = finished(receiver, task_id)
        assert done["results"][0]["status"] == "stored"
        assert done["results"][0]["size"] >= 30_000_000
        assert is_stored(done, data)


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_random_moments_no_answered_callback_is_lost(tmp_path: Path, seed: int) -> None:
    """Killed twice under load: answered callbacks are in the event log, and every task ends with its files."""
    data, draw = tmp_path / "data", random.Random(seed)
    with (
        Sandbox(seed=seed) as gateway,
        Process(data, KLING_API_BASE=gateway.url, KLING_OVERDUE_SECONDS="1") as receiver,
    ):
        task_ids = []
        for _ in range(2):
            task_ids += [submit(receiver, gateway, n=draw.randrange(1, 4))[0] for _ in range(5)]
            count, more = len(gateway.callbacks), draw.randrange(0, 6)
            gateway.wait_for(lambda: len(gateway.callbacks) >= min(count + more, 3 * len(task_ids)))  # noqa: B023
            receiver.kill()
            receiver.start()
        done = [finished(receiver, task_id) for task_id in task_ids]
        assert {(each["status"], each["origin"]) for each in done} == {("succeed", "kling")}
        assert all(is_stored(each, data) for each in done)
        task_id_of = {kling_id: task.external_id for kling_id, task in gateway.tasks.items()}
        answered = {
            (task_id_of[callback.task_id], hashlib.sha256(callback.body).hexdigest())
            for callback in gateway.callbacks
            if callback.answered == 200
        }
        assert answered <= logged_callbacks(data)


def test_killed_while_many_callbacks_arrive(gateway: Sandbox, tmp_path: Path) -> None:
    """Killed while callbacks arrive: each that was answered 200 is in the event log after the restart."""
    data, answered, task_id = tmp_path / "data", set(), new_id()
    with Process(data, KLING_API_BASE=gateway.url) as receiver:
        with httpx.Client() as http:
            for n in range(150):
                body = b'{"task_status":"processing","n":%d}' % n
                if n == 120:
                    receiver.signal(signal.SIGKILL)
                try:
                    if http.post(receiver.callback_url(task_id), content=body).status_code == 200:
                        answered.add((task_id, hashlib.sha256(body).hexdigest()))
                except httpx.TransportError:
                    break
        receiver.kill()
        receiver.start()
    assert len(answered) >= 119
    assert answered <= logged_callbacks(data)

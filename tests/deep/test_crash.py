"""kill -9 at any moment, and a restart: what was answered 200 is there, and what was owed is done."""

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

WITHIN = 5
"""Seconds after a restart in which owed work is done (contract, promise 7)."""


def log_of(data: Path) -> set[tuple[str, str]]:
    """Task and digest of every callback in the event log."""
    engine = create_engine(f"sqlite:///{data / 'kling.db'}")
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT task_id, body_sha256 FROM event WHERE body_sha256 IS NOT NULL")).all()
    engine.dispose()
    return {(row.task, row.digest) for row in rows}


def whole(task: Json, data: Path) -> bool:
    """Whether every file of a task lies in the storage with its checksum, and nothing half-written."""
    files = [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((data / "results" / task["id"]).iterdir())
    ]
    return files == [result["sha256"] for result in task["results"]] and not list(
        (data / "results" / ".parts").iterdir()
    )


@pytest.mark.parametrize("prepared", [False, True])
def test_killed_between_the_200_and_the_download(gateway: Sandbox, tmp_path: Path, prepared: bool) -> None:
    """The callback was answered, then the power went: after the restart Kling is asked and the file fetched."""
    data = tmp_path / "data"
    with Process(data, KLING_API_BASE=gateway.url) as receiver:
        task = new_id()
        if prepared:
            assert register(receiver, task).status_code == 201
        theirs = create(receiver, gateway, task, "no-callback")
        gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
        if prepared:
            register(receiver, task, outcome="created", task_id=theirs)
        assert post(receiver, task, {"task_id": theirs, "task_status": "succeed"}).status_code == 200
        receiver.kill()
        receiver.start()
        began = time.monotonic()
        done = finished(receiver, task)
        assert time.monotonic() - began < WITHIN
        assert (done["status"], done["origin"]) == ("succeed", "kling")
        assert whole(done, data)


def test_killed_in_the_middle_of_a_download(tmp_path: Path) -> None:
    """What was half on disk is thrown away, and the file is fetched anew, once more."""
    data = tmp_path / "data"
    with Sandbox(video_bytes=30_000_000) as gateway, Process(data, KLING_API_BASE=gateway.url) as receiver:
        task, _ = submit(receiver, gateway, family="videos/text2video")
        gateway.wait_for(lambda: gateway.downloads)
        receiver.kill()
        receiver.start()
        done = finished(receiver, task)
        assert done["results"][0]["status"] == "stored"
        assert done["results"][0]["size"] >= 30_000_000
        assert whole(done, data)


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_some_moment_nothing_that_was_answered_is_lost(tmp_path: Path, seed: int) -> None:
    """Killed twice while tasks come and go: answered callbacks are kept, and every task ends with its files."""
    data, draw = tmp_path / "data", random.Random(seed)
    with (
        Sandbox(seed=seed) as gateway,
        Process(data, KLING_API_BASE=gateway.url, KLING_OVERDUE_SECONDS="1") as receiver,
    ):
        tasks = []
        for _ in range(2):
            tasks += [submit(receiver, gateway, n=draw.randrange(1, 4))[0] for _ in range(5)]
            seen, more = len(gateway.callbacks), draw.randrange(0, 6)
            gateway.wait_for(lambda: len(gateway.callbacks) >= min(seen + more, 3 * len(tasks)))  # noqa: B023
            receiver.kill()
            receiver.start()
        done = [finished(receiver, task) for task in tasks]
        assert {(each["status"], each["origin"]) for each in done} == {("succeed", "kling")}
        assert all(whole(each, data) for each in done)
        ours = {theirs: made.external_id for theirs, made in gateway.tasks.items()}
        answered = {
            (ours[each.task_id], hashlib.sha256(each.body).hexdigest())
            for each in gateway.callbacks
            if each.answered == 200
        }
        assert answered <= log_of(data)


def test_killed_while_many_callbacks_arrive(gateway: Sandbox, tmp_path: Path) -> None:
    """Of those under way when the power goes, each that was answered 200 is in the log after the restart."""
    data, answered, task = tmp_path / "data", set(), new_id()
    with Process(data, KLING_API_BASE=gateway.url) as receiver:
        with httpx.Client() as http:
            for n in range(150):
                body = b'{"task_status":"processing","n":%d}' % n
                if n == 120:
                    receiver.signal(signal.SIGKILL)
                try:
                    if http.post(receiver.callback_url(task), content=body).status_code == 200:
                        answered.add((task, hashlib.sha256(body).hexdigest()))
                except httpx.TransportError:
                    break
        receiver.kill()
        receiver.start()
    assert len(answered) >= 119
    assert answered <= log_of(data)

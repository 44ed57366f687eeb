"""A failing disk: callbacks are answered 503, downloads are retried, and all goes on once the disk works again."""

import errno
import resource
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_sandbox import Sandbox
from tests.support.receiver import ABSENT
from tools.crash import strace
from tools.harness.process import Process
from tools.harness.submitting import events, finished, metric, poll_until, post, show, submit

SIZE = 8 << 20
"""Bytes of the disk that is filled."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that is small enough to be filled."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", path], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"{ABSENT}a file system to fill")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """While the block runs, no byte is free."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017  # another error is not a full disk
    yield
    (disk / "filler").unlink()


@contextmanager
def limited(receiver: Process) -> Iterator[None]:
    """While the block runs, the receiver may not write to any file."""
    before = resource.prlimit(receiver.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(receiver.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    yield
    resource.prlimit(receiver.pid, resource.RLIMIT_FSIZE, before)


pytestmark = pytest.mark.usefixtures("processes_are_forked")


def not_ready(receiver: Process) -> str:
    """The receiver's reason for not being ready."""
    answer = httpx.get(f"{receiver.url}/readyz", timeout=30)
    assert answer.status_code == 503
    message: str = answer.json()["error"]["message"]
    return message


def refused_then_accepted(receiver: Process, fault: Callable[[], AbstractContextManager[None]], reason: str) -> None:
    """During a fault callbacks are refused and not stored; afterwards they are accepted."""
    task, first = new_id(), new_id()
    assert post(receiver, first, {"task_status": "submitted"}).status_code == 200
    with fault():
        answer = post(receiver, task, {"task_status": "processing"})
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["Retry-After"]) > 0
        assert reason in not_ready(receiver)
        assert httpx.get(f"{receiver.url}/healthz").status_code == 200
        assert show(receiver, first)["status"] == "submitted"
    # The check after the start may have met the fault, too; it is repeated after some seconds.
    poll_until(lambda: httpx.get(f"{receiver.url}/readyz", timeout=30).status_code == 200)
    assert "error" in show(receiver, task)
    assert post(receiver, task, {"task_status": "processing"}).status_code == 200
    assert show(receiver, task)["status"] == "processing"


def test_a_database_on_a_full_disk(disk: Path) -> None:
    """An outage whose reason is shown; it ends when there is space again."""
    with Process(disk / "data") as receiver:
        refused_then_accepted(receiver, lambda: filled(disk), "database or disk is full")


def test_a_database_that_is_slow(tmp_path: Path) -> None:
    """While another process writes, a callback waits; it is answered once it is stored."""
    task, data = new_id(), tmp_path / "data"
    with Process(data) as receiver, closing(sqlite3.connect(data / "kling.db")) as other:
        with ThreadPoolExecutor(1) as sender:
            other.execute("BEGIN IMMEDIATE")
            answer = sender.submit(post, receiver, task, {"task_status": "processing"})
            assert "error" in show(receiver, task)
            assert not answer.done()
            other.rollback()
            assert answer.result().status_code == 200
        assert show(receiver, task)["status"] == "processing"


def test_a_database_that_may_not_grow(tmp_path: Path) -> None:
    """A quota or a limit is an outage too. That the log cannot be written does no harm."""
    with Process(tmp_path / "data") as receiver:
        refused_then_accepted(receiver, lambda: limited(receiver), "disk I/O error")


def test_files_on_a_full_disk(disk: Path, tmp_path: Path, gateway: Sandbox) -> None:
    """Callbacks are accepted, and the download is retried until there is space."""
    results = disk / "results"
    storage = {"KLING_API_BASE": gateway.url, "KLING_STORAGE_URL": results.as_uri()}
    with Process(tmp_path / "data", **storage) as receiver:
        with filled(disk):
            task, _ = submit(receiver, gateway)
            events(receiver, task, "task.succeed")
            poll_until(lambda: metric(receiver, 'kling_downloads_total{outcome="failed"}'))
            assert "No space left on device" in not_ready(receiver)
            assert show(receiver, task)["results"][0]["status"] == "pending"
        assert finished(receiver, task)["results"][0]["status"] == "stored"
        assert [path.name for path in (results / task).iterdir()] == ["0.png"]


def test_a_storage_whose_volume_is_gone(tmp_path: Path, gateway: Sandbox) -> None:
    """No file is written below its mount point; once it is mounted again, the file is downloaded."""
    results, away = tmp_path / "results", tmp_path / "away"
    storage = {"KLING_API_BASE": gateway.url, "KLING_STORAGE_URL": results.as_uri()}
    with Process(tmp_path / "data", **storage) as receiver:
        results.rename(away)
        results.mkdir()
        task, _ = submit(receiver, gateway)
        events(receiver, task, "task.succeed")
        poll_until(lambda: metric(receiver, 'kling_downloads_total{outcome="failed"}'))
        assert "Mount its volume again" in not_ready(receiver)
        assert list(results.iterdir()) == []
        results.rmdir()
        away.rename(results)
        assert finished(receiver, task)["results"][0]["status"] == "stored"
        assert httpx.get(f"{receiver.url}/readyz").status_code == 200


@pytest.mark.skipif(not strace.available(), reason=f"{ABSENT}strace")
def test_a_storage_whose_folders_cannot_be_synced(tmp_path: Path, gateway: Sandbox) -> None:
    """As on CIFS: each file is stored by its first download, and the log says once what a power failure may undo."""
    results = tmp_path / "results"
    results.mkdir()
    storage = {"KLING_API_BASE": gateway.url, "KLING_STORAGE_URL": results.as_uri()}
    receiver = Process(tmp_path / "data", **storage)
    # -D: the tracer is the child, so that the process that is killed is the receiver.
    fault = ["-D", "-P", str(results), "-e", "inject=fsync:error=EINVAL"]
    receiver.launch(*strace.command(tmp_path / "trace", "fsync", *fault))
    try:
        receiver.await_ready()
        task, _ = submit(receiver, gateway)
        assert finished(receiver, task)["results"][0]["status"] == "stored"
        assert not metric(receiver, 'kling_downloads_total{outcome="failed"}')
        assert receiver.log_text().count(f"the file system of {results} cannot sync folders (Invalid argument)") == 1
    finally:
        receiver.kill()
    assert "(INJECTED)" in (tmp_path / "trace").read_text()

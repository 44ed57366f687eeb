"""A removal that is killed before each of its calls to the disk, one after the other."""

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kling_receiver.jobs import queue
from kling_receiver.jobs.queue import Capacity
from kling_receiver.results.owner import claim
from kling_receiver.results.removal import FileRemover, remove_task
from kling_receiver.results.storage import LocalStorage
from kling_receiver.store.database import Database
from kling_receiver.store.tables import REMOVED, RESULT, TASK
from tests.support.database import FILE, STORED, Ledger, says
from tests.support.receiver import ABSENT
from tools.crash.gate import Gate
from tools.crash.gate import available as gate_available

CALLS = "fdatasync,fsync,unlink,rmdir"
FILES = ("t/0.png", "t/0-another.png")


def remove(folder: Path, *, when: Callable[[], object] = lambda: None) -> None:
    """Remove the task as a receiver does, and then its files: what of it is left to do. `when`: called before."""
    ledger, storage = Ledger(Database(f"sqlite:///{folder / 'kling.db'}")), LocalStorage(folder / "results")
    storage.owner.acquire()
    claim(ledger.database, storage.owner)
    ledger.change(lambda tx: queue.rescue(tx, queue.NEVER))
    when()
    ledger.change(lambda tx: remove_task(tx, "t"))
    for job in ledger.change(lambda tx: queue.claim_due(tx, Capacity(9), claim_id="c", lease_ms=1000)):
        assert job.kind == "remove"
        effect = asyncio.run(FileRemover(storage).remove(job))
        ledger.change(lambda tx, job=job, effect=effect: queue.settle(tx, job, effect))  # type: ignore[misc]
    storage.owner.release()


def make(folder: Path) -> None:
    """A receiver's data: a task that is done, and its files."""
    folder.mkdir()
    ledger, storage = Ledger(Database(f"sqlite:///{folder / 'kling.db'}")), LocalStorage(folder / "results")
    ledger.database.migrate()
    storage.prepare()
    storage.owner.acquire()
    claim(ledger.database, storage.owner)
    storage.owner.release()
    ledger.register()
    ledger.apply_report("t", says("succeed", FILE))
    ledger.store()
    assert ledger.task()["done"]
    with ledger.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM job")
    ledger.database.close()
    for name in FILES:
        storage.path(name).parent.mkdir(exist_ok=True)
        storage.path(name).write_bytes(b"PNG")


def check(folder: Path) -> None:
    """The row, or nothing but the id and the job; a row that says `stored` has its file."""
    ledger, storage = Ledger(Database(f"sqlite:///{folder / 'kling.db'}")), LocalStorage(folder / "results")
    files = [name for name in FILES if storage.path(name).exists()]
    if ledger.rows(TASK):
        assert [row["path"] for row in ledger.rows(RESULT)] == [STORED.path]
        assert (files, ledger.rows(REMOVED), ledger.jobs()) == (list(FILES), [], {})
    else:
        assert (ledger.rows(RESULT), [row["id"] for row in ledger.rows(REMOVED)]) == ([], ["t"])
        assert not files or "remove/t" in ledger.jobs()
    ledger.database.close()


def killed_at(number: int, folder: Path) -> bool:
    """Remove the task in a process that is killed at its n-th call. Returns whether it has made so many."""
    gate, pids = Gate(CALLS), list[int]()
    (ready, is_ready), (begin, begins) = os.pipe(), os.pipe()

    def wait() -> None:
        os.close(is_ready)
        os.read(begin, 1)

    def start() -> None:
        if pid := os.fork():  # a fork has imported everything already
            pids.append(pid)
            return
        status = 1
        try:
            os.close(begins)
            remove(folder, when=wait)
            status = 0
        finally:
            os._exit(status)

    gate.launch(start)
    os.close(is_ready)
    os.close(begin)
    os.read(ready, 1)  # its end: the process is ready
    gate.begin(number)
    os.close(begins)
    _, status = os.waitpid(pids[0], 0)
    os.close(ready)
    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if gate.killed else 0)
    return gate.killed


@pytest.mark.skipif(not gate_available(), reason=f"{ABSENT}seccomp's user notification")
def test_a_removal_that_is_killed_goes_on(tmp_path: Path) -> None:
    """Before each call: no row is without its file, and no file is left when the next start has done the rest."""
    make(tmp_path / "made")
    for number in range(1, 100):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "made", folder)
        killed = killed_at(number, folder)
        check(folder)
        remove(folder)
        check(folder)
        assert not (folder / "results" / "t").exists()
        if not killed:
            break
    assert 6 < number < 99

"""Removal of tasks: every row in one commit, then the files; what arrives late finds the id alone."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from kling_receiver.events import log as event_log
from kling_receiver.hooks import deliveries
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.deliveries import DeliveryAttempt
from kling_receiver.jobs import queue
from kling_receiver.jobs.kinds import args_problem
from kling_receiver.jobs.queue import Capacity, ClaimedJob, Done, RetryAt
from kling_receiver.results.owner import claim
from kling_receiver.results.records import file_name, task_folder
from kling_receiver.results.removal import FileRemover, remove_task
from kling_receiver.results.storage import LocalStorage
from kling_receiver.store.database import Database
from kling_receiver.store.rows import Row
from kling_receiver.store.tables import METADATA, REMOVED, SUBMISSION
from kling_receiver.tasks import adoption, ingest, startup, transitions
from tests.support.database import FILE, NOW, Ledger, callback, says

pytestmark = pytest.mark.anyio


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """On each engine."""
    return Ledger(database)


@pytest.fixture
def storage(tmp_path: Path, database: Database) -> LocalStorage:
    """A results folder, claimed by a receiver."""
    storage = LocalStorage(tmp_path / "results")
    storage.prepare()
    storage.owner.acquire()
    claim(database, storage.owner)
    return storage


def done(ledger: Ledger) -> None:
    """A task that is done, with all that may be: tag, hook of its own, callbacks, a stored file, dead letters."""
    ledger.put_hook()
    ledger.register(tags=("red",), hook="https://example.com/own")
    ledger.record(callback("t", "processing"), callback("t", "succeed"))
    ledger.apply_report("t", says("succeed", FILE, f"{FILE}1"))
    ledger.store()
    ledger.fail(1)
    ledger.kill_job("download/t/1")
    event_id = ledger.events()[-1]["id"]
    for name in ("all", hook_records.task_hook_name("t")):
        attempt(ledger, name, event_id, "t")
    assert ledger.task()["done"]


def attempt(ledger: Ledger, name: str, event_id: int, task: str) -> None:
    """Record a delivery that failed for the last time."""

    def record(tx: Any) -> None:
        row = hook_records.hook(tx.connection, name)
        assert row is not None
        deliveries.record_attempts(
            tx, [DeliveryAttempt(row, event_id, task, NOW, 5, 9, delivered=False, error="no", retry_in_ms=None)]
        )

    ledger.change(record)


def everything(ledger: Ledger) -> dict[str, list[Row]]:
    """Every row of every table."""
    return {table.name: ledger.rows(table) for table in METADATA.sorted_tables}


def mentions(rows: dict[str, list[Row]], task: str) -> list[str]:
    """The tables with a row that names a task. A secret is random, and may contain anything."""
    names = {task, hook_records.task_hook_name(task)}
    return [
        table
        for table, found in rows.items()
        if any(
            str(value) in names or f"/{task}" in str(value)
            for row in found
            for column, value in row.items()
            if "secret" not in column
        )
    ]


def test_every_row_of_a_task_goes(ledger: Ledger) -> None:
    """None names it but its id and the job for its files; the rows of another task stay as they are."""
    done(ledger)
    ledger.register("u", tags=("red",), hook="https://example.com/own")
    ledger.record(callback("u", "processing"))
    attempt(ledger, "all", ledger.events("u")[-1]["id"], "u")
    before = everything(ledger)
    tables = {"task", "tag", "event", "result", "job", "hook", "delivery_attempt"}
    assert set(mentions(before, "t")) == tables
    assert ledger.change(lambda tx: remove_task(tx, "t")) == "removed"
    after = everything(ledger)
    assert mentions(after, "t") == ["job", "removed"]
    assert after["removed"] == [{"id": "t", "removed_at": NOW, "callback_count": 0}]
    job = ledger.jobs()["remove/t"]
    assert (job["state"], job["args"], args_problem(job["kind"], job["args"])) == (
        "ready",
        {"paths": ["t/0.png"]},
        None,
    )
    for table in tables:
        kept = [row for row in before[table] if not is_of(row)]
        assert [row for row in after[table] if row.get("unique_key") != "remove/t"] == kept, table
    assert ledger.committed.task_ids == frozenset({"t"})
    assert ledger.committed.next_due_at == NOW
    assert ledger.change(startup.repair) == 0


def is_of(row: Row) -> bool:
    """Whether a row belongs to the task `t`."""
    own = hook_records.task_hook_name("t")
    return bool({"t", own} & {row.get(name) for name in ("id", "task_id", "hook_name", "name")})


def test_only_a_task_that_is_done_and_rests_is_removed(ledger: Ledger) -> None:
    """Not one that is open, has a file to store, or has a job that runs; nothing changes then."""
    assert ledger.change(lambda tx: remove_task(tx, "t")) == "unknown"
    ledger.register()
    assert ledger.change(lambda tx: remove_task(tx, "t")) == "unfinished"
    ledger.apply_report("t", says("succeed", FILE, f"{FILE}1"))
    ledger.store()
    assert ledger.change(lambda tx: remove_task(tx, "t")) == "unfinished"
    ledger.fail(1)
    for key in ("ask/t", "sweep/t", "create/t", "overdue/t", "download/t/0", "download/t/1"):
        if key not in ledger.jobs():
            ledger.put_job(key)
        ledger.run_job(key)
        before = everything(ledger)
        assert ledger.change(lambda tx: remove_task(tx, "t")) == "in_use"
        assert everything(ledger) == before
        ledger.kill_job(key)
    with ledger.database.write() as connection:
        row = {"task_id": "t", "state": "sending", "rank": 0, "model": "", "slots": 1, "attempt": "", "size": 1}
        connection.execute(insert(SUBMISSION), {**row, "body": b"{}", "created_at": NOW})
    assert ledger.change(lambda tx: remove_task(tx, "t")) == "in_use"
    with ledger.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM submission")
    assert ledger.change(lambda tx: remove_task(tx, "t")) == "removed"
    assert ledger.change(lambda tx: remove_task(tx, "t")) == "unknown"


def test_what_the_same_commit_knows_of_a_task_goes_with_it(ledger: Ledger) -> None:
    """Its last events and jobs were collected, and not written yet."""

    def change(tx: Any) -> str:
        ingest.ingest(tx, [callback("t", "failed", signed=True)])
        transitions.apply_report(tx, tx.require_task("t"), says("failed"))
        tx.count_repeat("t", "ab")
        return remove_task(tx, "t")

    assert ledger.change(change) == "removed"
    assert mentions(everything(ledger), "t") == ["job", "removed"]
    assert ledger.jobs().keys() == {"remove/t"}


def test_a_late_callback_is_counted_and_makes_no_task(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """Also among others in one commit; the first one is logged."""
    done(ledger)
    ledger.change(lambda tx: remove_task(tx, "t"))
    before = everything(ledger)
    with caplog.at_level(logging.WARNING, "kling_receiver.ingest"):
        ledger.record(callback("t", "succeed", n=1))
        ledger.record(
            callback("t", "succeed", n=2), callback("u"), callback("t", None), callback("t", "failed", signed=True)
        )
    assert ledger.rows(REMOVED) == [{"id": "t", "removed_at": NOW, "callback_count": 4}]
    assert mentions(everything(ledger), "t") == ["job", "removed"]
    assert ledger.task("u")["callback_count"] == 1
    assert len(everything(ledger)["event"]) == len(before["event"]) + len(ledger.events("u"))
    assert [record.getMessage() for record in caplog.records] == [
        "Task t was removed on 2026-09-21 at 14:13 UTC. A callback of it has arrived; it is counted, but not stored"
    ]


@pytest.mark.parametrize("outcome", [None, "created", "not_created", "unknown"])
def test_the_id_of_a_removed_task_is_not_used_again(ledger: Ledger, outcome: Any) -> None:
    """A registration is refused with the reason, before the create and after it: nobody pays for the id twice."""
    done(ledger)
    ledger.change(lambda tx: remove_task(tx, "t"))
    before = everything(ledger)
    answer = ledger.register("t", outcome=outcome, create_token="b", kling_id="k", hook="https://example.com/own")
    assert (answer.created, answer.may_create) == (False, False)
    assert answer.conflict == "Task t was removed on 2026-09-21 at 14:13 UTC. Its id is not used again."
    assert everything(ledger) == before


def test_an_adopted_task_has_an_id_of_its_own(ledger: Ledger) -> None:
    """Kling names the removed task's id: late callbacks of that one are not for this task."""
    done(ledger)
    ledger.change(lambda tx: remove_task(tx, "t"))
    report = says("succeed", FILE, external_task_id="t")
    adopted = ledger.change(lambda tx: adoption.adopt(tx, "images/generations", "k", report))
    assert adopted.created
    assert adopted.task_id != "t"
    assert ledger.task(adopted.task_id)["external_task_id"] == "t"


def test_the_end_of_the_log_stays(ledger: Ledger, storage: LocalStorage) -> None:
    """The newest events are gone: cursors are valid, the database is no restored one, ids are not used again."""
    done(ledger)
    with ledger.database.read() as connection:
        before = event_log.newest(connection)
    assert claim(ledger.database, storage.owner).last_event == before.event_id
    ledger.change(lambda tx: remove_task(tx, "t"))
    with ledger.database.read() as connection:
        assert event_log.newest(connection).event_id == before.event_id
        assert event_log.locate(connection, before) == "known"
    assert claim(ledger.database, storage.owner).log_id == before.log_id
    ledger.record(callback("u"))
    assert min(event["id"] for event in ledger.events("u")) > before.event_id
    with ledger.database.read() as connection:
        assert event_log.newest(connection).event_id == ledger.events("u")[-1]["id"]
    ledger.apply_report("u", says("failed"))
    ledger.put_task("old", status="failed", origin="kling", done=True)
    ledger.change(lambda tx: remove_task(tx, "old"))
    with ledger.database.read() as connection:
        assert event_log.newest(connection).at is not None


def test_an_attempt_that_ends_after_the_removal_leaves_no_row(ledger: Ledger) -> None:
    """Neither a record nor a retry; that the hook failed is noted."""
    done(ledger)
    event_id = ledger.events()[0]["id"]
    ledger.change(lambda tx: remove_task(tx, "t"))
    before = everything(ledger)
    ledger.now += 1000
    attempt(ledger, "all", event_id, "t")
    after = everything(ledger)
    assert after.pop("hook")[0]["failing_since"] == NOW + 1000
    del before["hook"]
    assert after == before


def claim_removal(ledger: Ledger) -> ClaimedJob:
    """The claimed job that removes the files of `t`."""
    jobs = ledger.change(lambda tx: queue.claim_due(tx, Capacity(9), claim_id="c", lease_ms=1000))
    return next(job for job in jobs if job.kind == "remove")


async def test_the_files_go_after_the_rows(ledger: Ledger, storage: LocalStorage) -> None:
    """Also other versions of them, and again after a kill; the files of other tasks stay."""
    done(ledger)
    for name in ("t/0.png", f"t/0-{'ab' * 32}.png", "u/0.png"):
        storage.path(name).parent.mkdir(exist_ok=True)
        storage.path(name).write_bytes(b"PNG")
    ledger.change(lambda tx: remove_task(tx, "t"))
    assert storage.path("t/0.png").exists()
    job = claim_removal(ledger)
    for _ in range(2):  # killed after the files were removed, before that was committed
        effect = await FileRemover(storage).remove(job)
        assert not storage.path("t").exists()
    assert storage.path("u/0.png").read_bytes() == b"PNG"
    assert ledger.change(lambda tx: queue.settle(tx, job, effect))
    assert "remove/t" not in ledger.jobs()


async def test_files_of_earlier_names_go_too(ledger: Ledger, storage: LocalStorage) -> None:
    """A row may name a file in another folder; what else is there stays. A foreign folder inside is not entered."""
    task = "Order:1"
    assert task_folder(task) == file_name(task, 0, "png").partition("/")[0] != task
    for name in ("old/0.png", "old/1.png", f"{task_folder(task)}/1.png", f"{task_folder(task)}/deep/x.png"):
        storage.path(name).parent.mkdir(exist_ok=True, parents=True)
        storage.path(name).write_bytes(b"PNG")
    storage.remove(task_folder(task), ["old/0.png", "old/gone.png"])
    left = sorted(str(path.relative_to(storage.root)) for path in storage.root.rglob("*.png"))
    assert left == sorted(["old/1.png", f"{task_folder(task)}/deep/x.png"])
    outside = storage.root.parent / "passwd"
    outside.write_text("root")
    storage.remove("t", ["../passwd"])
    assert outside.exists()


def replace_folder(storage: LocalStorage) -> None:
    """Another folder is at its place: the volume is not mounted."""
    storage.root.rename(storage.root.with_name("elsewhere"))
    (storage.root / "t").mkdir(parents=True)
    (storage.root / "t" / "0.png").write_bytes(b"another")


@pytest.mark.parametrize("breaks", [replace_folder, lambda storage: shutil.rmtree(storage.root)])
async def test_a_storage_that_fails_is_tried_again_without_end(
    ledger: Ledger, storage: LocalStorage, breaks: Callable[[LocalStorage], None]
) -> None:
    """The folder is gone or another: nothing is removed there, and the job stays."""
    done(ledger)
    ledger.change(lambda tx: remove_task(tx, "t"))
    job = claim_removal(ledger)
    breaks(storage)
    left = sorted(storage.root.rglob("*"))
    for attempts in (1, 99):
        claimed = ClaimedJob(**{**{name: getattr(job, name) for name in job.__slots__}, "attempts": attempts})
        effect = await FileRemover(storage).remove(claimed)
        outcome = ledger.change(effect)
        assert isinstance(outcome, RetryAt)
        assert outcome.due_at > NOW
    assert sorted(storage.root.rglob("*")) == left


async def test_a_task_without_files_needs_no_folder(ledger: Ledger, storage: LocalStorage) -> None:
    """One that failed."""
    ledger.put_task(status="failed", origin="kling", done=True)
    ledger.change(lambda tx: remove_task(tx, "t"))
    effect = await FileRemover(storage).remove(claim_removal(ledger))
    with ledger.transaction() as tx:
        assert effect(tx) == Done()

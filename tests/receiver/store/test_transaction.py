"""The unit of work: what is collected, and the rows after its commit."""

import threading

import pytest
from sqlalchemy import text

from kling_receiver.hooks import records as hook_records
from kling_receiver.jobs import enqueue
from kling_receiver.jobs.kinds import Kind, Pool
from kling_receiver.policy import Policy
from kling_receiver.store.database import Database
from kling_receiver.store.tables import EVENT, HOOK, JOB, TASK
from kling_receiver.store.transaction import CommitResult, Transaction
from tests.support.database import FAMILY, NOW, Ledger


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """A ledger that knows one task, `t`."""
    ledger = Ledger(database)
    ledger.put_task()
    return ledger


def test_an_empty_transaction_has_no_effects(ledger: Ledger) -> None:
    """It wakes no waiter."""
    ledger.change(lambda tx: None)
    assert ledger.committed == CommitResult(frozenset(), None)


def test_a_task_is_read_once(ledger: Ledger) -> None:
    """All that share a transaction change the same row; one that is not there is none."""
    with ledger.transaction() as tx:
        assert tx.require_task("t") is tx.task("t")
        assert tx.task("nobody") is None
        with pytest.raises(AssertionError, match="nobody"):
            tx.require_task("nobody")


def test_a_new_task_needs_an_id_and_a_family_only(database: Database) -> None:
    """The rest is as if nothing were known of it."""
    ledger = Ledger(database)
    ledger.change(lambda tx: tx.add_tasks([]))
    ledger.change(lambda tx: tx.add_tasks([{"id": "t", "family": FAMILY}, {"id": "u", "family": "videos/effects"}]))
    task = ledger.task()
    assert (task["status"], task["origin"], task["outcome"], task["done"]) == ("created", None, "none", False)
    assert (task["created_at"], task["updated_at"]) == (NOW, NOW)
    assert ledger.task("u")["family"] == "videos/effects"


def test_a_new_task_may_be_changed_before_and_after_its_row_is_written(database: Database) -> None:
    """Rows that belong to it need it early; what changes later is not lost."""
    ledger = Ledger(database)

    def change(tx: Transaction) -> None:
        tx.add_tasks([{"id": "t", "family": FAMILY}])
        tx.update_task(tx.require_task("t"), status_msg="before")
        tx.flush_new_tasks()
        tx.update_task(tx.require_task("t"), callback_count=3)

    ledger.change(change)
    assert (ledger.task()["status_msg"], ledger.task()["callback_count"]) == ("before", 3)


def test_a_change_says_when(ledger: Ledger) -> None:
    """Several changes of a task are one row, with the time of the last."""
    ledger.now += 5

    def change(tx: Transaction) -> None:
        tx.update_task(tx.require_task("t"), status_msg="one", callback_count=1)
        tx.update_task(tx.require_task("t"), status_msg="two")

    ledger.change(change)
    task = ledger.task()
    assert (task["status_msg"], task["callback_count"], task["updated_at"]) == ("two", 1, NOW + 5)
    assert task["created_at"] == NOW


def test_tasks_change_each_in_its_own_columns(ledger: Ledger) -> None:
    """In one commit, and nothing else of them."""
    ledger.put_task("u", status_msg="kept")

    def change(tx: Transaction) -> None:
        tx.load(["t", "u"])
        tx.update_task(tx.tasks["t"], callback_count=1, status_msg="new")
        tx.update_task(tx.tasks["u"], callback_count=2)

    ledger.change(change)
    assert [(task["callback_count"], task["status_msg"]) for task in ledger.rows(TASK)] == [(1, "new"), (2, "kept")]


def test_events_stand_in_the_order_in_which_they_happened(ledger: Ledger) -> None:
    """Also those of one commit."""
    types = [f"type {n}" for n in range(50)]
    ledger.log(*types)
    assert ledger.types() == types
    assert ledger.committed == CommitResult(frozenset({"t"}), None, dict.fromkeys(types, 1))


def test_repeats_are_counted(ledger: Ledger) -> None:
    """Those of a callback in the same commit as well as of one from before."""

    def first(tx: Transaction) -> None:
        tx.add_event("t", "callback.received", body_sha256="d", body=b"\0")
        tx.count_repeat("t", "d")
        tx.count_repeat("t", "d")

    ledger.change(first)
    ledger.change(lambda tx: tx.count_repeat("t", "d"))
    (event,) = ledger.events()
    assert (event["repeat_count"], event["body"]) == (3, b"\0")
    assert ledger.committed.task_ids == frozenset()


def enqueue_ask(tx: Transaction, *dues: int) -> None:
    """Enqueue a query, now or at each of these times."""
    for due in dues or [None]:
        tx.enqueue(
            Kind.ASK,
            "t",
            unique_key="ask/t",
            pool=Pool.KLING,
            concurrency_key="kling",
            due_at=due,
            args={"n": 1},
        )


def test_a_unique_key_has_one_job(ledger: Ledger) -> None:
    """The earlier of two times counts, in either order, in one commit or in two."""
    ledger.change(lambda tx: enqueue_ask(tx, NOW + 50, NOW + 30, NOW + 40))
    assert ledger.committed == CommitResult(frozenset(), NOW + 30)
    assert ledger.jobs()["ask/t"]["due_at"] == NOW + 30
    ledger.change(lambda tx: enqueue_ask(tx, NOW + 99))
    assert ledger.jobs()["ask/t"]["due_at"] == NOW + 30
    ledger.change(enqueue_ask)
    job = ledger.jobs()["ask/t"]
    assert (job["due_at"], job["state"], job["attempts"], job["args"]) == (NOW, "ready", 0, {"n": 1})
    assert ledger.committed == CommitResult(frozenset(), NOW)


def test_a_running_job_is_left_to_its_worker(ledger: Ledger) -> None:
    """Neither enqueueing nor cancelling it takes the claim away."""
    ledger.change(lambda tx: enqueue_ask(tx, NOW))
    ledger.run_job("ask/t")
    ledger.change(enqueue_ask)
    ledger.change(lambda tx: tx.cancel_job("ask/t"))
    ledger.change(lambda tx: tx.run_now("ask/t"))
    job = ledger.jobs()["ask/t"]
    assert (job["state"], job["claim_id"], job["due_at"]) == ("running", "c", NOW)


def test_a_dead_job_that_is_enqueued_again_starts_over(ledger: Ledger) -> None:
    """At the new time, even if that is later, and with all its attempts."""
    ledger.put_job(due_at=NOW - 9)
    ledger.kill_job("ask/t")
    ledger.change(lambda tx: enqueue_ask(tx, NOW + 7))
    job = ledger.jobs()["ask/t"]
    assert (job["state"], job["due_at"], job["attempts"]) == ("ready", NOW + 7, 0)


def test_a_job_can_be_cancelled(ledger: Ledger) -> None:
    """Whether it is ready or dead; within one commit the last call counts."""
    for last, left in ((enqueue_ask, ["ask/t"]), (lambda tx: tx.cancel_job("ask/t"), [])):
        ledger.change(lambda tx: tx.cancel_job("ask/t"))

        def change(tx: Transaction, last: object = last) -> None:
            tx.cancel_job("ask/t")
            enqueue_ask(tx)
            last(tx)  # type: ignore[operator]  # one of the two above

        ledger.change(change)
        assert list(ledger.jobs()) == left
    ledger.put_job()
    ledger.kill_job("ask/t")
    ledger.change(lambda tx: tx.cancel_job("ask/t"))
    assert ledger.jobs() == {}


def test_a_waiting_job_can_be_run_now(ledger: Ledger) -> None:
    """A job that is due, dead or missing is not changed."""
    ledger.change(lambda tx: tx.run_now("ask/t"))
    assert ledger.jobs() == {}
    ledger.change(lambda tx: enqueue_ask(tx, NOW + 50))
    ledger.change(lambda tx: tx.run_now("ask/t"))
    assert ledger.jobs()["ask/t"]["due_at"] == NOW
    ledger.now += 10
    ledger.change(lambda tx: tx.run_now("ask/t"))
    assert ledger.jobs()["ask/t"]["due_at"] == NOW
    assert ledger.committed.next_due_at == ledger.now


def test_events_enqueue_one_dispatch_for_each_hook(ledger: Ledger) -> None:
    """Due now, however many events there are; without a hook, there is no job."""
    ledger.log("before")
    assert ledger.jobs() == {}
    ledger.put_hook("one")
    ledger.put_hook("two")
    ledger.log("one", "two")
    assert ledger.committed == CommitResult(frozenset({"t"}), NOW, {"one": 1, "two": 1})
    ledger.log("three")
    assert ledger.committed.next_due_at is None  # whoever takes the job sees that event too
    jobs = ledger.jobs()
    assert sorted(jobs) == ["dispatch/one", "dispatch/two"]
    assert {(job["kind"], job["task_id"], job["state"], job["due_at"]) for job in jobs.values()} == {
        ("dispatch", "", "ready", NOW)
    }
    assert {row["name"]: row["cursor"] for row in ledger.rows(HOOK)} == {"one": 1, "two": 1}


def test_hooks_without_a_new_dispatch(ledger: Ledger) -> None:
    """A paused hook, and that of another task; a running dispatch and one that backs off are not changed."""
    for name in ("paused", "running", "dead", "late"):
        ledger.put_hook(name)
    ledger.change(lambda tx: hook_records.add_for_task(tx, "u", "https://example.com/"))
    ledger.log("one")
    ledger.change(lambda tx: hook_records.pause(tx, "paused", "for a test"))
    with ledger.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM job WHERE unique_key IN ('dispatch/paused', 'dispatch/task:u')")
        connection.exec_driver_sql(f"UPDATE job SET due_at = {NOW + 9}")
        connection.exec_driver_sql("UPDATE job SET error = 'dead' WHERE unique_key = 'dispatch/dead'")
    ledger.run_job("dispatch/running")
    before = ledger.jobs()
    ledger.log("two")
    after = ledger.jobs()
    assert sorted(after) == ["dispatch/dead", "dispatch/late", "dispatch/running"]
    assert [key for key in after if after[key] != before[key]] == ["dispatch/late"]
    assert after["dispatch/late"]["due_at"] == NOW
    ledger.put_task("u")
    ledger.change(lambda tx: tx.add_event("u", "one"))
    assert "dispatch/task:u" in ledger.jobs()


def test_a_failed_transaction_leaves_no_rows(ledger: Ledger) -> None:
    """Neither the task, nor the event, nor the job."""

    def change(tx: Transaction) -> None:
        tx.add_tasks([{"id": "u", "family": FAMILY}])
        tx.add_event("u", "task.created")
        enqueue_ask(tx)
        tx.flush()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ledger.change(change)
    assert [task["id"] for task in ledger.rows(TASK)] == ["t"]
    assert ledger.rows(EVENT) == ledger.rows(JOB) == []


@pytest.mark.parametrize(
    ("seconds", "family", "expected"),
    [
        (None, "images/generations", 180_000),
        (None, "videos/text2video", 1_200_000),
        (None, "/text-to-video/kling-3.0", 1_200_000),
        (2.5, "images/generations", 2_500),
        (2.5, "videos/text2video", 2_500),
    ],
)
def test_how_long_a_task_may_take(seconds: float | None, family: str, expected: int) -> None:
    """Images three minutes, all else twenty, or one number for all."""
    assert Policy(overdue_seconds=seconds).overdue_ms(family) == expected


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_event_ids_are_committed_in_order(database: Database, database_url: str) -> None:
    """Who would get a later id waits for the commit of who has the earlier: no reader's cursor skips one."""
    ledger, other = Ledger(database), Database(database_url)
    ledger.put_task()
    order: list[str] = []

    def write() -> None:
        Ledger(other).change(lambda tx: tx.add_event("t", "second"))
        order.append("second")

    thread = threading.Thread(target=write)
    with database.write() as connection:
        tx = Transaction(connection, database, NOW)
        tx.add_event("t", "first")
        tx.flush()
        thread.start()
        _wait_for_a_lock(database, "advisory")
        assert ledger.types() == []
        order.append("first")
    thread.join(20)
    assert order == ledger.types() == ["first", "second"]
    other.close()


def _wait_for_a_lock(database: Database, kind: str) -> None:
    """Until somebody waits for a lock of this kind."""
    query = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = :kind")
    waits = 0
    while not waits:
        with database.read() as connection:
            waits = connection.execute(query, {"kind": kind}).scalar() or 0


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_writers_of_the_same_tasks_do_not_deadlock(database: Database, database_url: str) -> None:
    """In opposite orders: rows are locked in one order."""
    ledger, other = Ledger(database), Database(database_url)
    names = [f"t{n}" for n in range(20)]
    for name in names:
        ledger.put_task(name)
    barrier, failures = threading.Barrier(2), []

    def write(database: Database, order: list[str]) -> None:
        try:
            for _ in range(25):
                barrier.wait(20)
                Ledger(database).change(lambda tx: _touch(tx, order))
        except Exception as error:  # told to the test's own thread
            failures.append(error)
            barrier.abort()

    threads = [
        threading.Thread(target=write, args=(database, names)),
        threading.Thread(target=write, args=(other, names[::-1])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert {task["callback_count"] for task in ledger.rows(TASK)} == {50}
    assert len(ledger.rows(EVENT)) == 1000
    other.close()


def _touch(tx: Transaction, order: list[str]) -> None:
    tx.load(order)
    for name in order:
        tx.update_task(tx.tasks[name], callback_count=tx.tasks[name]["callback_count"] + 1)
        tx.add_event(name, "touched")
        enqueue.ask(tx, name)

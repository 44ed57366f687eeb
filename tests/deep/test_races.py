"""Races with real threads and processes, named by the loser and by what it must not do."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from secrets import token_hex
from typing import Any

from kling_receiver.jobs import queue
from kling_receiver.jobs.queue import Capacity, ClaimedJob, Done, Effect, Outcome
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.tables import EVENT, JOB
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import transitions
from kling_receiver.tasks.ingest import Callback
from kling_receiver.tasks.overdue import MAX_QUERIES_UNKNOWN
from kling_sandbox import Sandbox
from tests.support.database import FILE, Ledger, callback, handle, says
from tests.support.receiver import Start
from tests.support.rivals import Rivals
from tools.harness.submitting import finished, post, register, rows, submit

ROUNDS = 15
LEASE = 1000


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """What each action returns, when all begin at the same moment, each in a thread."""
    barrier = threading.Barrier(len(actions))

    def act(action: Callable[[], Any]) -> Any:
        barrier.wait(20)
        return action()

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(act, actions))


def each_round(race: Callable[[str], None]) -> None:
    """One race after another, each about a task of its own."""
    for n in range(ROUNDS):
        race(f"t{n}")


def claim(ledger: Ledger) -> list[ClaimedJob]:
    """Claim the due jobs."""
    return ledger.change(lambda tx: queue.claim_due(tx, Capacity(99), claim_id=token_hex(8), lease_ms=LEASE))


def settle(ledger: Ledger, job: ClaimedJob, effect: Effect) -> bool:
    """Effect a job. Returns whether the claim held."""
    return ledger.change(lambda tx: queue.settle(tx, job, effect))


def give_up(ledger: Ledger, job: ClaimedJob, task: TaskRow) -> bool:
    """Fail a task, as it was read, at its deadline, because Kling does not know it. Returns whether the claim held."""
    return settle(ledger, job, handle(job, task, None))


def ingest(ledger: Ledger, callback: Callback) -> None:
    """Ingest a callback."""
    ledger.record(callback)


def report(ledger: Ledger, task: str) -> None:
    """Report the create's answer, as a client does."""
    ledger.register(task, outcome="created", kling_id=f"k{task}")


def mark(ledger: Ledger, job: ClaimedJob) -> bool:
    """Effect with an effect that adds an event. Returns whether the claim held."""

    def marked(tx: Transaction) -> Outcome:
        tx.add_event(job.task_id, "marked")
        return Done()

    return settle(ledger, job, marked)


def fail(ledger: Ledger, job: ClaimedJob) -> bool:
    """Effect with Kling's status `failed`. Returns whether the claim held."""

    def apply(tx: Transaction) -> Outcome:
        transitions.apply_report(tx, tx.require_task(job.task_id), says("failed"))
        return Done()

    return settle(ledger, job, apply)


def rescue(ledger: Ledger) -> int:
    """Release the claims whose leases have expired. Returns how many."""
    return ledger.change(lambda tx: queue.rescue(tx, tx.now))


def overdue(ledger: Ledger, task: str) -> ClaimedJob:
    """The claimed last check of a task that Kling does not know."""
    ledger.put_task(task)
    ledger.put_job(f"overdue/{task}", kind="overdue", task_id=task, args={"queries": MAX_QUERIES_UNKNOWN})
    [job] = [job for job in claim(ledger) if job.task_id == task]
    return job


def claimed_job(ledger: Ledger, task: str) -> ClaimedJob:
    """A claimed job of a task."""
    ledger.put_task(task)
    ledger.put_job(task_id=task)
    (job,) = claim(ledger)
    return job


def test_concurrent_repeats_are_counted(start: Start, gateway: Sandbox, database_url: str) -> None:
    """Sixteen senders of one body at once, for an unknown task: one event, fifteen repeats."""
    running = start(api_base=gateway.url, database_url=database_url)

    def race(task: str) -> None:
        sent = at_once(*[lambda: post(running, task, {"task_status": "processing"})] * 16)
        assert [answer.status_code for answer in sent] == [200] * 16
        kept = rows(running, "SELECT repeat_count FROM event WHERE task_id = :t AND body_sha256 IS NOT NULL", t=task)
        assert kept == [{"repeat_count": 15}]
        [row] = rows(running, "SELECT status, callback_count FROM task WHERE id = :t", t=task)
        assert row == {"status": "processing", "callback_count": 16}

    for task in ("a", "b", "c"):
        race(task)


def test_concurrent_final_callbacks_cause_one_query(start: Start, gateway: Sandbox, database_url: str) -> None:
    """However many senders there are, each file is downloaded once."""
    running = start(api_base=gateway.url, database_url=database_url)
    task, theirs = submit(running, gateway, "no-callback")
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    at_once(*[lambda: post(running, task, {"task_id": theirs, "task_status": "succeed"})] * 16)
    done = finished(running, task)
    assert (done["status"], done["origin"]) == ("succeed", "kling")
    assert gateway.tasks[theirs].queries == 1
    assert len(gateway.downloads) == 1


def test_a_concurrent_repeat_adds_no_event(rivals: Rivals) -> None:
    """Whichever is first: one event, and one repeat of it."""

    def race(task: str) -> None:
        rivals.here.register(task)
        rivals.at_once(*[partial(ingest, callback=callback(task, "processing"))] * 2)
        [event] = [row for row in rivals.here.rows(EVENT, task_id=task) if row["body_sha256"]]
        assert event["repeat_count"] == 1
        row = rivals.here.task(task)
        assert (row["status"], row["callback_count"]) == ("processing", 2)

    each_round(race)


def test_a_deadline_that_loses_to_klings_status_fails_no_task(rivals: Rivals) -> None:
    """One that wins is replaced: after both, the status that Kling signed stands."""

    def race(task: str) -> None:
        job = overdue(rivals.here, task)
        signed = callback(task, "succeed", files=[FILE], signed=True)
        assert rivals.at_once(
            partial(give_up, job=job, task=rivals.here.task(task)), partial(ingest, callback=signed)
        ) == [
            True,
            None,
        ]
        row = rivals.here.task(task)
        assert (row["status"], row["origin"]) == ("succeed", "kling")
        assert f"overdue/{task}" not in rivals.here.jobs()

    each_round(race)


def test_a_callback_that_loses_to_the_deadline_causes_a_query(rivals: Rivals) -> None:
    """An unsigned callback reopens no task: either the task stays open, or Kling is queried."""

    def race(task: str) -> None:
        job = overdue(rivals.here, task)
        rivals.at_once(
            partial(give_up, job=job, task=rivals.here.task(task)),
            partial(ingest, callback=callback(task, "processing")),
        )
        row, jobs = rivals.here.task(task), rivals.here.jobs()
        if row["origin"] == "local":
            assert (row["status"], jobs[f"ask/{task}"]["state"]) == ("failed", "ready")
        else:
            assert (row["status"], jobs[f"overdue/{task}"]["state"]) == ("processing", "ready")

    each_round(race)


def test_a_creates_answer_that_loses_to_the_first_callback_changes_no_status(rivals: Rivals) -> None:
    """Whichever is first: the status is the later one, and Kling's id is known."""

    def race(task: str) -> None:
        rivals.here.register(task)
        rivals.at_once(partial(report, task=task), partial(ingest, callback=callback(task, "processing")))
        row = rivals.here.task(task)
        assert (row["status"], row["outcome"], row["kling_id"]) == ("processing", "created", f"k{task}")
        assert rivals.here.types(task).count("task.processing") == 1

    each_round(race)


def test_a_registration_that_loses_to_the_first_callback_may_not_create(
    start: Start, gateway: Sandbox, database_url: str
) -> None:
    """A callback shows that Kling has the task: after it, this attempt must not pay for another."""
    running = start(api_base=gateway.url, database_url=database_url)

    def race(task: str) -> None:
        registered, called = at_once(
            lambda: register(running, task, model="m"),
            lambda: post(running, task, {"task_status": "submitted"}),
        )
        assert called.status_code == 200
        assert registered.status_code in (200, 201)
        [row] = rows(running, "SELECT status, model, callback_count FROM task WHERE id = :t", t=task)
        assert row == {"status": "submitted", "model": "m", "callback_count": 1}
        first = rows(running, "SELECT data FROM event WHERE task_id = :t ORDER BY id LIMIT 1", t=task)[0]["data"]
        assert registered.json()["create"] == ("client" in str(first))

    each_round(race)


def test_a_worker_that_loses_to_the_rescuer_settles_nothing(rivals: Rivals) -> None:
    """At the end of its lease: either it settles and nothing is rescued, or it settles nothing."""
    here = rivals.here

    def race(task: str) -> None:
        job = claimed_job(here, task)
        here.now += LEASE
        held, rescued = rivals.at_once(partial(mark, job=job), rescue)
        assert (held, rescued) in ((True, 0), (False, 1))
        assert here.types(task) == ["marked"] * held
        assert [row["state"] for row in here.rows(JOB)] == ["ready"] * rescued
        here.change(lambda tx: tx.cancel_job("ask/t"))

    each_round(race)


def test_a_worker_that_claims_second_gets_the_other_jobs(rivals: Rivals) -> None:
    """However many jobs are due, each is claimed by one of the two."""
    here, due = rivals.here, 8

    def race(task: str) -> None:
        here.put_task(task)
        for n in range(due):
            here.put_job(f"ask/{task}/{n}", task_id=task)
        one, other = rivals.at_once(claim, claim)
        claimed = [job.unique_key for job in one + other]
        assert sorted(claimed) == sorted(set(claimed)) == [f"ask/{task}/{n}" for n in range(due)]
        assert {job.unique_key: job.claim_id for job in one + other} == {
            key: row["claim_id"] for key, row in here.jobs().items() if row["task_id"] == task
        }

    each_round(race)


def test_a_worker_that_settles_second_settles_nothing(rivals: Rivals) -> None:
    """Of two workers with one claim, one effect is applied."""

    def race(task: str) -> None:
        job = claimed_job(rivals.here, task)
        held = rivals.at_once(partial(fail, job=job), partial(fail, job=job))
        assert sorted(held) == [False, True]
        assert rivals.here.types(task) == ["task.failed", "task.done"]

    each_round(race)

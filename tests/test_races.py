"""Races with real threads, each on a connection of its own: named by the loser, and by what it must not do."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from secrets import token_hex
from typing import Any

import pytest
from gateway import Sandbox

from receiver import belief, outbox, recover
from receiver.database import Database
from receiver.outbox import Busy, Claimed, Done, Outcome
from receiver.transaction import JOB, Transaction
from tests.conftest import Start
from tests.ledger import FILE, Ledger, callback, says
from tests.submitting import finished, post, register, rows, submit

ROUNDS = 15
LEASE = 1000
Side = tuple[Ledger, Ledger]


@pytest.fixture
def sides(database: Database, database_url: str) -> Iterator[Side]:
    """One database, twice: as two processes would have it."""
    other = Database(database_url)
    yield Ledger(database), Ledger(other)
    other.close()


def at_once(*actions: Callable[[], Any]) -> list[Any]:
    """What each action returns, when all begin at the same moment, each in a thread."""
    barrier = threading.Barrier(len(actions))

    def act(action: Callable[[], Any]) -> Any:
        barrier.wait(20)
        return action()

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(act, actions))


def claim(ledger: Ledger) -> list[Claimed]:
    """Claim what is due."""
    return ledger.change(lambda tx: outbox.claim_due(tx, Busy(99, 99), name=token_hex(8), lease_ms=LEASE))


def settled(ledger: Ledger, job: Claimed, verdict: Callable[[Transaction], Outcome]) -> bool:
    """Settle a job; whether the claim still held."""
    return ledger.change(lambda tx: outbox.settle(tx, job, verdict))


def each_round(race: Callable[[str], None]) -> None:
    """One race after another, each about a task of its own."""
    for n in range(ROUNDS):
        race(f"t{n}")


def overdue(ledger: Ledger, task: str) -> Claimed:
    """The claimed last look at a task of which Kling knows nothing."""
    ledger.put_task(task)
    ledger.put_job(f"overdue/{task}", kind="overdue", task=task, data={"looks": recover.LOOKS_AT_NOTHING})
    [job] = [job for job in claim(ledger) if job.task == task]
    return job


def test_a_repeat_that_comes_beside_the_first_is_counted(
    start: Start, gateway: Sandbox, database_url: str
) -> None:
    """Sixteen senders of one body at once, before anybody knows the task: one event, fifteen repeats."""
    running = start(api_base=gateway.url, database_url=database_url)

    def race(task: str) -> None:
        sent = at_once(*[lambda: post(running, task, {"task_status": "processing"})] * 16)
        assert [answer.status_code for answer in sent] == [200] * 16
        kept = rows(running, "SELECT repeats FROM event WHERE task = :t AND digest IS NOT NULL", t=task)
        assert kept == [{"repeats": 15}]
        [row] = rows(running, "SELECT status, callbacks FROM task WHERE id = :t", t=task)
        assert row == {"status": "processing", "callbacks": 16}

    for task in ("a", "b", "c"):
        race(task)


def test_a_repeat_of_the_end_is_not_asked_about_twice(
    start: Start, gateway: Sandbox, database_url: str
) -> None:
    """However many senders bring it, Kling is asked once, and each file is fetched once."""
    running = start(api_base=gateway.url, database_url=database_url)
    task, theirs = submit(running, gateway, "no-callback")
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    at_once(*[lambda: post(running, task, {"task_id": theirs, "task_status": "succeed"})] * 16)
    done = finished(running, task)
    assert (done["status"], done["origin"]) == ("succeed", "kling")
    assert gateway.tasks[theirs].queries == 1
    assert len(gateway.downloads) == 1


def test_a_deadline_that_loses_to_klings_word_ends_nothing(sides: Side) -> None:
    """And one that wins gives way to it: after both, what Kling signed stands."""
    here, there = sides

    def race(task: str) -> None:
        job = overdue(here, task)
        word = callback(task, "succeed", files=[FILE], signed=True)
        assert at_once(
            lambda: settled(there, job, lambda tx: recover._answered(tx, job, None)), lambda: here.record(word)
        ) == [True, None]
        row = here.task(task)
        assert (row["status"], row["origin"]) == ("succeed", "kling")
        assert f"overdue/{task}" not in here.jobs()

    each_round(race)


def test_a_callback_that_loses_to_the_deadline_is_asked_about(sides: Side) -> None:
    """A bare callback overturns no end, but nobody forgets it: either the task lives, or Kling is asked."""
    here, there = sides

    def race(task: str) -> None:
        job = overdue(here, task)
        at_once(
            lambda: settled(there, job, lambda tx: recover._answered(tx, job, None)),
            lambda: here.record(callback(task, "processing")),
        )
        row, owed = here.task(task), here.jobs()
        if row["origin"] == "local":
            assert (row["status"], owed[f"ask/{task}"]["state"]) == ("failed", "ready")
        else:
            assert (row["status"], owed[f"overdue/{task}"]["state"]) == ("processing", "ready")

    each_round(race)


def test_a_creates_answer_that_loses_to_the_first_callback_takes_nothing_back(sides: Side) -> None:
    """Whichever is first: the status is the further one, and Kling's id is known."""
    here, there = sides

    def race(task: str) -> None:
        here.register(task)
        at_once(
            lambda: there.register(task, outcome="created", task_id=f"k{task}"),
            lambda: here.record(callback(task, "processing")),
        )
        row = here.task(task)
        assert (row["status"], row["outcome"], row["task_id"]) == ("processing", "created", f"k{task}")
        assert here.types(task).count("task.processing") == 1

    each_round(race)


def test_a_registration_that_loses_to_the_first_callback_may_not_create(
    start: Start, gateway: Sandbox, database_url: str
) -> None:
    """A callback shows that Kling has the task: if it is there first, this attempt must not pay for another."""
    running = start(api_base=gateway.url, database_url=database_url)

    def race(task: str) -> None:
        registered, called = at_once(
            lambda: register(running, task, model="m"),
            lambda: post(running, task, {"task_status": "submitted"}),
        )
        assert called.status_code == 200
        assert registered.status_code in (200, 201)
        [row] = rows(running, "SELECT status, model, callbacks FROM task WHERE id = :t", t=task)
        assert row == {"status": "submitted", "model": "m", "callbacks": 1}
        first = rows(running, "SELECT data FROM event WHERE task = :t ORDER BY id LIMIT 1", t=task)[0]["data"]
        assert registered.json()["create"] == ("client" in str(first))

    each_round(race)


def test_a_worker_that_loses_to_the_rescuer_settles_nothing(sides: Side) -> None:
    """At the end of its lease: either it settles and nothing is rescued, or it settles nothing."""
    here, there = sides

    def race(task: str) -> None:
        here.put_task(task)
        here.put_job(task=task)
        (job,) = claim(here)
        here.now = there.now = here.now + LEASE

        def mark(tx: Transaction) -> Outcome:
            tx.log(task, "marked")
            return Done()

        held, rescued = at_once(
            lambda: settled(here, job, mark), lambda: there.change(lambda tx: outbox.rescue(tx, tx.now))
        )
        assert (held, rescued) in ((True, 0), (False, 1))
        assert here.types(task) == ["marked"] * held
        assert [row["state"] for row in here.rows(JOB)] == ["ready"] * rescued
        here.change(lambda tx: tx.forget("ask/t"))

    each_round(race)


def test_a_worker_that_settles_second_settles_nothing(sides: Side) -> None:
    """Of two that think they hold one job, one verdict is applied."""
    here, there = sides

    def race(task: str) -> None:
        here.put_task(task)
        here.put_job(task=task)
        (job,) = claim(here)

        def believe(tx: Transaction) -> Outcome:
            belief.believe(tx, tx.known(task), says("failed"))
            return Done()

        held = at_once(lambda: settled(here, job, believe), lambda: settled(there, job, believe))
        assert sorted(held) == [False, True]
        assert here.types(task) == ["task.failed", "task.done"]

    each_round(race)

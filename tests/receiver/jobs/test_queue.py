"""The job queue: claims, leases, settlements, and what the loser of each race must not do."""

import itertools
import statistics
import threading
from collections import Counter
from dataclasses import replace

import pytest
from sqlalchemy import text

from kling_receiver.jobs import enqueue, queue
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.kinds import Kind, Pool, hook_pool
from kling_receiver.jobs.queue import NEVER, Capacity, ClaimedJob, Done, GiveUp, Outcome, RetryAt, settle_as
from kling_receiver.store.database import Database
from kling_receiver.store.tables import JOB
from kling_receiver.store.transaction import Transaction
from tests.support.database import NOW, Ledger

LEASE = 1000


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """A ledger with one task, and no jobs yet."""
    ledger = Ledger(database)
    ledger.put_task()
    return ledger


NAMES = itertools.count()


def claim(ledger: Ledger, capacity: Capacity | None = None, *, room: int = 9) -> list[ClaimedJob]:
    """Claim the due jobs; `room`: jobs with one key, unless `capacity` is given."""
    return ledger.change(
        lambda tx: queue.claim_due(tx, capacity or Capacity(room), claim_id=f"claim {next(NAMES)}", lease_ms=LEASE)
    )


def settle(ledger: Ledger, job: ClaimedJob, outcome: Outcome) -> bool:
    """Effect with an effect that also marks the task."""

    def decide(tx: Transaction) -> Outcome:
        tx.update_task(tx.require_task("t"), status_msg="marked")
        tx.add_event("t", "marked")
        return outcome

    return ledger.change(lambda tx: queue.settle(tx, job, decide))


def rescue(ledger: Ledger, until: int | None = None) -> int:
    """Release the jobs whose leases have expired."""
    return ledger.change(lambda tx: queue.rescue(tx, ledger.now if until is None else until))


def test_retries_to_dead_hosts_leave_capacity_for_first_deliveries_of_hooks_of_single_tasks() -> None:
    """Each kind of job has a pool of its own, also for hooks that clients choose."""
    capacity = Capacity(per_key=16)
    while capacity.reserve(f"hook {sum(capacity.pools.values()) // 16}", hook_pool(Kind.DELIVERY, "t")):
        pass
    assert capacity.exhausted["pools"] == ["task-hook-retries"]
    assert capacity.reserve("dispatch task good.example", hook_pool(Kind.DISPATCH, "t"))


def test_a_claim_is_counted_and_leased(ledger: Ledger) -> None:
    """In the row itself, before anything is done: a worker that dies leaves its trace."""
    ledger.put_job(args={"n": 1})
    (job,) = claim(ledger)
    row = ledger.jobs()["ask/t"]
    assert (row["state"], row["attempts"], row["lease_expires_at"]) == ("running", 1, NOW + LEASE)
    assert row["claim_id"] == job.claim_id
    assert (job.unique_key, job.kind, job.task_id, job.concurrency_key, job.args, job.attempts) == (
        *("ask/t", "ask", "t", "kling"),
        *({"n": 1}, 1),
    )


@pytest.mark.parametrize("outcome", [Done(), RetryAt(NOW + 1, "later"), GiveUp("never")])
def test_a_settled_job_says_whose_it_was(ledger: Ledger, outcome: Outcome) -> None:
    """Pages show the jobs of a task, and a job may change without an event."""
    ledger.put_job()
    (job,) = claim(ledger)
    assert not ledger.committed.worked_on
    ledger.change(lambda tx: queue.settle(tx, job, settle_as(outcome)))
    assert not ledger.committed.task_ids
    assert ledger.committed.worked_on == frozenset({"t"})


def test_what_is_not_due_is_not_claimed(ledger: Ledger) -> None:
    """Nor what runs already, nor what is dead."""
    ledger.put_job("later", due_at=NOW + 1)
    ledger.put_job("now", due_at=NOW)
    ledger.put_job("dead", state="dead")
    assert [job.unique_key for job in claim(ledger)] == ["now"]
    assert claim(ledger) == []
    ledger.now += 1
    assert [job.unique_key for job in claim(ledger)] == ["later"]


def test_the_lease_of_a_running_job_is_extended(ledger: Ledger) -> None:
    """From now on; a job that another claim has taken meanwhile keeps its lease."""
    ledger.put_job()
    (job,) = claim(ledger)
    ledger.now += 400
    lost = replace(job, claim_id="another claim")
    ledger.change(lambda tx: queue.renew_leases(tx, [lost], lease_ms=LEASE))
    assert ledger.jobs()["ask/t"]["lease_expires_at"] == NOW + LEASE
    ledger.change(lambda tx: queue.renew_leases(tx, [job], lease_ms=LEASE))
    assert ledger.jobs()["ask/t"]["lease_expires_at"] == NOW + 400 + LEASE


def test_an_unconfirmed_claim_is_released(ledger: Ledger) -> None:
    """As if it had not been made; other claims stay."""
    ledger.put_job("first")
    [first] = claim(ledger)
    ledger.put_job("second")
    before = ledger.jobs()
    [second] = claim(ledger)
    ledger.change(lambda tx: queue.release_claim(tx, second.claim_id))
    assert ledger.jobs() == before
    assert not settle(ledger, second, Done())
    assert settle(ledger, first, Done())


def test_the_job_that_is_due_first_is_claimed_first(ledger: Ledger) -> None:
    """As many as there is capacity for."""
    for n in (3, 1, 2):
        ledger.put_job(f"j{n}", due_at=NOW - 10 + n)
    assert [job.unique_key for job in claim(ledger, room=2)] == ["j1", "j2"]
    assert [job.unique_key for job in claim(ledger, room=2)] == ["j3"]


def test_of_jobs_due_together_the_oldest_is_claimed_first(ledger: Ledger) -> None:
    """In the order in which they were enqueued, not in that of the table's pages."""
    for n in range(3):
        ledger.put_job(f"j{n}", due_at=NOW - (n > 0))
    with ledger.database.write() as connection:  # PostgreSQL puts a changed row behind the others
        connection.execute(JOB.update().where(JOB.c.unique_key == "j0").values(due_at=NOW - 1))
    assert [job.unique_key for job in claim(ledger)] == ["j0", "j1", "j2"]


def test_two_claims_of_a_job_have_different_names(ledger: Ledger) -> None:
    """Else the loser of one could pass for the winner of the next."""
    ledger.put_job()
    (first,) = claim(ledger)
    rescue(ledger, NOW + LEASE)
    (second,) = claim(ledger)
    assert first.claim_id != second.claim_id
    assert second.attempts == 1


def test_a_finished_job_is_deleted(ledger: Ledger) -> None:
    """And its effect is applied."""
    ledger.put_job()
    (job,) = claim(ledger)
    assert settle(ledger, job, Done())
    assert ledger.jobs() == {}
    assert (ledger.task()["status_msg"], ledger.types()) == ("marked", ["marked"])


def test_a_retried_job_waits(ledger: Ledger) -> None:
    """Until its time, with the error, its arguments, and its attempts counted."""
    ledger.put_job(args={"n": 1})
    (job,) = claim(ledger)
    assert settle(ledger, job, RetryAt(NOW + 7, "x" * 900))
    row = ledger.jobs()["ask/t"]
    assert (row["state"], row["due_at"], row["attempts"], row["claim_id"]) == ("ready", NOW + 7, 1, None)
    assert (row["delay_ms"], row["error"]) == (7, "x" * queue.MAX_ERROR_CHARS)
    ledger.now += 7
    (job,) = claim(ledger)
    assert (job.attempts, job.args) == (2, {"n": 1})
    assert settle(ledger, job, RetryAt(NOW, "late"))
    assert ledger.jobs()["ask/t"]["delay_ms"] == 0


def test_a_job_that_is_given_up_is_a_dead_letter(ledger: Ledger) -> None:
    """With the error; enqueueing it again gives it all its attempts."""
    ledger.put_job()
    (job,) = claim(ledger)
    assert settle(ledger, job, GiveUp("no use"))
    row = ledger.jobs()["ask/t"]
    assert (row["state"], row["error"], row["claim_id"]) == ("dead", "no use", None)
    assert claim(ledger) == []
    ledger.change(lambda tx: enqueue.ask(tx, "t"))
    assert claim(ledger)[0].attempts == 1


@pytest.mark.parametrize("outcome", [Done(), RetryAt(NOW, "again"), GiveUp("no use")])
@pytest.mark.parametrize("taken_over", [True, False])
def test_a_worker_that_lost_its_claim_settles_nothing(ledger: Ledger, outcome: Outcome, taken_over: bool) -> None:
    """Its effect changes neither the job nor the task."""
    ledger.put_job()
    (job,) = claim(ledger)
    ledger.now += LEASE
    assert rescue(ledger) == 1
    if taken_over:
        claim(ledger)
    before = ledger.jobs()
    assert not settle(ledger, job, outcome)
    assert ledger.jobs() == before
    assert (ledger.task()["status_msg"], ledger.types()) == ("", [])


def test_a_job_is_settled_once(ledger: Ledger) -> None:
    """Saying it again changes nothing."""
    ledger.put_job()
    (job,) = claim(ledger)
    assert ledger.change(lambda tx: queue.settle(tx, job, settle_as(RetryAt(NOW, ""))))
    assert not settle(ledger, job, Done())
    assert ledger.jobs()["ask/t"]["state"] == "ready"


def test_an_effect_that_fails_settles_nothing(ledger: Ledger) -> None:
    """The worker keeps the claim."""
    ledger.put_job()
    (job,) = claim(ledger)

    def fail(tx: Transaction) -> Outcome:
        tx.add_event("t", "marked")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ledger.change(lambda tx: queue.settle(tx, job, fail))
    assert ledger.types() == []
    assert settle(ledger, job, Done())


def test_one_dead_host_cannot_starve_the_rest(ledger: Ledger) -> None:
    """Its key has no capacity, and the jobs of others are claimed although they were due later."""
    for n in range(queue.MAX_SCANNED + 50):
        ledger.put_job(f"dead/{n}", concurrency_key="dead host", due_at=NOW - 1000 + n)
    ledger.put_job("good", concurrency_key="good host", due_at=NOW)
    capacity = Capacity(per_key=16)
    assert Counter(job.concurrency_key for job in claim(ledger, capacity)) == {"dead host": 16}
    assert [job.unique_key for job in claim(ledger, capacity)] == ["good"]


def test_many_dead_hosts_cannot_starve_other_pools(ledger: Ledger) -> None:
    """Downloads use all of their pool, and a query is claimed although it was due later."""
    for n in range(queue.MAX_SCANNED + 50):
        ledger.put_job(
            f"dead/{n}",
            kind="download",
            pool="downloads",
            concurrency_key=f"dead host {n}",
            due_at=NOW - 1000 + n,
        )
    ledger.put_job("good", kind="ask", due_at=NOW)
    capacity = Capacity(per_key=16)
    assert Counter(job.kind for job in claim(ledger, capacity)) == {"download": 48}
    assert [job.unique_key for job in claim(ledger, capacity)] == ["good"]


def test_running_jobs_use_the_capacity_of_their_key(ledger: Ledger) -> None:
    """Within one claim too."""
    for n in range(5):
        ledger.put_job(f"j{n}", concurrency_key="a")
    [first] = claim(ledger, room=1)
    capacity = Capacity.of([first, replace(first, concurrency_key="b")], per_key=3)
    assert len(claim(ledger, capacity)) == 2


def test_the_next_claim_is_at_the_next_due_time(ledger: Ledger) -> None:
    """Or when a lease expires; not for a key or pool without capacity."""

    def next_due(*full: str, pools: tuple[str, ...] = ()) -> int | None:
        one: dict[str, int] = dict.fromkeys(Pool, 1)
        capacity = Capacity(1, one, keys=Counter(full), pools=Counter(pools))
        return ledger.change(lambda tx: queue.next_due(tx, capacity))

    assert next_due() is None
    ledger.put_job("dead", state="dead")
    assert next_due() is None
    ledger.put_job("a", concurrency_key="a", due_at=NOW + 5)
    ledger.put_job("b", concurrency_key="b", due_at=NOW + 3)
    assert (next_due(), next_due("b"), next_due("a", "b")) == (NOW + 3, NOW + 5, None)
    assert (next_due(pools=("kling",)), next_due(pools=("hook-runs",))) == (None, NOW + 3)
    ledger.now += 3
    claim(ledger)
    assert (next_due("a"), next_due()) == (NOW + 3 + LEASE, NOW + 5)
    no_capacity = Capacity(1, keys=Counter("a"))
    assert ledger.change(lambda tx: queue.next_due(tx, no_capacity, leases=False)) is None


def test_the_order_does_not_depend_on_an_index(bare_database_url: str) -> None:
    """Without the index of due times, the job that is due first is still claimed first."""
    database = Database(bare_database_url)
    database.migrate()
    ledger = Ledger(database)
    with ledger.transaction() as tx:
        tx.connection.execute(text("DROP INDEX job_due"))
    for n in (7, 5, 6, 4):
        ledger.put_job(f"j{n}", due_at=NOW + n)
    capacity = Capacity(1)
    assert ledger.change(lambda tx: queue.next_due(tx, capacity)) == NOW + 4
    ledger.now += 9
    assert [job.unique_key for _ in range(4) for job in claim(ledger, Capacity(1))] == [
        "j4",
        "j5",
        "j6",
        "j7",
    ]
    database.close()


def test_a_dead_workers_job_is_rescued(ledger: Ledger) -> None:
    """When its lease expires, not before; due at once, and the interrupted attempt is not counted."""
    ledger.put_job("a")
    ledger.put_job("later", due_at=NOW + 10**9)
    claim(ledger)
    ledger.now += LEASE - 1
    assert rescue(ledger) == 0
    ledger.now += 1
    assert rescue(ledger) == 1
    row = ledger.jobs()["a"]
    assert (row["state"], row["due_at"], row["attempts"], row["lease_expires_at"]) == (
        "ready",
        ledger.now,
        0,
        None,
    )
    assert ledger.jobs()["later"]["due_at"] == NOW + 10**9


def test_a_start_releases_every_claim(ledger: Ledger) -> None:
    """One receiver serves a database, so that every holder is gone."""
    ledger.put_job()
    claim(ledger)
    assert rescue(ledger, 1 << 62) == 1
    assert len(claim(ledger)) == 1


def test_enqueueing_a_running_job_takes_no_claim(ledger: Ledger) -> None:
    """Its worker settles it."""
    ledger.put_job()
    (job,) = claim(ledger)
    ledger.change(lambda tx: enqueue.ask(tx, "t"))
    assert settle(ledger, job, Done())
    assert ledger.jobs() == {}


def test_a_key_keeps_the_earlier_time(ledger: Ledger) -> None:
    """However often it is enqueued."""
    for due in (NOW + 5, NOW + 3, NOW + 8):
        ledger.change(lambda tx, due=due: enqueue.ask(tx, "t", due))  # type: ignore[misc]
    assert [job["due_at"] for job in ledger.jobs().values()] == [NOW + 3]


def test_cancelling_leaves_a_running_job(ledger: Ledger) -> None:
    """Its worker settles it."""
    ledger.put_job()
    (job,) = claim(ledger)
    ledger.change(lambda tx: tx.cancel_job("ask/t"))
    assert settle(ledger, job, Done())


def test_two_workers_never_have_the_same_job(database: Database, database_url: str) -> None:
    """Claiming at the same time from two places, each job goes to one of them."""
    ledger, other = Ledger(database), Ledger(Database(database_url))
    for n in range(40):
        ledger.put_job(f"j{n}")
    taken: list[str] = []
    barrier = threading.Barrier(2)

    def work(mine: Ledger) -> None:
        barrier.wait(20)
        while jobs := claim(mine, room=3):
            taken.extend(job.unique_key for job in jobs)

    threads = [threading.Thread(target=work, args=(each,)) for each in (ledger, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    other.database.close()
    left = [job for job in ledger.jobs().values() if job["state"] == "ready"]
    assert (len(taken), len(set(taken)), left) == (40, 40, [])


def test_running_jobs_count_by_key_and_by_pool(ledger: Ledger) -> None:
    """However many hosts they are spread over, the jobs of one pool leave capacity for others."""
    ledger.put_job()
    (job,) = claim(ledger)
    capacity = Capacity.of([job, replace(job, concurrency_key="b")], per_key=2, per_pool={"kling": 2})
    assert capacity.exhausted == {"keys": [], "pools": ["kling"]}
    assert not capacity.reserve("c", job.pool)
    assert capacity.reserve(job.concurrency_key, "downloads")
    assert capacity.exhausted == {"keys": ["kling"], "pools": ["kling"]}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_a_claim_in_progress_blocks_no_other(database_url: str) -> None:
    """The second worker claims the jobs that the first, uncommitted claim does not read."""
    first, second = Ledger(Database(database_url)), Ledger(Database(database_url))
    first.put_task()
    for n in range(queue.MAX_SCANNED + 1):
        first.put_job(f"j{n}")
    with first.transaction() as tx:
        (mine,) = queue.claim_due(tx, Capacity(1), claim_id="mine", lease_ms=LEASE)
        with second.transaction() as other:
            other.connection.execute(text("SET LOCAL lock_timeout = '5s'"))
            (theirs,) = queue.claim_due(other, Capacity(9), claim_id="theirs", lease_ms=LEASE)
    assert (mine.unique_key, theirs.unique_key) == ("j0", f"j{queue.MAX_SCANNED}")
    for each in (first, second):
        each.database.close()


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
def test_waits_are_drawn_from_the_upper_half_of_each_step(draw: float) -> None:
    """A retry is never at once, and never later than its step."""
    backoff = Backoff((10, 100), lambda: draw)
    for attempt, step in ((1, 10), (2, 100)):
        assert backoff.next_at(attempt, NOW) == NOW + int(step * (0.5 + draw / 2) * 1000)
    assert Backoff((0.1,), lambda: draw).next_at(1, 0) == int(0.1 * (0.5 + draw / 2) * 1000)


def test_waits_spread_out() -> None:
    """So that those who failed together do not come back together."""
    waits = [wait for _ in range(500) if (wait := Backoff((10,)).next_at(1, 0)) is not None]
    assert 5000 <= min(waits) < 5200
    assert 9800 < max(waits) <= 10_000
    assert statistics.stdev(waits) > 1000


def test_after_the_last_step_there_is_no_retry() -> None:
    """Whatever `Retry-After` says."""
    backoff = Backoff((1, 2))
    assert backoff.next_at(2, NOW) is not None
    assert backoff.next_at(3, NOW) is None
    assert backoff.next_at(3, NOW, at_least=5) is None


@pytest.mark.parametrize(
    ("asked", "wait"), [(None, 5), (0, 5), (3, 5), (7, 7), (600, 600), (10_000, 3600), (float("inf"), 3600)]
)
def test_retry_after_is_respected_up_to_an_hour(asked: float | None, wait: float) -> None:
    """It makes a wait longer, never shorter."""
    assert Backoff((10,), lambda: 0.0).next_at(1, NOW, at_least=asked) == NOW + wait * 1000


def test_an_interrupted_attempt_is_not_counted(ledger: Ledger) -> None:
    """The next one has the same number, and the arguments that were left for it."""
    ledger.put_job()
    for _ in range(2):
        [job] = claim(ledger)
        assert job.attempts == 1
        again = RetryAt(NOW, "cut off", args={"seen": 1}, counts=False)
        assert ledger.change(lambda tx: queue.settle(tx, job, queue.settle_as(again)))  # noqa: B023
    row = ledger.jobs()["ask/t"]
    assert (row["attempts"], row["args"], row["error"]) == (0, {"seen": 1}, "cut off")


def test_due_times_are_clamped_to_their_delays(ledger: Ledger) -> None:
    """Of ready jobs, after the clock went back; a suspended job stays so."""
    ledger.put_job("late", due_at=NOW + 5001, delay_ms=5000)
    ledger.put_job("in time", due_at=NOW + 5000, delay_ms=5000)
    ledger.put_job("suspended", due_at=NEVER)
    ledger.put_job("dead", state="dead", due_at=NOW + 1)
    before = ledger.jobs()
    assert ledger.change(queue.clamp_due_times) == 1
    assert ledger.jobs() == before | {"late": before["late"] | {"due_at": NOW + 5000}}

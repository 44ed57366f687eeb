"""The worker: it runs every due job, and sends no needless statement."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text

from kling_receiver.jobs import enqueue, queue
from kling_receiver.jobs.kinds import MAX_PER_POOL
from kling_receiver.jobs.queue import ClaimedJob, Done, Effect, GiveUp, Outcome, RetryAt, settle_as
from kling_receiver.jobs.worker import MAX_PER_KEY, UNEXPECTED_ERROR_BACKOFF, Handler, Worker
from kling_receiver.store.database import Database
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import JobRow
from kling_receiver.store.transaction import CommitResult, Transaction
from kling_receiver.store.writer import Writer
from tests.support.database import Ledger, statements

pytestmark = pytest.mark.anyio

PATIENCE = 20
"""Seconds after which a test fails instead of waiting on."""


class Setup:
    """A writer and a worker on one database, connected as in the receiver."""

    def __init__(self, database: Database, handler: Handler, *, clock: Callable[[], float]) -> None:
        self.ledger = Ledger(database)
        self.ledger.now = int(clock() * 1000)
        self.writer = Writer(
            database,
            on_commit=self._committed,
            clock=clock,
            on_clock_jump=self._follow_clock,
        )
        self.worker = Worker(
            self.writer,
            dict.fromkeys(("ask", "delivery", "download"), handler),
            clock=clock,
            outage_seconds=0.01,
            clock_check_seconds=0.01,
        )
        self._changed = asyncio.Event()

    def _follow_clock(self, tx: Transaction, jump_ms: int) -> None:
        queue.clamp_due_times(tx)

    def _committed(self, committed: CommitResult) -> None:
        if committed.next_due_at is not None:
            self.worker.wake(committed.next_due_at)
        self._changed.set()

    async def enqueue(self, key: str = "ask/t", *, wait: int = 0, **given: Any) -> None:
        """Enqueue a job that is due in `wait` milliseconds."""
        job: dict[str, Any] = {"kind": "ask", "pool": "kling", "concurrency_key": "kling", **given}
        await self.writer.run(lambda tx: tx.enqueue(task_id="t", unique_key=key, due_at=tx.now + wait, **job))

    async def until(self, true: Callable[[dict[str, JobRow]], bool]) -> dict[str, JobRow]:
        """The jobs, as soon as this is true of them; looked at after each commit."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self._changed.clear()
                if true(jobs := self.ledger.jobs()):
                    return jobs
                await self._changed.wait()


@asynccontextmanager
async def working(
    database: Database, handler: Handler, *, clock: Callable[[], float] = time.time, start: bool = True
) -> AsyncIterator[Setup]:
    """A running writer and worker, closed in the receiver's order."""
    setup = Setup(database, handler, clock=clock)
    setup.writer.start()
    if start:
        setup.worker.start()
    try:
        yield setup
    finally:
        await setup.worker.close(0)
        await setup.writer.close()


def answering(outcome: Outcome) -> Handler:
    """A handler with a fixed outcome."""

    async def handle(job: ClaimedJob) -> Effect:
        return settle_as(outcome)

    return handle


class Slow:
    """A handler that waits until `go` is set."""

    def __init__(self) -> None:
        self.entered: asyncio.Queue[ClaimedJob] = asyncio.Queue()
        self.go = asyncio.Event()

    async def __call__(self, job: ClaimedJob) -> Effect:
        """Handle a job."""
        self.entered.put_nowait(job)
        await self.go.wait()
        return settle_as(Done())

    async def next(self) -> ClaimedJob:
        """The next job that was started."""
        async with asyncio.timeout(PATIENCE):
            return await self.entered.get()


def gone(jobs: dict[str, JobRow]) -> bool:
    """Whether there is no job."""
    return not jobs


async def test_due_jobs_are_run(database: Database) -> None:
    """Those from before the start, and those enqueued after it; each once."""
    done: list[str] = []

    async def handle(job: ClaimedJob) -> Effect:
        done.append(job.unique_key)
        return settle_as(Done())

    async with working(database, handle, start=False) as setup:
        await setup.enqueue("before")
        setup.worker.start()
        await setup.until(gone)
        await setup.enqueue("after")
        await setup.until(gone)
    assert done == ["before", "after"]


async def test_an_effect_is_applied_when_the_job_is_settled(database: Database) -> None:
    """In one transaction: the change is visible when the job is gone."""

    async def handle(job: ClaimedJob) -> Effect:
        def decide(tx: Transaction) -> Outcome:
            tx.add_tasks([{"id": "t", "family": "f"}])
            tx.add_event("t", "done")
            return Done()

        return decide

    async with working(database, handle) as setup:
        await setup.enqueue()
        await setup.until(gone)
        assert setup.ledger.types() == ["done"]


async def test_no_wake_is_lost(database: Database) -> None:
    """Jobs that are owed while the loop claims, runs and settles are all done, by their wakes alone."""
    count = 0

    async def handle(job: ClaimedJob) -> Effect:
        nonlocal count
        count += 1
        return settle_as(Done())

    async with working(database, handle) as setup:
        await asyncio.gather(*(setup.enqueue(f"j{n}", concurrency_key=f"lane {n % 9}") for n in range(150)))
        for n in range(40):
            await setup.enqueue(f"k{n}")
        await setup.until(gone)
    assert count == 190


async def test_a_wake_during_the_claim_is_not_lost(database: Database) -> None:
    """The flag is cleared before claiming: a job that the claim did not see is claimed next."""
    slow = Slow()
    async with working(database, slow, start=False) as setup:
        claim = setup.writer.run

        async def run(change: Callable[[Transaction], Any], *, durable: bool = True) -> Any:
            answer = await claim(change, durable=durable)
            if "first" not in seen:
                seen.add("first")
                await claim(lambda tx: enqueue.ask(tx, "late"))
            return answer

        seen: set[str] = set()
        setup.worker._writer = _Seam(run)  # type: ignore[assignment]  # only `run` is used
        setup.worker.start()
        assert (await slow.next()).unique_key == "ask/late"


class _Seam:
    """A writer between whose commit and whose answer something happens."""

    def __init__(self, run: Callable[..., Awaitable[Any]]) -> None:
        self.run = run


async def test_the_worker_sleeps_until_a_job_is_due(database: Database) -> None:
    """Not longer, not shorter, and without a statement in between."""
    begun: list[float] = []
    due = 0.0

    async def handle(job: ClaimedJob) -> Effect:
        begun.append(time.time())
        return settle_as(Done())

    async with working(database, handle) as setup:
        with statements(database) as seen:
            due = time.time() + 0.25
            await setup.enqueue(wait=250)
            await _settled(setup, begun)
        claims = [each for each in seen if "SELECT" in each and "due_at <=" in each]  # one in each look
    assert begun[0] >= due - 0.01
    assert 1 <= len(claims) <= 5


async def _settled(setup: Setup, begun: list[float]) -> None:
    await setup.until(lambda jobs: bool(begun) and not jobs)


async def test_the_clock_is_an_argument(database: Database) -> None:
    """What is due is told by it alone: it may stand, and be set on."""
    now = 5_000.0
    slow = Slow()
    async with working(database, slow, clock=lambda: now) as setup:
        await setup.enqueue(wait=3_600_000)
        await setup.enqueue("other", wait=-1)
        assert (await slow.next()).unique_key == "other"
        now += 3600
        setup.worker.wake()
        assert (await slow.next()).unique_key == "ask/t"
        slow.go.set()
        await setup.until(gone)


async def test_a_job_that_is_due_later_does_not_wake_the_worker(database: Database) -> None:
    """One that is due earlier does."""
    slow = Slow()
    async with working(database, slow) as setup:
        await setup.enqueue("soon", wait=600_000)
        await _asleep(setup)
        with statements(database) as seen:
            await setup.enqueue("later", wait=900_000)
            await _asleep(setup)
            assert not [each for each in seen if each.lstrip().startswith("SELECT")]
        await setup.enqueue("now")
        assert (await slow.next()).unique_key == "now"


async def _asleep(setup: Setup) -> None:
    """Until the loop has claimed, found nothing to do, and sleeps."""
    async with asyncio.timeout(PATIENCE):
        while setup.worker._sleeps_until is None or setup.worker._woken.is_set():
            await setup.writer.run(lambda tx: None)


async def test_an_idle_worker_sends_no_statement(database: Database) -> None:
    """Without a job, and with one that is due later."""
    async with working(database, answering(Done())) as setup:
        for wait in (None, 600_000):
            if wait:
                await setup.enqueue(wait=wait)
            await _asleep(setup)
            with statements(database) as seen:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await asyncio.Event().wait()
                assert seen == []


async def test_a_retried_job_runs_at_its_time(database: Database) -> None:
    """Its attempts are counted."""
    attempts: list[int] = []

    async def handle(job: ClaimedJob) -> Effect:
        attempts.append(job.attempts)
        return lambda tx: Done() if job.attempts == 3 else RetryAt(tx.now + 5, "again")

    async with working(database, handle) as setup:
        await setup.enqueue()
        await setup.until(gone)
    assert attempts == [1, 2, 3]


async def test_a_job_that_is_given_up_is_kept_as_dead(database: Database) -> None:
    """With its error."""
    async with working(database, answering(GiveUp("no use"))) as setup:
        await setup.enqueue()
        jobs = await setup.until(lambda jobs: jobs["ask/t"]["state"] == "dead")
    assert jobs["ask/t"]["error"] == "no use"


async def fail(job: ClaimedJob) -> Effect:
    """A handler that raises an unexpected error."""
    raise ZeroDivisionError("surprise")


async def fail_to_settle(job: ClaimedJob) -> Effect:
    """A handler whose effect raises an unexpected error."""

    def decide(tx: Transaction) -> Outcome:
        raise ZeroDivisionError("surprise")

    return decide


@pytest.mark.parametrize("handler", [fail, fail_to_settle])
async def test_an_unexpected_error_is_retried_without_end(
    database: Database, handler: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the handler or of its effect; it is logged, and other jobs go on."""
    now = 1_000.0
    async with working(database, handler, clock=lambda: now) as setup:
        await setup.enqueue()
        for attempt in range(1, len(UNEXPECTED_ERROR_BACKOFF.steps) + 3):
            jobs = await setup.until(lambda jobs, n=attempt: _waits(jobs, n))  # type: ignore[misc]
            assert jobs["ask/t"]["error"] == "ZeroDivisionError: surprise"
            assert jobs["ask/t"]["due_at"] > now * 1000
            now += UNEXPECTED_ERROR_BACKOFF.steps[-1]
            setup.worker.wake()
    assert "job ask/t raised an unexpected error; it is retried" in caplog.text


def _waits(jobs: dict[str, JobRow], attempts: int) -> bool:
    return (jobs["ask/t"]["state"], jobs["ask/t"]["attempts"]) == ("ready", attempts)


async def settled(setup: Setup, state: str) -> list[tuple[str, str, str, str]]:
    """The key, state, error and args of the only job, once it is in this state, as text: args may be damaged."""
    async with asyncio.timeout(PATIENCE):
        while True:
            setup._changed.clear()
            with setup.ledger.database.read() as connection:
                rows = connection.execute(text("SELECT unique_key, state, error, args FROM job")).all()
            if [row.state for row in rows] == [state]:
                return [tuple(row) for row in rows]
            await setup._changed.wait()


@pytest.mark.parametrize(
    ("kind", "args", "problem"),
    [
        ("unheard of", "null", "its kind 'unheard of' is unknown"),
        ("download", "null", "its args lack index"),
        ("download", '{"index": "0"}', "its args lack index"),
        ("download", '{"index": true}', "its args lack index"),
        ("download", '{"index": -1}', "its args have an unknown form of index"),
        ("download", '{"index": 99999999999999999999}', "its args have an unknown form of index"),
        ("download", '{"index": 0, "asked_after": "x"}', "its args have an unknown form of asked_after"),
        ("delivery", '{"hook": "all"}', "its args lack event"),
        ("ask", '{"unanswered": [1]}', "its args have an unknown form of unanswered"),
        ("ask", "[]", "its args are no JSON object"),
        ("ask", "7", "its args are no JSON object"),
        ("ask", '{"cut', "its args are no JSON object"),
        ("ask", "", "its args are no JSON object"),
        ("ask", "[" * 100_000, "its args are no JSON object"),
    ],
)
async def test_a_job_that_this_version_cannot_run_is_a_dead_letter(
    database: Database, kind: str, args: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A newer version wrote it, or it is damaged. Other jobs are claimed and run; the next start tries it again."""
    invalid: list[str] = []
    async with working(database, answering(Done()), start=False) as setup:
        setup.worker._on_invalid = invalid.append
        setup.ledger.put_job("x", kind=kind)
        with database.write() as connection:
            connection.execute(text("UPDATE job SET args = :args"), {"args": args})
        await setup.enqueue("good")
        setup.worker.start()
        assert await settled(setup, "dead") == [("x", "dead", f"This version cannot run the job: {problem}.", args)]
    assert setup.ledger.change(queue.retry_invalid) == 1
    assert (await settled(setup, "ready"))[0][3] == args
    assert invalid == ["unknown" if kind == "unheard of" else kind]
    assert f"job x is now a dead letter, because this version cannot run it: {problem}" in caplog.text


@pytest.mark.parametrize("when", ["handled", "settled", "in a group"])
async def test_a_job_whose_rows_cannot_be_read_is_a_dead_letter(database: Database, when: str) -> None:
    """Retries do not repair a row."""

    async def handle(job: ClaimedJob) -> Effect:
        def settle(tx: Transaction) -> Outcome:
            tx.require_task("t")
            return Done()

        if when == "settled":
            return settle
        if when == "handled":
            await Reader(database).task("t")
        async with asyncio.TaskGroup() as group:
            await group.create_task(Reader(database).task("t"))
        return settle_as(Done())

    async with working(database, handle, start=False) as setup:
        setup.ledger.put_task()
        with database.write() as connection:
            connection.execute(text("UPDATE task SET request = '{'"))
        await setup.enqueue()
        setup.worker.start()
        [(_, _, error, _)] = await settled(setup, "dead")
        assert error.startswith("This version cannot run the job: task t, request: no JSON (")


async def test_a_full_key_leaves_capacity_for_others(database: Database) -> None:
    """The other jobs of the host follow when those end."""
    slow = Slow()
    async with working(database, slow, start=False) as setup:
        for n in range(MAX_PER_KEY + 5):
            await setup.enqueue(f"a{n}", concurrency_key="a", wait=-100 + n)
        await setup.enqueue("b", concurrency_key="b")
        setup.worker.start()
        begun = {(await slow.next()).unique_key for _ in range(MAX_PER_KEY + 1)}
        await _asleep(setup)
        assert slow.entered.empty()
        assert begun == {*(f"a{n}" for n in range(MAX_PER_KEY)), "b"}
        slow.go.set()
        await setup.until(gone)


async def test_a_full_pool_leaves_capacity_for_others(database: Database) -> None:
    """However many keys it has; its other jobs follow when those end."""
    slow = Slow()
    async with working(database, slow, start=False) as setup:
        for n in range(MAX_PER_POOL["kling"] + 3):
            await setup.enqueue(f"j{n}", concurrency_key=f"lane {n}", wait=-100)
        await setup.enqueue("other", pool="hook-retries", concurrency_key="hook")
        setup.worker.start()
        begun = [(await slow.next()).unique_key for _ in range(MAX_PER_POOL["kling"] + 1)]
        assert "other" in begun
        setup.worker.wake()
        await _asleep(setup)
        assert slow.entered.empty()
        assert sum(job["state"] == "ready" for job in setup.ledger.jobs().values()) == 3
        slow.go.set()
        await setup.until(gone)


async def test_a_claim_with_a_lost_answer_is_repeated(database: Database) -> None:
    """It was committed, and the database reported an error, twice: the job is run soon, in its first attempt."""
    attempts: list[int] = []
    told: list[str] = []

    async def handle(job: ClaimedJob) -> Effect:
        attempts.append(job.attempts)
        return settle_as(Done())

    async with working(database, handle, start=False) as setup:

        async def run(change: Callable[[Transaction], Any], *, durable: bool = True) -> Any:
            answer = await commit(change, durable=durable)
            if len(told) < 2:
                told.append(setup.ledger.jobs()["ask/t"]["state"])
                raise Unavailable("The database does not answer.")
            return answer

        commit = setup.writer.run
        await setup.enqueue()
        setup.worker._writer = _Seam(run)  # type: ignore[assignment]  # only `run` is used
        setup.worker.start()
        await setup.until(gone)
    assert (told, attempts) == (["running", "running"], [1])


async def test_stop_releases_running_jobs(database: Database) -> None:
    """After the grace period; they are due at once, for the next process."""
    slow = Slow()
    async with working(database, slow) as setup:
        await setup.enqueue()
        await slow.next()
        await setup.worker.close(0)
        job = setup.ledger.jobs()["ask/t"]
        assert (job["state"], job["claim_id"], job["error"]) == ("ready", None, "The receiver was stopped.")
        assert job["due_at"] <= time.time() * 1000
        assert job["attempts"] == 0


async def test_stop_lets_running_jobs_finish(database: Database) -> None:
    """Within the grace period; no job is started."""
    slow = Slow()
    async with working(database, slow) as setup:
        await setup.enqueue()
        await slow.next()
        closing = asyncio.ensure_future(setup.worker.close(PATIENCE))
        await setup.enqueue("late")
        slow.go.set()
        await closing
        assert {key: job["state"] for key, job in setup.ledger.jobs().items()} == {"late": "ready"}
        assert slow.entered.empty()


async def test_running_jobs_are_settled_before_the_writer_closes(database: Database) -> None:
    """In the receiver's order of stopping."""
    slow = Slow()
    async with working(database, slow) as setup:
        for n in range(20):
            await setup.enqueue(f"j{n}", concurrency_key=f"lane {n}")
        for _ in range(20):
            await slow.next()
        await setup.worker.close(0)
        await setup.writer.close()
        assert {job["state"] for job in setup.ledger.jobs().values()} == {"ready"}


async def test_a_worker_that_was_not_started_can_be_closed(database: Database) -> None:
    """As a receiver that fails at start does."""
    await Worker(Writer(database), {}).close(0)


async def test_a_worker_that_lost_its_claim_settles_nothing(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Its effect changes neither the job nor the task."""
    slow = Slow()
    async with working(database, slow) as setup:
        await setup.enqueue()
        await slow.next()
        await setup.writer.run(lambda tx: queue.rescue(tx, 1 << 62))
        await setup.writer.run(lambda tx: _take_away(tx))
        slow.go.set()
        await setup.enqueue("other")
        assert (await slow.next()).unique_key == "other"
        jobs = await setup.until(lambda jobs: "other" not in jobs)
        assert jobs["ask/t"]["claim_id"] == "another's"
    assert "claimed by another worker" in caplog.text


def _take_away(tx: Transaction) -> None:
    tx.connection.execute(
        text("UPDATE job SET state = 'running', claim_id = 'another''s', lease_expires_at = 9999999999999")
    )


async def test_an_expired_lease_is_rescued(database: Database) -> None:
    """The job of a dead worker, by a worker that sleeps until then."""
    slow = Slow()
    async with working(database, slow, start=False) as setup:
        setup.ledger.put_job(
            "left", state="running", claim_id="a dead worker's", lease_expires_at=int(time.time() * 1000) + 150
        )
        setup.worker.start()
        assert (await slow.next()).unique_key == "left"


async def test_the_lease_of_a_running_job_is_renewed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the job takes, it is not taken twice."""
    monkeypatch.setattr("kling_receiver.jobs.worker.LEASE_CHECK_SECONDS", 0.05)
    monkeypatch.setattr("kling_receiver.jobs.worker.LEASE_MS", 200)
    slow = Slow()
    async with working(database, slow) as setup:
        await setup.enqueue()
        await slow.next()
        first = setup.ledger.jobs()["ask/t"]["lease_expires_at"]
        await setup.until(lambda jobs: (jobs["ask/t"]["lease_expires_at"] or 0) > (first or 0) + 400)
        assert slow.entered.empty()
        slow.go.set()
        await setup.until(gone)


async def test_a_download_has_no_time_limit(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other job has one."""
    monkeypatch.setattr("kling_receiver.jobs.worker.JOB_TIMEOUT_SECONDS", 0.05)
    slow = Slow()
    async with working(database, slow) as setup:
        setup.ledger.put_job("file", kind="download", args={"index": 0})
        setup.ledger.put_job("query", kind="ask")
        setup.worker.wake()
        await slow.next()
        await slow.next()
        jobs = await setup.until(lambda jobs: jobs["query"]["state"] == "ready")
        assert "TimeoutError" in jobs["query"]["error"]
        assert jobs["file"]["state"] == "running"
        slow.go.set()
        await setup.until(lambda jobs: "file" not in jobs)


@asynccontextmanager
async def outage(database: Database) -> AsyncIterator[None]:
    """While it lasts, the writing door of a SQLite file is locked by another."""
    other = Database(str(database.url))
    with other.write():
        yield
    other.close()


@pytest.fixture
def impatient(tmp_path: Any) -> Iterator[Database]:
    """A SQLite database whose writer waits for nobody."""
    database = Database(f"sqlite:///{tmp_path / 'kling.db'}")
    database.migrate()
    with database.write() as connection:
        connection.execute(text("PRAGMA busy_timeout = 1"))
    yield database
    database.close()


async def test_an_outage_does_not_keep_the_worker_from_stopping(impatient: Database) -> None:
    """A job that cannot be settled is left to the next start, which releases every claim."""
    slow = Slow()
    async with working(impatient, slow) as setup:
        await setup.enqueue("left")
        await slow.next()
        async with outage(impatient), asyncio.timeout(PATIENCE):
            await setup.worker.close(0)
        assert [job["state"] for job in setup.ledger.jobs().values()] == ["running"]
    impatient.close()


async def test_an_outage_delays_the_worker(impatient: Database) -> None:
    """Claims and settlements are retried until the database can be written; no job is lost."""
    slow = Slow()
    async with working(impatient, slow) as setup:
        await setup.enqueue("settled")
        await slow.next()
        await setup.enqueue("claimed", wait=20)
        async with outage(impatient):
            slow.go.set()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await slow.next()
            assert len(setup.ledger.jobs()) == 2
        assert (await slow.next()).unique_key == "claimed"
        await setup.until(gone)
    impatient.close()


async def test_an_attempt_that_an_outage_interrupted_is_not_counted(database: Database) -> None:
    """It is repeated as the first."""
    attempts: list[int] = []

    async def handle(job: ClaimedJob) -> Effect:
        attempts.append(job.attempts)
        if len(attempts) == 1:
            raise Unavailable("The database cannot be used.")
        return settle_as(Done())

    async with working(database, handle) as setup:
        await setup.enqueue()
        await setup.until(gone)
    assert attempts == [1, 1]


async def test_the_wall_clock_may_jump(database: Database) -> None:
    """While the worker sleeps: a job that is due now is started now."""
    now = 5_000.0
    slow = Slow()
    async with working(database, slow, clock=lambda: now) as setup:
        await setup.enqueue("later", wait=600_000)
        await _asleep(setup)
        now += 595  # the loop would sleep for ten minutes more
        await _asleep(setup)
        await setup.enqueue("now", wait=6_000)
        now += 10
        await setup.enqueue("other")
        assert {(await slow.next()).unique_key for _ in range(3)} == {"later", "now", "other"}
        slow.go.set()
        await setup.until(gone)


async def test_a_sleep_ends_soon_after_a_jump_of_the_clock(database: Database) -> None:
    """After a jump forward or a suspend, a job that is due by the clock starts without another event."""
    now = time.time()
    jump, slow = 0.0, Slow()
    async with working(database, slow, clock=lambda: time.time() + jump) as setup:
        await setup.enqueue("later", wait=3_600_000)
        await _asleep(setup)
        jump = 3_600.0
        assert (await slow.next()).unique_key == "later"
        slow.go.set()
        await setup.until(gone)
    assert time.time() - now < PATIENCE


async def test_a_jump_of_the_clock_right_after_a_claim_is_noticed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Set back before the worker sleeps: it must not sleep for a year over a job that is due in a moment."""
    jump, slow = 0.0, Slow()
    async with working(database, slow, clock=lambda: time.time() + jump, start=False) as setup:
        await setup.enqueue(wait=300)
        run = setup.writer.run

        async def run_and_jump(change: Callable[[Transaction], Any], **given: Any) -> Any:
            nonlocal jump
            result = await run(change, **given)
            jump = -365 * 86_400.0
            return result

        monkeypatch.setattr(setup.writer, "run", run_and_jump)
        setup.worker.start()
        await slow.next()
        slow.go.set()
        await setup.until(gone)


async def test_while_no_job_waits_the_worker_does_not_wake_up(database: Database) -> None:
    """The clock is not even read."""
    read = 0

    def clock() -> float:
        nonlocal read
        read += 1
        return time.time()

    async with working(database, Slow(), clock=clock) as setup:
        await _asleep(setup)
        before = read
        await asyncio.sleep(0.2)  # twenty times the interval of checks
        assert read == before


async def test_an_unexpected_error_of_a_claim_does_not_end_the_loop(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is logged, and once its cause is gone the jobs run."""
    async with working(database, answering(Done()), start=False) as setup:
        await setup.enqueue()
        with monkeypatch.context() as broken:
            broken.setattr(queue, "claim_due", lambda *args, **values: 1 // 0)
            setup.worker.start()
            async with asyncio.timeout(PATIENCE):
                while "jobs could not be claimed" not in caplog.text:
                    await setup.writer.run(lambda tx: None)
        await setup.until(gone)

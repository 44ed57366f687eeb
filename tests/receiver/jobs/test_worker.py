"""The loop that does what is owed: that it misses nothing, and does nothing for nothing."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import text

from kling_receiver.jobs import enqueue, queue
from kling_receiver.jobs.kinds import MAX_PER_POOL
from kling_receiver.jobs.queue import ClaimedJob, Done, GiveUp, Outcome, RetryAt, Settle, settle_as
from kling_receiver.jobs.worker import MAX_PER_KEY, UNEXPECTED_ERROR_BACKOFF, Handler, Worker
from kling_receiver.store.database import Database
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.rows import JobRow
from kling_receiver.store.transaction import CommitResult, Transaction
from kling_receiver.store.writer import Writer
from tests.support.database import Ledger, statements

pytestmark = pytest.mark.anyio

PATIENCE = 20
"""Seconds after which a test fails instead of waiting on."""


class Shop:
    """A writer and a worker on one database, put together as the receiver does it."""

    def __init__(self, database: Database, handler: Handler, *, clock: Callable[[], float]) -> None:
        self.ledger = Ledger(database)
        self.ledger.now = int(clock() * 1000)
        self.writer = Writer(database, on_commit=self._committed, clock=clock)
        self.worker = Worker(self.writer, {"ask": handler, "delivery": handler}, clock=clock, outage_seconds=0.01)
        self._changed = asyncio.Event()

    def _committed(self, committed: CommitResult) -> None:
        if committed.next_due_at is not None:
            self.worker.wake(committed.next_due_at)
        self._changed.set()

    async def owe(self, key: str = "ask/t", *, wait: int = 0, **given: Any) -> None:
        """Owe a job of a task of its own, due in so many milliseconds."""
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
) -> AsyncIterator[Shop]:
    """A shop that works; closed in the receiver's order."""
    shop = Shop(database, handler, clock=clock)
    shop.writer.start()
    if start:
        shop.worker.start()
    try:
        yield shop
    finally:
        await shop.worker.close(0)
        await shop.writer.close()


def answering(outcome: Outcome) -> Handler:
    """A handler that always comes to the same."""

    async def handle(job: ClaimedJob) -> Settle:
        return settle_as(outcome)

    return handle


class Slow:
    """A handler that is entered and then waits to be let go."""

    def __init__(self) -> None:
        self.entered: asyncio.Queue[ClaimedJob] = asyncio.Queue()
        self.go = asyncio.Event()

    async def __call__(self, job: ClaimedJob) -> Settle:
        """Handle a job."""
        self.entered.put_nowait(job)
        await self.go.wait()
        return settle_as(Done())

    async def next(self) -> ClaimedJob:
        """The next job that was begun."""
        async with asyncio.timeout(PATIENCE):
            return await self.entered.get()


def gone(jobs: dict[str, JobRow]) -> bool:
    """Whether nothing is owed."""
    return not jobs


async def test_what_is_due_is_done(database: Database) -> None:
    """What was owed before the start, and what is owed afterwards; each once."""
    done: list[str] = []

    async def handle(job: ClaimedJob) -> Settle:
        done.append(job.unique_key)
        return settle_as(Done())

    async with working(database, handle, start=False) as shop:
        await shop.owe("before")
        shop.worker.start()
        await shop.until(gone)
        await shop.owe("after")
        await shop.until(gone)
    assert done == ["before", "after"]


async def test_a_verdict_is_applied_with_the_settling(database: Database) -> None:
    """In one transaction: the change is there when the job is gone."""

    async def handle(job: ClaimedJob) -> Settle:
        def decide(tx: Transaction) -> Outcome:
            tx.add_tasks([{"id": "t", "family": "f"}])
            tx.add_event("t", "done")
            return Done()

        return decide

    async with working(database, handle) as shop:
        await shop.owe()
        await shop.until(gone)
        assert shop.ledger.types() == ["done"]


async def test_no_wake_is_lost(database: Database) -> None:
    """Jobs that are owed while the loop claims, runs and settles are all done, by their wakes alone."""
    count = 0

    async def handle(job: ClaimedJob) -> Settle:
        nonlocal count
        count += 1
        return settle_as(Done())

    async with working(database, handle) as shop:
        await asyncio.gather(*(shop.owe(f"j{n}", concurrency_key=f"lane {n % 9}") for n in range(150)))
        for n in range(40):
            await shop.owe(f"k{n}")
        await shop.until(gone)
    assert count == 190


async def test_a_wake_during_the_claim_is_not_lost(database: Database) -> None:
    """The flag is cleared before claiming: a job that the claim did not see is claimed next."""
    slow = Slow()
    async with working(database, slow, start=False) as shop:
        claim = shop.writer.run

        async def run(change: Callable[[Transaction], Any], *, durable: bool = True) -> Any:
            answer = await claim(change, durable=durable)
            if "first" not in seen:
                seen.add("first")
                await claim(lambda tx: enqueue.ask(tx, "late"))
            return answer

        seen: set[str] = set()
        shop.worker._writer = _Seam(run)  # type: ignore[assignment]  # only `run` is used
        shop.worker.start()
        assert (await slow.next()).unique_key == "ask/late"


class _Seam:
    """A writer between whose commit and whose answer something happens."""

    def __init__(self, run: Callable[..., Awaitable[Any]]) -> None:
        self.run = run


async def test_it_sleeps_until_a_job_is_due(database: Database) -> None:
    """Not longer, not shorter, and without looking in between."""
    begun: list[float] = []
    due = 0.0

    async def handle(job: ClaimedJob) -> Settle:
        begun.append(time.time())
        return settle_as(Done())

    async with working(database, handle) as shop:
        with statements(database) as seen:
            due = time.time() + 0.25
            await shop.owe(wait=250)
            await _settled(shop, begun)
        claims = [each for each in seen if "SELECT" in each and "due_at <=" in each]  # one in each look
    assert begun[0] >= due - 0.01
    assert 1 <= len(claims) <= 5


async def _settled(shop: Shop, begun: list[float]) -> None:
    await shop.until(lambda jobs: bool(begun) and not jobs)


async def test_the_clock_is_an_argument(database: Database) -> None:
    """What is due is told by it alone: it may stand, and be set on."""
    now = 5_000.0
    slow = Slow()
    async with working(database, slow, clock=lambda: now) as shop:
        await shop.owe(wait=3_600_000)
        await shop.owe("other", wait=-1)
        assert (await slow.next()).unique_key == "other"
        now += 3600
        shop.worker.wake()
        assert (await slow.next()).unique_key == "ask/t"
        slow.go.set()
        await shop.until(gone)


async def test_a_job_that_is_due_later_than_the_next_look_wakes_nobody(database: Database) -> None:
    """One that is due earlier does."""
    slow = Slow()
    async with working(database, slow) as shop:
        await shop.owe("soon", wait=600_000)
        await _asleep(shop)
        with statements(database) as seen:
            await shop.owe("later", wait=900_000)
            await _asleep(shop)
            assert not [each for each in seen if each.lstrip().startswith("SELECT")]
        await shop.owe("now")
        assert (await slow.next()).unique_key == "now"


async def _asleep(shop: Shop) -> None:
    """Until the loop has claimed, found nothing to do, and sleeps."""
    async with asyncio.timeout(PATIENCE):
        while shop.worker._sleeps_until is None or shop.worker._woken.is_set():
            await shop.writer.run(lambda tx: None)


async def test_idle_there_is_no_statement_at_all(database: Database) -> None:
    """With nothing owed, and with something owed for later."""
    async with working(database, answering(Done())) as shop:
        for wait in (None, 600_000):
            if wait:
                await shop.owe(wait=wait)
            await _asleep(shop)
            with statements(database) as seen:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await asyncio.Event().wait()
                assert seen == []


async def test_what_is_to_be_tried_again_is(database: Database) -> None:
    """At its time; the attempts are counted."""
    attempts: list[int] = []

    async def handle(job: ClaimedJob) -> Settle:
        attempts.append(job.attempts)
        return lambda tx: Done() if job.attempts == 3 else RetryAt(tx.now + 5, "again")

    async with working(database, handle) as shop:
        await shop.owe()
        await shop.until(gone)
    assert attempts == [1, 2, 3]


async def test_what_is_given_up_is_dead(database: Database) -> None:
    """And kept."""
    async with working(database, answering(GiveUp("no use"))) as shop:
        await shop.owe()
        jobs = await shop.until(lambda jobs: jobs["ask/t"]["state"] == "dead")
    assert jobs["ask/t"]["error"] == "no use"


async def fail(job: ClaimedJob) -> Settle:
    """A handler with a fault."""
    raise ZeroDivisionError("surprise")


async def fail_to_settle(job: ClaimedJob) -> Settle:
    """A handler whose verdict has a fault."""

    def decide(tx: Transaction) -> Outcome:
        raise ZeroDivisionError("surprise")

    return decide


@pytest.mark.parametrize("handler", [fail, fail_to_settle])
async def test_a_surprise_is_tried_again_and_never_given_up(
    database: Database, handler: Handler, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether the handler raised or its verdict; the log says what; other jobs go on."""
    now = 1_000.0
    async with working(database, handler, clock=lambda: now) as shop:
        await shop.owe()
        for attempt in range(1, len(UNEXPECTED_ERROR_BACKOFF.steps) + 3):
            jobs = await shop.until(lambda jobs, n=attempt: _waits(jobs, n))  # type: ignore[misc]
            assert jobs["ask/t"]["error"] == "ZeroDivisionError: surprise"
            assert jobs["ask/t"]["due_at"] > now * 1000
            now += UNEXPECTED_ERROR_BACKOFF.steps[-1]
            shop.worker.wake()
    assert "job ask/t raised an unexpected error; it is retried" in caplog.text


def _waits(jobs: dict[str, JobRow], attempts: int) -> bool:
    return (jobs["ask/t"]["state"], jobs["ask/t"]["attempts"]) == ("ready", attempts)


async def test_a_job_that_nobody_knows_how_to_do_is_a_surprise(database: Database) -> None:
    """Of a version that is no more, say."""
    async with working(database, answering(Done())) as shop:
        await shop.owe("x", kind="unheard of", pool="x", concurrency_key="x")
        jobs = await shop.until(lambda jobs: jobs["x"]["error"] != "")
    assert jobs["x"]["error"] == "KeyError: 'unheard of'"


async def test_a_full_lane_leaves_room_for_others(database: Database) -> None:
    """So many jobs of one host at once; the rest follow when those end."""
    slow = Slow()
    async with working(database, slow, start=False) as shop:
        for n in range(MAX_PER_KEY + 5):
            await shop.owe(f"a{n}", concurrency_key="a", wait=-100 + n)
        await shop.owe("b", concurrency_key="b")
        shop.worker.start()
        begun = {(await slow.next()).unique_key for _ in range(MAX_PER_KEY + 1)}
        await _asleep(shop)
        assert slow.entered.empty()
        assert begun == {*(f"a{n}" for n in range(MAX_PER_KEY)), "b"}
        slow.go.set()
        await shop.until(gone)


async def test_a_full_kind_leaves_room_for_others(database: Database) -> None:
    """However many lanes it has; the rest follow when those end."""
    slow = Slow()
    async with working(database, slow, start=False) as shop:
        for n in range(MAX_PER_POOL["kling"] + 3):
            await shop.owe(f"j{n}", concurrency_key=f"lane {n}", wait=-100)
        await shop.owe("other", kind="delivery", pool="hook-retries", concurrency_key="hook")
        shop.worker.start()
        begun = [(await slow.next()).unique_key for _ in range(MAX_PER_POOL["kling"] + 1)]
        assert "other" in begun
        shop.worker.wake()
        await _asleep(shop)
        assert slow.entered.empty()
        assert sum(job["state"] == "ready" for job in shop.ledger.jobs().values()) == 3
        slow.go.set()
        await shop.until(gone)


async def test_a_claim_whose_answer_was_lost_is_made_again(database: Database) -> None:
    """It was committed, and we were told of an outage, twice: the job is done soon, by its first attempt."""
    attempts: list[int] = []
    told: list[str] = []

    async def handle(job: ClaimedJob) -> Settle:
        attempts.append(job.attempts)
        return settle_as(Done())

    async with working(database, handle, start=False) as shop:

        async def run(change: Callable[[Transaction], Any], *, durable: bool = True) -> Any:
            answer = await commit(change, durable=durable)
            if len(told) < 2:
                told.append(shop.ledger.jobs()["ask/t"]["state"])
                raise Unavailable("The database does not answer.")
            return answer

        commit = shop.writer.run
        await shop.owe()
        shop.worker._writer = _Seam(run)  # type: ignore[assignment]  # only `run` is used
        shop.worker.start()
        await shop.until(gone)
    assert (told, attempts) == (["running", "running"], [1])


async def test_stop_gives_back_what_runs(database: Database) -> None:
    """After its grace: owed again at once, for the next process."""
    slow = Slow()
    async with working(database, slow) as shop:
        await shop.owe()
        await slow.next()
        await shop.worker.close(0)
        job = shop.ledger.jobs()["ask/t"]
        assert (job["state"], job["claim_id"], job["error"]) == ("ready", None, "The receiver was stopped.")
        assert job["due_at"] <= time.time() * 1000
        assert job["attempts"] == 0


async def test_stop_lets_what_runs_end(database: Database) -> None:
    """Within its grace; nothing new is begun."""
    slow = Slow()
    async with working(database, slow) as shop:
        await shop.owe()
        await slow.next()
        closing = asyncio.ensure_future(shop.worker.close(PATIENCE))
        await shop.owe("late")
        slow.go.set()
        await closing
        assert {key: job["state"] for key, job in shop.ledger.jobs().items()} == {"late": "ready"}
        assert slow.entered.empty()


async def test_what_runs_is_awaited_before_the_engine_closes(database: Database) -> None:
    """In the receiver's order of stopping, each settling finds its writer."""
    slow = Slow()
    async with working(database, slow) as shop:
        for n in range(20):
            await shop.owe(f"j{n}", concurrency_key=f"lane {n}")
        for _ in range(20):
            await slow.next()
        await shop.worker.close(0)
        await shop.writer.close()
        assert {job["state"] for job in shop.ledger.jobs().values()} == {"ready"}


async def test_a_worker_that_was_not_started_can_be_closed(database: Database) -> None:
    """As a receiver that fails at start does."""
    await Worker(Writer(database), {}).close(0)


async def test_a_worker_that_lost_its_claim_settles_nothing(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so in the log, and goes on."""
    slow = Slow()
    async with working(database, slow) as shop:
        await shop.owe()
        await slow.next()
        await shop.writer.run(lambda tx: queue.rescue(tx, 1 << 62))
        await shop.writer.run(lambda tx: _take_away(tx))
        slow.go.set()
        await shop.owe("other")
        assert (await slow.next()).unique_key == "other"
        jobs = await shop.until(lambda jobs: "other" not in jobs)
        assert jobs["ask/t"]["claim_id"] == "another's"
    assert "was claimed by another worker" in caplog.text


def _take_away(tx: Transaction) -> None:
    tx.connection.execute(
        text("UPDATE job SET state = 'running', claim_id = 'another''s', lease_expires_at = 9999999999999")
    )


async def test_a_lease_that_ends_is_rescued(database: Database) -> None:
    """A job of a worker that is gone, by whoever sleeps until then."""
    slow = Slow()
    async with working(database, slow, start=False) as shop:
        shop.ledger.put_job(
            "left", state="running", claim_id="a dead worker's", lease_expires_at=int(time.time() * 1000) + 150
        )
        shop.worker.start()
        assert (await slow.next()).unique_key == "left"


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


async def test_an_outage_does_not_keep_the_worker_from_ending(impatient: Database) -> None:
    """What cannot be settled is left to the next start, which takes every claim back."""
    slow = Slow()
    async with working(impatient, slow) as shop:
        await shop.owe("left")
        await slow.next()
        async with outage(impatient), asyncio.timeout(PATIENCE):
            await shop.worker.close(0)
        assert [job["state"] for job in shop.ledger.jobs().values()] == ["running"]
    impatient.close()


async def test_an_outage_pauses_and_then_all_goes_on(impatient: Database) -> None:
    """Claiming and settling are tried until the database can be written again; nothing is lost."""
    slow = Slow()
    async with working(impatient, slow) as shop:
        await shop.owe("settled")
        await slow.next()
        await shop.owe("claimed", wait=20)
        async with outage(impatient):
            slow.go.set()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await slow.next()
            assert len(shop.ledger.jobs()) == 2
        assert (await slow.next()).unique_key == "claimed"
        await shop.until(gone)
    impatient.close()


async def test_an_attempt_that_an_outage_cut_does_not_count(database: Database) -> None:
    """It is made again, as the first."""
    attempts: list[int] = []

    async def handle(job: ClaimedJob) -> Settle:
        attempts.append(job.attempts)
        if len(attempts) == 1:
            raise Unavailable("The database cannot be used.")
        return settle_as(Done())

    async with working(database, handle) as shop:
        await shop.owe()
        await shop.until(gone)
    assert attempts == [1, 1]


async def test_the_walls_clock_may_jump(database: Database) -> None:
    """While the loop sleeps: what is owed now is begun now."""
    now = 5_000.0
    slow = Slow()
    async with working(database, slow, clock=lambda: now) as shop:
        await shop.owe("later", wait=600_000)
        await _asleep(shop)
        now += 595  # the loop would sleep for ten minutes more
        await _asleep(shop)
        await shop.owe("now", wait=6_000)
        now += 10
        await shop.owe("other")
        assert {(await slow.next()).unique_key for _ in range(3)} == {"later", "now", "other"}
        slow.go.set()
        await shop.until(gone)


async def test_a_claim_that_fails_in_an_unforeseen_way_does_not_end_the_loop(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that cannot be read, say: the log says so, and once it is mended the work goes on."""
    async with working(database, answering(Done()), start=False) as shop:
        await shop.owe()
        with database.write() as connection:
            connection.execute(text("UPDATE job SET args = 'no JSON'"))
        shop.worker.start()
        async with asyncio.timeout(PATIENCE):
            while "jobs could not be claimed" not in caplog.text:
                await shop.writer.run(lambda tx: None)
        with database.write() as connection:
            connection.execute(text("UPDATE job SET args = 'null'"))
        await shop.until(gone)

"""After a start: missing jobs are enqueued, due times clamped, and every open task is queried once."""

import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

from kling_callback.protocol.ids import new_id
from kling_receiver.hooks import records as hook_records
from kling_receiver.jobs import enqueue, queue
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.queue import NEVER, ClaimedJob, Done, RetryAt, settle_as
from kling_receiver.jobs.worker import LEASE_MS
from kling_receiver.results.download import DOWNLOAD_BACKOFF
from kling_receiver.store.database import Database
from kling_receiver.store.tables import ACCOUNT
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import slots, startup
from kling_receiver.tasks.ingest import CREATE_ANSWER_GRACE_MS
from kling_receiver.tasks.overdue import NEVER_CALLED_BACK, OverdueTasks
from kling_receiver.tasks.reconcile import QUERY_BACKOFF
from kling_receiver.tasks.startup import SPACING_MS
from kling_sandbox import Sandbox
from tests.receiver.results.test_download import Parts, made, parts  # noqa: F401  # a fixture
from tests.receiver.tasks.test_overdue import known
from tests.support.database import FILE, NOW, Ledger, callback
from tests.support.receiver import Start
from tools.harness.submitting import events, finished, rows, show, submit, types
from tools.harness.submitting import register as put

HOUR = 3_600_000


def test_a_task_that_ended_while_no_receiver_ran_is_recovered(start: Start, gateway: Sandbox, tmp_path: Path) -> None:
    """The callback is lost, the deadline far: one query finds the status and the files."""
    first = start(api_base=gateway.url)
    gateway.hold()
    task, theirs = submit(first, gateway, "no-callback")
    first.stop()
    gateway.release()
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    second = start(api_base=gateway.url)
    happened = events(second, task)
    assert next(each for each in happened if each["type"] == "task.recovered")["data"] == {"by": "startup"}
    assert "task.overdue" not in types(happened)
    assert finished(second, task)["results"][0]["status"] == "stored"
    assert gateway.tasks[theirs].queries == 1


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """A database of each kind."""
    return Ledger(database)


EXPECTED_KEYS = {"overdue/open", "overdue/hinted", "ask/hinted", "ask/bare", "download/ended/0"}


def test_missing_jobs_are_enqueued(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """A deadline, a query, a download: each missing job with an error in the log; then none is missing."""
    ledger.register("open")
    ledger.record(callback("hinted", "succeed"))
    ledger.record(callback("ended", "succeed", files=[FILE], signed=True))
    ledger.put_task("bare", status="succeed", origin="kling")
    assert set(ledger.jobs()) == EXPECTED_KEYS - {"ask/bare"}
    with ledger.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM job")
    with caplog.at_level(logging.ERROR):
        assert ledger.change(startup.repair) == len(EXPECTED_KEYS)
    assert set(ledger.jobs()) == EXPECTED_KEYS
    assert caplog.text.count("lacked a job; it is enqueued now") == len(EXPECTED_KEYS)
    assert ledger.change(startup.repair) == 0


def test_a_dead_job_of_an_unfinished_task_is_enqueued_again(ledger: Ledger) -> None:
    """A dead job counts as missing."""
    ledger.record(callback("ended", "succeed", files=[FILE], signed=True))
    ledger.kill_job("download/ended/0")
    assert ledger.change(startup.repair) == 1
    job = ledger.jobs()["download/ended/0"]
    assert (job["state"], job["attempts"]) == ("ready", 0)


def test_a_sound_database_needs_no_repair(ledger: Ledger) -> None:
    """Open, ended, downloading, failed: as the functions leave them."""
    ledger.register("open")
    ledger.record(callback("hinted", "failed"), callback("going", "processing"))
    ledger.record(callback("fetching", "succeed", files=[FILE], signed=True))
    ledger.record(callback("failed", "failed", signed=True))
    ledger.record(callback("bare", "succeed", signed=True))
    ledger.register("refused", outcome="not_created", reason="no")
    assert ledger.change(startup.repair) == 0


def start_sweep(ledger: Ledger) -> None:
    """What a start does."""
    ledger.now += 1
    ledger.change(lambda tx: startup.schedule_sweep(tx, ledger.now))


def test_a_file_without_address_needs_a_query_and_no_download(ledger: Ledger) -> None:
    """A task that awaits one beside others lacks its query, and a job for each of the others."""
    ledger.record(callback(status="succeed", files=[f"{FILE}0", ""], signed=True))
    with ledger.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM job")
    assert ledger.change(startup.repair) == 2
    assert set(ledger.jobs()) == {"ask/t", "download/t/0"}
    ledger.store(0)
    assert ledger.change(startup.repair) == 0


def test_the_sweep_queries_each_open_task(ledger: Ledger) -> None:
    """First those whose deadline passed, then the others, spaced; ended ones not."""
    for task in ("late-0", "late-1"):
        ledger.register(task)
    ledger.now += HOUR
    for task in ("early-0", "early-1"):
        ledger.register(task)
    ledger.record(callback("ended", "failed", signed=True))
    start_sweep(ledger)
    due = {key: (job["due_at"] - ledger.now) for key, job in ledger.jobs().items()}
    assert due == {
        "overdue/late-0": SPACING_MS,
        "overdue/late-1": 2 * SPACING_MS,
        "sweep/early-0": 3 * SPACING_MS,
        "sweep/early-1": 4 * SPACING_MS,
        "overdue/early-0": 180_000 - 1,
        "overdue/early-1": 180_000 - 1,
    }


def test_another_start_spaces_the_sweep_again(ledger: Ledger) -> None:
    """The old sweep came due while no receiver ran; Kling must not be queried about all at once."""
    for task in ("a", "b"):
        ledger.register(task)
    start_sweep(ledger)
    ledger.now += 10_000
    start_sweep(ledger)
    jobs = ledger.jobs()
    assert [jobs[f"sweep/{task}"]["due_at"] - ledger.now for task in ("a", "b")] == [SPACING_MS, 2 * SPACING_MS]


def test_a_task_created_after_the_start_is_not_swept(ledger: Ledger) -> None:
    """Its callback is received."""
    ledger.register("new")
    ledger.change(lambda tx: startup.schedule_sweep(tx, ledger.now))
    assert set(ledger.jobs()) == {"overdue/new"}


def test_a_task_with_a_repaired_deadline_is_swept(ledger: Ledger) -> None:
    """It was open before the start."""
    ledger.register("open")
    with ledger.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM job")
    started = ledger.now = ledger.now + 1
    ledger.change(startup.repair)
    ledger.now += 1
    ledger.change(lambda tx: startup.schedule_sweep(tx, started))
    assert set(ledger.jobs()) == {"overdue/open", "sweep/open"}


DAY = 24 * HOUR


def retry(ledger: Ledger, key: str, backoff: Backoff, *, attempts: int, retry_after: float | None = None) -> None:
    """Claim a due job, and retry it after `attempts` attempts."""
    ledger.run_job(key)
    row = ledger.jobs()[key]
    claimed = {each.name: row[each.name] for each in fields(ClaimedJob)}  # type: ignore[literal-required]
    due = backoff.next_at(attempts, ledger.now, at_least=retry_after)
    assert due is not None
    assert ledger.change(lambda tx: queue.settle(tx, ClaimedJob(**claimed), settle_as(RetryAt(due, "again"))))


def overdue_deadline(ledger: Ledger) -> str:
    """The deadline of a task."""
    ledger.register("t")
    return "overdue/t"


def overdue_retry(ledger: Ledger) -> str:
    """The sixteenfold wait after the fifth query at a deadline."""
    ledger.put_job("overdue/t", kind="overdue", due_at=ledger.now)
    retry(ledger, "overdue/t", Backoff((180 * 16,), lambda: 1.0), attempts=1)
    return "overdue/t"


def sweep(ledger: Ledger) -> str:
    """The query of an open task after a start."""
    ledger.register("t")
    ledger.now += 1
    ledger.change(lambda tx: startup.schedule_sweep(tx, ledger.now))
    return "sweep/t"


def spread_deadline(ledger: Ledger) -> str:
    """A deadline that passed before a start, in its turn."""
    ledger.put_task("t")
    ledger.put_job("overdue/t", kind="overdue", due_at=ledger.now - 1)
    ledger.change(lambda tx: startup.schedule_sweep(tx, ledger.now))
    return "overdue/t"


def ask_with_retry_after(ledger: Ledger) -> str:
    """A query that Kling told to come back later."""
    ledger.record(callback(status="succeed"))
    retry(ledger, "ask/t", QUERY_BACKOFF, attempts=1, retry_after=900)
    return "ask/t"


def ask_grace(ledger: Ledger) -> str:
    """A query that waits for the create's answer."""
    ledger.register()
    ledger.record(callback(status="succeed"))
    return "ask/t"


def earlier_ask(ledger: Ledger) -> str:
    """A query that was enqueued again, with a shorter delay than before."""
    ledger.change(lambda tx: enqueue.ask(tx, "t", ledger.now + DAY))
    ledger.change(lambda tx: enqueue.ask(tx, "t", ledger.now + 5_000))
    return "ask/t"


def revived_ask(ledger: Ledger) -> str:
    """A dead query that was enqueued again."""
    ledger.put_job("ask/t", due_at=ledger.now, delay_ms=NEVER)
    ledger.kill_job("ask/t")
    ledger.change(lambda tx: enqueue.ask(tx, "t", ledger.now + 5_000))
    return "ask/t"


def hastened_ask(ledger: Ledger) -> str:
    """A query that was made due at once."""
    ledger.change(lambda tx: enqueue.ask(tx, "t", ledger.now + DAY))
    ledger.change(lambda tx: tx.run_now("ask/t"))
    return "ask/t"


def rescued_ask(ledger: Ledger) -> str:
    """A query of a dead worker."""
    ledger.put_job("ask/t", due_at=ledger.now, delay_ms=DAY)
    ledger.run_job("ask/t")
    ledger.change(lambda tx: queue.rescue(tx, tx.now))
    return "ask/t"


def download_backoff(ledger: Ledger) -> str:
    """A download between two attempts."""
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    retry(ledger, "download/t/0", DOWNLOAD_BACKOFF, attempts=5)
    return "download/t/0"


def delivery_retry(ledger: Ledger) -> str:
    """The last retry of a delivery, a day after the one before it."""
    ledger.put_job("delivery/1/one", kind="delivery", pool="hook-retries", hook_name="one", due_at=ledger.now)
    retry(ledger, "delivery/1/one", Backoff((86_400,), lambda: 1.0), attempts=1)
    return "delivery/1/one"


AHEAD = 30 * DAY
DELAYS: list[tuple[Callable[[Ledger], str], int, int]] = [
    (overdue_deadline, 180_000, 180_000),
    (overdue_retry, 16 * 180_000, 16 * 180_000),
    (sweep, SPACING_MS, SPACING_MS),
    (spread_deadline, SPACING_MS, SPACING_MS),
    (ask_with_retry_after, 900_000, 900_000),
    (ask_grace, CREATE_ANSWER_GRACE_MS, CREATE_ANSWER_GRACE_MS),
    (earlier_ask, 5_000, 5_000),
    (revived_ask, 5_000, 5_000),
    (hastened_ask, 0, 0),
    (rescued_ask, 0, 0),
    (download_backoff, int(DOWNLOAD_BACKOFF.steps[4] * 500), int(DOWNLOAD_BACKOFF.steps[4] * 1000)),
    (delivery_retry, DAY, DAY),
]


@pytest.mark.parametrize(("enqueued", "shortest", "longest"), DELAYS, ids=[each[0].__name__ for each in DELAYS])
def test_a_clock_that_was_ahead_delays_no_job(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, enqueued: Callable[[Ledger], str], shortest: int, longest: int
) -> None:
    """A job waits for the delay that it was given, counted from the corrected clock; a right clock moves no job."""
    ledger.now += AHEAD
    key = enqueued(ledger)
    before = ledger.jobs()
    with caplog.at_level(logging.WARNING):
        ledger.change(startup.clamp_due_times)
        assert (ledger.jobs(), caplog.messages) == (before, [])
        delay = before[key]["due_at"] - ledger.now
        assert shortest <= delay <= longest
        ledger.now -= AHEAD
        ledger.change(startup.clamp_due_times)
    after = ledger.jobs()
    assert after[key] == before[key] | {"due_at": ledger.now + delay}
    assert caplog.messages == [f"{len(after)} jobs were due later than their delay allows; was the clock ahead?"]
    assert all(job["due_at"] == ledger.now + before[other]["delay_ms"] for other, job in after.items())


@pytest.mark.parametrize("jump_ms", [-HOUR, -365 * 24 * HOUR])
def test_a_clock_that_is_set_back_while_running_delays_no_job(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, jump_ms: int
) -> None:
    """Due times are pulled in, and leases; the log names the jump."""
    ledger.now -= jump_ms
    ledger.change(lambda tx: enqueue.overdue(tx, "t", "images/generations"))
    ledger.change(lambda tx: enqueue.ask(tx, "running"))
    with ledger.database.write() as connection:
        connection.exec_driver_sql(
            "UPDATE job SET state = 'running', claim_id = 'x', "
            f"lease_expires_at = {ledger.now + LEASE_MS} WHERE kind = 'ask'"
        )
    ledger.now += jump_ms
    ledger.change(lambda tx: startup.follow_clock(tx, jump_ms))
    jobs = ledger.jobs()
    assert jobs["overdue/t"]["due_at"] == ledger.now + 180_000
    assert jobs["ask/running"]["lease_expires_at"] == ledger.now + LEASE_MS
    assert f"the clock jumped by {jump_ms / 1000:+.0f} s" in caplog.text


@pytest.mark.parametrize("jump_ms", [-HOUR, HOUR])
def test_creates_that_are_spaced_wait_no_longer_after_a_jump(ledger: Ledger, jump_ms: int) -> None:
    """The time of the next one is a time of the wall clock, too."""
    due = ledger.now + 500
    ledger.change(lambda tx: slots.update_account(tx, {**slots.lock_account(tx), "next_create_at": due}))
    ledger.now += jump_ms
    ledger.change(lambda tx: startup.follow_clock(tx, jump_ms))
    (row,) = ledger.rows(ACCOUNT)
    assert row["next_create_at"] == ledger.now + 500


def test_a_deadline_counts_from_the_creation(ledger: Ledger) -> None:
    """Also one that lacked its job; a creation in the future, by a clock that was ahead, is now."""
    for age in (60_000, -HOUR):
        row = {"id": f"t{age}", "family": "videos/text2video", "created_at": ledger.now - age}
        ledger.change(partial(Transaction.add_tasks, rows=[row]))
    ledger.change(startup.repair)
    due = {job["task_id"]: job["due_at"] for job in ledger.jobs().values()}
    assert due == {"t60000": ledger.now - 60_000 + 1_200_000, f"t{-HOUR}": ledger.now + 1_200_000}


def test_a_suspended_a_dead_and_a_running_job_are_not_clamped(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """A delivery of a paused hook stays suspended until the hook is resumed; then it is due at once."""
    ledger.now += AHEAD
    ledger.put_hook("one")
    ledger.put_job("delivery/1/one", kind="delivery", hook_name="one", due_at=ledger.now + HOUR, delay_ms=HOUR)
    ledger.change(lambda tx: hook_records.pause(tx, "one", "for a test"))
    ledger.put_job("dead", state="dead", due_at=ledger.now)
    ledger.put_job("running", due_at=ledger.now)
    ledger.run_job("running")
    before = ledger.jobs()
    assert before["delivery/1/one"]["due_at"] == NEVER
    ledger.now -= AHEAD
    with caplog.at_level(logging.WARNING, "kling_receiver.startup"):
        ledger.change(startup.clamp_due_times)
    assert (ledger.jobs(), caplog.messages) == (before, [])
    ledger.change(lambda tx: hook_records.resume(tx, "one"))
    resumed = ledger.jobs()["delivery/1/one"]
    assert (resumed["due_at"], resumed["delay_ms"]) == (ledger.now, 0)


def test_a_start_clamps_due_times(start: Start, gateway: Sandbox) -> None:
    """A job that waits a day longer than its delay is due within its delay."""
    first = start(api_base=gateway.url)
    task = new_id()
    put(first, task)
    first.stop()
    with closing(sqlite3.connect(str(first.settings.database_file))) as opened, opened as connection:
        connection.execute(
            "UPDATE job SET kind = 'download', unique_key = ?, due_at = due_at + 86400000",
            (f"download/{task}/0",),
        )
    second = start(api_base=gateway.url)
    gateway.wait_for(lambda: gateway.queries, 40)  # its turn came, which is given out later
    [job] = rows(second, "SELECT due_at FROM job WHERE kind = 'download'")
    assert job["due_at"] <= time.time() * 1000 + 180_000


def test_a_task_whose_deadline_comes_first_is_not_swept(ledger: Ledger) -> None:
    """So many were late that this task's own deadline is earlier."""
    for number in range(20):
        ledger.register(f"late-{number}")
    ledger.now += 180_000 - 10 * SPACING_MS
    ledger.register("soon")
    ledger.now += 179_000
    start_sweep(ledger)
    assert "sweep/soon" not in ledger.jobs()
    assert ledger.jobs()["overdue/soon"]["due_at"] == NOW + 180_000 - 10 * SPACING_MS + 180_000


@pytest.mark.anyio
async def test_the_sweep_applies_klings_answer(parts: Parts, gateway: Sandbox) -> None:  # noqa: F811
    """Still going: noted, and its deadline stands; ended: recovered; no answer, no task: nothing."""
    overdue = OverdueTasks(parts.asker, parts.reader)
    gateway.hold()
    theirs = made(gateway)
    going, silent, nobody = await known(parts, theirs), await known(parts, made(gateway, "query-5xx")), new_id()
    for task in (going, silent, nobody):
        assert isinstance(await parts.do(overdue.check_after_start, task), Done)
    assert "task.recovered" not in [*(await parts.types(going)), *(await parts.types(silent))]
    gateway.release()
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    assert isinstance(await parts.do(overdue.check_after_start, going), Done)
    assert "task.recovered" in await parts.types(going)
    asked = gateway.tasks[theirs].queries
    assert isinstance(await parts.do(overdue.check_after_start, going), Done)
    assert gateway.tasks[theirs].queries == asked


@pytest.mark.anyio
async def test_a_gateway_that_never_calls_back_is_logged_once(
    parts: Parts,  # noqa: F811
    gateway: Sandbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """For the first task that only its deadline found, not for the next."""
    overdue = OverdueTasks(parts.asker, parts.reader)
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            theirs = made(gateway)
            gateway.wait_for(lambda theirs=theirs: gateway.tasks[theirs].finished_at)  # type: ignore[misc]
            assert isinstance(await parts.do(overdue.check, await known(parts, theirs)), Done)
    assert caplog.text.count(NEVER_CALLED_BACK) == 1


@pytest.mark.anyio
async def test_a_gateway_that_called_back_is_not_logged(
    parts: Parts,  # noqa: F811
    gateway: Sandbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another task had a callback, so this one's was lost."""
    await parts.succeeded()
    theirs = made(gateway)
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    with caplog.at_level(logging.ERROR):
        overdue = OverdueTasks(parts.asker, parts.reader)
        assert isinstance(await parts.do(overdue.check, await known(parts, theirs)), Done)
    assert NEVER_CALLED_BACK not in caplog.text


def test_a_registered_task_is_swept_and_stays_open(start: Start, gateway: Sandbox) -> None:
    """Its client may be about to create it, so that it proves nothing if Kling does not know it."""
    first = start(api_base=gateway.url)
    task = new_id()
    put(first, task)
    first.stop()
    second = start(api_base=gateway.url)
    gateway.wait_for(lambda: gateway.queries)
    assert show(second, task)["status"] == "created"

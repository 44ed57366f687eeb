"""After a start: nothing that is owed was forgotten, and every open task is asked about once, in its turn."""

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kling_callback.protocol.ids import new_id
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import HookConfig
from kling_receiver.jobs.queue import NEVER, Done
from kling_receiver.store.database import Database
from kling_receiver.tasks import startup
from kling_receiver.tasks.overdue import NEVER_CALLED_BACK, OverdueTasks
from kling_receiver.tasks.startup import SPACING_MS
from kling_sandbox import Sandbox
from tests.receiver.results.test_download import Parts, made, parts  # noqa: F401  # a fixture
from tests.receiver.tasks.test_overdue import known
from tests.support.database import FILE, NOW, Ledger, callback
from tests.support.receiver import Start
from tools.harness.submitting import events, finished, rows, show, submit, types
from tools.harness.submitting import register as put

HOUR = 3_600_000


def test_what_ended_while_nobody_listened_is_found_after_the_start(
    start: Start, gateway: Sandbox, tmp_path: Path
) -> None:
    """The callback is lost, the deadline far: one question finds the end and the files."""
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


OWED = {"overdue/open", "overdue/hinted", "ask/hinted", "ask/bare", "download/ended/0"}


def test_work_that_no_job_owes_is_owed_again(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    """A deadline, a question, a download: whatever is missing, with a loud line each; then nothing is."""
    ledger.register("open")
    ledger.record(callback("hinted", "succeed"))
    ledger.record(callback("ended", "succeed", files=[FILE], signed=True))
    ledger.put_task("bare", status="succeed", origin="kling")
    assert set(ledger.jobs()) == OWED - {"ask/bare"}
    with ledger.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM job")
    with caplog.at_level(logging.ERROR):
        assert ledger.change(startup.repair) == len(OWED)
    assert set(ledger.jobs()) == OWED
    assert caplog.text.count("was not owed") == len(OWED)
    assert ledger.change(startup.repair) == 0


def test_what_was_given_up_is_owed_again_where_the_task_is_not_done(ledger: Ledger) -> None:
    """A dead job is no job."""
    ledger.record(callback("ended", "succeed", files=[FILE], signed=True))
    ledger.kill_job("download/ended/0")
    assert ledger.change(startup.repair) == 1
    job = ledger.jobs()["download/ended/0"]
    assert (job["state"], job["attempts"]) == ("ready", 0)


def test_a_sound_database_needs_nothing(ledger: Ledger) -> None:
    """Open, ended, fetched, failed: each as its verbs leave it."""
    ledger.register("open")
    ledger.record(callback("hinted", "failed"), callback("going", "processing"))
    ledger.record(callback("fetching", "succeed", files=[FILE], signed=True))
    ledger.record(callback("failed", "failed", signed=True))
    ledger.record(callback("bare", "succeed", signed=True))
    ledger.register("refused", outcome="not_created", reason="no")
    assert ledger.change(startup.repair) == 0


def take_turns(ledger: Ledger) -> None:
    """What a start does."""
    ledger.now += 1
    ledger.change(lambda tx: startup.schedule_sweep(tx, ledger.now))


def test_each_open_task_gets_its_turn(ledger: Ledger) -> None:
    """First those whose deadline passed meanwhile, then the others, spaced; ended ones not."""
    for task in ("late-0", "late-1"):
        ledger.register(task)
    ledger.now += HOUR
    for task in ("early-0", "early-1"):
        ledger.register(task)
    ledger.record(callback("ended", "failed", signed=True))
    take_turns(ledger)
    due = {key: (job["due_at"] - ledger.now) for key, job in ledger.jobs().items()}
    assert due == {
        "overdue/late-0": SPACING_MS,
        "overdue/late-1": 2 * SPACING_MS,
        "sweep/early-0": 3 * SPACING_MS,
        "sweep/early-1": 4 * SPACING_MS,
        "overdue/early-0": 180_000 - 1,
        "overdue/early-1": 180_000 - 1,
    }


def test_another_start_gives_out_the_turns_anew(ledger: Ledger) -> None:
    """While nobody took them they all came due; Kling is not to be asked all that at once."""
    for task in ("a", "b"):
        ledger.register(task)
    take_turns(ledger)
    ledger.now += 10_000
    take_turns(ledger)
    jobs = ledger.jobs()
    assert [jobs[f"sweep/{task}"]["due_at"] - ledger.now for task in ("a", "b")] == [SPACING_MS, 2 * SPACING_MS]


def test_a_task_that_comes_after_the_start_needs_no_turn(ledger: Ledger) -> None:
    """Its callback is listened for."""
    ledger.register("new")
    ledger.change(lambda tx: startup.schedule_sweep(tx, ledger.now))
    assert set(ledger.jobs()) == {"overdue/new"}


def test_a_task_whose_deadline_was_lost_gets_its_turn_too(ledger: Ledger) -> None:
    """It was open before the start, whenever its deadline was owed again."""
    ledger.register("open")
    with ledger.database.write() as connection:
        connection.exec_driver_sql("DELETE FROM job")
    started = ledger.now = ledger.now + 1
    ledger.change(startup.repair)
    ledger.now += 1
    ledger.change(lambda tx: startup.schedule_sweep(tx, started))
    assert set(ledger.jobs()) == {"overdue/open", "sweep/open"}


DAY = 24 * HOUR


@pytest.mark.parametrize(
    ("kind", "attempts", "latest"),
    [
        ("ask", 0, HOUR),
        ("ask", 30, HOUR),
        ("download", 2, HOUR),
        ("hook", 0, HOUR),
        ("hook", 1, HOUR),
        ("hook", 5, HOUR),
        ("hook", 6, 3 * HOUR),
        ("hook", 8, DAY),
        ("hook", 99, DAY),
        ("dispatch", 0, HOUR),
        ("replay", 0, HOUR),
        ("overdue", 1, 1_200_000 * 16),
    ],
)
def test_a_clock_that_was_ahead_puts_nothing_off_for_long(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, kind: str, attempts: int, latest: int
) -> None:
    """What is due later than it can have been put off is due by then; all else stays."""
    ledger.register("t", outcome="not_created")
    ledger.change(lambda tx: hook_records.add(tx, HookConfig(name="one", address="https://one.example/")))
    job: dict[str, Any] = {"kind": kind, "attempts": attempts, "lane": "hook one", "hook": "one"}
    ledger.put_job("late", **job | {"due_at": NOW + 30 * DAY})
    ledger.put_job("in time", **job | {"due_at": NOW + latest})
    ledger.put_job("dead", **job | {"due_at": NOW + 30 * DAY, "state": "dead"})
    ledger.put_job("paused", **job | {"due_at": NEVER})
    with caplog.at_level(logging.WARNING):
        ledger.change(startup.clamp_due_times)
    due = {key: job["due_at"] - NOW for key, job in ledger.jobs().items()}
    assert due == {"late": latest, "in time": latest, "dead": 30 * DAY, "paused": NEVER - NOW}
    assert f"1 jobs ({kind})" in caplog.text


def test_a_start_brings_forward_what_a_clock_had_put_off(start: Start, gateway: Sandbox) -> None:
    """A download that waits a day goes on within the hour."""
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
    assert job["due_at"] <= (time.time() * 1000) + HOUR


def test_a_deadline_before_its_turn_needs_none(ledger: Ledger) -> None:
    """So many were late that this task's own deadline comes first."""
    for number in range(20):
        ledger.register(f"late-{number}")
    ledger.now += 180_000 - 10 * SPACING_MS
    ledger.register("soon")
    ledger.now += 179_000
    take_turns(ledger)
    assert "sweep/soon" not in ledger.jobs()
    assert ledger.jobs()["overdue/soon"]["due_at"] == NOW + 180_000 - 10 * SPACING_MS + 180_000


@pytest.mark.anyio
async def test_kling_says_how_it_stands(parts: Parts, gateway: Sandbox) -> None:  # noqa: F811
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
async def test_a_gateway_that_never_calls_back_is_named_once(
    parts: Parts,  # noqa: F811
    gateway: Sandbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One loud line for the first task that only its deadline found, none for the next."""
    overdue = OverdueTasks(parts.asker, parts.reader)
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            theirs = made(gateway)
            gateway.wait_for(lambda theirs=theirs: gateway.tasks[theirs].finished_at)  # type: ignore[misc]
            assert isinstance(await parts.do(overdue.check, await known(parts, theirs)), Done)
    assert caplog.text.count(NEVER_CALLED_BACK) == 1


@pytest.mark.anyio
async def test_a_gateway_that_did_call_back_is_not_blamed(
    parts: Parts,  # noqa: F811
    gateway: Sandbox,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Another task was called back: this one's callback was lost, which happens."""
    await parts.succeeded()
    theirs = made(gateway)
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    with caplog.at_level(logging.ERROR):
        overdue = OverdueTasks(parts.asker, parts.reader)
        assert isinstance(await parts.do(overdue.check, await known(parts, theirs)), Done)
    assert NEVER_CALLED_BACK not in caplog.text


def test_a_registered_task_is_asked_about_after_a_start_and_goes_on(start: Start, gateway: Sandbox) -> None:
    """Its client may be about to create it: that Kling does not know it yet proves nothing."""
    first = start(api_base=gateway.url)
    task = new_id()
    put(first, task)
    first.stop()
    second = start(api_base=gateway.url)
    gateway.wait_for(lambda: gateway.queries)
    assert show(second, task)["status"] == "created"

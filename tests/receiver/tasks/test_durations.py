"""Tasks of a family that is never called back are asked about when such tasks usually end."""

from typing import Any

import pytest

from kling_callback.errors import GatewayError
from kling_callback.protocol.reports import Report
from kling_receiver.jobs.queue import ClaimedJob, Done, Outcome, RetryAt
from kling_receiver.policy import Policy
from kling_receiver.store.database import Database
from kling_receiver.store.tables import TASK
from kling_receiver.tasks import transitions
from kling_receiver.tasks.adoption import adopt
from kling_receiver.tasks.durations import MAX_TASKS, MIN_QUESTION_MS, MIN_TASKS, NEWEST, RECENT_TASKS
from kling_receiver.tasks.overdue import apply_answer
from tests.support.database import FAMILY, NOW, OVERDUE, Ledger, callback, handle, says, statements

DEADLINE = 180_000
SECOND = 1000


@pytest.fixture
def ledger(database: Database) -> Ledger:
    return Ledger(database)


def finished(ledger: Ledger, *durations: float, callbacks: int = 0, **values: Any) -> None:
    """Finished tasks that took so many seconds, each newer than the one before."""
    for seconds in durations:
        ledger.now += 1
        count = len(ledger.rows(TASK))
        row = {"status": "succeed", "origin": "kling", "done": True, "callback_count": callbacks, **values}
        ledger.put_task(f"old-{count}", **row, created_at=ledger.now, duration_ms=int(seconds * SECOND))


def first_question(ledger: Ledger, **given: Any) -> tuple[float, bool]:
    """Seconds from the registration of a task to its first question, and whether it is before the deadline."""
    ledger.register("t", **given)
    job = ledger.jobs()[OVERDUE]
    assert job["args"] in (None, {"opened_at": ledger.now})
    return (job["due_at"] - ledger.now) / SECOND, bool(job["args"])


@pytest.mark.parametrize(
    ("durations", "question"),
    [
        ([10, 20, 30], (36.0, True)),
        ([10, 20], (180.0, False)),
        ([0.1] * 5, (MIN_QUESTION_MS / SECOND, True)),
        ([20] * 9 + [100], (24.0, True)),
        ([500] * 3, (180.0, False)),
        ([100] * 10 + [20] * MAX_TASKS, (24.0, True)),
    ],
    ids=["few", "too few", "a floor", "nine of ten", "the deadline is the most", "the newest"],
)
def test_the_first_question_is_at_the_usual_end(
    ledger: Ledger, durations: list[float], question: tuple[float, bool]
) -> None:
    """With a margin, by the newest finished tasks."""
    finished(ledger, *durations)
    assert first_question(ledger) == question


def test_a_family_that_is_called_back_is_asked_about_at_the_deadline(ledger: Ledger) -> None:
    """One callback is enough, and it does not matter how long ago others were silent."""
    finished(ledger, *[10] * 9)
    finished(ledger, 10, callbacks=1)
    assert first_question(ledger) == (180.0, False)


def test_a_callback_of_long_ago_does_not_count(ledger: Ledger) -> None:
    """After a few silent tasks no callback is expected any more; only these tell the duration."""
    finished(ledger, 100, callbacks=1)
    finished(ledger, *[10] * MIN_TASKS)
    assert first_question(ledger) == (12.0, True)


def test_a_model_counts_more_than_its_family(ledger: Ledger) -> None:
    """One model may send no callbacks while others of the family do; an unknown one is judged by the family."""
    finished(ledger, *[10] * MIN_TASKS, model="silent")
    finished(ledger, *[50] * MIN_TASKS, model="called", callbacks=1)
    assert first_question(ledger, model="silent") == (12.0, True)
    for model in ("called", "new", ""):
        ledger.register(f"t-{model}", model=model)
        assert ledger.jobs()[f"overdue/t-{model}"]["args"] is None


def test_other_families_do_not_count(ledger: Ledger) -> None:
    """Nor do failed tasks, whose durations are not stored."""
    finished(ledger, *[10] * MIN_TASKS, family="videos/text2video")
    assert first_question(ledger) == (180.0, False)


def test_the_operator_s_deadline_is_the_most(database: Database) -> None:
    """KLING_OVERDUE_SECONDS is never exceeded."""
    ledger = Ledger(database, rules=Policy(overdue_seconds=30))
    finished(ledger, *[20] * MIN_TASKS)
    assert first_question(ledger) == (24.0, True)
    finished(ledger, *[40] * MIN_TASKS)
    ledger.register("u")
    assert ledger.jobs()["overdue/u"]["args"] is None


def test_a_create_reads_few_rows_by_the_index(ledger: Ledger) -> None:
    """However many tasks there are: one bounded statement, which finds the newest ones without a sort."""
    finished(ledger, *[10] * 5)
    with statements(ledger.database) as seen:
        ledger.register("t")
    (query,) = [text for text in seen if "duration_ms IS NOT NULL" in text]
    assert f"LIMIT {RECENT_TASKS}" in query
    if ledger.database.is_sqlite:
        with ledger.database.read() as connection:
            sql = f"EXPLAIN QUERY PLAN {NEWEST._sqlite}".replace(":family", f"'{FAMILY}'")
            plan = " ".join(row[-1] for row in connection.exec_driver_sql(sql))
        found, index, then = plan.partition("COVERING INDEX task_durations (family=?)")
        assert index
        assert "TEMP B-TREE" not in found
        assert "USING" not in then


@pytest.mark.parametrize(
    ("report", "callbacks", "duration"),
    [
        (says("succeed", created_at=NOW, updated_at=NOW + 45_000), 0, 45_000),
        (says("succeed", created_at=NOW, updated_at=NOW + 45_000), 1, 45_000),
        (says("succeed"), 0, 50_000),
        (says("succeed", created_at=NOW, updated_at=NOW), 0, 50_000),
        (says("succeed"), 1, 100_000),
        (says("failed", created_at=NOW, updated_at=NOW + 45_000), 0, None),
    ],
)
def test_the_duration_of_a_success_is_stored(
    any_database: Database, report: Report, callbacks: int, duration: int | None
) -> None:
    """By Kling's times. Without them a task that was asked about has ended before: half of its age is taken."""
    ledger = Ledger(any_database)
    ledger.put_task("t", callback_count=callbacks, status="submitted", create_token="a")
    ledger.now = NOW + 100_000
    ledger.apply_report("t", report)
    assert ledger.task()["duration_ms"] == duration


TIMES = {"created_at": NOW, "updated_at": NOW + 45_000}


@pytest.mark.parametrize("times", [{}, TIMES])
def test_an_adopted_task_says_nothing_about_callbacks(ledger: Ledger, times: Any) -> None:
    """Its create named no address of ours: it is not one that was never called back, and others wait for theirs."""
    success = says("succeed", "https://example.com/x.png", **times)
    for number in range(2 * MIN_TASKS):
        finished_before = bool(number % 2)
        with ledger.transaction() as tx:
            adopted = adopt(tx, FAMILY, f"k{number}", success if finished_before else says("processing"))
        ledger.now += SECOND
        if not finished_before:
            with ledger.transaction() as tx:
                apply_answer(tx, tx.require_task(adopted.task_id), success, "deadline")
    assert {(task["status"], task["duration_ms"]) for task in ledger.rows(TASK)} == {("succeed", None)}
    assert first_question(ledger) == (180.0, False)


@pytest.mark.parametrize(
    ("by", "times", "duration"),
    [
        ("operator", {}, None),
        ("startup", {}, None),
        ("deadline", {}, 50_000),
        ("operator", TIMES, 45_000),
        ("startup", TIMES, 45_000),
    ],
)
def test_only_a_timely_question_tells_a_duration_by_the_age(ledger: Ledger, by: Any, times: Any, duration: Any) -> None:
    """An operator asks at any time, and a receiver may have been stopped for days; Kling's times count always."""
    ledger.register()
    ledger.now += 100 * SECOND
    ledger.change(lambda tx: apply_answer(tx, tx.require_task("t"), says("succeed", **times), by))
    assert ledger.task()["duration_ms"] == duration


def test_a_retried_task_is_asked_about_as_early(ledger: Ledger) -> None:
    """From the time of its last attempt on, as if it were new; also one that Kling took after all."""
    finished(ledger, *[10] * MIN_TASKS)
    ledger.register("t")
    ledger.register("t", outcome="not_created", reason="no")
    ledger.now += 3600 * SECOND
    assert first_question(ledger, create_token="b") == (12.0, True)
    reopened = ledger.now
    ledger.now += 12 * SECOND
    outcome = early_check(ledger, says("processing"))
    assert isinstance(outcome, RetryAt)
    assert outcome.due_at == reopened + 24 * SECOND
    ledger.change(lambda tx: transitions.fail_locally(tx, tx.require_task("t"), "no answer"))
    assert first_question(ledger, outcome="created", kling_id="k") == (12.0, True)


def test_a_task_that_a_callback_reopens_is_not_asked_about_early(ledger: Ledger) -> None:
    """It is called back."""
    finished(ledger, *[10] * MIN_TASKS)
    ledger.register("t")
    ledger.record(callback("t", "processing"))
    ledger.change(lambda tx: transitions.fail_locally(tx, tx.require_task("t"), "no answer"))
    ledger.apply_report("t", says("processing"))
    assert ledger.jobs()[OVERDUE]["args"] is None


def early_check(ledger: Ledger, answer: Report | GatewayError | None) -> Outcome:
    """Handle the question before the deadline, for this answer of Kling."""
    job = ledger.jobs()[OVERDUE]
    claimed = ClaimedJob(1, OVERDUE, "overdue", "kling", "t", "overdue", job["args"], 1, "claim")
    effect = handle(claimed, ledger.task(), answer)
    return ledger.change(lambda tx: effect(tx))


def test_one_question_is_enough(ledger: Ledger) -> None:
    """The task has ended at Kling: no deadline passes."""
    finished(ledger, *[10] * MIN_TASKS)
    first_question(ledger)
    ledger.now += 12 * SECOND
    assert early_check(ledger, says("succeed", "https://example.com/x.png", kling_id="k")) == Done()
    assert ledger.types() == ["task.created", "task.submitted", "task.succeed", "task.recovered"]


@pytest.mark.parametrize("answer", [says("processing", kling_id="k"), GatewayError("HTTP 502"), None])
def test_after_a_question_that_was_too_early_the_age_doubles(
    any_database: Database, answer: Report | GatewayError | None
) -> None:
    """Up to the deadline, from which on everything is as without it: no such question fails the task."""
    ledger = Ledger(any_database)
    finished(ledger, *[10] * MIN_TASKS)
    first_question(ledger)
    registered, ages, args = ledger.now, [], None
    ledger.now += 12 * SECOND
    for _ in range(4):
        outcome = early_check(ledger, answer)
        assert isinstance(outcome, RetryAt)
        ages.append((outcome.due_at - registered) // SECOND)
        ledger.now, args = outcome.due_at, outcome.args
    assert ages == [24, 48, 96, 180]
    assert args == {}
    assert "task.overdue" not in ledger.types()
    assert ledger.task()["status"] == ("processing" if isinstance(answer, Report) else "created")


def test_a_clock_that_was_ahead_does_not_make_questions_frequent(any_database: Database) -> None:
    """A task from the future is asked about again after the shortest wait."""
    ledger = Ledger(any_database)
    finished(ledger, *[10] * MIN_TASKS)
    first_question(ledger)
    ledger.now -= 60 * SECOND
    outcome = early_check(ledger, None)
    assert isinstance(outcome, RetryAt)
    assert outcome.due_at == ledger.now + MIN_QUESTION_MS
    assert outcome.args == {"opened_at": ledger.now}


def test_a_callback_ends_the_early_questions(ledger: Ledger) -> None:
    """The task whose callback arrived is asked about as ever, and the next one at its deadline."""
    finished(ledger, *[10] * MIN_TASKS)
    first_question(ledger)
    ledger.record(callback("t", "succeed"))
    ledger.now += 10 * SECOND
    ledger.apply_report("t", says("succeed", "https://example.com/x.png"))
    assert OVERDUE not in ledger.jobs()
    ledger.register("u")
    assert ledger.jobs()["overdue/u"]["args"] is None

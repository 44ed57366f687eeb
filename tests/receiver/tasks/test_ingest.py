"""Ingesting callbacks: each is kept or counted once, in any order, with its consequences."""

import itertools
import json
from typing import Any

import pytest

from kling_callback.protocol.reports import Report
from kling_receiver.store.database import Database
from kling_receiver.store.tables import EVENT, TASK
from kling_receiver.tasks.ingest import (
    CREATE_ANSWER_GRACE_MS,
    MAX_KEPT_BYTES,
    MAX_KEPT_CALLBACKS,
    UNCOUNTED_ASK_DELAY_MS,
    Callback,
)
from tests.support.database import FAMILY, FILE, NOW, OVERDUE, Ledger, callback, says, view


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """A ledger of no tasks."""
    return Ledger(database)


def test_the_first_callback_makes_the_task(ledger: Ledger) -> None:
    """A callback that beats the create's answer is the normal case: nothing need be registered."""
    ledger.record(callback(family="videos/text2video", task_id="k1"))
    task = ledger.task()
    assert view(task) == ("processing", None, False)
    assert (task["family"], task["outcome"], task["callback_count"], task["callback_kling_id"]) == (
        "videos/text2video",
        "none",
        1,
        "k1",
    )
    assert ledger.types() == ["task.created", "callback.received", "task.processing"]
    assert [event["data"] for event in ledger.events()] == [
        {"by": "callback"},
        {"status": "processing", "signed": False, "size": ledger.task()["kept_bytes"]},
        {"by": "callback", "message": ""},
    ]
    assert ledger.jobs()[OVERDUE]["due_at"] == NOW + 1_200_000
    assert list(ledger.jobs()) == [OVERDUE]


def test_an_unreadable_callback_is_a_hint(ledger: Ledger) -> None:
    """Only Kling can say what happened; an earlier hint of a final status is kept."""
    ledger.record(callback(status="failed"), callback(status=None))
    assert (ledger.task()["hint"], ledger.task()["hint_count"]) == ("failed", 2)
    assert ledger.events()[2]["data"]["trouble"] == "unreadable"
    assert sorted(ledger.jobs()) == ["ask/t", OVERDUE]


@pytest.mark.parametrize(("answered", "wait"), [(False, CREATE_ANSWER_GRACE_MS), (True, 0)])
def test_a_query_waits_for_the_creates_answer(ledger: Ledger, answered: bool, wait: int) -> None:
    """For a moment, while that answer is missing: it names the id for the query."""
    ledger.register()
    if answered:
        ledger.register(outcome="created", kling_id="k1")
    ledger.record(callback(status="succeed"))
    assert ledger.jobs()["ask/t"]["due_at"] == NOW + wait


@pytest.mark.parametrize(
    ("known", "named"),
    [
        ({"outcome": "created", "kling_id": "k1"}, {"task_id": "k2"}),
        ({}, {"task_id": "k9"}),
        ({}, {"task_id": "new", "task_info": {"external_task_id": "other"}}),
    ],
)
def test_a_signed_report_of_another_task_is_only_a_hint(
    ledger: Ledger, known: dict[str, Any], named: dict[str, Any]
) -> None:
    """Whoever has this task's address may have sent it on."""
    ledger.register("other", outcome="created", kling_id="k9")
    ledger.register(**known)
    ledger.record(callback(status="succeed", files=[FILE], signed=True, **named))
    assert ledger.task()["origin"] is None
    assert ledger.results() == []
    assert "ask/t" in ledger.jobs()


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"task_id": "k1"},
        {"task_id": "the relay's own", "task_info": {"external_task_id": "t"}},
        {"task_info": {"external_task_id": "an id of the caller's"}},
    ],
)
def test_a_signed_report_of_no_other_task_is_authoritative(ledger: Ledger, named: dict[str, Any]) -> None:
    """With our id, with Kling's, or with none that another task has."""
    ledger.register("another")
    ledger.register(outcome="created", kling_id="k1")
    ledger.record(callback(status="failed", signed=True, **named))
    assert view(ledger.task()) == ("failed", "kling", True)


# Repeats, order, caps


@pytest.mark.parametrize("together", [True, False])
def test_a_repeat_is_counted_on_its_event(ledger: Ledger, together: bool) -> None:
    """In one commit or in several: one event, whose repeats count on; nothing follows from it twice."""
    same = callback(status="succeed")
    batches = [[same, same, same]] if together else [[same], [same], [same]]
    for batch in batches:
        ledger.record(*batch)
    (event,) = ledger.rows(EVENT, body_sha256=same.body_sha256)
    assert (event["repeat_count"], event["body"]) == (2, same.body)
    assert (ledger.task()["callback_count"], ledger.task()["kept_callbacks"], ledger.task()["hint_count"]) == (
        3,
        1,
        1,
    )
    assert ledger.types() == ["task.created", "callback.received"]


def test_the_same_body_to_two_tasks_is_two_callbacks(ledger: Ledger) -> None:
    """The address says which task it is of."""
    ledger.record(callback("t"), callback("u"))
    assert ledger.types("t") == ledger.types("u") == ["task.created", "callback.received", "task.processing"]


NUL = json.dumps({"task_status": "processing", "task_status_msg": "a\0b\ud800"}).encode()
ALL = (
    callback(status="submitted"),
    callback(body=NUL),
    callback(status="processing", message="more"),
    callback(status="succeed", files=[FILE], signed=True),
    callback(status=None, n=1),
)


def test_all_statuses_in_one_batch_in_every_order(ledger: Ledger) -> None:
    """Kling's final word wins, every body is kept, a NUL or a lone surrogate harms nobody."""
    for n, order in enumerate(itertools.permutations(ALL)):
        task = f"t{n}"
        ledger.record(*(_to(task, each) for each in order))
    tasks = ledger.rows(TASK)
    assert len(tasks) == 120
    assert {(*view(task), task["callback_count"], task["kept_callbacks"]) for task in tasks} == {
        ("succeed", "kling", False, 5, 5)
    }
    bodies = ledger.rows(EVENT, body_sha256=ALL[1].body_sha256)
    assert {event["body"] for event in bodies} == {NUL}
    assert len(bodies) == 120
    assert sum(1 for key in ledger.jobs() if key.startswith("download/")) == 120
    assert not [key for key in ledger.jobs() if key.startswith("overdue/")]


def test_all_statuses_of_many_tasks_in_one_batch(ledger: Ledger) -> None:
    """The same, shuffled into each other in one commit."""
    orders = list(itertools.permutations(ALL))[:40]
    ledger.record(*(_to(f"t{n}", order[place]) for place in range(5) for n, order in enumerate(orders)))
    assert {view(task) for task in ledger.rows(TASK)} == {("succeed", "kling", False)}
    assert len(ledger.rows(TASK)) == 40


@pytest.mark.parametrize("order", list(itertools.permutations(ALL[:3])), ids=lambda order: "")
def test_open_statuses_in_every_order_end_at_the_furthest(ledger: Ledger, order: tuple[Any, ...]) -> None:
    """One by one or together."""
    ledger.record(*(_to("t", each) for each in order))
    for each in order:
        ledger.record(_to("u", each))
    assert {view(task) for task in ledger.rows(TASK)} == {("processing", None, False)}


def test_text_is_fit_for_any_database(ledger: Ledger) -> None:
    """The message of a callback loses what no database takes; the body keeps every byte."""
    ledger.record(callback(body=NUL))
    assert ledger.task()["status_msg"] == "ab?"
    assert ledger.events()[1]["body"] == NUL


def _to(task: str, each: Callback) -> Callback:
    return Callback(task, FAMILY, each.body_sha256, each.body, each.size, each.report, each.signed, each.problem)


def test_past_the_maximum_count_callbacks_are_only_counted(ledger: Ledger) -> None:
    """A flood of different bodies fills no disk, yet the last status is checked, after a delay."""
    ledger.record(*(callback(n=n, status="processing") for n in range(MAX_KEPT_CALLBACKS + 50)))
    task = ledger.task()
    assert (task["callback_count"], task["kept_callbacks"]) == (MAX_KEPT_CALLBACKS + 50, MAX_KEPT_CALLBACKS)
    assert ledger.types().count("callback.received") == MAX_KEPT_CALLBACKS
    before = ledger.types()
    ledger.record(callback(status="submitted"), callback(status="succeed", message="last"))
    assert ledger.types() == before
    assert (ledger.task()["hint"], ledger.jobs()["ask/t"]["due_at"]) == (
        "succeed",
        NOW + UNCOUNTED_ASK_DELAY_MS,
    )


def test_past_the_maximum_size_callbacks_are_only_counted(ledger: Ledger) -> None:
    """The first body that would not fit is not kept, a smaller one after it is."""
    half = MAX_KEPT_BYTES // 2
    large = [callback(body=bytes([letter]) * half) for letter in b"abc"]
    ledger.record(*large, callback(body=b"d"))
    task = ledger.task()
    assert (task["callback_count"], task["kept_callbacks"], task["kept_bytes"]) == (4, 2, 2 * half)
    ledger.record(callback("u", body=b"x" * (MAX_KEPT_BYTES - 1)), callback("u", body=b"y"), callback("u", body=b"z"))
    assert (ledger.task("u")["kept_callbacks"], ledger.task("u")["kept_bytes"]) == (2, MAX_KEPT_BYTES)


def test_past_the_limits_contradictions_are_not_logged(ledger: Ledger) -> None:
    """A flood after the final status adds no event."""
    ledger.record(*(callback(n=n, status="processing") for n in range(MAX_KEPT_CALLBACKS)))
    ledger.apply_report("t", says("failed"))
    before = ledger.types()
    ledger.record(*(callback(n=n, status="succeed") for n in range(9)), callback(status="submitted"))
    assert ledger.types() == before
    assert ledger.jobs() == {}


def test_a_signed_report_is_applied_past_the_limits(ledger: Ledger) -> None:
    """Even if its body is not kept."""
    ledger.record(*(callback(n=n, status="processing") for n in range(MAX_KEPT_CALLBACKS)))
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert list(ledger.jobs()) == ["download/t/0"]


def test_a_signed_repeat_of_an_unsigned_body_is_authoritative(ledger: Ledger) -> None:
    """One event, counted twice; the hint becomes Kling's status, and a further repeat changes nothing."""
    ledger.record(callback(status="succeed", files=[FILE]))
    assert (ledger.task()["status"], ledger.task()["hint"]) == ("created", "succeed")
    for _ in range(2):
        ledger.record(callback(status="succeed", files=[FILE], signed=True))
    assert (ledger.task()["status"], ledger.task()["origin"]) == ("succeed", "kling")
    assert [each["source_url"] for each in ledger.results()] == [FILE]
    [received] = [each for each in ledger.events() if each["type"] == "callback.received"]
    assert received["repeat_count"] == 2
    assert ledger.types().count("task.succeed") == 1


def test_an_unsigned_repeat_changes_nothing(ledger: Ledger) -> None:
    """It causes no further query."""
    for _ in range(3):
        ledger.record(callback(status="succeed", files=[FILE]))
    assert (ledger.task()["status"], ledger.task()["hint_count"], ledger.results()) == ("created", 1, [])


@pytest.mark.parametrize(("named", "kept"), [("t", None), ("another", "k1"), (None, "k1")])
def test_a_callbacks_id_is_kept_unless_it_names_ours(ledger: Ledger, named: str | None, kept: str | None) -> None:
    """Kling knows our id then, and is asked by it."""
    info: dict[str, Any] = {"task_info": {"external_task_id": named}} if named else {}
    ledger.record(callback(task_id="k1", **info))
    assert ledger.task()["callback_kling_id"] == kept


def test_a_report_without_a_status_changes_no_status(ledger: Ledger) -> None:
    """The callback counts as a hint."""
    body = json.dumps({"task_id": "k1"}).encode()
    given = callback(body=body)
    bare = Callback("t", FAMILY, given.body_sha256, body, len(body), Report(None, "k1"), signed=True)
    ledger.record(bare)
    assert (ledger.task()["status"], ledger.task()["callback_kling_id"]) == ("created", "k1")
    assert "ask/t" in ledger.jobs()

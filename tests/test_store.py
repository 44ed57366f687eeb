"""The verbs of the trade, above all: whom to believe."""

import itertools
import json
from typing import Any

import pytest

from client.codec import Report
from receiver import store
from receiver.database import Database
from receiver.reading import TAG
from receiver.states import Status
from receiver.store import CALM_MS, GRACE_MS, KEPT_BYTES, KEPT_EVENTS, Stored
from receiver.transaction import EVENT, JOB, TASK, Row, Transaction
from tests.ledger import FAMILY, FILE, NOW, Ledger, callback, says

STORED = Stored("t/0.png", "image/png", 5, "ab" * 32)
OVERDUE = "overdue/t"


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """A ledger of no tasks."""
    return Ledger(database)


def view(task: Row) -> tuple[str, str | None, bool]:
    """What most tests look at: a status, whose word it is, and whether all is over."""
    return task["status"], task["origin"], task["done"]


def stand(ledger: Ledger) -> None:
    """Kling could not be asked to the end of the retries."""
    ledger.change(lambda tx: store.stand(tx, tx.known("t")))


def keep_file(ledger: Ledger, n: int = 0) -> None:
    """A file came."""
    ledger.change(lambda tx: store.store_result(tx, tx.known("t"), n, STORED))


def lose_file(ledger: Ledger, n: int = 0) -> None:
    """A file cannot be had."""
    ledger.change(lambda tx: store.fail_result(tx, tx.known("t"), n, "gone"))


# The first callback


def test_the_first_callback_makes_the_task(ledger: Ledger) -> None:
    """A callback that beats the create's answer is the normal case: nothing need be registered."""
    ledger.record(callback(family="videos/text2video", task_id="k1"))
    task = ledger.task()
    assert view(task) == ("processing", None, False)
    assert (task["family"], task["outcome"], task["callbacks"], task["callback_id"]) == (
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


def test_a_first_callback_before_the_registration(ledger: Ledger) -> None:
    """Whoever registers afterwards may not send the create: Kling knows the task; gaps are filled."""
    ledger.record(callback())
    answer = ledger.register(model="kling-v3", request={"prompt": "x"}, tags=("red",))
    assert (answer.new, answer.create, answer.conflict) == (False, False, None)
    task = ledger.task()
    assert (task["status"], task["model"], task["request"]) == ("processing", "kling-v3", {"prompt": "x"})
    ledger.register(outcome="created", task_id="k1")
    assert (ledger.task()["task_id"], ledger.task()["status"]) == ("k1", "processing")


# Whom to believe


@pytest.mark.parametrize("status", ["submitted", "processing"])
def test_a_callback_moves_an_open_task(ledger: Ledger, status: str) -> None:
    """`submitted` and `processing` are taken from any proven callback."""
    ledger.register()
    ledger.record(callback(status=status, message="on its way"))
    assert view(ledger.task()) == (status, None, False)
    assert ledger.task()["status_msg"] == "on its way"
    assert "ask/t" not in ledger.jobs()


@pytest.mark.parametrize("status", ["succeed", "failed"])
def test_a_final_callback_is_a_hint(ledger: Ledger, status: str) -> None:
    """It moves nothing, names no file to download, and makes us ask Kling at once."""
    ledger.record(callback(status=status, files=[FILE], message="m"))
    task = ledger.task()
    assert view(task) == ("created", None, False)
    assert (task["hint"], task["hint_msg"], task["hints"]) == (status, "m", 1)
    assert ledger.results() == []
    assert sorted(ledger.jobs()) == ["ask/t", OVERDUE]
    assert (ledger.jobs()["ask/t"]["due_at"], ledger.jobs()["ask/t"]["lane"]) == (NOW, "kling")


def test_a_callback_that_cannot_be_read_is_a_hint(ledger: Ledger) -> None:
    """Something happened, only Kling can say what; an earlier hint of an end is kept."""
    ledger.record(callback(status="failed"), callback(status=None))
    assert (ledger.task()["hint"], ledger.task()["hints"]) == ("failed", 2)
    assert ledger.events()[2]["data"]["trouble"] == "unreadable"
    assert sorted(ledger.jobs()) == ["ask/t", OVERDUE]


@pytest.mark.parametrize(("answered", "wait"), [(False, GRACE_MS), (True, 0)])
def test_a_question_waits_for_the_creates_answer(ledger: Ledger, answered: bool, wait: int) -> None:
    """A moment, and only while that answer is out: it names the id that Kling is to be asked by."""
    ledger.register()
    if answered:
        ledger.register(outcome="created", task_id="k1")
    ledger.record(callback(status="succeed"))
    assert ledger.jobs()["ask/t"]["due_at"] == NOW + wait


def test_the_creates_answer_lets_a_waiting_question_go(ledger: Ledger) -> None:
    """It is due as soon as the id is known."""
    ledger.register()
    ledger.record(callback(status="succeed"))
    ledger.now += 10
    ledger.register(outcome="created", task_id="k1")
    assert ledger.jobs()["ask/t"]["due_at"] == NOW + 10
    assert ledger.committed.due_at == NOW + 10


def test_klings_word_is_final(ledger: Ledger) -> None:
    """Its answer moves the task, names the files, and owes their download; the deadline is off."""
    ledger.record(callback(status="succeed"))
    ledger.believe("t", says("succeed", FILE, f"{FILE}?ksTime=6a9b5d00", message="fine", cost="3.5"))
    task = ledger.task()
    assert view(task) == ("succeed", "kling", False)
    assert (task["status_msg"], task["cost"]) == ("fine", "3.5")
    first, second = ledger.results()
    assert (first["kind"], first["status"], first["source_url"], first["expires_at"]) == (
        "image",
        "pending",
        FILE,
        None,
    )
    assert second["expires_at"] == 0x6A9B5D00 * 1000
    jobs = ledger.jobs()
    assert sorted(jobs) == ["ask/t", "download/t/0", "download/t/1"]
    assert (jobs["download/t/1"]["data"], jobs["download/t/1"]["lane"]) == (
        {"n": 1},
        "download v16-kling.klingai.com",
    )


def test_a_body_that_kling_signed_is_klings_word(ledger: Ledger) -> None:
    """No question is needed; the files in it are fetched."""
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert list(ledger.jobs()) == ["download/t/0"]
    assert ledger.events()[1]["data"]["signed"] is True


def test_a_signed_success_without_files_makes_us_ask_for_them(ledger: Ledger) -> None:
    """Kling's word stands, the files are still owed."""
    ledger.record(callback(status="succeed", signed=True))
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert list(ledger.jobs()) == ["ask/t"]
    ledger.believe("t", says("succeed", FILE))
    assert [result["source_url"] for result in ledger.results()] == [FILE]
    assert "download/t/0" in ledger.jobs()


@pytest.mark.parametrize(
    ("known", "named"),
    [
        ({"outcome": "created", "task_id": "k1"}, {"task_id": "k2"}),
        ({}, {"task_id": "k9"}),
        ({}, {"task_id": "new", "task_info": {"external_task_id": "other"}}),
    ],
)
def test_what_kling_signed_of_another_task_is_no_word_on_this_one(
    ledger: Ledger, known: dict[str, Any], named: dict[str, Any]
) -> None:
    """Whoever holds this task's address may have sent it on: it is a hint like any other."""
    ledger.register("other", outcome="created", task_id="k9")
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
def test_what_kling_signed_of_no_other_task_is_its_word(ledger: Ledger, named: dict[str, Any]) -> None:
    """With our id, with Kling's, or with none that is another's."""
    ledger.register("another")
    ledger.register(outcome="created", task_id="k1")
    ledger.record(callback(status="failed", signed=True, **named))
    assert view(ledger.task()) == ("failed", "kling", True)


def test_a_failure_by_klings_word_is_the_end(ledger: Ledger) -> None:
    """Nothing more is owed."""
    ledger.register(outcome="created", task_id="k1")
    ledger.believe("t", says("failed", message="no kangaroos"))
    assert view(ledger.task()) == ("failed", "kling", True)
    assert ledger.types()[-2:] == ["task.failed", "task.done"]
    assert ledger.events()[-1]["data"] == {"status": "failed", "origin": "kling"}
    assert ledger.jobs() == {}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    ("status", "reason"), [("succeed", "contradictory"), ("processing", "late"), ("submitted", "late")]
)
def test_what_comes_after_klings_final_word_is_logged(
    ledger: Ledger, status: str, reason: str, signed: bool
) -> None:
    """And changes neither status, cost nor files, whoever says it."""
    ledger.register()
    ledger.believe("t", says("failed", cost="1"))
    ledger.record(callback(status=status, files=[FILE], signed=signed, final_unit_deduction="99"))
    task = ledger.task()
    assert view(task) == ("failed", "kling", True)
    assert (task["cost"], task["hint"]) == ("1", None)
    assert ledger.results() == []
    assert ledger.events()[-1]["type"] == "callback.ignored"
    assert ledger.events()[-1]["data"] == {"reason": reason, "status": status, "stands": "failed"}
    assert set(ledger.jobs()) <= {"ask/t"}


def test_the_same_end_again_is_no_news(ledger: Ledger) -> None:
    """A second word of the same end is logged as a callback only."""
    ledger.record(callback(status="failed", signed=True))
    before = ledger.types()
    ledger.record(callback(status="failed", message="other words"), callback(status=None))
    assert ledger.types() == [*before, "callback.received", "callback.received"]
    assert ledger.jobs() == {}


def test_a_late_callback_of_an_open_task_is_logged(ledger: Ledger) -> None:
    """`submitted` after `processing` takes nothing back."""
    ledger.record(callback(status="processing"), callback(status="submitted"))
    assert view(ledger.task()) == ("processing", None, False)
    assert ledger.events()[-1]["data"] == {"reason": "late", "status": "submitted", "stands": "processing"}


def test_the_same_status_in_another_body_is_no_news(ledger: Ledger) -> None:
    """It is kept, and nothing follows."""
    ledger.record(callback(status="processing"), callback(status="processing", message="still"))
    assert ledger.types().count("task.processing") == 1
    assert ledger.types().count("callback.received") == 2


# Ends that are not Kling's own word


@pytest.mark.parametrize(
    ("status", "results"), [("failed", []), ("succeed", [("failed", "Kling could not be asked")])]
)
def test_a_callback_stands_when_kling_cannot_be_asked(
    ledger: Ledger, status: str, results: list[tuple[str, str]]
) -> None:
    """With its origin shown; and the files of a success are lost loudly, for its addresses prove nothing."""
    ledger.record(callback(status=status, files=[FILE], message="m"))
    stand(ledger)
    task = ledger.task()
    assert view(task) == (status, "callback", True)
    assert (task["status_msg"], task["hint"]) == ("m", None)
    assert [(each["status"], each["error"][:24]) for each in ledger.results()] == results
    assert ledger.types().count("result.failed") == len(results)
    assert ledger.types()[-1] == "task.done"
    assert list(ledger.jobs()) == ["ask/t"]


def test_without_a_final_callback_nothing_stands(ledger: Ledger) -> None:
    """Nor after Kling's own word."""
    ledger.record(callback(status=None))
    stand(ledger)
    assert view(ledger.task()) == ("created", None, False)
    ledger.record(callback(status="succeed"))
    ledger.believe("t", says("failed"))
    stand(ledger)
    assert view(ledger.task()) == ("failed", "kling", True)


@pytest.mark.parametrize("stood", [True, False])
def test_a_success_of_which_nobody_names_the_files_is_loud(ledger: Ledger, stood: bool) -> None:
    """Kling signed it without files, and then could not be asked for them: the task does not hang."""
    if stood:
        ledger.record(callback(status="succeed"))
        stand(ledger)
    ledger.record(callback(status="succeed", signed=True, n=1))
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert "ask/t" in ledger.jobs()
    stand(ledger)
    assert view(ledger.task()) == ("succeed", "kling", True)
    assert ledger.types().count("result.failed") == 1
    assert [result["status"] for result in ledger.results()] == ["failed"]


def test_files_that_are_named_after_all_are_fetched(ledger: Ledger) -> None:
    """After the loud end of a success of which nobody had named any: the task is open again until they came."""
    ledger.record(callback(status="succeed", signed=True))
    stand(ledger)
    assert ledger.task()["done"]
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert "download/t/0" in ledger.jobs()
    keep_file(ledger)
    assert view(ledger.task()) == ("succeed", "kling", True)


@pytest.mark.parametrize("status", ["succeed", "failed"])
def test_an_answer_without_files_fails_none_that_was_named(ledger: Ledger, status: Status) -> None:
    """They may have been named by a signed callback while Kling was asked."""
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    ledger.believe("t", says(status))
    ledger.change(lambda tx: store.lack_files(tx, tx.known("t"), "no file"))
    stand(ledger)
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert [result["status"] for result in ledger.results()] == ["pending"]


def end(ledger: Ledger, origin: str) -> None:
    """End the task `t`, not by Kling's word."""
    if origin == "callback":
        ledger.record(callback(status="succeed", files=[FILE]))
        stand(ledger)
    else:
        ledger.register()
        ledger.change(lambda tx: store.end_locally(tx, tx.known("t"), "too late"))


@pytest.mark.parametrize("origin", ["callback", "local"])
def test_an_end_of_our_own_gives_way_to_klings_files(ledger: Ledger, origin: str) -> None:
    """Whenever its word comes: the task is open again until its files are there."""
    end(ledger, origin)
    assert ledger.task()["done"]
    ledger.believe("t", says("succeed", FILE, f"{FILE}2"))
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert [(each["n"], each["status"], each["error"]) for each in ledger.results()] == [
        (0, "pending", ""),
        (1, "pending", ""),
    ]
    keep_file(ledger, 0)
    assert not ledger.task()["done"]
    keep_file(ledger, 1)
    assert view(ledger.task()) == ("succeed", "kling", True)
    assert ledger.types().count("task.done") == 2


@pytest.mark.parametrize("origin", ["callback", "local"])
@pytest.mark.parametrize("status", ["submitted", "processing"])
def test_an_end_of_our_own_is_revived_by_klings_word(ledger: Ledger, origin: str, status: Status) -> None:
    """The task lives, and is watched again."""
    end(ledger, origin)
    assert OVERDUE not in ledger.jobs()
    ledger.believe("t", says(status))
    assert view(ledger.task()) == (status, None, False)
    assert OVERDUE in ledger.jobs()
    ledger.believe("t", says("failed"))
    assert view(ledger.task()) == ("failed", "kling", True)


@pytest.mark.parametrize("origin", ["callback", "local"])
@pytest.mark.parametrize("status", ["submitted", "processing", "succeed", "failed", None])
def test_a_callback_after_an_end_of_our_own_makes_us_ask(
    ledger: Ledger, origin: str, status: str | None
) -> None:
    """It cannot revive the task by itself, but it shows that Kling knows more."""
    end(ledger, origin)
    before = view(ledger.task())
    if "ask/t" in ledger.jobs():
        ledger.kill_job("ask/t")
    ledger.record(callback(status=status, message="later"))
    assert view(ledger.task()) == before
    assert ledger.jobs()["ask/t"]["state"] == "ready"
    assert ledger.jobs()["ask/t"]["attempts"] == 0


def test_a_revived_task_with_a_hint_has_a_question(ledger: Ledger) -> None:
    """Even where the question before was given up."""
    end(ledger, "local")
    ledger.record(callback(status="failed"))
    ledger.kill_job("ask/t")
    ledger.record(callback(status="processing", signed=True))
    assert (ledger.task()["status"], ledger.task()["hint"]) == ("processing", "failed")
    assert ledger.jobs()["ask/t"]["state"] == "ready"


def test_an_end_of_our_own_ends_open_tasks_only(ledger: Ledger) -> None:
    """It says why, and comes too late for a task that has ended."""
    end(ledger, "local")
    assert view(ledger.task()) == ("failed", "local", True)
    assert ledger.task()["status_msg"] == "too late"
    ledger.believe("t", says("failed", message="theirs"))
    assert view(ledger.task()) == ("failed", "kling", True)
    ledger.change(lambda tx: store.end_locally(tx, tx.known("t"), "again"))
    assert ledger.task()["status_msg"] == "theirs"


def test_a_false_hint_is_dropped(ledger: Ledger) -> None:
    """Kling, asked again and again, says otherwise: the callback is called contradictory, in the log."""
    ledger.record(callback(status="succeed", message="m"))
    ledger.change(lambda tx: store.drop_hint(tx, tx.known("t"), "processing"))
    assert (ledger.task()["hint"], ledger.task()["hint_msg"]) == (None, "")
    said = ledger.events()[-1]["data"]
    assert said == {"reason": "Kling says processing", "status": "succeed", "stands": "created"}
    before = ledger.types()
    ledger.change(lambda tx: store.drop_hint(tx, tx.known("t"), "processing"))
    assert ledger.types() == before


# Repeats, order, caps


@pytest.mark.parametrize("together", [True, False])
def test_a_repeat_is_counted_on_its_event(ledger: Ledger, together: bool) -> None:
    """In one commit or in several: one event, whose repeats count on; nothing follows from it twice."""
    same = callback(status="succeed")
    batches = [[same, same, same]] if together else [[same], [same], [same]]
    for batch in batches:
        ledger.record(*batch)
    (event,) = ledger.rows(EVENT, digest=same.digest)
    assert (event["repeats"], event["body"]) == (2, same.body)
    assert (ledger.task()["callbacks"], ledger.task()["kept"], ledger.task()["hints"]) == (3, 1, 1)
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
    assert {(*view(task), task["callbacks"], task["kept"]) for task in tasks} == {
        ("succeed", "kling", False, 5, 5)
    }
    bodies = ledger.rows(EVENT, digest=ALL[1].digest)
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


def _to(task: str, each: store.Callback) -> store.Callback:
    return store.Callback(
        task, FAMILY, each.digest, each.body, each.size, each.report, each.signed, each.trouble
    )


def test_past_so_many_events_callbacks_are_only_counted(ledger: Ledger) -> None:
    """A flood of different bodies fills no disk, yet the last word of it is heard, calmly."""
    ledger.record(*(callback(n=n, status="processing") for n in range(KEPT_EVENTS + 50)))
    task = ledger.task()
    assert (task["callbacks"], task["kept"]) == (KEPT_EVENTS + 50, KEPT_EVENTS)
    assert ledger.types().count("callback.received") == KEPT_EVENTS
    before = ledger.types()
    ledger.record(callback(status="submitted"), callback(status="succeed", message="last"))
    assert ledger.types() == before
    assert (ledger.task()["hint"], ledger.jobs()["ask/t"]["due_at"]) == ("succeed", NOW + CALM_MS)


def test_past_so_many_bytes_callbacks_are_only_counted(ledger: Ledger) -> None:
    """The first body that would not fit is not kept, a smaller one after it is."""
    half = KEPT_BYTES // 2
    large = [callback(body=bytes([letter]) * half) for letter in b"abc"]
    ledger.record(*large, callback(body=b"d"))
    task = ledger.task()
    assert (task["callbacks"], task["kept"], task["kept_bytes"]) == (4, 2, 2 * half)
    ledger.record(
        callback("u", body=b"x" * (KEPT_BYTES - 1)), callback("u", body=b"y"), callback("u", body=b"z")
    )
    assert (ledger.task("u")["kept"], ledger.task("u")["kept_bytes"]) == (2, KEPT_BYTES)


def test_a_flood_after_the_end_leaves_no_trace_past_the_caps(ledger: Ledger) -> None:
    """Contradictions that are not kept are not logged either."""
    ledger.record(*(callback(n=n, status="processing") for n in range(KEPT_EVENTS)))
    ledger.believe("t", says("failed"))
    before = ledger.types()
    ledger.record(*(callback(n=n, status="succeed") for n in range(9)), callback(status="submitted"))
    assert ledger.types() == before
    assert ledger.jobs() == {}


def test_klings_signed_word_counts_past_the_caps(ledger: Ledger) -> None:
    """Even when its body is not kept."""
    ledger.record(*(callback(n=n, status="processing") for n in range(KEPT_EVENTS)))
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert list(ledger.jobs()) == ["download/t/0"]


# Files


def test_a_file_on_disk_is_said_once(ledger: Ledger) -> None:
    """With its type, size and digest; the last file makes the task done."""
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    keep_file(ledger)
    keep_file(ledger)
    (result,) = ledger.results()
    assert (result["status"], result["size"], result["sha256"], result["name"]) == (
        "stored",
        5,
        "ab" * 32,
        "t/0.png",
    )
    assert ledger.types()[-3:] == ["task.succeed", "result.stored", "task.done"]
    assert ledger.events()[-2]["data"] == {
        "index": 0,
        "name": "t/0.png",
        "content_type": "image/png",
        "size": 5,
        "sha256": "ab" * 32,
    }


def test_a_file_that_cannot_be_had_is_said_once(ledger: Ledger) -> None:
    """Loudly; and the task is done nevertheless. A file that came after all is stored."""
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    lose_file(ledger)
    lose_file(ledger)
    assert view(ledger.task()) == ("succeed", "kling", True)
    assert ledger.types()[-2:] == ["result.failed", "task.done"]
    assert ledger.events()[-2]["data"] == {"index": 0, "reason": "gone"}
    keep_file(ledger)
    assert (ledger.results()[0]["status"], ledger.results()[0]["error"]) == ("stored", "")
    lose_file(ledger)
    assert ledger.results()[0]["status"] == "stored"
    assert ledger.types()[-2:] == ["task.done", "result.stored"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_task_is_done_with_its_last_file(ledger: Ledger, order: tuple[int, ...]) -> None:
    """In whatever order they come, stored or lost; not before."""
    ledger.record(callback(status="succeed", files=[FILE, f"{FILE}1", f"{FILE}2"], signed=True))
    for place, n in enumerate(order):
        assert not ledger.task()["done"]
        (keep_file if place % 2 else lose_file)(ledger, n)
    assert ledger.task()["done"]
    assert ledger.types().count("task.done") == 1


def test_files_are_named_once(ledger: Ledger) -> None:
    """A second answer of Kling, with other addresses, changes none and owes no second download."""
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    ledger.believe("t", says("succeed", "https://other/1.png", "https://other/2.png"))
    assert [result["source_url"] for result in ledger.results()] == [FILE]
    assert list(ledger.jobs()) == ["download/t/0"]


@pytest.mark.parametrize(
    ("url", "lane"),
    [
        ("https://User:secret@CDN.example:8443/a", "download cdn.example:8443"),
        ("https://[::1/broken", "download "),
        ("nonsense", "download "),
    ],
)
def test_files_of_one_host_share_a_lane(ledger: Ledger, url: str, lane: str) -> None:
    """The host as it is written, without who asks; an address that is none has a lane too."""
    ledger.register()
    ledger.change(lambda tx: store.download(tx, "t", 0, url))
    assert ledger.jobs()["download/t/0"]["lane"] == lane


# Registration


def test_a_registration_makes_the_task_known(ledger: Ledger) -> None:
    """Before its create: this attempt may send it, and the deadline runs."""
    answer = ledger.register(model="kling-v3", request={"prompt": "x"}, tags=("b", "a", "b"))
    assert (answer.new, answer.create, answer.conflict) == (True, True, None)
    task = ledger.task()
    assert view(task) == ("created", None, False)
    assert (task["outcome"], task["model"], task["request"]) == ("pending", "kling-v3", {"prompt": "x"})
    assert [row["tag"] for row in ledger.rows(TAG)] == ["a", "b"]
    assert (ledger.types(), ledger.events()[0]["data"]) == (["task.created"], {"by": "client"})
    assert ledger.jobs()[OVERDUE]["due_at"] == NOW + 180_000


@pytest.mark.parametrize(("attempt", "may"), [("a", True), ("b", False), ("", False)])
def test_only_one_attempt_may_send_the_create(ledger: Ledger, attempt: str, may: bool) -> None:
    """The one whose nonce came first, as often as it asks; nothing is logged twice."""
    ledger.register()
    answer = ledger.register(attempt=attempt)
    assert (answer.new, answer.create) == (False, may)
    assert ledger.types() == ["task.created"]


def test_a_registration_without_a_nonce_may_not_send(ledger: Ledger) -> None:
    """Nobody could tell two such attempts apart."""
    assert not ledger.register(attempt="").create


def test_gaps_are_filled_and_nothing_is_reset(ledger: Ledger) -> None:
    """Model, request, tags and Kling's id stay as they were said first."""
    ledger.register(tags=("a",))
    ledger.register(model="m1", request={"n": 1}, tags=("a", "b"))
    ledger.register(model="m2", request={"n": 2}, outcome="created", task_id="k1")
    ledger.register(outcome="created", task_id="k2", request=None)
    task = ledger.task()
    assert (task["model"], task["request"], task["task_id"]) == ("m1", {"n": 1}, "k1")
    assert [row["tag"] for row in ledger.rows(TAG)] == ["a", "b"]


def test_another_family_is_a_conflict(ledger: Ledger) -> None:
    """The refused registration changes nothing."""
    ledger.register()
    answer = ledger.register(family="videos/text2video", model="m", outcome="created", task_id="k")
    assert answer.conflict == "Task t is of the family images/generations, not videos/text2video."
    assert not answer.create
    assert (ledger.task()["model"], ledger.task()["outcome"]) == ("", "pending")


def test_a_create_that_was_taken_moves_the_task(ledger: Ledger) -> None:
    """To `submitted`, by Kling's word; said again, it says nothing new."""
    ledger.register()
    for _ in range(2):
        answer = ledger.register(outcome="created", task_id="k1")
        assert not answer.create
    assert (ledger.task()["status"], ledger.task()["outcome"], ledger.task()["task_id"]) == (
        "submitted",
        "created",
        "k1",
    )
    assert ledger.types() == ["task.created", "task.submitted"]
    assert not ledger.register().create


def test_an_outcome_may_be_the_first_that_is_heard(ledger: Ledger) -> None:
    """Of a task that the receiver does not know."""
    assert ledger.register(outcome="created", task_id="k1").new
    assert ledger.task()["status"] == "submitted"
    ledger.register("u", outcome="not_created", reason="no")
    assert view(ledger.task("u")) == ("failed", "local", True)


def test_the_creates_answer_after_the_end_takes_nothing_back(ledger: Ledger) -> None:
    """Its id is learnt; a callback that stands is asked about once more, now by that id."""
    ledger.register()
    ledger.record(callback(status="succeed"))
    stand(ledger)
    ledger.kill_job("ask/t")
    ledger.register(outcome="created", task_id="k1")
    assert view(ledger.task()) == ("succeed", "callback", True)
    assert ledger.task()["task_id"] == "k1"
    assert ledger.jobs()["ask/t"]["state"] == "ready"
    ledger.kill_job("ask/t")
    ledger.register(outcome="created", task_id="k1")
    assert ledger.jobs()["ask/t"]["state"] == "dead"


@pytest.mark.parametrize("origin", ["kling", "local"])
def test_created_said_again_after_the_end_takes_nothing_back(ledger: Ledger, origin: str) -> None:
    """A client may repeat its report at any time."""
    ledger.register()
    ledger.register(outcome="created", task_id="k1")
    if origin == "kling":
        ledger.believe("t", says("failed"))
    else:
        ledger.change(lambda tx: store.end_locally(tx, tx.known("t"), "too late"))
    ledger.register(outcome="created", task_id="k1")
    assert view(ledger.task()) == ("failed", origin, True)


def test_a_task_that_we_gave_up_lives_when_its_create_is_reported(ledger: Ledger) -> None:
    """The report came after the deadline: Kling has it, and it is watched again."""
    ledger.register()
    ledger.change(lambda tx: store.end_locally(tx, tx.known("t"), "its create did not arrive"))
    ledger.register(outcome="created", task_id="k1")
    assert view(ledger.task()) == ("submitted", None, False)
    assert OVERDUE in ledger.jobs()


def test_a_create_that_was_not_taken_ends_the_task(ledger: Ledger) -> None:
    """By our own judgement, with the reason; nothing is owed."""
    ledger.register()
    ledger.register(outcome="not_created", reason="model is not supported")
    assert view(ledger.task()) == ("failed", "local", True)
    assert ledger.task()["status_msg"] == "model is not supported"
    assert ledger.jobs() == {}
    ledger.register("u")
    ledger.register("u", outcome="not_created")
    assert ledger.task("u")["status_msg"] == "The create was not taken."


def test_a_create_that_was_not_taken_may_be_tried_again(ledger: Ledger) -> None:
    """As often as it is refused: each time one attempt may send, and the task is open and watched."""
    for attempt in "abc":
        assert ledger.register(attempt=attempt).create
        assert view(ledger.task()) == ("created", None, False)
        assert OVERDUE in ledger.jobs()
        assert not ledger.register(attempt="other").create
        ledger.register(attempt=attempt, outcome="not_created")
        assert view(ledger.task()) == ("failed", "local", True)
    assert ledger.register(attempt="d").create
    ledger.register(attempt="d", outcome="created", task_id="k1")
    assert view(ledger.task()) == ("submitted", None, False)
    assert ledger.types().count("task.created") == 4


def test_an_attempt_that_was_overtaken_has_no_word(ledger: Ledger) -> None:
    """Its late report does not end the attempt that came after it; that Kling took it counts from anybody."""
    ledger.register(attempt="a")
    ledger.register(attempt="a", outcome="not_created")
    ledger.register(attempt="b")
    ledger.register(attempt="a", outcome="not_created")
    ledger.register(attempt="a", outcome="unknown")
    assert (ledger.task()["status"], ledger.task()["outcome"]) == ("created", "pending")
    ledger.register(attempt="a", outcome="created", task_id="k1")
    assert ledger.task()["status"] == "submitted"


def test_after_an_unknown_outcome_no_create_is_sent(ledger: Ledger) -> None:
    """One intent, one paid task; what turns out later is noted."""
    ledger.register()
    ledger.register(outcome="unknown")
    assert (ledger.task()["status"], ledger.task()["outcome"]) == ("created", "unknown")
    assert not ledger.register().create
    assert not ledger.register(attempt="b").create
    assert OVERDUE in ledger.jobs()
    ledger.register(outcome="unknown")
    ledger.register(outcome="not_created")
    assert view(ledger.task()) == ("failed", "local", True)


@pytest.mark.parametrize("status", ["submitted", "succeed", None])
@pytest.mark.parametrize("outcome", ["not_created", "unknown"])
def test_a_callback_refutes_that_nothing_was_created(ledger: Ledger, status: str | None, outcome: str) -> None:
    """Kling has shown that it knows the task: it does not end, and no other create is sent."""
    ledger.register()
    ledger.record(callback(status=status))
    ledger.register(outcome=outcome)
    assert ledger.task()["status"] != "failed"
    assert not ledger.register(attempt="b").create


def test_a_callback_after_the_refusal_forbids_another_create(ledger: Ledger) -> None:
    """Perhaps it was taken after all: Kling is asked instead."""
    ledger.register()
    ledger.register(outcome="not_created")
    ledger.record(callback(status="processing"))
    assert not ledger.register(attempt="b").create
    assert "ask/t" in ledger.jobs()


def test_klings_word_after_the_refusal_forbids_another_create(ledger: Ledger) -> None:
    """It was taken after all."""
    ledger.register()
    ledger.register(outcome="not_created")
    ledger.believe("t", says("processing"))
    assert not ledger.register(attempt="b").create
    assert ledger.task()["status"] == "processing"


def test_an_outcome_after_the_creation_is_known_changes_nothing(ledger: Ledger) -> None:
    """Created is created."""
    ledger.register(outcome="created", task_id="k1")
    ledger.register(outcome="not_created")
    ledger.register(outcome="unknown")
    assert (ledger.task()["status"], ledger.task()["outcome"]) == ("submitted", "created")


def test_a_signed_repeat_of_an_unsigned_body_is_believed(ledger: Ledger) -> None:
    """One event, counted twice; what was a hint is Kling's word now, and a further repeat says nothing new."""
    ledger.record(callback(status="succeed", files=[FILE]))
    assert (ledger.task()["status"], ledger.task()["hint"]) == ("created", "succeed")
    for _ in range(2):
        ledger.record(callback(status="succeed", files=[FILE], signed=True))
    assert (ledger.task()["status"], ledger.task()["origin"]) == ("succeed", "kling")
    assert [each["source_url"] for each in ledger.results()] == [FILE]
    [received] = [each for each in ledger.events() if each["type"] == "callback.received"]
    assert received["repeats"] == 2
    assert ledger.types().count("task.succeed") == 1


def test_an_unsigned_repeat_is_not_believed(ledger: Ledger) -> None:
    """Nor does it give cause to ask again."""
    for _ in range(3):
        ledger.record(callback(status="succeed", files=[FILE]))
    assert (ledger.task()["status"], ledger.task()["hints"], ledger.results()) == ("created", 1, [])


@pytest.mark.parametrize(("named", "kept"), [("t", None), ("another", "k1"), (None, "k1")])
def test_a_callbacks_id_is_kept_unless_it_names_ours(
    ledger: Ledger, named: str | None, kept: str | None
) -> None:
    """Kling knows our id then, and is asked by it."""
    info: dict[str, Any] = {"task_info": {"external_task_id": named}} if named else {}
    ledger.record(callback(task_id="k1", **info))
    assert ledger.task()["callback_id"] == kept


def test_a_report_without_a_status_is_no_move(ledger: Ledger) -> None:
    """A record that only names an id tells nothing to believe; the callback counts as a hint."""
    body = json.dumps({"task_id": "k1"}).encode()
    given = callback(body=body)
    bare = store.Callback("t", FAMILY, given.digest, body, len(body), Report(None, "k1"), signed=True)
    ledger.record(bare)
    assert (ledger.task()["status"], ledger.task()["callback_id"]) == ("created", "k1")
    assert "ask/t" in ledger.jobs()


def test_a_change_of_many_kinds_is_one_commit(ledger: Ledger) -> None:
    """A registration and a callback of the same task may share a transaction."""

    def change(tx: Transaction) -> None:
        store.record(tx, [callback(status="succeed")])
        store.register(tx, store.Registration("t", FAMILY, attempt="a", tags=("x",)))
        store.believe(tx, tx.known("t"), says("succeed", FILE))
        store.store_result(tx, tx.known("t"), 0, STORED)

    ledger.change(change)
    assert view(ledger.task()) == ("succeed", "kling", True)
    assert ledger.types() == [
        "task.created",
        "callback.received",
        "task.succeed",
        "result.stored",
        "task.done",
    ]


def test_files_are_fetched_from_where_they_lie_now(ledger: Ledger) -> None:
    """What Kling named last counts for each file that is not stored; one that is stays as it is."""
    ledger.record(callback(status="succeed", files=[FILE, FILE, FILE], signed=True))
    ledger.change(lambda tx: store.store_result(tx, tx.known("t"), 0, Stored("t/0.png", "image/png", 1, "s")))
    ledger.change(lambda tx: store.fail_result(tx, tx.known("t"), 1, "gone"))
    ledger.kill_job("download/t/1")
    now = says("succeed", *(f"{FILE}?new={n}" for n in range(3)))
    ledger.change(lambda tx: store.renew(tx, tx.known("t"), now.outputs))
    found = [(row["status"], row["source_url"]) for row in ledger.results()]
    assert found == [("stored", FILE), ("pending", f"{FILE}?new=1"), ("pending", f"{FILE}?new=2")]
    job = ledger.jobs()["download/t/1"]
    assert (job["state"], job["attempts"], job["data"]) == ("ready", 0, {"n": 1})


def test_a_question_that_was_given_up_begins_anew(ledger: Ledger) -> None:
    """With all its tries: what it knew of the earlier ones is forgotten."""
    ledger.record(callback(status="succeed"))
    with ledger.database.write() as connection:
        connection.execute(JOB.update().values(data={"unanswered": 12}))
    ledger.kill_job("ask/t")
    ledger.change(lambda tx: store.ask(tx, "t"))
    job = ledger.jobs()["ask/t"]
    assert (job["state"], job["attempts"], job["data"]) == ("ready", 0, None)

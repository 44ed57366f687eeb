"""Registrations of a task, before its create and after it."""

from typing import Any

import pytest

from kling_receiver.store.database import Database
from kling_receiver.store.tables import HOOK, TAG
from kling_receiver.tasks import registration as task_registration
from kling_receiver.tasks import transitions
from kling_receiver.tasks.registration import MAX_TAGS
from tests.support.database import NOW, OVERDUE, Ledger, callback, says, view


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """A ledger of no tasks."""
    return Ledger(database)


def test_a_registration_after_the_first_callback_may_not_create(ledger: Ledger) -> None:
    """Kling knows the task; missing fields are filled."""
    ledger.record(callback())
    answer = ledger.register(model="kling-v3", request={"prompt": "x"}, tags=("red",))
    assert (answer.created, answer.may_create, answer.conflict) == (False, False, None)
    task = ledger.task()
    assert (task["status"], task["model"], task["request"]) == ("processing", "kling-v3", {"prompt": "x"})
    ledger.register(outcome="created", kling_id="k1")
    assert (ledger.task()["kling_id"], ledger.task()["status"]) == ("k1", "processing")


def test_the_creates_answer_runs_a_waiting_query(ledger: Ledger) -> None:
    """As soon as the id is known."""
    ledger.register()
    ledger.record(callback(status="succeed"))
    ledger.now += 10
    ledger.register(outcome="created", kling_id="k1")
    assert ledger.jobs()["ask/t"]["due_at"] == NOW + 10
    assert ledger.committed.next_due_at == NOW + 10


@pytest.mark.parametrize(("finished", "status"), [(True, "submitted"), (False, "submitted"), (True, "failed")])
def test_a_task_that_was_found_finished_is_queried_at_once(ledger: Ledger, finished: bool, status: str) -> None:
    """Its callback is past, as after a restored database. One whose end is known is not queried."""
    ledger.register()
    if status == "failed":
        ledger.apply_report("t", says("failed"))
    ledger.register(outcome="created", kling_id="k1", finished=finished)
    due = [job["due_at"] for key, job in ledger.jobs().items() if key == "ask/t"]
    assert due == ([NOW] if finished and status == "submitted" else [])
    assert ledger.task()["status"] == status


def test_a_registration_adds_the_task(ledger: Ledger) -> None:
    """Before its create: this attempt may send it, and the deadline is enqueued."""
    answer = ledger.register(model="kling-v3", request={"prompt": "x"}, tags=("b", "a", "b"))
    assert (answer.created, answer.may_create, answer.conflict) == (True, True, None)
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
    answer = ledger.register(create_token=attempt)
    assert (answer.created, answer.may_create) == (False, may)
    assert ledger.types() == ["task.created"]


def test_a_registration_without_a_nonce_may_not_create(ledger: Ledger) -> None:
    """Two such attempts could not be told apart."""
    assert not ledger.register(create_token="").may_create


def test_missing_fields_are_filled_and_none_is_reset(ledger: Ledger) -> None:
    """Model, request, tags and Kling's id keep their first values."""
    ledger.register(tags=("a",))
    ledger.register(model="m1", request={"n": 1}, tags=("a", "b"))
    ledger.register(model="m2", request={"n": 2}, outcome="created", kling_id="k1")
    ledger.register(outcome="created", kling_id="k2", request=None)
    task = ledger.task()
    assert (task["model"], task["request"], task["kling_id"]) == ("m1", {"n": 1}, "k1")
    assert [row["tag"] for row in ledger.rows(TAG)] == ["a", "b"]


def test_a_task_has_a_maximum_of_tags(ledger: Ledger) -> None:
    """However often it is registered."""
    for n in range(7):
        ledger.register(tags=tuple(f"{n} {each}" for each in range(20)))
    assert len(ledger.rows(TAG)) == MAX_TAGS


def test_another_family_is_a_conflict(ledger: Ledger) -> None:
    """The refused registration changes nothing."""
    ledger.register()
    answer = ledger.register(family="videos/text2video", model="m", outcome="created", kling_id="k")
    assert answer.conflict == "Task t is of the family images/generations, not videos/text2video."
    assert not answer.may_create
    assert (ledger.task()["model"], ledger.task()["outcome"]) == ("", "pending")


def test_an_accepted_create_makes_the_task_submitted(ledger: Ledger) -> None:
    """With the origin Kling; a repeat changes nothing."""
    ledger.register()
    for _ in range(2):
        answer = ledger.register(outcome="created", kling_id="k1")
        assert not answer.may_create
    assert (ledger.task()["status"], ledger.task()["outcome"], ledger.task()["kling_id"]) == (
        "submitted",
        "created",
        "k1",
    )
    assert ledger.types() == ["task.created", "task.submitted"]
    assert not ledger.register().may_create


def test_an_outcome_may_be_the_first_registration(ledger: Ledger) -> None:
    """Of a task that the receiver does not know."""
    assert ledger.register(outcome="created", kling_id="k1").created
    assert ledger.task()["status"] == "submitted"
    ledger.register("u", outcome="not_created", reason="no")
    assert view(ledger.task("u")) == ("failed", "local", True)


def test_the_creates_answer_after_the_end_changes_no_status(ledger: Ledger) -> None:
    """Its id is stored; a callback's status is checked once more, by that id."""
    ledger.register()
    ledger.record(callback(status="succeed"))
    ledger.accept_hint()
    ledger.kill_job("ask/t")
    ledger.register(outcome="created", kling_id="k1")
    assert view(ledger.task()) == ("succeed", "callback", True)
    assert ledger.task()["kling_id"] == "k1"
    assert ledger.jobs()["ask/t"]["state"] == "ready"
    ledger.kill_job("ask/t")
    ledger.register(outcome="created", kling_id="k1")
    assert ledger.jobs()["ask/t"]["state"] == "dead"


@pytest.mark.parametrize("origin", ["kling", "local"])
def test_a_repeated_report_after_the_end_changes_no_status(ledger: Ledger, origin: str) -> None:
    """A client may repeat its report at any time."""
    ledger.register()
    ledger.register(outcome="created", kling_id="k1")
    if origin == "kling":
        ledger.apply_report("t", says("failed"))
    else:
        ledger.change(lambda tx: transitions.fail_locally(tx, tx.require_task("t"), "too late"))
    ledger.register(outcome="created", kling_id="k1")
    assert view(ledger.task()) == ("failed", origin, True)


def test_a_report_of_the_create_reopens_a_failed_task(ledger: Ledger) -> None:
    """It came after the deadline: Kling has the task, and it has a deadline again."""
    ledger.register()
    ledger.change(lambda tx: transitions.fail_locally(tx, tx.require_task("t"), "its create did not arrive"))
    ledger.register(outcome="created", kling_id="k1")
    assert view(ledger.task()) == ("submitted", None, False)
    assert OVERDUE in ledger.jobs()


def test_a_create_that_was_not_accepted_fails_the_task(ledger: Ledger) -> None:
    """Locally, with the reason; no job is left."""
    ledger.register()
    ledger.register(outcome="not_created", reason="model is not supported")
    assert view(ledger.task()) == ("failed", "local", True)
    assert ledger.task()["status_msg"] == "model is not supported"
    assert ledger.jobs() == {}
    ledger.register("u")
    ledger.register("u", outcome="not_created")
    assert ledger.task("u")["status_msg"] == "Kling did not accept the create."


def test_a_create_that_was_not_accepted_may_be_repeated(ledger: Ledger) -> None:
    """Each time one attempt may send it, and the task is open and has a deadline."""
    for attempt in "abc":
        assert ledger.register(create_token=attempt).may_create
        assert view(ledger.task()) == ("created", None, False)
        assert OVERDUE in ledger.jobs()
        assert not ledger.register(create_token="other").may_create
        ledger.register(create_token=attempt, outcome="not_created")
        assert view(ledger.task()) == ("failed", "local", True)
    assert ledger.register(create_token="d").may_create
    ledger.register(create_token="d", outcome="created", kling_id="k1")
    assert view(ledger.task()) == ("submitted", None, False)
    assert ledger.types().count("task.created") == 4


def test_creates_of_a_task_have_a_maximum(ledger: Ledger) -> None:
    """So that one task cannot fill the event log."""
    for n in range(task_registration.MAX_CREATES):
        assert ledger.register(create_token=f"{n}").may_create
        ledger.register(create_token=f"{n}", outcome="not_created", reason="no")
    answer = ledger.register(create_token="last")
    assert not answer.may_create
    assert answer.conflict == f"Task t was refused {task_registration.MAX_CREATES} times. Use a new id."


def test_a_report_of_a_replaced_attempt_is_ignored(ledger: Ledger) -> None:
    """It does not end the attempt after it; an accepted create counts from any attempt."""
    ledger.register(create_token="a")
    ledger.register(create_token="a", outcome="not_created")
    ledger.register(create_token="b")
    ledger.register(create_token="a", outcome="not_created")
    ledger.register(create_token="a", outcome="unknown")
    assert (ledger.task()["status"], ledger.task()["outcome"]) == ("created", "pending")
    ledger.register(create_token="a", outcome="created", kling_id="k1")
    assert ledger.task()["status"] == "submitted"


@pytest.mark.parametrize("outcome", ["created", "not_created", "unknown"])
def test_the_request_id_of_the_create_is_stored(ledger: Ledger, outcome: str) -> None:
    """That of this attempt only, and none resets it."""
    ledger.register(create_token="a")
    ledger.register(outcome=outcome, kling_id="k", create_token="another", request_id="r-0")
    assert ledger.task()["request_id"] is None
    for request_id in ("r-1", ""):
        ledger.register(outcome=outcome, kling_id="k", create_token="a", request_id=request_id)
        assert ledger.task()["request_id"] == "r-1"


def test_the_words_of_an_unknown_create_are_shown(ledger: Ledger) -> None:
    """As the task's message, until a status arrives."""
    ledger.register(create_token="a")
    ledger.register(create_token="a", outcome="unknown", reason="Kling answered HTTP 502: 502 Bad Gateway.")
    assert ledger.task()["status_msg"] == "Kling answered HTTP 502: 502 Bad Gateway."
    ledger.apply_report("t", says("processing"))
    assert ledger.task()["status_msg"] == ""


def test_the_words_of_an_unknown_create_replace_no_status(ledger: Ledger) -> None:
    """A callback was faster: its message stays."""
    ledger.register(create_token="a")
    ledger.record(callback("t", "processing", message="in the queue"))
    ledger.register(create_token="a", outcome="unknown", reason="Kling answered HTTP 502: 502 Bad Gateway.")
    assert (ledger.task()["outcome"], ledger.task()["status_msg"]) == ("unknown", "in the queue")


def test_after_an_unknown_outcome_no_create_is_sent(ledger: Ledger) -> None:
    """One intent, one paid task; what turns out later is noted."""
    ledger.register()
    ledger.register(outcome="unknown")
    assert (ledger.task()["status"], ledger.task()["outcome"]) == ("created", "unknown")
    assert not ledger.register().may_create
    assert not ledger.register(create_token="b").may_create
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
    ledger.now += 1
    ledger.register(outcome=outcome)
    assert ledger.task()["status"] != "failed"
    assert ledger.task()["outcome"] == "unknown"
    assert status == "submitted" or ledger.jobs()["ask/t"]["due_at"] == ledger.now
    assert not ledger.register(create_token="b").may_create


def test_a_callback_after_the_refusal_forbids_another_create(ledger: Ledger) -> None:
    """Perhaps it was taken after all: Kling is asked instead."""
    ledger.register()
    ledger.register(outcome="not_created")
    ledger.record(callback(status="processing"))
    assert not ledger.register(create_token="b").may_create
    assert "ask/t" in ledger.jobs()


def test_klings_status_after_the_refusal_forbids_another_create(ledger: Ledger) -> None:
    """The create was accepted after all."""
    ledger.register()
    ledger.register(outcome="not_created")
    ledger.apply_report("t", says("processing"))
    assert not ledger.register(create_token="b").may_create
    assert ledger.task()["status"] == "processing"


def test_an_outcome_after_the_creation_is_known_changes_nothing(ledger: Ledger) -> None:
    """Created is created."""
    ledger.register(outcome="created", kling_id="k1")
    ledger.register(outcome="not_created")
    ledger.register(outcome="unknown")
    assert (ledger.task()["status"], ledger.task()["outcome"]) == ("submitted", "created")


def learn(ledger: Ledger, task_id: str) -> None:
    """Kling's answer to a query named its id of the task `t`."""
    ledger.change(lambda tx: task_registration.set_kling_id(tx, tx.require_task("t"), task_id))


@pytest.mark.parametrize(("attempt", "stands"), [("a", "k1"), ("b", "k2")])
def test_the_creates_own_answer_replaces_the_id_of_a_query(ledger: Ledger, attempt: str, stands: str) -> None:
    """From the attempt that sent it, and once."""
    ledger.register(create_token="a")
    learn(ledger, "k2")
    assert (ledger.task()["status"], ledger.task()["kling_id"]) == ("submitted", "k2")
    ledger.register(create_token=attempt, outcome="created", kling_id="k1")
    assert (ledger.task()["outcome"], ledger.task()["kling_id"]) == ("created", stands)
    ledger.register(create_token=attempt, outcome="created", kling_id="k3")
    assert ledger.task()["kling_id"] == stands


@pytest.mark.parametrize("outcome", ["not_created", "unknown"])
def test_a_task_that_kling_knows_was_created(ledger: Ledger, outcome: str) -> None:
    """Whatever its client reports, and no other create is sent."""
    ledger.register()
    learn(ledger, "k1")
    ledger.register(outcome=outcome)
    assert view(ledger.task()) == ("submitted", None, False)
    assert not ledger.register().may_create
    assert not ledger.register(create_token="b").may_create


# --- the same id with other parameters ---------------------------------------------------------------------

SAME, OTHER = "a" * 64, "b" * 64


def test_other_parameters_under_one_id_are_refused(ledger: Ledger) -> None:
    """The message names those that differ; nothing of the task changes."""
    request = {"prompt": "x", "n": 1, "negative_prompt": "", "camera": {"zoom": 1, "pan": 2}}
    ledger.register(request=request, request_sha256=SAME, model="kling-v3")
    before = ledger.task()
    other = {"prompt": "y", "n": 1, "seed": 5, "camera": {"zoom": 1, "pan": 3}, "mode": None}
    answer = ledger.register(create_token="b", request=other, request_sha256=OTHER, tags=("late",))
    assert answer.conflict == "Task t is registered with other parameters: they differ in camera.pan, prompt, seed."
    assert not answer.may_create
    assert ledger.task() == before
    assert ledger.rows(TAG) == []
    same = ledger.register(create_token="b", request=request, request_sha256=SAME)
    assert (same.conflict, same.may_create) == (None, False)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"image": "(9000 characters, left out)"}, {"image": "(9000 characters, left out)"}),
        (None, {"prompt": "x"}),
        ({"note": "longer than 20000 characters, left out"}, {"prompt": "x"}),
        ({"prompt": "x"}, {"prompt": "x", "n": ""}),
    ],
)
def test_a_difference_that_is_not_stored_is_refused_too(ledger: Ledger, ours: Any, theirs: Any) -> None:
    """Such as the bytes of an image."""
    ledger.register(request=ours, request_sha256=SAME)
    answer = ledger.register(request=theirs, request_sha256=OTHER)
    assert answer.conflict == "Task t is registered with other parameters: they differ in a value that is not stored."


def test_a_message_names_some_of_many(ledger: Ledger) -> None:
    """It stays short."""
    ledger.register(request={f"p{number:02}": 1 for number in range(50)}, request_sha256=SAME)
    answer = ledger.register(request={f"p{number:02}": 2 for number in range(50)}, request_sha256=OTHER)
    assert answer.conflict is not None
    assert answer.conflict.endswith("p08, p09.")


def test_a_task_of_unknown_parameters_gets_those_of_its_first_registration(ledger: Ledger) -> None:
    """Such as one that is known by its callback; an older client, which sends no digest, is never refused."""
    ledger.record(callback())
    assert ledger.register(request={"prompt": "x"}, request_sha256=SAME).conflict is None
    assert ledger.task()["request_sha256"] == SAME
    assert ledger.register(request={"prompt": "y"}, request_sha256=OTHER).conflict
    assert ledger.register(request={"prompt": "y"}).conflict is None
    assert ledger.task()["request_sha256"] == SAME


BEFORE_DIGESTS: dict[str, Any] = {
    "prompt": "x",
    "n": 2,
    "negative_prompt": "",
    "image": "https://receiver.test/api/tasks/a/results/0?expires=1&signature=a",
    "external_task_id": "t",
    "options": {"callback_url": "x"},
}


def test_parameters_from_before_digests_are_compared_as_far_as_they_are_stored(ledger: Ledger) -> None:
    """A wrong rerun is refused, a right one is not, and none gives the task its digest."""
    ledger.register(request=BEFORE_DIGESTS)
    wrong = ledger.register(create_token="b", request={**BEFORE_DIGESTS, "prompt": "y"}, request_sha256=OTHER)
    assert wrong.conflict == "Task t is registered with other parameters: they differ in prompt."
    link = BEFORE_DIGESTS["image"].replace("signature=a", "signature=b")
    for right in (BEFORE_DIGESTS, {"prompt": "x", "n": 2.0, "image": link}):
        answer = ledger.register(create_token="b", request=right, request_sha256=SAME)
        assert (answer.conflict, answer.may_create) == (None, False)
    assert ledger.task()["request_sha256"] is None


@pytest.mark.parametrize("ours", [BEFORE_DIGESTS, {"note": "longer than 20000 characters, left out"}])
def test_no_report_of_a_create_gives_a_stored_request_a_digest(ledger: Ledger, ours: Any) -> None:
    """It may be of another attempt."""
    ledger.register(request=ours)
    ledger.register(outcome="created", kling_id="k", request={"prompt": "y"}, request_sha256=OTHER)
    assert ledger.task()["request_sha256"] is None


@pytest.mark.parametrize("odd", [["x"], "x", 5, True, {"options": ["x"]}, {"options": {"a": {"b": None}}}])
def test_requests_of_any_shape_are_registered(ledger: Ledger, odd: Any) -> None:
    """Clients in other languages send what they like, with and without a digest."""
    ledger.register(request=odd)
    assert ledger.register(request=odd, request_sha256=SAME).conflict is None
    assert ledger.register(request=odd).conflict is None


def test_after_a_refusal_a_client_without_digests_sets_the_parameters_too(ledger: Ledger) -> None:
    """The digest of the refused ones is not kept: it would refuse the right ones."""
    ledger.register(request={"prompt": "bad"}, request_sha256=SAME)
    ledger.register(outcome="not_created", reason="no")
    assert ledger.register(create_token="b", request={"prompt": "good"}).may_create
    assert ledger.task()["request"] == {"prompt": "good"}
    assert ledger.register(request={"prompt": "good"}, request_sha256=OTHER).conflict is None
    assert ledger.register(request={"prompt": "bad"}, request_sha256=SAME).conflict


def test_after_a_refusal_a_registration_without_parameters_keeps_them(ledger: Ledger) -> None:
    """It says nothing of them."""
    ledger.register(request={"prompt": "x"}, request_sha256=SAME)
    ledger.register(outcome="not_created", reason="no")
    assert ledger.register(create_token="b").may_create
    assert (ledger.task()["request"], ledger.task()["request_sha256"]) == ({"prompt": "x"}, SAME)


def test_after_a_refusal_other_parameters_are_accepted(ledger: Ledger) -> None:
    """Nothing was paid, and a corrected create is no other intent; from then on its parameters count."""
    ledger.register(request={"prompt": "bad"}, request_sha256=SAME, model="kling-v1")
    ledger.register(outcome="not_created", reason="discontinued", request_sha256=SAME)
    answer = ledger.register(create_token="b", request={"prompt": "good"}, request_sha256=OTHER, model="kling-v3")
    assert (answer.conflict, answer.may_create) == (None, True)
    task = ledger.task()
    assert (task["request"], task["request_sha256"], task["model"]) == ({"prompt": "good"}, OTHER, "kling-v3")
    assert ledger.register(request={"prompt": "bad"}, request_sha256=SAME).conflict


def test_an_outcome_is_recorded_whatever_its_parameters(ledger: Ledger) -> None:
    """A task at Kling is never lost for the report of an attempt that another has replaced."""
    ledger.register(create_token="a", request_sha256=SAME)
    ledger.register(create_token="a", outcome="not_created", request_sha256=SAME)
    ledger.register(create_token="b", request_sha256=OTHER)
    answer = ledger.register(create_token="a", outcome="created", kling_id="k1", request_sha256=SAME)
    assert answer.conflict is None
    assert (ledger.task()["kling_id"], ledger.task()["request_sha256"]) == ("k1", OTHER)


def test_a_task_has_one_hook(ledger: Ledger) -> None:
    """The same again changes nothing, another one is refused with everything else; an outcome is recorded anyway."""
    first: dict[str, Any] = {"hook": "https://x.example/", "hook_events": ["task.done"]}
    assert ledger.register(**first).may_create
    assert ledger.register(**first).may_create
    for other in ({"hook": "https://y.example/", "hook_events": ["task.done"]}, {**first, "hook_events": []}):
        refused = ledger.register(**other, tags=("new",), create_token="b")
        assert refused.conflict == "Task t has a hook already, with another address, events or format: a task has one."
        assert not refused.may_create
    assert ledger.rows(TAG) == []
    reported = ledger.register(hook="https://y.example/", outcome="created", kling_id="k")
    assert reported.conflict is not None
    assert ledger.task()["kling_id"] == "k"
    [hook] = ledger.rows(HOOK)
    assert (hook["address"], hook["filter"]["events"]) == ("https://x.example/", ["task.done"])

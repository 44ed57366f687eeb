"""Status changes of a task, by the source of the new status."""

import json

import pytest

from kling_receiver.jobs import enqueue
from kling_receiver.results import records as result_records
from kling_receiver.states import Status
from kling_receiver.store.database import Database
from kling_receiver.store.tables import JOB
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import ingest, transitions
from kling_receiver.tasks import registration as task_registration
from kling_receiver.tasks.registration import Registration
from tests.support.database import FAMILY, FILE, NOW, OVERDUE, STORED, Ledger, callback, says, view


@pytest.fixture
def ledger(any_database: Database) -> Ledger:
    """A ledger without tasks."""
    return Ledger(any_database)


@pytest.mark.parametrize("status", ["submitted", "processing"])
def test_a_callback_changes_the_status_of_an_open_task(ledger: Ledger, status: str) -> None:
    """`submitted` and `processing` are accepted from any authenticated callback."""
    ledger.register()
    ledger.record(callback(status=status, message="on its way"))
    assert view(ledger.task()) == (status, None, False)
    assert ledger.task()["status_msg"] == "on its way"
    assert "ask/t" not in ledger.jobs()


@pytest.mark.parametrize("status", ["succeed", "failed"])
def test_a_final_callback_is_a_hint(ledger: Ledger, status: str) -> None:
    """It changes no status, names no file to download, and causes a query at once."""
    ledger.record(callback(status=status, files=[FILE], message="m"))
    task = ledger.task()
    assert view(task) == ("created", None, False)
    assert (task["hint"], task["hint_msg"], task["hint_count"]) == (status, "m", 1)
    assert ledger.results() == []
    assert sorted(ledger.jobs()) == ["ask/t", OVERDUE]
    assert (ledger.jobs()["ask/t"]["due_at"], ledger.jobs()["ask/t"]["concurrency_key"]) == (NOW, "kling")


def test_klings_final_status_is_authoritative(ledger: Ledger) -> None:
    """Its answer sets the status, names the files, enqueues their downloads; the deadline is cancelled."""
    ledger.record(callback(status="succeed"))
    ledger.apply_report("t", says("succeed", FILE, f"{FILE}?ksTime=6a9b5d00", message="fine", cost="3.5"))
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
    assert (jobs["download/t/1"]["args"], jobs["download/t/1"]["concurrency_key"]) == (
        {"index": 1},
        "download v16-kling.klingai.com",
    )


def test_a_signed_callback_is_authoritative(ledger: Ledger) -> None:
    """No query is needed; the files in it are downloaded."""
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert list(ledger.jobs()) == ["download/t/0"]
    assert ledger.events()[1]["data"]["signed"] is True


def test_a_signed_success_without_files_causes_a_query(ledger: Ledger) -> None:
    """Kling's status stands, the files are still missing."""
    ledger.record(callback(status="succeed", signed=True))
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert list(ledger.jobs()) == ["ask/t"]
    ledger.apply_report("t", says("succeed", FILE))
    assert [result["source_url"] for result in ledger.results()] == [FILE]
    assert "download/t/0" in ledger.jobs()


def test_a_file_without_its_address_keeps_a_task_open(ledger: Ledger) -> None:
    """A session beside it is recorded at once; the task is done once the file has its address and is stored."""
    session = {"id": "v", "session_id": "s"}
    late = {"task_id": "t", "task_status": "succeed", "task_result": {"videos": [{**session, "url": ""}]}}
    ledger.record(callback(body=json.dumps(late).encode(), signed=True))
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert ledger.task()["outputs"] == [{**session, "url": ""}]
    assert list(ledger.jobs()) == ["ask/t"]
    ledger.apply_report("t", says("succeed", objects=(session,), awaits_file=True))
    assert not ledger.task()["done"]
    ledger.apply_report("t", says("succeed", FILE, objects=(session,)))
    assert "download/t/0" in ledger.jobs()


def test_a_failure_reported_by_kling_is_final(ledger: Ledger) -> None:
    """No job is left."""
    ledger.register(outcome="created", kling_id="k1")
    ledger.apply_report("t", says("failed", message="no kangaroos"))
    assert view(ledger.task()) == ("failed", "kling", True)
    assert ledger.types()[-2:] == ["task.failed", "task.done"]
    assert ledger.events()[-1]["data"] == {"status": "failed", "origin": "kling"}
    assert ledger.jobs() == {}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(
    ("status", "reason"), [("succeed", "contradictory"), ("processing", "late"), ("submitted", "late")]
)
def test_a_status_after_klings_final_status_is_logged(ledger: Ledger, status: str, reason: str, signed: bool) -> None:
    """It changes neither status, cost nor files, whatever its source."""
    ledger.register()
    ledger.apply_report("t", says("failed", cost="1"))
    ledger.record(callback(status=status, files=[FILE], signed=signed, final_unit_deduction="99"))
    task = ledger.task()
    assert view(task) == ("failed", "kling", True)
    assert (task["cost"], task["hint"]) == ("1", None)
    assert ledger.results() == []
    assert ledger.events()[-1]["type"] == "callback.ignored"
    assert ledger.events()[-1]["data"] == {"reason": reason, "status": status, "stands": "failed"}
    assert set(ledger.jobs()) <= {"ask/t"}


def test_the_same_final_status_again_changes_nothing(ledger: Ledger) -> None:
    """Only the callback is logged."""
    ledger.record(callback(status="failed", signed=True))
    before = ledger.types()
    ledger.record(callback(status="failed", message="other words"), callback(status=None))
    assert ledger.types() == [*before, "callback.received", "callback.received"]
    assert ledger.jobs() == {}


def test_a_late_callback_of_an_open_task_is_logged(ledger: Ledger) -> None:
    """`submitted` after `processing` changes no status."""
    ledger.record(callback(status="processing"), callback(status="submitted"))
    assert view(ledger.task()) == ("processing", None, False)
    assert ledger.events()[-1]["data"] == {"reason": "late", "status": "submitted", "stands": "processing"}


def test_the_same_status_in_another_body_changes_nothing(ledger: Ledger) -> None:
    """The body is kept."""
    ledger.record(callback(status="processing"), callback(status="processing", message="still"))
    assert ledger.types().count("task.processing") == 1
    assert ledger.types().count("callback.received") == 2


# Ends that are not Kling's own word


@pytest.mark.parametrize(
    ("status", "results"), [("failed", []), ("succeed", [("failed", "Kling could not be queried")])]
)
def test_a_callbacks_status_is_accepted_if_kling_cannot_be_queried(
    ledger: Ledger, status: str, results: list[tuple[str, str]]
) -> None:
    """With its origin; the files of a success are reported as failed, because its addresses prove nothing."""
    ledger.record(callback(status=status, files=[FILE], message="m"))
    ledger.accept_hint()
    task = ledger.task()
    assert view(task) == (status, "callback", True)
    assert (task["status_msg"], task["hint"]) == ("m", None)
    assert [(each["status"], each["error"].partition(",")[0]) for each in ledger.results()] == results
    assert ledger.types().count("result.failed") == len(results)
    assert ledger.types()[-1] == "task.done"
    assert list(ledger.jobs()) == ["ask/t"]


def test_without_a_final_callback_no_status_is_accepted(ledger: Ledger) -> None:
    """Nor after Kling's own."""
    ledger.record(callback(status=None))
    ledger.accept_hint()
    assert view(ledger.task()) == ("created", None, False)
    ledger.record(callback(status="succeed"))
    ledger.apply_report("t", says("failed"))
    ledger.accept_hint()
    assert view(ledger.task()) == ("failed", "kling", True)


@pytest.mark.parametrize("stood", [True, False])
def test_a_success_without_files_ends_with_a_failed_result(ledger: Ledger, stood: bool) -> None:
    """Kling signed it without files, and then could not be queried: the task does not hang."""
    if stood:
        ledger.record(callback(status="succeed"))
        ledger.accept_hint()
    ledger.record(callback(status="succeed", signed=True, n=1))
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert "ask/t" in ledger.jobs()
    ledger.accept_hint()
    assert view(ledger.task()) == ("succeed", "kling", True)
    assert ledger.types().count("result.failed") == 1
    assert [result["status"] for result in ledger.results()] == ["failed"]


@pytest.mark.parametrize("status", ["succeed", "failed"])
def test_an_answer_without_files_fails_none_that_was_named(ledger: Ledger, status: Status) -> None:
    """They may have been named by a signed callback while Kling was asked."""
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    ledger.apply_report("t", says(status))
    ledger.change(lambda tx: result_records.mark_missing(tx, tx.require_task("t"), "no file"))
    ledger.accept_hint()
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert [result["status"] for result in ledger.results()] == ["pending"]


def end(ledger: Ledger, origin: str) -> None:
    """End the task `t`, not by Kling's word."""
    if origin == "callback":
        ledger.record(callback(status="succeed", files=[FILE]))
        ledger.accept_hint()
    else:
        ledger.register()
        ledger.change(lambda tx: transitions.fail_locally(tx, tx.require_task("t"), "too late"))


@pytest.mark.parametrize("origin", ["callback", "local"])
def test_a_final_status_of_another_origin_is_replaced_by_klings_files(ledger: Ledger, origin: str) -> None:
    """Whenever Kling's report arrives: the task is open again until its files are stored."""
    end(ledger, origin)
    assert ledger.task()["done"]
    ledger.apply_report("t", says("succeed", FILE, f"{FILE}2"))
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert [(each["position"], each["status"], each["error"]) for each in ledger.results()] == [
        (0, "pending", ""),
        (1, "pending", ""),
    ]
    ledger.store(0)
    assert not ledger.task()["done"]
    ledger.store(1)
    assert view(ledger.task()) == ("succeed", "kling", True)
    assert ledger.types().count("task.done") == 2


@pytest.mark.parametrize("origin", ["callback", "local"])
@pytest.mark.parametrize("status", ["submitted", "processing"])
def test_a_final_status_of_another_origin_is_replaced_by_klings_status(
    ledger: Ledger, origin: str, status: Status
) -> None:
    """The task is open, and has a deadline again."""
    end(ledger, origin)
    assert OVERDUE not in ledger.jobs()
    ledger.apply_report("t", says(status))
    assert view(ledger.task()) == (status, None, False)
    assert OVERDUE in ledger.jobs()
    ledger.apply_report("t", says("failed"))
    assert view(ledger.task()) == ("failed", "kling", True)


@pytest.mark.parametrize("origin", ["callback", "local"])
@pytest.mark.parametrize("status", ["submitted", "processing", "succeed", "failed", None])
def test_a_callback_after_a_final_status_of_another_origin_causes_a_query(
    ledger: Ledger, origin: str, status: str | None
) -> None:
    """It cannot reopen the task by itself, but it shows that Kling knows more."""
    end(ledger, origin)
    before = view(ledger.task())
    if "ask/t" in ledger.jobs():
        ledger.kill_job("ask/t")
    ledger.record(callback(status=status, message="later"))
    assert view(ledger.task()) == before
    assert ledger.jobs()["ask/t"]["state"] == "ready"
    assert ledger.jobs()["ask/t"]["attempts"] == 0


def test_a_reopened_task_with_a_hint_has_a_query(ledger: Ledger) -> None:
    """Even if the earlier query was given up."""
    end(ledger, "local")
    ledger.record(callback(status="failed"))
    ledger.kill_job("ask/t")
    ledger.record(callback(status="processing", signed=True))
    assert (ledger.task()["status"], ledger.task()["hint"]) == ("processing", "failed")
    assert ledger.jobs()["ask/t"]["state"] == "ready"


def test_a_local_failure_is_for_open_tasks_only(ledger: Ledger) -> None:
    """It has a reason, and does not change a task that has ended."""
    end(ledger, "local")
    assert view(ledger.task()) == ("failed", "local", True)
    assert ledger.task()["status_msg"] == "too late"
    ledger.apply_report("t", says("failed", message="theirs"))
    assert view(ledger.task()) == ("failed", "kling", True)
    ledger.change(lambda tx: transitions.fail_locally(tx, tx.require_task("t"), "again"))
    assert ledger.task()["status_msg"] == "theirs"


def test_a_false_hint_is_rejected(ledger: Ledger) -> None:
    """Kling repeatedly reports another status: the callback is logged as ignored."""
    ledger.record(callback(status="succeed", message="m"))
    ledger.change(lambda tx: transitions.reject_hint(tx, tx.require_task("t"), "processing"))
    assert (ledger.task()["hint"], ledger.task()["hint_msg"]) == (None, "")
    said = ledger.events()[-1]["data"]
    assert said == {"reason": "Kling says processing", "status": "succeed", "stands": "created"}
    before = ledger.types()
    ledger.change(lambda tx: transitions.reject_hint(tx, tx.require_task("t"), "processing"))
    assert ledger.types() == before


def test_a_change_of_many_kinds_is_one_commit(ledger: Ledger) -> None:
    """A registration and a callback of the same task may share a transaction."""

    def change(tx: Transaction) -> None:
        ingest.ingest(tx, [callback(status="succeed")])
        task_registration.register(tx, "t", Registration(family=FAMILY, create_token="a", tags=("x",)))
        transitions.apply_report(tx, tx.require_task("t"), says("succeed", FILE))
        result_records.mark_stored(tx, tx.require_task("t"), 0, STORED)

    ledger.change(change)
    assert view(ledger.task()) == ("succeed", "kling", True)
    assert ledger.types() == [
        "task.created",
        "callback.received",
        "task.succeed",
        "result.stored",
        "task.done",
    ]


def test_a_query_that_was_given_up_starts_over(ledger: Ledger) -> None:
    """With all its attempts, and without the arguments of the earlier ones."""
    ledger.record(callback(status="succeed"))
    with ledger.database.write() as connection:
        connection.execute(JOB.update().values(args={"unanswered": 12}))
    ledger.kill_job("ask/t")
    ledger.change(lambda tx: enqueue.ask(tx, "t"))
    job = ledger.jobs()["ask/t"]
    assert (job["state"], job["attempts"], job["args"]) == ("ready", 0, None)

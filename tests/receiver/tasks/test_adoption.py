"""Adoptions in one transaction: a task is added once."""

from typing import Any

import pytest

from kling_receiver.store.database import Database
from kling_receiver.store.tables import TASK
from kling_receiver.tasks.adoption import Adopted, adopt
from tests.support.database import FAMILY, FILE, OVERDUE, Ledger, callback, says, view


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """A ledger of no tasks."""
    return Ledger(database)


@pytest.mark.parametrize("external", [None, "t", "not ours"])
def test_simultaneous_adoptions_add_one_task(ledger: Ledger, external: str | None) -> None:
    """Their changes may share a commit."""
    report = says("processing", kling_id="k1", external_task_id=external)
    with ledger.transaction() as tx:
        first, second = (adopt(tx, FAMILY, "k1", report) for _ in range(2))
    third = ledger.change(lambda tx: adopt(tx, FAMILY, "k1", report))
    assert (first.created, second.created, third.created) == (True, False, False)
    assert first.task_id == second.task_id == third.task_id
    (task,) = ledger.rows(TASK)
    assert (task["kling_id"], task["outcome"], task["status"]) == ("k1", "created", "processing")


def test_a_registered_task_is_completed_once(ledger: Ledger) -> None:
    """Also if both find it without Kling's id."""
    ledger.register()
    report = says("processing", kling_id="k1", external_task_id="t")
    with ledger.transaction() as tx:
        adopted = [adopt(tx, FAMILY, "k1", report) for _ in range(2)]
    assert adopted == [Adopted("t", created=False)] * 2
    assert ledger.task()["kling_id"] == "k1"


def test_an_open_task_has_its_deadline(ledger: Ledger) -> None:
    """And a finished one its files, and no deadline."""
    ledger.change(lambda tx: adopt(tx, FAMILY, "k1", says("submitted", kling_id="k1", external_task_id="t")))
    assert list(ledger.jobs()) == [OVERDUE]
    report = says("succeed", FILE, kling_id="k2", external_task_id="u")
    ledger.change(lambda tx: adopt(tx, FAMILY, "k2", report))
    assert sorted(ledger.jobs()) == ["download/u/0", OVERDUE]


def test_a_success_without_files_is_queried_again(ledger: Ledger) -> None:
    """As after any other query."""
    ledger.change(lambda tx: adopt(tx, FAMILY, "k1", says("succeed", kling_id="k1", external_task_id="t")))
    assert list(ledger.jobs()) == ["ask/t"]


def test_a_create_that_was_not_accepted_is_refuted(ledger: Ledger) -> None:
    """Kling has the task: it is open again, and no other create is sent."""
    ledger.register()
    ledger.register(outcome="not_created")
    ledger.change(lambda tx: adopt(tx, FAMILY, "k1", says("processing", kling_id="k1", external_task_id="t")))
    assert view(ledger.task()) == ("processing", None, False)
    assert not ledger.register(create_token="b").may_create


def test_an_answer_without_a_status_is_no_end(ledger: Ledger) -> None:
    """Kling knows the task, by a word that is not known here."""
    ledger.change(lambda tx: adopt(tx, FAMILY, "k1", says(None, kling_id="k1", external_task_id="t")))
    assert view(ledger.task()) == ("submitted", None, False)


def signed_only(ledger: Ledger, task: str = "t", kling_id: str = "k1", **more: Any) -> None:
    """A task that another program created, with an address of ours that it signed itself."""
    ledger.record(callback(task, "processing", task_id=kling_id, **more))


@pytest.mark.parametrize("external", [None, "t", "order-42"])
def test_a_task_that_is_known_by_its_callbacks_is_completed(ledger: Ledger, external: str | None) -> None:
    """A second task of the same id at Kling would take it from the first one, which then could not be queried."""
    signed_only(ledger)
    report = says("processing", kling_id="k1", external_task_id=external)
    assert ledger.change(lambda tx: adopt(tx, FAMILY, "k1", report)) == Adopted("t", created=False)
    assert (ledger.task()["kling_id"], len(ledger.rows(TASK))) == ("k1", 1)


def test_a_task_of_other_callbacks_is_not_taken_over(ledger: Ledger) -> None:
    """Its id is no evidence: its create need not have named it, and another one may have."""
    signed_only(ledger, "t", "k1")
    report = says("processing", kling_id="k2", external_task_id="t")
    adopted = ledger.change(lambda tx: adopt(tx, FAMILY, "k2", report))
    assert adopted.created
    assert adopted.task_id != "t"
    assert ledger.task()["kling_id"] is None


@pytest.mark.parametrize("case", ["of another task", "of two tasks", "of another family", "of a create under way"])
def test_the_id_of_a_callback_proves_nothing(ledger: Ledger, case: str) -> None:
    """It takes no task over that Kling's report is not about."""
    external, family = None, FAMILY
    if case == "of a create under way":
        ledger.register()
    signed_only(ledger)
    if case == "of another task":
        ledger.register("order-42", outcome="created", kling_id="k2")
        external = "order-42"
    elif case == "of two tasks":
        signed_only(ledger, "u")
    elif case == "of another family":
        family = "videos/text2video"
    report = says("processing", kling_id="k1", external_task_id=external)
    assert ledger.change(lambda tx: adopt(tx, family, "k1", report)).created
    assert ledger.task()["kling_id"] is None

"""Adoptions in one transaction: a task is added once."""

import pytest

from kling_receiver.store.database import Database
from kling_receiver.store.tables import TASK
from kling_receiver.tasks.adoption import Adopted, adopt
from tests.support.database import FAMILY, FILE, OVERDUE, Ledger, says, view


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

"""A rehearsal does what a callback causes, and leaves nothing of it."""

import pytest
from sqlalchemy import text

from kling_receiver.store.database import Database
from kling_receiver.store.tables import METADATA
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks.rehearsal import rehearse
from tests.support.database import Ledger, statements

WRITES = [
    *("INSERT INTO task", "UPDATE task", "INSERT INTO event", "UPDATE event", "INSERT INTO result", "UPDATE result"),
    *("INSERT INTO job", "UPDATE job", "DELETE FROM job", "INSERT INTO delivery_attempt", "UPDATE hook"),
]


def test_a_rehearsal_writes_what_a_callback_does(database: Database) -> None:
    """Each kind of write from the first callback to a delivery."""
    ledger = Ledger(database)
    with statements(database) as seen:
        ledger.change(rehearse)
    written = [" ".join(each.replace("COPY", "INSERT INTO").split()) for each in seen]
    assert [write for write in WRITES if not any(each.startswith(write) for each in written)] == []


def test_a_rehearsal_leaves_nothing(database: Database) -> None:
    """No row of any table, beside changes that share its commit; the hooks have nothing to deliver."""
    ledger = Ledger(database)
    ledger.put_task("t")
    ledger.put_hook()
    ledger.put_job()
    before = {table.name: ledger.rows(table) for table in METADATA.sorted_tables}

    def change(tx: Transaction) -> None:
        tx.update_task(tx.require_task("t"), status_msg="with it")
        rehearse(tx)

    ledger.change(change)
    after = {table.name: ledger.rows(table) for table in METADATA.sorted_tables}
    assert after.pop("task")[0]["status_msg"] == "with it"
    assert after == {name: rows for name, rows in before.items() if name != "task"}


def test_a_rehearsal_that_fails_undoes_its_part(database: Database) -> None:
    """Its error is the database's own."""
    ledger = Ledger(database)
    before = [ledger.rows(table) for table in METADATA.sorted_tables]
    with database.write() as connection:
        connection.execute(text("ALTER TABLE result RENAME TO gone"))
    with pytest.raises(Exception, match="result"):
        ledger.change(rehearse)
    with database.write() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO result"))
    assert [ledger.rows(table) for table in METADATA.sorted_tables] == before


def test_a_rehearsal_leaves_no_gap_in_the_event_log(database: Database) -> None:
    """The ids of events are as if it had not been."""
    ledger = Ledger(database)
    ledger.change(rehearse)
    ledger.log("task.created")
    ledger.change(rehearse)
    ledger.log("task.created")
    assert [event["id"] for event in ledger.events()] == [1, 2]

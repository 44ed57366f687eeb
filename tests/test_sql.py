"""Statements by the driver's own hand: the same on both engines, and their errors in the one tree."""

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from kling_receiver.store.database import Database
from kling_receiver.store.sql import Sql
from kling_receiver.store.transaction import NEW_TASK, TASK, TASKS
from tests.ledger import FAMILY, NOW

ALL = Sql("SELECT * FROM task ORDER BY id", of=TASK)


def _fill(connection: Connection) -> None:
    rows = [{**NEW_TASK, "id": each, "family": FAMILY, "created_at": NOW, "updated_at": NOW} for each in "abc"]
    rows[1] |= {"request": {"prompt": "näh \0"}, "status": "failed", "origin": "kling", "done": True}
    TASKS.insert(connection, rows)


def test_rows_are_as_sqlalchemy_reads_them(database: Database) -> None:
    """Documents, booleans and whatever else the table has."""
    with database.write() as connection:
        _fill(connection)
        read = [dict(row._mapping) for row in connection.execute(TASK.select().order_by(TASK.c.id))]
        assert ALL.all(connection) == read
    assert [row["done"] for row in read] == [False, True, False]
    assert read[1]["request"] == {"prompt": "näh \0"}


def test_one_row_one_column_one_value(database: Database) -> None:
    """And what there is none of."""
    by_id = Sql("SELECT id, family FROM task WHERE id = :id")
    with database.write() as connection:
        _fill(connection)
        assert by_id.first(connection, id="b") == {"id": "b", "family": FAMILY}
        assert by_id.first(connection, id="x") is None
        assert Sql("SELECT id FROM task ORDER BY id").values(connection) == ["a", "b", "c"]
        assert (by_id.value(connection, id="b"), by_id.value(connection, id="x")) == ("b", None)


@pytest.mark.parametrize(
    ("given", "there", "others"), [(["a", "c", "'"], "ac", "b"), (["b"], "b", "ac"), ([], "", "abc")]
)
def test_a_list_is_a_parameter(database: Database, given: list[str], there: str, others: str) -> None:
    """Of any length, none included; beside others of a like name."""
    within = Sql("SELECT id FROM task WHERE id IN :ids AND id <> :id ORDER BY id")
    without = Sql("SELECT id FROM task WHERE id NOT IN :ids ORDER BY id")
    with database.write() as connection:
        _fill(connection)
        assert "".join(within.values(connection, ids=given, id="x")) == there
        assert "".join(without.values(connection, ids=given)) == others


def test_a_list_may_be_of_pairs(database: Database) -> None:
    """Each is one value."""
    query = Sql("SELECT id FROM task WHERE (id, status) IN :pairs ORDER BY id")
    with database.write() as connection:
        _fill(connection)
        pairs = [("a", "created"), ("b", "created"), ("c", "created")]
        assert query.values(connection, pairs=pairs) == ["a", "c"]


def test_signs_of_the_driver_mean_nothing(database: Database) -> None:
    """Per cent in a pattern, beside parameters."""
    query = Sql("SELECT id FROM task WHERE family LIKE 'image%' AND id <> '%s' AND id = :a")
    with database.write() as connection:
        _fill(connection)
        assert query.values(connection, a="a") == ["a"]


def test_what_was_changed_is_counted(database: Database) -> None:
    """By one, or by each of many."""
    rename = Sql("UPDATE task SET model = :model WHERE id = :id")
    with database.write() as connection:
        _fill(connection)
        assert (rename.do(connection, model="m", id="a"), rename.do(connection, model="m", id="x")) == (1, 0)
        rename.do_each(connection, [{"model": "n", "id": "b"}, {"model": "o", "id": "c"}])
        assert [row["model"] for row in ALL.all(connection)] == ["m", "n", "o"]


def test_errors_are_those_of_the_other_layers(database: Database) -> None:
    """So that whoever looks for an outage, or for a row's own fault, finds it."""
    with database.write() as connection:
        _fill(connection)
    spoil = Sql("UPDATE task SET status = :status WHERE id = :id")
    with pytest.raises(IntegrityError), database.write() as connection:
        spoil.do(connection, status="nonsense", id="a")
    with pytest.raises(IntegrityError), database.write() as connection:
        spoil.do_each(connection, [{"status": "nonsense", "id": "a"}])
    with pytest.raises(DBAPIError), database.write() as connection:
        Sql("no statement").do(connection)
    with database.read() as connection:
        assert [row["status"] for row in ALL.all(connection)] == ["created", "failed", "created"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite knows no such words
def test_rows_are_locked(database: Database) -> None:
    """Where there is more than one writer."""
    locked = Sql("SELECT id FROM task", lock="FOR UPDATE")
    with database.write() as connection:
        assert locked.values(connection) == []
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        with pytest.raises(DBAPIError, match="SELECT FOR UPDATE"):
            locked.values(connection)

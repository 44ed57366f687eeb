"""Statements by the driver's cursor: the same on both engines, with SQLAlchemy's errors."""

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from kling_receiver.store.database import Database
from kling_receiver.store.sql import Statement
from kling_receiver.store.tables import TASK
from kling_receiver.store.transaction import INSERT_TASKS, TASK_DEFAULTS
from tests.support.database import FAMILY, NOW

ALL = Statement("SELECT * FROM task ORDER BY id", table=TASK)


def _fill(connection: Connection) -> None:
    rows = [{**TASK_DEFAULTS, "id": each, "family": FAMILY, "created_at": NOW, "updated_at": NOW} for each in "abc"]
    rows[1] |= {"request": {"prompt": "näh \0"}, "status": "failed", "origin": "kling", "done": True}
    INSERT_TASKS.insert(connection, rows)


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
    by_id = Statement("SELECT id, family FROM task WHERE id = :id")
    with database.write() as connection:
        _fill(connection)
        assert by_id.first(connection, id="b") == {"id": "b", "family": FAMILY}
        assert by_id.first(connection, id="x") is None
        assert Statement("SELECT id FROM task ORDER BY id").scalars(connection) == ["a", "b", "c"]
        assert (by_id.scalar(connection, id="b"), by_id.scalar(connection, id="x")) == ("b", None)


@pytest.mark.parametrize(
    ("given", "there", "others"), [(["a", "c", "'"], "ac", "b"), (["b"], "b", "ac"), ([], "", "abc")]
)
def test_a_list_is_a_parameter(database: Database, given: list[str], there: str, others: str) -> None:
    """Of any length, none included; beside others of a like name."""
    within = Statement("SELECT id FROM task WHERE id IN :ids AND id <> :id ORDER BY id")
    without = Statement("SELECT id FROM task WHERE id NOT IN :ids ORDER BY id")
    with database.write() as connection:
        _fill(connection)
        assert "".join(within.scalars(connection, ids=given, id="x")) == there
        assert "".join(without.scalars(connection, ids=given)) == others


def test_a_list_may_be_of_pairs(database: Database) -> None:
    """Each is one value."""
    query = Statement("SELECT id FROM task WHERE (id, status) IN :pairs ORDER BY id")
    with database.write() as connection:
        _fill(connection)
        pairs = [("a", "created"), ("b", "created"), ("c", "created")]
        assert query.scalars(connection, pairs=pairs) == ["a", "c"]


def test_signs_of_the_driver_mean_nothing(database: Database) -> None:
    """Per cent in a pattern, beside parameters."""
    query = Statement("SELECT id FROM task WHERE family LIKE 'image%' AND id <> '%s' AND id = :a")
    with database.write() as connection:
        _fill(connection)
        assert query.scalars(connection, a="a") == ["a"]


def test_what_was_changed_is_counted(database: Database) -> None:
    """By one, or by each of many."""
    rename = Statement("UPDATE task SET model = :model WHERE id = :id")
    with database.write() as connection:
        _fill(connection)
        assert (
            rename.execute(connection, model="m", id="a"),
            rename.execute(connection, model="m", id="x"),
        ) == (1, 0)
        rename.executemany(connection, [{"model": "n", "id": "b"}, {"model": "o", "id": "c"}])
        assert [row["model"] for row in ALL.all(connection)] == ["m", "n", "o"]


def test_errors_are_those_of_the_other_layers(database: Database) -> None:
    """So that whoever looks for an outage, or for a row's own fault, finds it."""
    with database.write() as connection:
        _fill(connection)
    spoil = Statement("UPDATE task SET status = :status WHERE id = :id")
    with pytest.raises(IntegrityError), database.write() as connection:
        spoil.execute(connection, status="nonsense", id="a")
    with pytest.raises(IntegrityError), database.write() as connection:
        spoil.executemany(connection, [{"status": "nonsense", "id": "a"}])
    with pytest.raises(DBAPIError), database.write() as connection:
        Statement("no statement").execute(connection)
    with database.read() as connection:
        assert [row["status"] for row in ALL.all(connection)] == ["created", "failed", "created"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)  # SQLite knows no such words
def test_rows_are_locked(database: Database) -> None:
    """Where there is more than one writer."""
    locked = Statement("SELECT id FROM task", lock="FOR UPDATE")
    with database.write() as connection:
        assert locked.scalars(connection) == []
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        with pytest.raises(DBAPIError, match="SELECT FOR UPDATE"):
            locked.scalars(connection)

"""The tables: constraints, and migrations that lead to the models."""

import threading
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert, inspect, text
from sqlalchemy.exc import IntegrityError

from kling_receiver.store.database import Database
from kling_receiver.store.tables import EVENT, JOB, METADATA, RESULT, TAG, TASK
from kling_receiver.store.transaction import TASK_DEFAULTS
from tests.support.database import FAMILY, NOW, Ledger

TASK_ROW = {**TASK_DEFAULTS, "id": "t", "family": FAMILY, "created_at": NOW, "updated_at": NOW}
EVENT_ROW = {
    "task_id": "t",
    "type": "callback.received",
    "created_at": NOW,
    "data": None,
    "body_sha256": "d",
    "repeat_count": 0,
}
RESULT_ROW = {"task_id": "t", "position": 0, "kind": "image", "status": "pending", "source_url": "", "error": ""}
JOB_ROW = {
    "unique_key": "k",
    "kind": "ask",
    "pool": "kling",
    "task_id": "t",
    "concurrency_key": "kling",
    "args": None,
    "state": "ready",
    "attempts": 0,
    "due_at": NOW,
    "delay_ms": 0,
    "error": "",
    "created_at": NOW,
}

IMPOSSIBLE_TASKS = [
    {"status": "cancelled"},
    {"status": "succeeded", "origin": "kling"},
    {"outcome": "perhaps"},
    {"status": "succeed", "origin": None},
    {"status": "processing", "origin": "kling"},
    {"status": "failed", "origin": "hearsay"},
    {"status": "processing", "done": True},
    {"id": None},
    {"family": None},
]
IMPOSSIBLE_RESULTS = [
    {"status": "lost"},
    {"status": "stored", "sha256": None},
    {"status": "pending", "sha256": "abc"},
    {"task_id": "nobody"},
]
IMPOSSIBLE_JOBS = [
    {"state": "done"},
    {"state": "running", "claim_id": None},
    {"state": "ready", "claim_id": "c"},
    {"state": "dead", "claim_id": "c"},
]


def put(database: Database, *rows: tuple[Any, dict[str, Any]]) -> None:
    """Insert rows in one transaction."""
    with database.write() as connection:
        for table, row in rows:
            connection.execute(insert(table), row)


@pytest.mark.parametrize("wrong", IMPOSSIBLE_TASKS, ids=str)
def test_an_impossible_task_is_refused(database: Database, wrong: dict[str, Any]) -> None:
    """A status, outcome, origin or `done` that contradict each other reach no table."""
    with pytest.raises(IntegrityError):
        put(database, (TASK, {**TASK_ROW, **wrong}))


@pytest.mark.parametrize("wrong", IMPOSSIBLE_RESULTS, ids=str)
def test_an_impossible_result_is_refused(database: Database, wrong: dict[str, Any]) -> None:
    """A result is of a task, and is stored exactly when its digest is known."""
    with pytest.raises(IntegrityError):
        put(database, (TASK, TASK_ROW), (RESULT, {**RESULT_ROW, **wrong}))


@pytest.mark.parametrize("wrong", IMPOSSIBLE_JOBS, ids=str)
def test_an_impossible_job_is_refused(database: Database, wrong: dict[str, Any]) -> None:
    """A job runs exactly while somebody has a claim on it."""
    with pytest.raises(IntegrityError):
        put(database, (JOB, {**JOB_ROW, **wrong}))


@pytest.mark.parametrize(("table", "row"), [(TASK, TASK_ROW), (RESULT, RESULT_ROW), (JOB, JOB_ROW), (EVENT, EVENT_ROW)])
def test_nothing_is_there_twice(database: Database, table: Any, row: dict[str, Any]) -> None:
    """Tasks by id, results by number, jobs by key, callbacks by digest: each once."""
    put(database, *([(TASK, TASK_ROW)] if table is not TASK else []), (table, row))
    with pytest.raises(IntegrityError):
        put(database, (table, row))


def test_a_tag_is_of_a_task(database: Database) -> None:
    """It is not there without its task."""
    with pytest.raises(IntegrityError):
        put(database, (TAG, {"tag": "x", "task_id": "t", "created_at": NOW}))


def test_events_without_a_digest_are_never_the_same(database: Database) -> None:
    """Only callbacks are told apart by their bodies."""
    put(database, (TASK, TASK_ROW), *[(EVENT, {**EVENT_ROW, "body_sha256": None})] * 2)
    assert len(Ledger(database).events()) == 2


def test_an_event_id_is_never_given_out_again(database: Database) -> None:
    """Not even after the newest event is gone: a reader's cursor may stand on it."""
    put(database, (TASK, TASK_ROW), (EVENT, EVENT_ROW))
    (first,) = Ledger(database).events()
    with database.write() as connection:
        connection.execute(text("DELETE FROM event"))
    put(database, (EVENT, EVENT_ROW))
    (second,) = Ledger(database).events()
    assert second["id"] > first["id"]


@pytest.mark.parametrize("value", [None, "a\0b\ud800", {"deep": [1, 2.5, True, "é\u2028"]}])
def test_json_comes_back_as_it_was(database: Database, value: Any) -> None:
    """Also with what PostgreSQL's own text cannot hold."""
    put(database, (TASK, {**TASK_ROW, "request": value}))
    assert Ledger(database).task()["request"] == value


def test_migrations_lead_to_the_models(bare_database_url: str) -> None:
    """A database that was migrated has the tables, columns and indexes of the models, no more, no less."""
    database = Database(bare_database_url)
    database.migrate()
    with database.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    database.close()


def test_migrations_lead_to_the_constraints_of_the_models(tmp_path: Path) -> None:
    """Alembic does not compare CHECKs, so they are compared here."""
    migrated, made = (Database(f"sqlite:///{tmp_path / name}") for name in ("migrated.db", "made.db"))
    migrated.migrate()
    with made.write() as connection:
        METADATA.create_all(connection)
    assert _checks(migrated) == _checks(made)
    assert sum(len(each) for each in _checks(made).values()) == 12
    migrated.close()
    made.close()


def _checks(database: Database) -> dict[str, set[tuple[str | None, str]]]:
    with database.read() as connection:
        inspector = inspect(connection)
        return {
            table: {(check["name"], check["sqltext"]) for check in inspector.get_check_constraints(table)}
            for table in METADATA.tables
        }


def test_migrating_again_changes_nothing(database: Database) -> None:
    """Every start migrates; rows stay."""
    put(database, (TASK, TASK_ROW))
    database.migrate()
    assert Ledger(database).task()["id"] == "t"


def test_many_may_migrate_at_once(bare_database_url: str) -> None:
    """The losers of the race wait, and find the tables there."""
    barrier, failures = threading.Barrier(4), []

    def migrate() -> None:
        database = Database(bare_database_url)
        try:
            barrier.wait(20)
            database.migrate()
        except Exception as error:  # told to the test's own thread
            failures.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=migrate) for _ in range(barrier.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert_complete(bare_database_url)


def test_many_may_open_a_new_database_at_once(tmp_path: Path) -> None:
    """SQLite itself refuses some of those that switch a new file to WAL at the same moment."""
    failures = []

    def connect(url: str, barrier: threading.Barrier) -> None:
        database = Database(url)
        try:
            barrier.wait(20)
            with database.write():
                pass
        except Exception as error:  # told to the test's own thread
            failures.append(error)
        finally:
            database.close()

    for number in range(60):
        barrier = threading.Barrier(6)
        url = f"sqlite:///{tmp_path}/{number}.db"
        threads = [threading.Thread(target=connect, args=(url, barrier)) for _ in range(barrier.parties)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert failures == []


def assert_complete(url: str) -> None:
    """Every table is there, and one revision."""
    database = Database(url)
    with database.read() as connection:
        assert set(METADATA.tables) < set(inspect(connection).get_table_names())
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1
    database.close()

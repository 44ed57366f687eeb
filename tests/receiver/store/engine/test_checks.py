"""What is refused at the start, with its reason and its remedy: engines, encodings, settings, tables of others."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, insert, make_url, text

from kling_receiver.store import locks
from kling_receiver.store.database import Database
from kling_receiver.store.engine import checks, connections
from kling_receiver.store.errors import DatabaseError
from kling_receiver.store.tables import TASK
from tests.receiver.store.test_tables import TASK_ROW
from tests.support.database import Ledger
from tools.harness.pooler import Mode, Order, pooler


def refusal(url: str, results: Path | None = None) -> str:
    """The message of the check, which must fail, and changes nothing."""
    with closing(Database(url)) as database, pytest.raises(DatabaseError) as info:
        database.check(results)
    assert "\n" not in str(info.value)
    return str(info.value)


@contextmanager
def server_database(server: str, options: str = "", **settings: str) -> Iterator[str]:
    """A new database of a server, with these options of CREATE DATABASE and these default settings."""
    engine, name = create_engine(server, isolation_level="AUTOCOMMIT"), f"checked_{os.getpid()}"
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0 {options}"))
        try:
            for setting, value in settings.items():
                connection.execute(text(f"ALTER DATABASE {name} SET {setting} = '{value}'"))
            yield make_url(server).set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


def show(database: Database, name: str, *, write: bool) -> object:
    """A setting of the session of the writer or of a reader."""
    with database.write() if write else database.read() as connection:
        return connection.scalar(text(f"SELECT current_setting('{name}')"))


# --- SQLite --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["check", "acquire_lock", "migrate"])
def test_an_old_sqlite_is_refused(use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every start, before the file is opened."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 32, 3))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.32.3")
    with closing(Database(f"sqlite:///{tmp_path}/kling.db")) as database:
        with pytest.raises(DatabaseError, match=r"SQLite 3\.32\.3 is too old; 3\.33\.0 or newer is needed\. Install"):
            getattr(database, use)()
        assert database.path is not None
        assert database.path.stat().st_size == 0


def test_the_oldest_sqlite_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has all that the statements need."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", checks.MIN_SQLITE)
    assert checks.sqlite_problems() == []


def test_a_sqlite_without_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer and the readers use it at the same time."""
    monkeypatch.setattr(sqlite3, "threadsafety", 0)
    assert "without threads. Install" in checks.sqlite_problems()[0]


def test_a_sqlite_without_a_feature_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its version says."""
    features = {**checks.SQLITE_FEATURES, "`MERGE`": "MERGE INTO t USING t ON true"}
    monkeypatch.setattr(checks, "SQLITE_FEATURES", features)
    [problem] = checks.sqlite_problems()
    assert "without `MERGE`. Install" in problem


def test_a_file_system_without_shared_memory_is_refused(tmp_path: Path) -> None:
    """SQLite then silently goes on without its log: readers would block the writer. Its `unix-dotfile` is as that."""
    uri = f"file:{tmp_path}/kling.db?vfs=unix-dotfile"
    connection = sqlite3.connect(uri, uri=True)
    with closing(connection), pytest.raises(DatabaseError, match=r"no shared memory .+ Set KLING_DATA_DIR"):
        connections._use_wal(connection)


@pytest.mark.parametrize("fault", ["emptied", "removed"])
@pytest.mark.parametrize("evidence", ["log", "results"])
def test_an_emptied_database_is_no_first_start(tmp_path: Path, fault: str, evidence: str) -> None:
    """Its log, or the files of its tasks, show that there was one. The log stays, to be restored."""
    url, path, results = f"sqlite:///{tmp_path}/kling.db", tmp_path / "kling.db", tmp_path / "results"
    with closing(Database(url)) as database:
        database.migrate()
        with database.write() as connection:
            connection.execute(insert(TASK), TASK_ROW)
        wal = path.with_name("kling.db-wal").read_bytes()
    (results / ".parts").mkdir(parents=True)
    if evidence == "log":
        path.with_name("kling.db-wal").write_bytes(wal)
    else:
        (results / "some-task").mkdir()
    if fault == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()
    message = refusal(url, results)
    assert "emptied" in message
    assert "Restore it" in message
    if evidence == "log":
        assert path.with_name("kling.db-wal").read_bytes() == wal


def test_a_first_start_is_accepted(tmp_path: Path) -> None:
    """Also one that was killed before: its file is empty, its results folder made."""
    (tmp_path / "kling.db").touch()
    (tmp_path / "kling.db-wal").touch()
    (tmp_path / "results" / ".parts").mkdir(parents=True)
    with closing(Database(f"sqlite:///{tmp_path}/kling.db")) as database:
        database.check(tmp_path / "results")
        database.check(tmp_path / "nothing")
        database.migrate()


# --- both engines ----------------------------------------------------------------------------------------------


def test_tables_of_a_newer_program_are_refused(bare_database_url: str) -> None:
    """With what to install or restore; they stay as they are."""
    with closing(Database(bare_database_url)) as database:
        database.migrate()
        with database.write() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for use in ("check", "acquire_lock", "migrate"):
        refused = pytest.raises(DatabaseError, match=r"version 9999, .+ newer kling-receiver .+ Install that version")
        with closing(Database(bare_database_url)) as database, refused:
            getattr(database, use)()


def test_an_empty_database_beside_results_is_refused(bare_database_url: str, tmp_path: Path) -> None:
    """A search path, or an address, that leads elsewhere: new tables would hide the old ones."""
    (tmp_path / "results" / "some-task").mkdir(parents=True)
    assert "move the folder away" in refusal(bare_database_url, tmp_path / "results")


# --- PostgreSQL ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "encoding"), [("ENCODING 'SQL_ASCII'", "SQL_ASCII"), ("ENCODING 'LATIN1' LOCALE 'C'", "LATIN1")]
)
def test_an_encoding_that_cannot_hold_all_texts_is_refused(postgresql: str, options: str, encoding: str) -> None:
    """A failure reason in Chinese could not be stored."""
    locale = "" if "LOCALE" in options else "LOCALE 'C'"
    with server_database(postgresql, f"{options} {locale}") as url:
        assert f"Its encoding is {encoding}" in refusal(url)
        assert "ENCODING 'UTF8'" in refusal(url)


DEFAULTS = {
    "synchronous_commit": "off",
    "client_encoding": "LATIN1",
    "statement_timeout": "50",
    "lock_timeout": "50",
    "idle_in_transaction_session_timeout": "50",
    "idle_session_timeout": "200",
    "default_transaction_isolation": "serializable",
    "standard_conforming_strings": "off",
    "bytea_output": "escape",
    "timezone": "Asia/Kathmandu",
    "datestyle": "German",
}


def test_defaults_of_the_server_do_not_reach_our_sessions(postgresql: str) -> None:
    """No default makes an acknowledged commit less than durable, ends a session with its lock, or changes a text."""
    with server_database(postgresql, **DEFAULTS) as url, closing(Database(url)) as database:
        database.acquire_lock()
        database.migrate()
        for write in (True, False):
            shown = {name: show(database, name, write=write) for name in connections.SESSION if name in DEFAULTS}
            assert shown == {name: connections.SESSION[name] for name in shown}
        assert show(database, "transaction_isolation", write=True) == "read committed"
        ledger = Ledger(database)
        ledger.put_task(status_msg="余额不足 \\ '", status="failed", origin="kling")
        assert ledger.task()["status_msg"] == "余额不足 \\ '"


def test_a_stricter_durability_is_kept(postgresql: str) -> None:
    """`remote_apply` waits for standbys."""
    with server_database(postgresql, synchronous_commit="remote_apply") as url, closing(Database(url)) as database:
        database.check()
        assert show(database, "synchronous_commit", write=True) == "remote_apply"


def test_read_only_transactions_are_refused(postgresql: str) -> None:
    """By a default that an operator set; nothing is overridden."""
    with server_database(postgresql, default_transaction_read_only="on") as url:
        assert "read-only. Remove `default_transaction_read_only`" in refusal(url)


def test_a_search_path_without_a_schema_is_refused(postgresql: str) -> None:
    """The tables could not be made."""
    with server_database(postgresql, search_path="nowhere") as url:
        assert "no schema for tables" in refusal(url)


def test_unlogged_tables_are_refused(postgresql: str) -> None:
    """A crash of the server empties them."""
    with server_database(postgresql) as url:
        with closing(Database(url)) as database:
            database.migrate()
            with database.write() as connection:
                connection.execute(text("ALTER TABLE event SET UNLOGGED"))
        assert "unlogged tables (event)" in refusal(url)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"major": 11, "version": "PostgreSQL 11.22 on x86_64"}, "PostgreSQL 11.22 is too old; PostgreSQL 12 or newer"),
        ({"no_fsync": True}, "Set `fsync = on`"),
        ({"partial_pages": True}, "Set `full_page_writes = on`"),
        ({"standby": True, "read_only": True}, "Set KLING_DATABASE_URL to the primary"),
        ({"synchronous_commit": "off"}, "`synchronous_commit` is off and cannot be set"),
        ({"client_encoding": "LATIN1"}, "encoding is LATIN1 and cannot be set"),
    ],
)
def test_each_state_of_a_server_has_its_message(
    database: Database, state: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`scripts/crash surroundings` has the servers; a state that is fine has none."""
    with database.read() as connection:
        assert checks.postgresql_problems(connection) == []
        row = connection.execute(checks.SERVER_STATE).one()._asdict() | state
        columns = ", ".join(f"{_literal(value)} AS {name}" for name, value in row.items())
        monkeypatch.setattr(checks, "SERVER_STATE", text(f"SELECT {columns}"))
        [problem] = checks.postgresql_problems(connection)
    assert message in problem


def _literal(value: object) -> str:
    return str(value) if isinstance(value, bool | int) else f"'{value}'"


@pytest.mark.parametrize("bare_database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("mode", ["transaction", "session"])
@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_a_pooler_in_transaction_mode_is_refused(
    bare_database_url: str, mode: Mode, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives the lock of one receiver to another's session. In session mode it works, and the lock excludes."""
    monkeypatch.setattr(locks, "LOCK_ATTEMPTS", 2)
    with pooler(bare_database_url, mode=mode, order=order) as url:
        if mode == "transaction":
            assert "A pooler in transaction mode" in refusal(url)
            assert "pool_mode to session" in refusal(url)
            return
        with closing(Database(url)) as first, closing(Database(url)) as second:
            first.acquire_lock()
            first.migrate()
            with pytest.raises(DatabaseError, match="is served by"):
                second.acquire_lock()

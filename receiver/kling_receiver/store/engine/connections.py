"""Connections to SQLite and PostgreSQL: how many, and the settings of each.

Writes and reads have separate connections: on SQLite a reader never blocks the writer.
"""

import sqlite3
import time
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from kling_receiver.store.engine.sqlite_files import SqliteFiles
from kling_receiver.store.errors import DatabaseError
from kling_receiver.store.locks import KEEPALIVE, TCP_USER_TIMEOUT_MS
from kling_receiver.store.sql import driver_cursor

READERS = 4
"""Connections for reading, and threads that use them."""
BUSY_MS = 10_000
"""Milliseconds. SQLite: the longest wait for another process's write lock."""
SESSION = {
    "synchronous_commit": "on",
    "client_encoding": "UTF8",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
"""PostgreSQL: settings of each session, whatever is the default of the server, the database or the role.

An acknowledged callback must be on disk, and all texts must fit. A time limit of the server's would end the session
that holds the lock, and cut a migration; the program has limits of its own.
"""
CONFIGURE_SESSION = """
    SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS wanted (name, value)
    WHERE current_setting(name, true) IS NOT NULL
        AND (name <> 'synchronous_commit' OR current_setting(name) <> 'remote_apply')
"""
"""Older servers lack some of the settings. `remote_apply` is stricter than `on`."""


def file_engine(url: URL, files: SqliteFiles, *, write: bool) -> Engine:
    """The connections to an SQLite database, for writing or for reading."""
    engine = create_engine(url, connect_args={"timeout": BUSY_MS / 1000}, **_pool(write=write))
    event.listen(engine, "connect", _open_for_writing if write else _open_for_reading)
    event.listen(engine, "begin", _begin_immediate if write else _begin)
    event.listen(engine, "connect", files.opened)
    event.listen(engine, "close", files.closed)
    return engine


def server_engine(url: URL, *, write: bool) -> Engine:
    """The connections to a PostgreSQL database, for writing or for reading. Raises DatabaseError for a wrong URL."""
    level = "READ COMMITTED" if write else "REPEATABLE READ"
    try:
        server = create_engine(
            url,
            isolation_level=level,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": 5,
                "client_encoding": "utf8",  # before the first statement: an answer in SQL_ASCII is bytes
                "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
                **{f"keepalives_{name}": value for name, value in KEEPALIVE.items()},
            },
            **_pool(write=write),
        )
    except (ImportError, ArgumentError, ValueError, TypeError) as error:  # they quote the options
        lacks_driver = isinstance(error, NoSuchModuleError) and "plugin" not in url.query
        if lacks_driver or isinstance(error, ImportError):
            reason = f"No driver for {url.drivername} is installed. Run: pip install '.[postgres]'"
        else:
            reason = "KLING_DATABASE_URL has options that cannot be used. Check what is behind its `?`."
        raise DatabaseError(reason) from None
    event.listen(server, "connect", _configure_session)
    return server


def _pool(*, write: bool) -> dict[str, Any]:
    return {"pool_size": 1 if write else READERS, "max_overflow": 0, "hide_parameters": True}


def _configure_session(connection: Any, record: Any) -> None:
    """Set the settings of a new PostgreSQL session (a listener of `connect`)."""
    with connection.cursor() as cursor:
        cursor.execute(CONFIGURE_SESSION, (list(SESSION), list(SESSION.values())))
    connection.commit()


def _open_for_writing(connection: Any, record: Any) -> None:
    # macOS needs the last two: its fsync stops at the disk's cache. Elsewhere they change nothing.
    pragmas = ("synchronous = FULL", "foreign_keys = ON", "fullfsync = ON", "checkpoint_fullfsync = ON")
    _configure(connection, *pragmas)
    _use_wal(connection)


def _open_for_reading(connection: Any, record: Any) -> None:
    _configure(connection, "query_only = ON")


def _configure(connection: Any, *pragmas: str) -> None:
    connection.isolation_level = None  # the driver must not begin transactions itself
    for pragma in (f"busy_timeout = {BUSY_MS}", *pragmas):
        connection.execute(f"PRAGMA {pragma}")


def _use_wal(connection: Any) -> None:
    """Switch to WAL. SQLite waits for no lock when several connections switch a new file at once, so this waits."""
    deadline = time.monotonic() + BUSY_MS / 1000
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.01)
    if mode != "wal":
        raise DatabaseError(
            "The file system of the database has no shared memory for SQLite's log. Set KLING_DATA_DIR to a folder on "
            "a local disk, or use PostgreSQL."
        )


def _begin_immediate(connection: Connection) -> None:
    level = connection.get_execution_options().get("synchronous", "FULL")
    if connection.info.get("synchronous", "FULL") != level:
        _execute(connection, f"PRAGMA synchronous = {level}")
        connection.info["synchronous"] = level
    _execute(connection, "BEGIN IMMEDIATE")


def _begin(connection: Connection) -> None:
    _execute(connection, "BEGIN")


def _execute(connection: Connection, statement: str) -> None:
    with driver_cursor(connection, statement) as cursor:
        cursor.execute(statement)

"""What the database must be like: checks of SQLite and PostgreSQL at start.

A problem is one line: what is wrong, then what to do. Each of them would lose acknowledged callbacks, or let two
receivers serve one database, or let callbacks be stored and never processed.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from kling_receiver.store.tables import METADATA

MIN_SQLITE = (3, 33, 0)
"""The oldest SQLite with `UPDATE ... FROM`, which the check after a start needs."""
MIN_POSTGRESQL = 12
"""The oldest PostgreSQL with `tcp_user_timeout`, by which a receiver that was cut off loses its lock in time."""
SQLITE_FEATURES = {
    "`ON CONFLICT`": "INSERT INTO t VALUES (1, 2) ON CONFLICT (a) DO UPDATE SET b = excluded.b",
    "window functions": "SELECT row_number() OVER (ORDER BY a) FROM t",
    "`UPDATE ... FROM`": "UPDATE t SET b = other.b FROM (SELECT a, b FROM t) AS other WHERE other.a = t.a",
}
"""Statements like ours that old versions refuse, or those that were compiled without them."""
NEW_DATABASE = "CREATE DATABASE kling ENCODING 'UTF8' TEMPLATE template0"

REVISIONS = frozenset(
    path.stem[:4] for path in Path(__file__).parent.with_name("migrations").glob("versions/[0-9]*.py")
)
"""The versions of the schema that this program knows."""


def sqlite_problems() -> list[str]:
    """Problems of the SQLite library that Python uses."""
    library = f"SQLite {sqlite3.sqlite_version}"
    if sqlite3.sqlite_version_info < MIN_SQLITE:
        return [f"{library} is too old; {'.'.join(map(str, MIN_SQLITE))} or newer is needed. {OTHER_SQLITE}"]
    if sqlite3.threadsafety == 0:
        return [f"{library} was compiled without threads. {OTHER_SQLITE}"]
    problems = []
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b INTEGER)")
        for feature, statement in SQLITE_FEATURES.items():
            try:
                connection.execute(statement)
            except sqlite3.OperationalError:
                problems.append(f"{library} was compiled without {feature}. {OTHER_SQLITE}")
    return problems


OTHER_SQLITE = "Install another SQLite (Debian: libsqlite3-0), or another Python, or use PostgreSQL."


def emptied_file_problem(path: Path) -> str | None:
    """Why an empty or missing SQLite file is not a first start: it has a log. SQLite would delete that log."""
    path = path.resolve()
    wal = path.with_name(f"{path.name}-wal")
    if (path.exists() and path.stat().st_size) or not (wal.exists() and wal.stat().st_size):
        return None
    return (
        f"{path} is empty, but its log {wal.name} is not: the database was emptied or removed. Restore it from a "
        f"backup, or, to begin without its tasks, remove {wal.name}."
    )


def lost_tables_problem(connection: Connection, results: Path) -> str | None:
    """Why a database without tables is not a first start: there are files of tasks in `results`. Raises OSError."""
    if _schema(connection) is not None or not results.is_dir():
        return None
    if not any(path.is_dir() and not path.name.startswith(".") for path in results.iterdir()):
        return None
    return (
        f"It is empty, but {results} has files of earlier tasks: this is another database, or it was emptied. "
        "Restore it or set KLING_DATABASE_URL to it; to begin without its tasks, move the folder away."
    )


def schema_problem(connection: Connection) -> str | None:
    """Why the tables are not of this program: a newer one made them, or another."""
    schema = _schema(connection)
    if schema is None or schema in REVISIONS:
        return None
    return (
        f"Its tables have version {schema}, and this program knows versions up to {max(REVISIONS)}: a newer "
        "kling-receiver has changed them, or they are of another program. Install that version, or restore a backup "
        "from before the update, or set another database."
    )


def has_newest_schema(connection: Connection) -> bool:
    """Whether the tables have this program's version, so that there is nothing to migrate."""
    return _schema(connection) == max(REVISIONS)


def _schema(connection: Connection) -> str | None:
    """The version of the tables; None if there are none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return version


SERVER_STATE = text("""
    SELECT version() AS version, current_setting('server_version_num')::int / 10000 AS major,
        current_setting('server_encoding') AS encoding, current_setting('client_encoding') AS client_encoding,
        pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only,
        current_setting('fsync') = 'off' AS no_fsync, current_setting('full_page_writes') = 'off' AS partial_pages,
        current_setting('synchronous_commit') AS synchronous_commit, current_schema() AS schema
""")
UNLOGGED = text("""
    SELECT relname FROM pg_class WHERE relname = ANY(:names) AND relpersistence <> 'p'
        AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema()) ORDER BY relname
""")


def postgresql_problems(connection: Connection) -> list[str]:
    """Problems of a PostgreSQL server and of one of its databases."""
    state = connection.execute(SERVER_STATE).one()
    unlogged = connection.execute(UNLOGGED, {"names": list(METADATA.tables)}).scalars().all()
    problems = {
        f"{state.version.partition(' on ')[0]} is too old; PostgreSQL {MIN_POSTGRESQL} or newer is needed. Upgrade "
        "the server.": state.major < MIN_POSTGRESQL,
        f"Its encoding is {state.encoding}, and messages are in any language. Create a database with UTF8 "
        f"({NEW_DATABASE}), copy the tables, and set KLING_DATABASE_URL to it.": state.encoding != "UTF8",
        f"The connection's encoding is {state.client_encoding} and cannot be set to UTF8. Check the pooler in front "
        "of the server.": state.client_encoding != "UTF8",
        "The server is a standby, which is read-only. Set KLING_DATABASE_URL to the primary.": state.standby,
        "Its transactions are read-only. Remove `default_transaction_read_only` from the server, the database and "
        "the role (ALTER ... RESET default_transaction_read_only).": state.read_only and not state.standby,
        "The server has `fsync = off`: a power failure loses acknowledged callbacks, or the database. Set "
        "`fsync = on`.": state.no_fsync,
        "The server has `full_page_writes = off`: a power failure may damage the database. Set "
        "`full_page_writes = on`.": state.partial_pages,
        f"`synchronous_commit` is {state.synchronous_commit} and cannot be set to on. Check the pooler in front of "
        "the server.": state.synchronous_commit not in ("on", "remote_apply"),
        "There is no schema for tables. Create one that `search_path` names, or reset the role's "
        "`search_path`.": state.schema is None,
        f"A crash of the server empties unlogged tables ({', '.join(unlogged)}). Run ALTER TABLE ... SET LOGGED on "
        "each.": bool(unlogged),
    }
    return [problem for problem, applies in problems.items() if applies]


SESSION_ID = text("SELECT pg_backend_pid()")
SESSION_TRIALS = 3


def pooler_problem(engine: Engine) -> str | None:
    """Why locks and settings of a session would be lost: its transactions are run by several server processes.

    A pooler in transaction mode gives a session's next transaction to the process that is free. Between two
    transactions of the first session here, the second one takes that process and keeps it.
    """
    with engine.connect() as first, engine.connect() as second:
        for _ in range(SESSION_TRIALS):
            own = {_process(first), _process(first)}
            other = second.scalar(SESSION_ID)
            own.add(_process(first))
            second.rollback()
            if len(own) > 1 or other in own:
                return (
                    "A pooler in transaction mode is in front of the server: a lock would not keep another receiver "
                    "away. Set its pool_mode to session, or set KLING_DATABASE_URL to the server itself."
                )
    return None


def _process(connection: Connection) -> int | None:
    """The server process that runs the connection's next transaction."""
    process: int | None = connection.scalar(SESSION_ID)
    connection.commit()
    return process

"""The database, SQLite or PostgreSQL: transactions, outages, the lock, migration."""

import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, event, make_url, text
from sqlalchemy.exc import DBAPIError

from kling_callback.display import Mask
from kling_callback.protocol.urls import private_parts
from kling_receiver.store.engine import checks
from kling_receiver.store.engine.connections import file_engine, server_engine
from kling_receiver.store.engine.sqlite_files import SqliteFiles
from kling_receiver.store.errors import AlreadyRunning, DatabaseError, Unavailable
from kling_receiver.store.locks import EVENT_LOCK, MIGRATION_LOCK, FileLock, lock_server

log = logging.getLogger("kling_receiver.database")

OUTAGE_LOG_INTERVAL_SECONDS = 1.0
"""Seconds between two log lines about an outage, because any request to `/readyz` meets it."""
BLOCKED_SECONDS = 3.0
"""Seconds that a stop waits for a thread that the disk or the database blocks. What it has not committed was not
acknowledged."""

SERVER_HINT = "Check KLING_DATABASE_URL, and that the server is running."
FOLDER_HINT = "Check the permissions of its folder."
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
DAMAGED_HINT = "It is damaged, or another file is in its place. Restore it from a backup: docs/operating.md"
FILE_HINT = "Check the disk, the permissions of the file, and that no other process uses it."

EVENT_SEQUENCE = text("""
    SELECT name FROM pg_get_serial_sequence('event', 'id') AS name
    WHERE has_sequence_privilege(name, 'SELECT') AND has_sequence_privilege(name, 'UPDATE')
""")


class Database:
    """One database, by its URL: `sqlite:///path` or `postgresql://...`."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: monotonic seconds.

        Raises DatabaseError if the driver is missing, or the file has two names or the log of another one, OSError for
        the folder.
        """
        self._clock, self._logged_at = clock, -OUTAGE_LOG_INTERVAL_SECONDS
        self.url, self._mask = make_url(url), Mask(private_parts(url))
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.path = Path(self.url.database or "").absolute() if self.is_sqlite else None
        self._files = SqliteFiles(self.path) if self.path else None
        if self._files:
            # Symbolic links are followed once: one that is changed later must not lead a new connection elsewhere.
            self.url = self.url.set(database=str(self._files.real_path))
        self._lock: FileLock | None = None
        self._checked = self._log_is_saved = False
        self._writer = self._engine(write=True)
        self._nondurable_writer = self._writer.execution_options(synchronous="NORMAL")  # the same connection
        self._readers = self._engine(write=False)

    def __str__(self) -> str:
        url = self.url
        return str(self.path or URL.create(url.drivername, host=url.host, port=url.port, database=url.database))

    def _reason(self, error: DBAPIError) -> str:
        """The driver's message, without what only KLING_DATABASE_URL says: user, password and options."""
        return self._mask((str(error.orig).strip() or type(error).__name__).splitlines()[0])

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """One writing transaction: committed to disk when the block ends, rolled back when it raises.

        `durable` False, on SQLite: a power failure may undo the commit, until the next durable one. The process that
        relied on it ends with the machine. A PostgreSQL server may fail alone, so its commits are always durable.
        Raises Unavailable when a file of the database was moved or replaced, because the next start would not find
        the change, and when another receiver has taken the lock.
        """
        if self._files:
            self._check_files(self._files)
        try:
            with (self._writer if durable else self._nondurable_writer).begin() as connection:
                if self._files:
                    self._files.expect_log()
                yield connection
        except AlreadyRunning as error:
            self._log_outage(str(error))
            raise Unavailable("The database is served by another receiver. Stop one of them.") from error

    def _check_files(self, files: SqliteFiles) -> None:
        """Check that what is written now would be found at the next start. Raises Unavailable."""
        try:
            self._check_names(files)
        except OSError as error:
            self._log_outage(f"{error.filename}: {error.strerror}")
            name = Path(error.filename or files.path).name
            raise Unavailable(f"The database's {name} cannot be reached: {error.strerror}. {FOLDER_HINT}") from error

    def _check_names(self, files: SqliteFiles) -> None:
        """Raises Unavailable, OSError."""
        if (replaced := files.replaced()) == files.path:
            self._log_outage(f"{replaced} was moved or replaced")
            raise Unavailable("The database file was moved or replaced. Put it back, or restart the receiver.")
        if replaced:
            self._log_outage(f"{replaced} was removed or replaced")
            if replaced == files.log and not self._log_is_saved:
                self._save_log(files)
            raise Unavailable(f"The database's {replaced.name} was removed or replaced. Restart the receiver.")
        self._log_is_saved = False  # the same log was put back
        if files.is_log_cut():
            self._log_outage(f"{files.log} was truncated; what it held is lost")
            raise Unavailable(f"The database's {files.log.name} was truncated. Restart the receiver.")
        if self._lock and self._lock.is_lost:
            self._log_outage("its lock file was removed")
            raise Unavailable("The database's lock file was removed. Restart the receiver.")

    def _save_log(self, files: SqliteFiles) -> None:
        """Copy what is in the log to the database file: a log without a name is lost with this process.

        Only a new process can write again: new connections of this one would have another log than the open ones.
        """
        connection = self._writer.raw_connection()
        try:
            busy, *_ = connection.cursor().execute("PRAGMA wal_checkpoint(FULL)").fetchone()
            if not busy:
                files.set_log_aside()
                self._log_is_saved = True  # nothing is written any more
        except (sqlite3.Error, OSError) as error:
            log.error("what the log of %s held could not be saved: %s", self, error)
        finally:
            connection.close()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One reading transaction: a snapshot that writers neither block nor change."""
        with self._readers.begin() as connection:
            yield connection

    def to_unavailable(self, error: DBAPIError) -> Unavailable:
        """The error of an outage, for callers. A server's address and its message go to the log only."""
        reason = self._reason(error)
        self._log_outage(reason)
        return Unavailable(f"The database cannot be used{f': {reason}' if self.is_sqlite else ''}.")

    def _log_outage(self, reason: str) -> None:
        """Log an outage, at most once in OUTAGE_LOG_INTERVAL_SECONDS."""
        if self._clock() - self._logged_at >= OUTAGE_LOG_INTERVAL_SECONDS:
            self._logged_at = self._clock()
            log.error("the database cannot be used: %s", reason)

    def probe(self, connection: Connection, number: int) -> None:
        """Write without changing any row, so that the commit shows whether writing works. `number`: a new one."""
        if self.is_sqlite:
            connection.exec_driver_sql(f"PRAGMA user_version = {number % (1 << 31)}")
        else:
            connection.execute(text("UPDATE alembic_version SET version_num = version_num"))

    def identity(self, connection: Connection) -> str:
        """An id of this database, the same whatever address it is reached by, until its server restarts."""
        if self._files:
            key: Any = self._files.file_id()
        else:
            query = "SELECT oid, pg_postmaster_start_time() FROM pg_database WHERE datname = current_database()"
            key = tuple(connection.execute(text(query)).one())
        return hashlib.sha256(repr(key).encode()).hexdigest()[:16]

    def lock_events(self, connection: Connection) -> None:
        """Let no other writer take event ids before this transaction ends: a reader's cursor must not skip an event."""
        if not self.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": EVENT_LOCK})

    def check(self, results: Path | None = None) -> None:
        """Check the engine, its settings and the version of the tables, without a change. See `engine.checks`.

        `results`: the folder of the result files, which shows whether there was a database. Raises DatabaseError that
        names every problem, OSError for the folder.
        """
        try:
            with self.operator_errors():
                if problems := self._problems(results):
                    raise DatabaseError(f"{self} cannot be used. {' '.join(problems)}")
        finally:
            # A connection from before the migration does not know SQLite's log; taking the lock may end its own locks.
            self._readers.dispose()
        self._checked = True

    def _problems(self, results: Path | None) -> list[str]:
        problems = checks.sqlite_problems() if self.is_sqlite else []
        if self.path and (problem := checks.emptied_file_problem(self.path)):
            problems.append(problem)
        if problems:  # SQLite would remove the log of an empty file
            return problems
        with self.read() as connection:
            if not self.is_sqlite:
                problems += checks.postgresql_problems(connection)
            problems += filter(None, [checks.schema_problem(connection)])
            if results:
                problems += filter(None, [checks.lost_tables_problem(connection, results)])
        if not self.is_sqlite:
            problems += filter(None, [checks.pooler_problem(self._readers)])
        return problems

    @contextmanager
    def keep_event_ids(self, connection: Connection) -> Iterator[None]:
        """Let the events that the block adds and undoes leave no gap in the ids, if the role may set the sequence."""
        self.lock_events(connection)
        name = None if self.is_sqlite else connection.scalar(EVENT_SEQUENCE)
        state = connection.execute(text(f"SELECT last_value, is_called FROM {name}")).one() if name else None
        yield
        if state:
            restore = text("SELECT setval(:name, :last_value, :is_called)")
            connection.execute(restore, {"name": name, **state._asdict()})

    def acquire_lock(self) -> None:
        """Keep every other receiver away until this process ends. Raises DatabaseError with the name of the holder."""
        if not self._checked:
            self.check()
        if self._files:
            self._lock = FileLock(self._files.real_path)
            return
        # The writer's connection holds the lock; each new one takes it again.
        event.listen(self._writer, "connect", lock_server)
        self._writer.dispose()
        with self.operator_errors(), self._writer.connect():
            pass

    def migrate(self) -> None:
        """Migrate the tables to this version, in one transaction. Several processes may call it at once.

        Raises DatabaseError.
        """
        if not self._checked:
            self.check()
        with self.operator_errors(), self._writer.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            if not checks.has_newest_schema(connection):
                _upgrade(connection)
        if self._files:
            self._files.path.chmod(0o600)
            self._files.expect_database()

    @contextmanager
    def operator_errors(self) -> Iterator[None]:
        """Turn an outage into one line for the operator of a command. Raises DatabaseError."""
        try:
            yield
        except DBAPIError as error:
            reason = self._reason(error)
            is_damaged = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in DAMAGED
            hint = DAMAGED_HINT if is_damaged else FILE_HINT if self.path else SERVER_HINT
            raise DatabaseError(f"{self} cannot be used: {reason}. {hint}") from error
        except DatabaseError:
            raise
        except Unavailable as error:
            raise DatabaseError(str(error)) from error

    def close(self) -> None:
        """Close every connection, and release the lock."""
        self._writer.dispose()
        self._readers.dispose()
        if self._files:
            self._files.close()
        if self._lock is not None:
            self._lock.close()

    def _engine(self, *, write: bool) -> Engine:
        return file_engine(self.url, self._files, write=write) if self._files else server_engine(self.url, write=write)


def _upgrade(connection: Connection) -> None:
    # Here, because importing Alembic takes a quarter of a second, which most commands and starts do not need.
    import alembic.command
    import alembic.config

    config = alembic.config.Config()
    config.set_main_option("script_location", "kling_receiver.store:migrations")
    config.attributes["connection"] = connection
    alembic.command.upgrade(config, "head")


def describe_engine(connection: Connection) -> tuple[str, int]:
    """The engine with its version, and the bytes of the database."""
    if connection.dialect.name == "sqlite":
        size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        name = f"SQLite {sqlite3.sqlite_version}"
    else:
        size = "SELECT pg_database_size(current_database())"
        name = f"PostgreSQL {connection.execute(text('SHOW server_version')).scalar_one()}"
    return name, int(connection.execute(text(size)).scalar_one())

"""The two engines, and all in which they differ: how a transaction begins, and how rows are locked.

Writing and reading have their own doors: on SQLite a reader never blocks the writer.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, NoSuchModuleError

from kling_receiver.filesystem import make_durable_folder
from kling_receiver.store.errors import AlreadyRunning, DatabaseError, Unavailable
from kling_receiver.store.locks import (
    EVENT_LOCK,
    KEEPALIVE,
    MIGRATION_LOCK,
    TCP_USER_TIMEOUT_MS,
    lock_file,
    lock_server,
)
from kling_receiver.store.sql import driver_cursor

log = logging.getLogger("kling_receiver.database")

READERS = 4
OUTAGE_LOG_INTERVAL = 1.0
"""Seconds between two lines about an outage: anybody can make us look, by asking whether we are ready."""
BUSY_MS = 10_000


SERVER_HINT = "Check KLING_DATABASE_URL, and that its server runs."
FILE_HINT = "Check its disk, whether it may be written to, and who else uses it."


class Database:
    """One database, `sqlite:///path` or `postgresql://...`."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds."""
        self._clock, self._logged_at = clock, -OUTAGE_LOG_INTERVAL
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.path = Path(self.url.database or "").absolute() if self.is_sqlite else None
        self._lock: Any = None
        self._expected_file_id: tuple[int, int] | None = None
        if self.path:
            self._make_private(self.path)
        self._writer = self._engine(write=True)
        self._nondurable_writer = self._writer.execution_options(synchronous="NORMAL")  # over the same connection
        self._readers = self._engine(write=False)

    def __str__(self) -> str:
        return str(self.path) if self.path else self.url.render_as_string(hide_password=True)

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """One writing transaction; committed (on disk) when the block ends, rolled back when it raises.

        Not `durable`, on SQLite: on disk with the next one that is. A power failure may undo it, and the
        process that knew of it ends with it. (A server may end alone: PostgreSQL's commits are all on disk.)
        Raises Unavailable when the file lies no longer where the next start would look for it, or another
        receiver has taken hold meanwhile.
        """
        if self._expected_file_id and self._expected_file_id != self._file_id():
            self._log_outage(f"{self.path} was moved or replaced")
            raise Unavailable("The database file was moved or replaced. Put it back, or start anew.")
        try:
            with (self._writer if durable else self._nondurable_writer).begin() as connection:
                yield connection
        except AlreadyRunning as held:
            self._log_outage(str(held))
            raise Unavailable("The database is served by another receiver.") from held

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A view that writers neither block nor change."""
        with self._readers.begin() as connection:
            yield connection

    def to_unavailable(self, error: DBAPIError) -> Unavailable:
        """What to say of an outage; where the server is, and what it said, goes to the log only."""
        reason = (str(error.orig).strip() or type(error).__name__).splitlines()[0]
        self._log_outage(reason)
        return Unavailable(f"The database cannot be used{f': {reason}' if self.is_sqlite else ''}.")

    def _log_outage(self, reason: str) -> None:
        """In the log, and not for each request of those who meet the same outage."""
        if self._clock() - self._logged_at >= OUTAGE_LOG_INTERVAL:
            self._logged_at = self._clock()
            log.error("the database cannot be used: %s", reason)

    def probe(self, connection: Connection, number: int) -> None:
        """Write something of no meaning, so that the commit shows whether writing works."""
        if self.is_sqlite:
            connection.exec_driver_sql(f"PRAGMA user_version = {number % (1 << 31)}")
        else:
            connection.execute(text("UPDATE alembic_version SET version_num = version_num"))

    def identity(self, connection: Connection) -> str:
        """What tells this database from any other, by whatever address it is reached."""
        if self.is_sqlite:
            seen: Any = self._file_id()
        else:
            found = "SELECT oid, pg_postmaster_start_time() FROM pg_database WHERE datname = current_database()"
            seen = tuple(connection.execute(text(found)).one())
        return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]

    def lock_events(self, connection: Connection) -> None:
        """Let no other writer give out event ids before this transaction ends."""
        if not self.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": EVENT_LOCK})

    def acquire_lock(self) -> None:
        """Keep every other receiver away, until this process ends. Raises DatabaseError naming the holder."""
        if self.path:
            self._lock = lock_file(self.path.with_name(self.path.name + ".lock"))
            return
        # The writer's connection holds it, and takes it again whenever it has to be made anew.
        event.listen(self._writer, "connect", lock_server)
        self._writer.dispose()
        with self.operator_errors(), self._writer.connect():
            pass

    def migrate(self) -> None:
        """Bring the tables to this version's shape; safe to call from several processes at once.

        Raises DatabaseError.
        """
        with self.operator_errors(), self._writer.begin() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            config = alembic.config.Config()
            config.set_main_option("script_location", "kling_receiver.store:migrations")
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")
        if self.path:
            self.path.chmod(0o600)
            self._expected_file_id = self._file_id()

    def _file_id(self) -> tuple[int, int] | None:
        """Which file lies where the database should."""
        assert self.path
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @contextmanager
    def operator_errors(self) -> Iterator[None]:
        """For whoever types a command: an outage in one line. Raises DatabaseError."""
        try:
            yield
        except DBAPIError as error:
            said = (str(error.orig).strip() or "no reason given").splitlines()[0]
            raise DatabaseError(f"{self} cannot be used: {said}. {FILE_HINT if self.path else SERVER_HINT}") from error
        except DatabaseError:
            raise
        except Unavailable as error:
            raise DatabaseError(str(error)) from error

    def close(self) -> None:
        """Give back every connection, and the hold."""
        if self._lock is not None:
            self._lock.close()
        self._writer.dispose()
        self._readers.dispose()

    def _engine(self, *, write: bool) -> Engine:
        common: dict[str, Any] = {
            "pool_size": 1 if write else READERS,
            "max_overflow": 0,
            "hide_parameters": True,
        }
        if not self.is_sqlite:
            level = "READ COMMITTED" if write else "REPEATABLE READ"
            try:
                return create_engine(
                    self.url,
                    isolation_level=level,
                    pool_pre_ping=True,
                    connect_args={
                        "connect_timeout": 5,
                        "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
                        **{f"keepalives_{name}": value for name, value in KEEPALIVE.items()},
                    },
                    **common,
                )
            except (ImportError, NoSuchModuleError) as error:
                raise DatabaseError(
                    f"No driver for {self.url.drivername}. Install one: pip install 'kling-callback[postgres]'"
                ) from error
        engine = create_engine(self.url, connect_args={"timeout": BUSY_MS / 1000}, **common)
        event.listen(engine, "connect", _open_for_writing if write else _open_for_reading)
        event.listen(engine, "begin", _begin_immediate if write else _begin)
        return engine

    @staticmethod
    def _make_private(path: Path) -> None:
        make_durable_folder(path.parent)
        path.touch(mode=0o600)


def _open_for_writing(connection: Any, record: Any) -> None:
    _configure(connection, "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON")


def _open_for_reading(connection: Any, record: Any) -> None:
    _configure(connection, "query_only = ON")


def _configure(connection: Any, *pragmas: str) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver thinks
    for pragma in (f"busy_timeout = {BUSY_MS}", *pragmas):
        connection.execute(f"PRAGMA {pragma}")


def _begin_immediate(connection: Connection) -> None:
    wanted = connection.get_execution_options().get("synchronous", "FULL")
    if connection.info.get("synchronous", "FULL") != wanted:
        _execute(connection, f"PRAGMA synchronous = {wanted}")
        connection.info["synchronous"] = wanted
    _execute(connection, "BEGIN IMMEDIATE")


def _begin(connection: Connection) -> None:
    _execute(connection, "BEGIN")


def _execute(connection: Connection, statement: str) -> None:
    with driver_cursor(connection, statement) as opened:
        opened.execute(statement)

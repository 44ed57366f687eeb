"""The lock that keeps a second receiver away from a database, on a file or as a PostgreSQL advisory lock."""

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Any

from kling_callback.display import escape
from kling_receiver.store.errors import AlreadyRunning, DatabaseError

EVENT_LOCK = 0x6B6C696E67
"""PostgreSQL: held from a transaction's first event to its commit, so that event ids are committed in order."""
NODE_LOCK = EVENT_LOCK + 1
"""PostgreSQL: held by the one receiver that serves the database."""
MIGRATION_LOCK = EVENT_LOCK + 2
"""PostgreSQL: held during a migration, so that a second one waits."""
KEEPALIVE = {"idle": 30, "interval": 10, "count": 3}
"""PostgreSQL: seconds (and a count), on both sides: a connection that was cut silently loses its lock after 60 s."""
TCP_USER_TIMEOUT_MS = 60_000
"""PostgreSQL: milliseconds. The same limit while sent data is unacknowledged: TCP then sends no keepalives."""
LOCK_ATTEMPTS = 20
"""PostgreSQL: attempts, 0.1 s apart, until the server has noticed that a killed holder is gone."""


class FileLock:
    """Keeps every other receiver away from an SQLite database, whatever name it knows the file by.

    The lock on `<database>.lock` is the one that earlier versions know, and that file names its holder. But whoever
    removes that file removes the lock. So the database file itself is locked too, at a byte that SQLite never locks.
    That lock is one of an open file description: `flock` would keep SQLite out where it is emulated (NFS, macOS), and
    a process loses its POSIX locks on a file as soon as it closes any descriptor of it.
    """

    def __init__(self, database: Path) -> None:
        """Take both locks. Raises AlreadyRunning with the name of the holder, DatabaseError, OSError."""
        self._path = database.with_name(database.name + ".lock")
        # Not through a symbolic link: the file that it leads to would be truncated below.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        self._file = os.fdopen(descriptor, "a+", encoding="utf-8")  # private in any umask
        self._database: int | None = None
        try:
            if not self._lock(database):
                self._file.seek(0)
                holder = escape(self._file.read(200)).strip() or "an unknown process"
                raise AlreadyRunning(str(database.parent), holder, "KLING_DATA_DIR")
            self._file.truncate(0)
            self._file.write(_process_name())
            self._file.flush()
        except BaseException:
            self.close()
            raise

    def _lock(self, database: Path) -> bool:
        """Whether both locks could be taken, as far as the system has them."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                return False
            raise DatabaseError(
                f"{self._path} cannot be locked: {error.strerror}. Put the database on a file system that has locks."
            ) from error
        if OFD_SETLK is None:
            return True
        self._database = os.open(database, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.fcntl(self._database, OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, LOCK_BYTE, 1, 0))
        except OSError as error:
            if error.errno in HELD:
                return False
            os.close(self._database)  # no connection is open yet
            self._database = None
        return True

    @property
    def is_lost(self) -> bool:
        """Whether a second receiver may take the lock: its file was removed, and nothing else is locked."""
        if self._database is not None:
            return False
        try:
            return not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Release the locks. Only once every connection is closed: this ends SQLite's own locks in this process."""
        if self._database is not None:
            os.close(self._database)
            self._database = None
        self._file.close()


HELD = (errno.EAGAIN, errno.EACCES)
"""Errors of a lock that another process holds."""
OFD_SETLK: int | None = getattr(fcntl, "F_OFD_SETLK", None)
"""The command that takes a lock of an open file description, on Linux."""
LOCK_BYTE = 1 << 50
"""Beyond the largest database, so that where locks are mandatory no byte of it is locked. SQLite's are at 1 << 30."""


def lock_server(connection: Any, record: Any) -> None:
    """Take the lock on a new connection of the writer, which holds it. Raises AlreadyRunning."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('application_name', %s, false)", (_process_name(),))
        limits = {f"tcp_keepalives_{name}": value for name, value in KEEPALIVE.items()}
        for name, value in {**limits, "tcp_user_timeout": TCP_USER_TIMEOUT_MS}.items():
            cursor.execute("SELECT set_config(%s, %s, false)", (name, str(value)))
        locked = _try_lock(cursor)
        holder = None if locked else cursor.execute(LOCK_HOLDER, (NODE_LOCK >> 32, NODE_LOCK & 0xFFFFFFFF)).fetchone()
    connection.commit()
    if not locked:
        connection.close()
        raise AlreadyRunning("The database", (holder and holder[0]) or "an unknown process", "KLING_DATABASE_URL")


def _try_lock(cursor: Any) -> bool:
    for _ in range(LOCK_ATTEMPTS):
        if cursor.execute("SELECT pg_try_advisory_lock(%s)", (NODE_LOCK,)).fetchone()[0]:
            return True
        cursor.execute("SELECT pg_sleep(0.1)")
    return False


LOCK_HOLDER = """
    SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid)
    WHERE locktype = 'advisory' AND classid = %s AND objid = %s AND granted
        AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def _process_name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"[:63]

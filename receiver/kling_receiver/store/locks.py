"""The lock that keeps a second receiver away from a database, on a file or as a PostgreSQL advisory lock."""

import fcntl
import os
import socket
from pathlib import Path
from typing import Any

from kling_receiver.store.errors import AlreadyRunning

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


def lock_file(path: Path) -> Any:
    """Lock a file until it is closed. Raises AlreadyRunning with the name of the holder."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)  # private in any umask
    file = os.fdopen(descriptor, "a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read(200).strip() or "an unknown process"
        file.close()
        raise AlreadyRunning(str(path.parent), holder, "KLING_DATA_DIR") from error
    file.truncate(0)
    file.write(_process_name())
    file.flush()
    return file


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
        raise AlreadyRunning("The database", holder[0] if holder else "an unknown process", "KLING_DATABASE_URL")


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

"""The lock that keeps a second receiver away from a database."""

import fcntl
import os
import socket
from pathlib import Path
from typing import Any

from kling_receiver.store.errors import AlreadyRunning

EVENT_LOCK = 0x6B6C696E67
"""PostgreSQL: held from the first event of a transaction to its commit, so that ids are committed in order."""
NODE_LOCK = EVENT_LOCK + 1
"""PostgreSQL: held by the one receiver that serves the database."""
MIGRATION_LOCK = EVENT_LOCK + 2
KEEPALIVE = {"idle": 30, "interval": 10, "count": 3}
"""PostgreSQL: seconds, at both ends, after which a connection that was cut in silence gives up its hold."""
TCP_USER_TIMEOUT_MS = 60_000
"""The same, when something sent is not taken: keepalives rest then, and TCP tries for a quarter of an hour."""
LOCK_ATTEMPTS = 20
"""PostgreSQL: tenths of a second in which the server finds out that a killed holder is gone."""


def lock_file(path: Path) -> Any:
    file = path.open("a+", encoding="utf-8")
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
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('application_name', %s, false)", (_process_name(),))
        limits = {f"tcp_keepalives_{name}": value for name, value in KEEPALIVE.items()}
        for name, value in {**limits, "tcp_user_timeout": TCP_USER_TIMEOUT_MS}.items():
            cursor.execute("SELECT set_config(%s, %s, false)", (name, str(value)))
        held = _try_lock(cursor)
        holder = None if held else cursor.execute(LOCK_HOLDER, (NODE_LOCK >> 32, NODE_LOCK & 0xFFFFFFFF)).fetchone()
    connection.commit()
    if not held:
        connection.close()
        raise AlreadyRunning("The database", holder[0] if holder else "an unknown process", "KLING_DATABASE_URL")


def _try_lock(cursor: Any) -> bool:
    """Whether the hold is ours now."""
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

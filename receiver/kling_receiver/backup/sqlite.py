"""Copy a SQLite database with SQLite's own backup, which waits for no writer and delays none."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from kling_receiver.backup.snapshot import LOST, CopyFiles, Snapshot, read_snapshot
from kling_receiver.events.log import CLEAR_LOG_ID
from kling_receiver.store.database import Database
from kling_receiver.store.errors import DatabaseError

NAME = "kling.db"
MARK_LOST = """
    UPDATE result SET status = 'failed', sha256 = NULL, error = ? WHERE task_id = ? AND position = ?
"""


def copy_database(database: Database, folder: Path, copy_files: CopyFiles) -> tuple[str, Snapshot]:
    """Copy the database into `folder`, with the files of its stored results. Returns its name, and the snapshot.

    Raises DatabaseError, OSError.
    """
    path = folder / NAME
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as copy:
            with database.operator_errors(), database.read() as connection:
                snapshot = read_snapshot(connection)
                source = connection.connection.driver_connection
                assert isinstance(source, sqlite3.Connection)
                source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            copy.execute("PRAGMA synchronous = FULL")
            copy.execute("PRAGMA fullfsync = ON")  # for macOS, see store.engine.connections
            check_integrity(copy, str(database))
            lost = [(LOST, result.task_id, result.position) for result in copy_files(snapshot)]
            copy.execute("BEGIN")
            copy.executemany(MARK_LOST, lost)
            copy.execute(CLEAR_LOG_ID)
            copy.execute("COMMIT")
    except sqlite3.Error as error:
        raise DatabaseError(f"{database} cannot be copied: {error}. Check the disks of both folders.") from error
    return NAME, snapshot


def check_integrity(connection: sqlite3.Connection, name: str) -> None:
    """Check every page of a database. Raises DatabaseError for a damaged one."""
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise DatabaseError(f"{name} is damaged: {problem}. Restore an earlier backup.")

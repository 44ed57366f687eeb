"""What a backup reads in the snapshot of the database that it copies."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, inspect

from kling_receiver.events import log as event_log
from kling_receiver.events.log import LogState
from kling_receiver.store.errors import DatabaseError
from kling_receiver.store.sql import Statement

SELECT_REVISION = Statement("SELECT version_num FROM alembic_version")
SELECT_STORED = Statement("""
    SELECT task_id, position, path, size, sha256 FROM result WHERE status = 'stored' ORDER BY task_id, position
""")
LOST = "The file was lost before the backup."
"""The error of a result whose file was lost."""


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A result that the snapshot says is stored, at `path` in the results folder."""

    task_id: str
    position: int
    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The identity of the copied log, the revision of the tables, and the stored results."""

    log: LogState
    revision: str
    results: list[StoredResult]


CopyFiles = Callable[[Snapshot], list[StoredResult]]
"""Copies the files of a snapshot. Returns the results whose files are lost."""


def has_tables(connection: Connection) -> bool:
    """Whether a database has tables of any version of this program."""
    return inspect(connection).has_table("alembic_version")


def read_snapshot(connection: Connection) -> Snapshot:
    """Read the snapshot of a transaction. Raises DatabaseError for the tables of an older version."""
    if not inspect(connection).has_table("event_log"):
        raise DatabaseError("The database has no tables, or those of an older version. Run: kling-receiver migrate")
    results = [StoredResult(**row) for row in SELECT_STORED.all(connection)]
    log = event_log.read(connection, may_lack_removals=not inspect(connection).has_table("removed"))
    return Snapshot(log, str(SELECT_REVISION.scalar(connection)), results)

"""Continue from a restored database: a new id for its event log, its results folder, and a check of the files."""

from dataclasses import dataclass

from kling_receiver.backup.snapshot import SELECT_STORED, StoredResult, has_tables
from kling_receiver.backup.sqlite import check_integrity
from kling_receiver.results import records as result_records
from kling_receiver.results.owner import claim
from kling_receiver.results.storage import LocalStorage
from kling_receiver.store.database import Database
from kling_receiver.store.errors import DatabaseError
from kling_receiver.store.transaction import command_transaction


@dataclass(frozen=True, slots=True)
class Restored:
    """The new id of the log, how many stored files were checked, and the messages about those that are lost."""

    log_id: str
    checked: int
    lost: int
    messages: tuple[str, ...]


def continue_from_restored(database: Database, storage: LocalStorage) -> Restored:
    """Prepare a restored database for the next start of the receiver, which must not run.

    Results whose files are missing or differ become `failed`. Raises DatabaseError, OSError.
    """
    database.acquire_lock()
    _check_database(database)
    database.migrate()
    storage.prepare()
    storage.owner.acquire()
    try:
        # The files first: if this is interrupted, the receiver does not start from a folder that is not checked.
        checked, lost, messages = _check_files(database, storage)
        claimed = claim(database, storage.owner, restored=True)
    finally:
        storage.owner.release()
    return Restored(claimed.log_id, checked, lost, messages)


def _check_database(database: Database) -> None:
    with database.operator_errors(), database.read() as connection:
        if not has_tables(connection):  # the results folder would be taken from the database that it belongs to
            raise DatabaseError(f"{database} is empty. Restore it from a backup first: docs/operating.md")
        if database.is_sqlite:
            check_integrity(connection.connection.driver_connection, str(database))  # type: ignore[arg-type]


def _check_files(database: Database, storage: LocalStorage) -> tuple[int, int, tuple[str, ...]]:
    with database.operator_errors(), database.read() as connection:
        results = [StoredResult(**row) for row in SELECT_STORED.all(connection)]
    lost = [result for result in results if storage.sha256(result.path) != result.sha256]
    with command_transaction(database) as tx:
        for result in lost:
            task = tx.require_task(result.task_id)
            result_records.mark_lost(tx, task, result.position, "It was not restored with the database.")
        committed = tx.flush()
    return len(results), len(lost), committed.messages

"""The commands `kling-receiver backup`, `restored` and `migrate`, which open the database themselves."""

from pathlib import Path

import click

from kling_callback.cli import terminal, usage
from kling_receiver.access import LOCAL_COMMAND, audit
from kling_receiver.backup.create import create_backup
from kling_receiver.backup.restored import continue_from_restored
from kling_receiver.cli.base import FAILED, exit_with, load_settings, print_message, report_errors
from kling_receiver.filesystem import blame_setting
from kling_receiver.results.storage import LocalStorage
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.database import Database
from kling_receiver.store.errors import DatabaseError
from kling_receiver.store.transaction import command_transaction


@click.command(cls=usage.Command, examples=["kling-receiver backup /srv/backup/monday"])
@usage.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@report_errors
def backup(folder: Path) -> None:
    """Copy the database and the result files into a folder.

    The receiver may run. DIR is new or empty. It appears complete or not at all, with a manifest.json.
    """
    settings = load_settings()
    database = _open(settings)
    try:
        _check_results(settings)
        manifest = create_backup(database, settings.results, folder.absolute())
        _record(database, "backup", str(folder.absolute()))
    finally:
        database.close()
    print_message(
        f"{folder} has {manifest.database} up to event {manifest.last_event}, and {len(manifest.files) - 1} files"
    )
    if manifest.lost:
        lost = [f"{path} is missing or was changed: it is not in the backup." for path in manifest.lost]
        exit_with([*lost, "Download them again with: kling-receiver tasks fetch ID"], FAILED)


@click.command(cls=usage.Command, examples=["kling-receiver restored"])
@report_errors
def restored() -> None:
    """Continue from a restored database.

    Run it while the receiver is stopped: the event log gets a new id, so that no consumer takes new events for old
    ones, and each result file is checked.
    """
    settings = load_settings()
    database = _open(settings)
    try:
        result = continue_from_restored(database, _check_results(settings))
        _record(database, "restored")
    finally:
        database.close()
    print_message(f"The event log of {database} has the new id {result.log_id}. Start the receiver.")
    if result.lost:
        exit_with([f"{result.lost} of {result.checked} files are missing or differ.", *result.messages], FAILED)


@click.command(cls=usage.Command, examples=["kling-receiver migrate"])
@report_errors
def migrate() -> None:
    """Create or update the tables of the database. `serve` does the same at its start.

    Refused while a receiver runs: an older version could not use the new tables.
    """
    settings = load_settings()
    database = Database(settings.database)
    try:
        with blame_setting(settings.storage_setting):
            LocalStorage(settings.results).check_answers()
        database.check(settings.results)
        database.acquire_lock()
        database.migrate()
        with command_transaction(database) as tx:
            audit.record(tx, LOCAL_COMMAND, "migrate")
    finally:
        database.close()
    terminal.print_message(f"{database} is up to date")


def _check_results(settings: ReceiverSettings) -> LocalStorage:
    """The results folder, whose volume answers. Raises OSError that names the setting."""
    storage = LocalStorage(settings.results)
    with blame_setting(settings.storage_setting):
        storage.check_answers()
    return storage


def _record(database: Database, action: str, target: str = "") -> None:
    """Add an entry to the audit log. What was done stays done if that fails: a database may be read-only, or older."""
    try:
        with command_transaction(database) as tx:
            audit.record(tx, LOCAL_COMMAND, action, target)
    except DatabaseError as error:
        print_message(f"The audit log has no entry of this {action}: {error}")


def _open(settings: ReceiverSettings) -> Database:
    """Open the database, which must exist. Raises DatabaseError."""
    file = settings.database_file
    if file and not file.exists():
        raise DatabaseError(
            f"There is no database {file}. Set KLING_DATA_DIR or KLING_DATABASE_URL as for the receiver."
        )
    return Database(settings.database)

"""The command `kling-receiver migrate`."""

import click

from kling_callback.cli import terminal, usage
from kling_receiver.access import LOCAL_COMMAND, audit
from kling_receiver.cli.base import load_settings, report_errors
from kling_receiver.filesystem import blame_setting
from kling_receiver.results.storage import LocalStorage
from kling_receiver.store.database import Database
from kling_receiver.store.transaction import command_transaction


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

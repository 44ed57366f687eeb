"""The command `kling-receiver migrate`."""

import click

from kling_receiver.cli.base import load_settings, report_errors
from kling_receiver.store.database import Database


@click.command()
@report_errors
def migrate() -> None:
    """Create or update the tables of the database. `serve` does the same at its start."""
    settings = load_settings()
    database = Database(settings.database)
    try:
        database.check(settings.results)
        database.migrate()
    finally:
        database.close()
    click.echo(f"{database} is up to date", err=True)

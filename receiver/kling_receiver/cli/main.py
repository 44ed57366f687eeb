"""The `kling-receiver` command."""

import asyncio
import gc
import logging
import sys

import click

from kling_callback.protocol.signing import Role, api_token
from kling_receiver import __version__
from kling_receiver.app import Receiver
from kling_receiver.cli.base import FAILED, exit_with, load_settings, report_errors
from kling_receiver.cli.deliveries import deliveries, replay
from kling_receiver.cli.doctor import run_checks
from kling_receiver.cli.hooks import hooks
from kling_receiver.cli.tasks import tasks
from kling_receiver.server import bind, create_server
from kling_receiver.settings import PublicSettings, ReceiverSettings, ServeSettings, SigningSettings
from kling_receiver.store.database import Database

TOKEN_DAYS = 365

GIL_SWITCH_SECONDS = 0.0005
"""How long the event loop may keep the writer waiting at each step of a commit: a tenth of what is usual."""

QUIET_LOGGERS = {"alembic": logging.WARNING, "httpx": logging.WARNING, "uvicorn.error": logging.ERROR}
"""What the log does without: uvicorn warns of each request that is no HTTP, and anybody can send those."""


def _warn_out_of_reach(settings: ReceiverSettings) -> None:
    if settings.unreachable_reason:
        click.echo(f"kling-receiver: {settings.unreachable_reason}", err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kling-receiver")
def main() -> None:
    """Receives Kling's callbacks, keeps what happened, fetches the result files, tells whoever waits.

    Its settings are environment variables (or a .env file); the README lists them.
    """


for group in (tasks, hooks, deliveries, replay):
    main.add_command(group)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 picks a free one.")
@report_errors
def serve(host: str, port: int) -> None:
    """Serve until told to stop (SIGTERM or Ctrl-C)."""
    settings = load_settings(ServeSettings)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy, level in QUIET_LOGGERS.items():
        logging.getLogger(noisy).setLevel(level)
    receiver = Receiver(settings)
    try:
        receiver.prepare()
        listening = bind(host, port)
    except BaseException:
        receiver.database.close()
        raise
    shown = f"[{host}]" if ":" in host else host
    click.echo(
        f"kling-receiver {__version__} on http://{shown}:{listening.getsockname()[1]}, "
        f"reached by Kling as {settings.receiver_url}\n"
        f"data in {settings.data_dir.absolute()}: database {receiver.database}, results {receiver.storage.root}",
        err=True,
    )
    _warn_out_of_reach(settings)
    sys.setswitchinterval(GIL_SWITCH_SECONDS)
    gc.freeze()  # what is loaded by now stays: no collection need look at it again
    try:
        create_server(receiver).run(sockets=[listening])
    except SystemExit:  # uvicorn's own code for this means something else here
        exit_with(["The receiver could not start. The lines above say why."], FAILED)


@main.command()
@report_errors
def migrate() -> None:
    """Bring the database up to date. `serve` does it too."""
    database = Database(load_settings(ReceiverSettings).database)
    try:
        database.migrate()
    finally:
        database.close()
    click.echo(f"{database} is up to date", err=True)


@main.command()
def doctor() -> None:
    """Test the way that callbacks take to this receiver.

    Sends it a signed one through its public address, and says where the way breaks.
    """
    settings = load_settings(PublicSettings)
    _warn_out_of_reach(settings)
    if not asyncio.run(_examine(settings)):
        sys.exit(FAILED)


async def _examine(settings: ReceiverSettings) -> bool:
    good = True
    async for finding in run_checks(settings):
        good = good and finding.ok
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'} {finding.name}: {finding.message}")
    return good


@main.command()
@click.option("--role", type=click.Choice(["admin", "client", "read"]), default="client", show_default=True)
@click.option(
    "--days", type=click.IntRange(1, 3650), default=TOKEN_DAYS, show_default=True, help="How long it is good."
)
def token(role: Role, days: int) -> None:
    """Print a bearer token for the receiver's API. It is made from the signing secrets."""
    settings = load_settings(SigningSettings)
    click.echo(api_token(settings.signing_secrets, role, days * 86_400))

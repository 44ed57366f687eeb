"""The command `kling-receiver doctor`: print each check as it ends."""

import asyncio
import sys
from dataclasses import asdict

import click

from kling_callback.cli import options, terminal, usage
from kling_receiver.cli.base import FAILED, load_settings, warn_if_unreachable
from kling_receiver.doctor.checks import run_checks
from kling_receiver.doctor.starting import START_SECONDS, wait_for_start
from kling_receiver.settings import TO_ADMINISTER, ReceiverSettings


@click.command(cls=usage.Command, examples=["kling-receiver doctor", "kling-receiver doctor --json"])
@options.json_option
def doctor(as_json: bool) -> None:
    """Check that callbacks can reach this receiver.

    Checks the database, sends a signed callback through the public address, opens a signed link as a browser does, and
    names the step that fails. A receiver that is starting is waited for, for up to 10 seconds.
    """
    settings = load_settings((*TO_ADMINISTER, "api_base"))
    warn_if_unreachable(settings)
    if not asyncio.run(_print_checks(settings, as_json=as_json)):
        sys.exit(FAILED)


async def _print_checks(settings: ReceiverSettings, *, as_json: bool) -> bool:
    """Print a line for each step as it ends. Returns whether all succeeded."""
    await wait_for_start(settings.receiver_url, _print_wait)
    ok = True
    async for check in run_checks(settings):
        ok = ok and check.ok
        if as_json:
            terminal.print_json(asdict(check))
            continue
        terminal.print_data(f"{'ok  ' if check.ok else 'FAIL'} {check.name}: {check.message}")
    return ok


def _print_wait(reason: str) -> None:
    terminal.print_message(f"{reason}. Waiting for up to {START_SECONDS:g} seconds, as the receiver may be starting.")

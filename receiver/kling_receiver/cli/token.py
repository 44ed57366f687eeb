"""The command `kling-receiver token`."""

import click

from kling_callback.cli import usage
from kling_callback.protocol.signing import Role, api_token
from kling_receiver.cli.base import load_settings

TOKEN_DAYS = 365


@click.command(cls=usage.Command)
@usage.option("--role", type=click.Choice(["admin", "client", "read"]), default="client", show_default=True)
@usage.option(
    "--days",
    type=click.IntRange(1, 3650),
    default=TOKEN_DAYS,
    show_default=True,
    help="Days for which the token is valid.",
)
def token(role: Role, days: int) -> None:
    """Print a bearer token for the receiver's API. The signing secrets sign it."""
    settings = load_settings(["signing_secrets"])
    click.echo(api_token(settings.signing_secrets, role, days * 86_400))

"""The command `kling-receiver`. Its subcommands are imported when invoked, so that --version and --help start fast."""

import click

from kling_receiver import __version__
from kling_receiver.cli.lazy import LazyCommand, LazyGroup

COMMANDS = {
    "init": LazyCommand("kling_receiver.cli.init", "init", "Write a .env with a new secret, and print what is next."),
    "serve": LazyCommand("kling_receiver.cli.serve", "serve", "Run the receiver until SIGTERM or Ctrl-C."),
    "migrate": LazyCommand("kling_receiver.cli.backup", "migrate", "Create or update the tables of the database."),
    "backup": LazyCommand(
        "kling_receiver.cli.backup", "backup", "Copy the database and the result files into a folder."
    ),
    "restored": LazyCommand("kling_receiver.cli.backup", "restored", "Continue from a restored database."),
    "doctor": LazyCommand("kling_receiver.cli.doctor", "doctor", "Check that callbacks can reach this receiver."),
    "token": LazyCommand("kling_receiver.cli.access", "token", "Print a bearer token for the receiver's API."),
    "tokens": LazyCommand("kling_receiver.cli.access", "tokens", "List and revoke bearer tokens that have a name."),
    "login-link": LazyCommand(
        "kling_receiver.cli.access", "login_link", "Print a link that opens the pages of the receiver in a browser."
    ),
    "audit": LazyCommand("kling_receiver.cli.access", "audit", "List administrative actions."),
    "tasks": LazyCommand(
        "kling_receiver.cli.tasks", "tasks", "List, adopt, cancel and remove tasks; download files again."
    ),
    "hooks": LazyCommand("kling_receiver.cli.hooks", "hooks", "Add, list, test, pause and remove hooks."),
    "deliveries": LazyCommand("kling_receiver.cli.deliveries", "deliveries", "List and retry deliveries to hooks."),
    "replay": LazyCommand("kling_receiver.cli.deliveries", "replay", "Deliver past events to the hooks again."),
}


@click.group(
    name="kling-receiver",
    cls=LazyGroup,
    lazy_commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    examples=["kling-receiver serve --host 0.0.0.0 --port 8000", "kling-receiver doctor"],
)
@click.version_option(__version__, prog_name="kling-receiver")
def main() -> None:
    """Receive Kling's callbacks, store tasks and result files, notify clients and hooks.

    Settings are environment variables or lines of a .env file; the README lists them.
    """

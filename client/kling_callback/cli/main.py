"""The command `kling`. Data goes to stdout, messages to stderr; an error is a message and its remedy, no traceback."""

import sys
from importlib.metadata import version

import click

from kling_callback import errors
from kling_callback.cli import terminal, usage
from kling_callback.cli.commands.batch import batch
from kling_callback.cli.commands.call import call
from kling_callback.cli.commands.config import config
from kling_callback.cli.commands.create import create_any, job_command
from kling_callback.cli.commands.listen import listen
from kling_callback.cli.commands.tasks import cancel, list_tasks, show
from kling_callback.cli.commands.wait import wait_for
from kling_callback.jobs.catalog import JOBS

FAILED, USAGE_ERROR, TIMED_OUT, INTERRUPTED = 1, 2, 3, 130

EPILOG = "Settings are environment variables whose names begin with KLING_, or lines of a .env file."


@click.group(
    name="kling",
    cls=usage.Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
    examples=[
        'kling text-to-image "a kangaroo" --model-name kling-v3 --output .',
        "kling list --tag spring",
    ],
)
@click.version_option(version("kling-callback"), prog_name="kling")
def kling() -> None:
    """Create images and videos with Kling. Results arrive by callback, without polling."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command. Raises SystemExit: 0 success, 1 failed, 2 wrong usage, 3 wait timed out, 130 Ctrl-C."""
    terminal.use_utf8()
    with terminal.quiet_log():
        try:
            sys.exit(kling.main(arguments, prog_name="kling", standalone_mode=False))
        except Exception as error:
            sys.exit(report_error(error))


def report_error(error: Exception) -> int:
    """Print what is wrong and what to do. Returns the exit code; raises errors that are bugs again."""
    match error:
        case click.ClickException():
            try:
                error.show()
            except OSError:
                terminal.discard_unwritten()
            return error.exit_code
        case click.Abort():
            return INTERRUPTED
        case errors.KlingError():
            terminal.print_message(terminal.format_error(error))
            return _exit_code(error)
        case OSError() | UnicodeEncodeError():
            return terminal.report_bad_stream(error)
        case _:
            raise error


def _exit_code(error: errors.KlingError) -> int:
    if isinstance(error, errors.SettingsError | errors.ParameterError):
        return USAGE_ERROR
    return TIMED_OUT if isinstance(error, errors.WaitTimeout) else FAILED


for command in (*map(job_command, JOBS), create_any, wait_for, show, cancel, list_tasks, batch, call, listen, config):
    kling.add_command(command)

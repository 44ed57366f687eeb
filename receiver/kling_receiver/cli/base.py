"""Shared by the commands of `kling-receiver`: read the settings, report errors as messages with exit codes."""

import logging
import sys
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import Any, NoReturn

from kling_callback.cli import terminal, usage
from kling_callback.errors import ParameterError, ReceiverError, SettingsError
from kling_receiver.logs import use_line_format
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.errors import DatabaseError

FAILED, USAGE_ERROR = 1, 2


def exit_with(messages: Sequence[str], code: int) -> NoReturn:
    """Print messages on stderr and exit."""
    for message in messages:
        print_message(message)
    sys.exit(code)


def exit_if_wrong(problems: usage.UsageProblems) -> None:
    """Exit with all problems, if there are any."""
    try:
        problems.raise_all()
    except (ParameterError, SettingsError) as error:
        exit_with([*error.problems, *filter(None, [error.hint])], USAGE_ERROR)


def print_message(message: str) -> None:
    """Print a message on stderr, after the name of the program."""
    terminal.print_message(f"kling-receiver: {message}")


def load_settings(require: Collection[str] = ()) -> ReceiverSettings:
    """Read the settings; exit with all their problems and those of the command line.

    `require`: names of the settings that must be set. A command uses its parameters only after this.
    """
    logging.getLogger("dotenv").addHandler(logging.NullHandler())  # a bad line of .env that matters is a problem below
    problems = usage.problems()
    with problems:
        settings = ReceiverSettings.load(require=require)
    exit_if_wrong(problems)
    use_line_format(settings.secrets)
    for warning in settings.warnings():
        print_message(warning)
    return settings


def warn_if_unreachable(settings: ReceiverSettings) -> None:
    """Print a warning if Kling cannot reach the receiver's address."""
    if settings.unreachable_reason:
        print_message(settings.unreachable_reason)


def report_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Decorate a command: an error of the receiver, database or system is one message and exit code 1."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except BrokenPipeError:  # the reader of stdout is gone: click exits without a message
            raise
        except (DatabaseError, ReceiverError) as error:
            exit_with([str(error)], FAILED)
        except OSError as error:
            if error.errno and not error.filename:  # of stdout: the group reports it
                raise
            exit_with([f"{error.filename} cannot be used: {error.strerror}." if error.filename else str(error)], FAILED)

    return run

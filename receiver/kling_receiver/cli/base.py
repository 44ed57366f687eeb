"""What every command of `kling-receiver` does alike: read its settings, and say in a line what stops it."""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar

import click

from kling_callback.cli import terminal
from kling_callback.errors import ReceiverError, SettingsError
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.errors import DatabaseError

S = TypeVar("S", bound=ReceiverSettings)

FAILED, USAGE_ERROR = 1, 2


def exit_with(problems: list[str], code: int) -> NoReturn:
    for problem in problems:
        terminal.print_message(f"kling-receiver: {problem}")
    sys.exit(code)


def load_settings(settings: type[S]) -> S:
    """The settings, or the end with every problem named."""
    try:
        loaded = settings.load()
    except SettingsError as error:
        exit_with(error.problems, USAGE_ERROR)
    for doubt in settings.unknown_variables():
        click.echo(f"kling-receiver: {doubt}", err=True)
    return loaded


def report_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Say in one line what stops a command."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except BrokenPipeError:  # nobody reads on: no trouble of ours
            raise
        except (DatabaseError, ReceiverError, OSError) as error:
            exit_with([str(error)], FAILED)

    return run

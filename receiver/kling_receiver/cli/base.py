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

FAILED, WRONG = 1, 2


def fail(problems: list[str], code: int) -> NoReturn:
    for problem in problems:
        terminal.say(f"kling-receiver: {problem}")
    sys.exit(code)


def load(settings: type[S]) -> S:
    """The settings, or the end with every problem named."""
    try:
        loaded = settings.load()
    except SettingsError as error:
        fail(error.problems, WRONG)
    for doubt in settings.doubts():
        click.echo(f"kling-receiver: {doubt}", err=True)
    return loaded


def explained(command: Callable[..., None]) -> Callable[..., None]:
    """Say in one line what stops a command."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except BrokenPipeError:  # nobody reads on: no trouble of ours
            raise
        except (DatabaseError, ReceiverError, OSError) as error:
            fail([str(error)], FAILED)

    return run

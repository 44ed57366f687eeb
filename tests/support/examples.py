"""The examples in the help of commands: found, split as a shell would, and parsed."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from unittest.mock import patch

import click

from kling_callback.cli import usage

MAX_COLUMNS = 78
"""Of a line, which is indented by two: it fits a terminal of 80 columns."""


@dataclass(frozen=True, slots=True)
class Page:
    """The help of one command. `path`: the words that call it."""

    path: tuple[str, ...]
    command: click.Command
    text: str


def pages(command: click.Command, *path: str, parent: click.Context | None = None) -> Iterator[Page]:
    """The help of a command and of all below it."""
    context = _context(command, path[-1], parent)
    yield Page(path, command, command.get_help(context))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below, name
            yield from pages(below, *path, name, parent=context)


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    """As for a command that runs, in a terminal of 80 columns."""
    settings = {**command.context_settings, "max_content_width": 80, "terminal_width": 80}
    return click.Context(command, info_name=name, parent=parent, **settings)


def examples(page: Page) -> list[list[str]]:
    """The words of each example at the end of a help."""
    _, heading, section = page.text.partition("\nExamples:\n")
    assert heading, f"{' '.join(page.path)} has no examples"
    lines = section.splitlines()
    assert all(len(line) <= MAX_COLUMNS + 2 for line in lines), lines
    return [shlex.split(line) for line in section.replace("\\\n", " ").splitlines()]


def parse(root: click.Command, words: list[str]) -> click.Context:
    """The context of the command that these words call, with its parameters. Raises what the command would refuse."""
    context, command, rest = _context(root, words[0], None), root, words[1:]
    while isinstance(command, click.Group):
        name, below, rest = command.resolve_command(context, rest)
        assert below, words
        command = below
        context = _context(command, str(name), context)
    with patch("shutil.which", return_value="/usr/bin/true"):  # a program of an example need not be here
        command.parse_args(context, rest)
    assert isinstance(context.obj, usage.UsageProblems)
    context.obj.raise_all()
    return context

"""What a person sees: data on stdout, talk on stderr, and no letter in either that could steer a terminal."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from client.events import Event
from client.views import TaskView

STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Letters that move a cursor, turn text round, or are none; a line end is handled apart."""

WIDE = 300
"""Columns of a table that goes into a pipe."""


def speak_utf8() -> None:
    """Whatever the locale says, other programs and files get UTF-8, and no letter is an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def plain(value: Any) -> str:
    """Text whose control characters are made visible: a status message must not steer the terminal."""
    return STEERING.sub(lambda letter: f"\\x{ord(letter.group()):02x}", " ".join(str(value).splitlines()))


def say(text: str) -> None:
    """One message on stderr, its line ends kept."""
    click.echo("\n".join(plain(line) for line in text.splitlines()), err=True)


def show(text: str) -> None:
    """One line of data on stdout."""
    click.echo(plain(text))


def show_json(document: Any, *, nicely: bool = False) -> None:
    """One JSON document: on one line, or nicely on several."""
    text = json.dumps(document, ensure_ascii=False, indent=2 if nicely else None)
    click.echo(STEERING.sub(lambda letter: f"\\u{ord(letter.group()):04x}", text))


def show_tasks(tasks: Sequence[TaskView]) -> None:
    """A table of tasks on stdout."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("ID", "STATUS", "FAMILY", "MODEL", "TAGS", "CREATED"):
        table.add_column(name, no_wrap=True)
    for task in tasks:
        cells = (task.id, _status(task), task.family, task.model or "", ", ".join(task.tags), _created(task))
        table.add_row(*(Text(plain(cell)) for cell in cells))
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console = Console(file=sys.stdout, width=WIDE)
    console.print(table)


def _status(task: TaskView) -> str:
    return task.status if task.done or task.status != "succeed" else "succeed, fetching"


def _created(task: TaskView) -> str:
    return str(task.data.get("created_at") or "").partition(".")[0].replace("T", " ")


@contextmanager
def watching(task_id: str, console: Console | None = None) -> Iterator[Callable[[Event], None]]:
    """Live progress on a terminal (stderr, unless given) while the block runs; elsewhere nothing."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda event: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        bar = progress.add_task(f"{plain(task_id)} waiting", total=None)

        def heard(event: Event) -> None:
            progress.update(bar, description=f"{plain(task_id)} {plain(_word(event))}")

        yield heard


def _word(event: Event) -> str:
    """What is going on now, in a few words."""
    results = event.task.get("results") or []
    stored = sum(isinstance(each, dict) and each.get("status") == "stored" for each in results)
    status = str(event.task.get("status"))
    return f"{status}, {stored} of {len(results)} files here" if results else status

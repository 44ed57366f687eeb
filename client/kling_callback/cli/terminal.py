"""What a person sees: data on stdout, talk on stderr, and no letter in either that could steer a terminal."""

import json
import logging
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from kling_callback.base import BaseTask
from kling_callback.protocol.events import Event

CONTROL_CHARACTERS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Letters that move a cursor, turn text round, or are none; a line end is handled apart."""


def use_utf8() -> None:
    """Whatever the locale says, other programs and files get UTF-8, and no letter is an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def escape(value: Any) -> str:
    """Text whose control characters are made visible: a status message must not steer the terminal."""
    return CONTROL_CHARACTERS.sub(lambda letter: f"\\x{ord(letter.group()):02x}", " ".join(str(value).splitlines()))


def print_message(text: str) -> None:
    """One message on stderr, its line ends kept."""
    click.echo("\n".join(escape(line) for line in text.splitlines()), err=True)


def print_data(text: str) -> None:
    """One line of data on stdout."""
    click.echo(escape(text))


def print_json(document: Any, *, nicely: bool = False) -> None:
    """One JSON document: on one line, or nicely on several."""
    text = json.dumps(document, ensure_ascii=False, indent=2 if nicely else None)
    click.echo(CONTROL_CHARACTERS.sub(lambda letter: f"\\u{ord(letter.group()):04x}", text))


def print_event(event: Event, word: str) -> None:
    """One event on one line of stdout, and what became of it."""
    print_data(
        "  ".join(map(str, (event.at, event.id, event.type, event.task["id"], event.task["status"], word))).strip()
    )


def print_tasks(tasks: Sequence[BaseTask]) -> None:
    """A table of tasks on stdout, whole in a terminal of any width: ids are there to be copied."""
    print_table([(name, [cell(task) for task in tasks]) for name, cell in COLUMNS.items()], always=("ID", "STATUS"))


def print_table(columns: Sequence[tuple[str, Sequence[str]]], *, always: Collection[str]) -> None:
    """A table on stdout: columns with their cells. Empty ones are left out, unless they stand `always`."""
    plainly = [(name, [escape(cell) for cell in cells]) for name, cells in columns]
    shown = [(name, cells) for name, cells in plainly if any(cells) or name in always]
    widths = [max(map(cell_len, (name, *cells))) for name, cells in shown]
    for row in ([name for name, _ in shown], *zip(*(cells for _, cells in shown), strict=True)):
        line = "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def _status(task: BaseTask) -> str:
    if task.status != "succeed":
        return task.status
    files = _files(task.data)
    if failed := files.count("failed"):
        return f"succeed, {failed} of {len(files)} files failed"
    return "succeed" if task.done else "succeed, fetching"


def format_minute(at: Any) -> str:
    """An ISO time to the minute, with the Z of UTC; "" for none."""
    return f"{str(at)[:16].replace('T', ' ')}Z" if at else ""


COLUMNS: dict[str, Callable[[BaseTask], str]] = {
    "ID": lambda task: task.id,
    "STATUS": _status,
    "CREATED": lambda task: format_minute(task.data.get("created_at")),
    "FAMILY": lambda task: task.family,
    "MODEL": lambda task: task.model or "",
    "TAGS": lambda task: ", ".join(task.tags),
}


@contextmanager
def live_progress(task_id: str, console: Console | None = None) -> Iterator[Callable[[Event], None]]:
    """Live progress on a terminal (stderr, unless given) while the block runs; elsewhere nothing."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda event: None
        return
    text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = (SpinnerColumn(), TimeElapsedColumn(), text)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        bar = progress.add_task(f"{escape(task_id)} waiting", total=None)

        def tell(word: str) -> None:
            progress.update(bar, description=f"{escape(task_id)} {escape(word)}")

        with _troubles(tell):
            yield lambda event: tell(_progress_text(event))


@contextmanager
def print_problems() -> Iterator[None]:
    """On stderr what does not answer while the block runs, not the same twice in a row."""
    last = ""

    def tell(text: str) -> None:
        nonlocal last
        if text != last:
            print_message(text)
        last = text

    with _troubles(tell):
        yield


@contextmanager
def _troubles(tell: Callable[[str], None]) -> Iterator[None]:
    """What the client says of a receiver or a Kling that does not answer, told while it tries again."""
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: tell(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("client")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _progress_text(event: Event) -> str:
    """What is going on now, in a few words."""
    files, status = _files(event.task), str(event.task.get("status"))
    return f"{status}, {files.count('stored')} of {len(files)} files here" if files else status


def _files(task: dict[str, Any]) -> list[str]:
    """How each file of a task stands."""
    return [str(each.get("status")) for each in task.get("results") or () if isinstance(each, dict)]

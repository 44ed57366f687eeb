"""Terminal output: data on stdout, messages on stderr; control characters are escaped in both."""

import codecs
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console

from kling_callback.base import BaseTask, outputs_of
from kling_callback.display import escape, json_text
from kling_callback.errors import KlingError, SettingsError
from kling_callback.protocol.events import Event
from kling_callback.protocol.redact import is_empty

MIN_WIDTH, USUAL_WIDTH = 20, 80
"""Columns. A terminal that says to have fewer does not know its width, and is taken for a usual one."""


def use_utf8() -> None:
    """Write UTF-8 in any locale, so that programs and files receive it, and no character raises an error.

    A terminal with another encoding gets that one; what it does not have is escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def _json_escaped(error: UnicodeError) -> tuple[str, int]:
    """Replace what cannot be encoded as JSON escapes it: `backslashreplace` writes what no parser of JSON reads."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error("kling-json", _json_escaped)


def print_message(text: str) -> None:
    """Print a message on stderr; its line ends are kept. One that cannot be written is lost."""
    try:
        click.echo("\n".join(escape(line) for line in text.splitlines()), err=True)
    except OSError:
        discard_unwritten()


def discard_unwritten() -> None:
    """Discard what stdout and stderr could not write: the interpreter would try again at its end, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), stream.fileno())
        except AttributeError:  # closed before the start
            pass


def report_bad_stream(error: OSError | UnicodeEncodeError) -> int:
    """Print that a file or stdout cannot be written, or that an argument is not text. Returns the exit code."""
    if isinstance(error, UnicodeEncodeError):
        place = ascii(error.object[max(error.start - 20, 0) : error.end + 20])
        print_message(f"An argument contains bytes that are not UTF-8 text, near {place}.")
        return 2
    discard_unwritten()
    print_message(f"{error.filename or 'The output'} cannot be written: {error.strerror or error}.")
    return 1


def format_error(error: KlingError) -> str:
    """The message of an error and its remedy, on lines of their own."""
    if isinstance(error, SettingsError):
        return "\n".join(["The settings are invalid:", *error.problems])
    request = f" (request {error.request_id})" if error.request_id else ""
    return f"{error.message}{request}{chr(10) + error.hint if error.hint else ''}"


def print_data(text: str) -> None:
    """Print one line of data on stdout."""
    click.echo(escape(text))


def print_json(document: Any, *, pretty: bool = False) -> None:
    """Print one JSON document on stdout: on one line, or indented if `pretty`."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    click.echo(json_text(document, pretty=pretty).encode(encoding, "kling-json").decode(encoding))


def print_event(event: Event, label: str) -> None:
    """Print one event on one line of stdout, followed by the label of its handling."""
    print_data(
        "  ".join(map(str, (event.at, event.id, event.type, event.task["id"], event.task["status"], label))).strip()
    )


def print_task(task: BaseTask, width: int | None = None) -> None:
    """Print a task on stdout: a line for each of its fields, its files, its other outputs as JSON.

    `width`: of the terminal, if not its own.
    """
    fields = {name: value for name, value in task.data.items() if name not in ("results", "outputs")}
    for name, value in fields.items():
        if not is_empty(value):
            label = style(f"{name:<17}", dim=True)
            click.echo(f"{label} {escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))}")
    if files := task.data.get("results"):
        click.echo()
        columns = [(name, [cell(each) for each in files]) for name, cell in FILE_COLUMNS.items()]
        print_table(columns, always=("FILE",), below=("ADDRESS", "NOTE"), width=width)
    if outputs := outputs_of(task.data):
        click.echo()
    for output in outputs:
        print_json(output)


FILE_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "FILE": lambda file: str(file.get("index")),
    "KIND": lambda file: str(file.get("kind")),
    "STATUS": lambda file: str(file.get("status")),
    "TYPE": lambda file: str(file.get("content_type") or ""),
    "BYTES": lambda file: str(file.get("size") or ""),
    "NOTE": lambda file: str(file.get("error") or file.get("warning") or ""),
    "ADDRESS": lambda file: str(file.get("href") or file.get("source_url") or ""),
}


def print_table(
    columns: Sequence[tuple[str, Sequence[str]]],
    *,
    always: Collection[str],
    below: Sequence[str] = (),
    width: int | None = None,
    empty: str = "",
) -> None:
    """Print a table on stdout. `columns`: names with their cells; empty ones are omitted unless named in `always`.

    `empty`: the message on stderr if there is no row.

    Where it is wider than the terminal, the columns `below` leave it, in this order, until it fits: their cells are on
    a line of their own below each row. `width`: of the terminal, if not its own.
    """
    escaped = [(name, [escape(cell) for cell in cells]) for name, cells in columns]
    shown = {name: cells for name, cells in escaped if any(cells) or name in always}
    widths = {name: max(map(cell_len, (name, *cells))) for name, cells in shown.items()}
    apart = _leaving(widths, below, width or terminal_width())
    table = [name for name in shown if name not in apart]
    click.echo(style("  ".join(pad(name, widths[name]) for name in table).rstrip(), dim=True))
    if empty and not columns[0][1]:
        print_message(empty)
    for row in range(len(columns[0][1])):
        click.echo("  ".join(pad(shown[name][row], widths[name]) for name in table).rstrip())
        if rest := "  ".join(cells[row] for name, cells in shown.items() if name in apart and cells[row]):
            click.echo(f"  {rest}")


def _leaving(widths: dict[str, int], below: Sequence[str], width: int | None) -> set[str]:
    """The names of the columns that have no room in a table. `widths`: of all columns, by name."""
    apart = set[str]()
    for name in below:
        kept = [each + 2 for column, each in widths.items() if column not in apart]
        if width is None or sum(kept) - 2 <= width:
            break
        apart.add(name)
    return apart


def print_fields(columns: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print lines of fields on stdout, for programs: a tab between two, first their names, nothing omitted."""
    for row in ([name for name, _ in columns], *zip(*(cells for _, cells in columns), strict=True)):
        click.echo("\t".join(map(escape, row)))


def print_records(columns: Sequence[tuple[str, Sequence[str]]], width: int | None = None) -> None:
    """Print records on stdout: a table; where a terminal is narrower, each on lines of its own; elsewhere fields.

    `width`: of the terminal, if not its own.
    """
    room = width or terminal_width()
    if room is None:
        print_fields(columns)
    elif sum(max(map(cell_len, (name, *cells))) + 2 for name, cells in columns) - 2 <= room:
        print_table(columns, always=[name for name, _ in columns], width=room)
    else:
        for first, *others in zip(*(cells for _, cells in columns), strict=True):
            click.echo(escape(first))
            cells = [escape(cell) for cell in others if cell]
            is_short = cell_len("  ".join(cells)) + 2 <= room
            cells[1:] = [style(cell, dim=True) for cell in cells[1:]]
            for line in ["  ".join(cells)] if is_short else cells:
                click.echo(f"  {line}")


def terminal_width() -> int | None:
    """The columns of the terminal that stdout is; None if it is none."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    width = Console(file=sys.stdout).width
    return width if width >= MIN_WIDTH else USUAL_WIDTH


def style(text: str, **attributes: Any) -> str:
    """Text with a colour or weight, as `click.style` has it, if stdout is a terminal that shows it (NO_COLOR)."""
    wanted = {name: value for name, value in attributes.items() if value}
    return click.style(text, **wanted) if wanted and text and _has_colors() else text


def _has_colors() -> bool:
    if sys.stdout is None or not sys.stdout.isatty():
        return False
    console = Console(file=sys.stdout)
    return console.color_system is not None and not console.no_color


def pad(text: str, width: int) -> str:
    """Text with blanks up to a width in columns."""
    return text + " " * (width - cell_len(text))


def cut(text: str, width: int) -> str:
    """Text of at most `width` columns; one that is longer ends with an ellipsis."""
    if cell_len(text) <= width:
        return text
    sign = "…" if (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf") else "~"
    return set_cell_size(text, width - 1).rstrip(" \u200d") + sign if width > 1 else ""


def format_minute(at: Any) -> str:
    """An ISO time in UTC to the minute, with its Z; "" for None."""
    return f"{str(at)[:16].replace('T', ' ')}Z" if at else ""


@contextmanager
def print_problems() -> Iterator[None]:
    """Print the client's log messages on stderr while the block runs, without immediate repeats."""
    last = ""

    def show(text: str) -> None:
        nonlocal last
        if text != last:
            print_message(text)
        last = text

    with log_to(show):
        yield


@contextmanager
def quiet_log() -> Iterator[None]:
    """Keep the client's log off stderr while the block runs: the commands report the same in their messages.

    That of python-dotenv too: it has the number of a bad line, without the name of the file.
    """
    logs, handler = [logging.getLogger(name) for name in ("kling_callback", "dotenv")], logging.NullHandler()
    for log in logs:
        log.addHandler(handler)
    try:
        yield
    finally:
        for log in logs:
            log.removeHandler(handler)


@contextmanager
def log_to(show: Callable[[str], None]) -> Iterator[None]:
    """Pass the client's log messages (retries of requests to the receiver and to Kling) to `show` as well."""
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: show(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("kling_callback")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


def file_statuses(task: dict[str, Any]) -> list[str]:
    """The status of each file of a task. `task`: its JSON."""
    return [str(each.get("status")) for each in task.get("results", ())]

"""The list of tasks on stdout: fitted to the width of a terminal; elsewhere lines of fields that a program splits."""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click
from rich.cells import cell_len

from kling_callback.base import BaseTask
from kling_callback.batch.costs import ChargeSum
from kling_callback.cli import terminal
from kling_callback.cli.terminal import cut, file_statuses, pad, style
from kling_callback.display import escape
from kling_callback.jobs.body import prompt_of

MIN_DETAIL_COLUMNS = 30
"""Of a prompt beside the other columns. In a narrower terminal it is on a line of its own."""
MIN_PROMPT_COLUMNS = 20
"""What the tags beside it leave of a prompt."""

AGES = ((86_400, "d"), (3600, "h"), (60, "m"), (1, "s"))
"""Units of an age, with their seconds."""

COLORS = {"succeed": "green", "failed": "red"}
"""Of statuses; the others are of tasks that go on."""
GOING_ON = "yellow"


def print_tasks(tasks: Sequence[BaseTask], width: int | None = None) -> None:
    """Print tasks on stdout. Ids are never shortened: they are copied from it.

    `width`: of the terminal, if not its own.
    """
    if columns := width or terminal.terminal_width():
        _print_fitted(tasks, columns)
    else:
        terminal.print_fields([(name, [cell(task) for task in tasks]) for name, cell in PLAIN.items()])


def _print_fitted(tasks: Sequence[BaseTask], width: int) -> None:
    if not tasks:
        terminal.print_message("No tasks.")
        return
    now = time.time()
    columns = {name: [escape(cell(task, now)) for task in tasks] for name, cell in FITTED.items()}
    widths = {name: max(cell_len(each) for each in (name, *cells)) for name, cells in columns.items()}
    shown = _fitting(columns, widths, width)
    left = width - sum(widths[name] + 2 for name in shown)
    if left < MIN_DETAIL_COLUMNS:
        widths[shown[-1]] = 0  # no blanks at the end of a line
    heading = "  ".join(pad(name, widths[name]) for name in shown)
    print_line = Line(width, beside=left if left >= MIN_DETAIL_COLUMNS else None)
    print_line(style(heading, dim=True), style("PROMPT", dim=True) if print_line.beside else "")
    for row, task in enumerate(tasks):
        head = "  ".join(
            style(pad(columns[name][row], widths[name]), **STYLES.get(name, _plain)(columns[name][row]))
            for name in shown
        )
        moved = [columns[name][row] for name in FITTED if name not in (*shown, *OPTIONAL)]
        print_line(head, _detail(task, list(filter(None, moved)), print_line.room))


class Line:
    """Prints a task: its columns, and beside or below them the detail. `beside`: the columns beside them, or None."""

    def __init__(self, width: int, *, beside: int | None) -> None:
        self.beside = beside
        self.room = width - 2 if beside is None else beside

    def __call__(self, head: str, detail: str) -> None:
        click.echo(f"{head}  {detail}".rstrip() if self.beside else head.rstrip())
        if detail and not self.beside:
            click.echo(f"  {detail}")


def _fitting(columns: dict[str, list[str]], widths: dict[str, int], width: int) -> list[str]:
    """The names of the columns that are shown: the optional ones if the detail has room beside all of them."""
    shown = [name for name in FITTED if name not in OPTIONAL and (name != "COST" or any(columns[name]))]
    while len(shown) > 2 and sum(widths[name] + 2 for name in shown) - 2 > width:
        shown.pop()
    for name in OPTIONAL:
        if any(columns[name]) and sum(widths[each] + 2 for each in (*shown, name)) + MIN_DETAIL_COLUMNS + 10 <= width:
            shown.append(name)
    return shown


def _detail(task: BaseTask, moved: Sequence[str], room: int) -> str:
    """What has no column: cells that do not fit, the prompt, or without one the family, and the tags."""
    begin = "".join(f"{cell}  " for cell in moved)
    room -= cell_len(begin)
    prompt = escape(prompt_of(task.data.get("request"))).strip()
    tags = cut(" ".join(f"#{escape(tag)}" for tag in task.tags), max(room - MIN_PROMPT_COLUMNS - 2, 0))
    text = cut(prompt or task.family, room - (cell_len(tags) + 2 if tags else 0))
    return begin + "  ".join(filter(None, [style(text, dim=not prompt), style(tags, fg="cyan") if tags else ""]))


def _status(task: BaseTask, now: float) -> str:
    if task.queue_position:
        return f"queued #{task.queue_position}"
    return "fetching" if task.status == "succeed" and not task.done else task.status


def format_age(created_at: Any, now: float) -> str:
    """The time since an ISO time, in its largest unit: `3m`; "" without a time. `now`: Unix seconds."""
    try:
        seconds = max(int(now - datetime.fromisoformat(str(created_at)).timestamp()), 0)
    except (ValueError, OverflowError):
        return ""
    size, unit = next((each for each in AGES if seconds >= each[0]), AGES[-1])
    return f"{seconds // size}{unit}"


def _files(task: BaseTask, now: float = 0) -> str:
    """How many files are stored; of several statuses, each with its number."""
    statuses = file_statuses(task.data)
    stored, failed = statuses.count("stored"), statuses.count("failed")
    if failed:
        return f"{stored}, {failed} failed" if stored else f"{failed} failed"
    return "" if not statuses else str(stored) if stored == len(statuses) else f"{stored} of {len(statuses)}"


def _cost(task: BaseTask, now: float = 0) -> str:
    """What Kling says that the task cost."""
    charges = ChargeSum()
    charges.add(task.family, task.data.get("cost"))
    return str(charges).replace(" image unit", " unit").replace(" video unit", " unit")


FITTED: dict[str, Callable[[BaseTask, float], str]] = {
    "ID": lambda task, now: task.id,
    "STATUS": _status,
    "AGE": lambda task, now: format_age(task.data.get("created_at"), now),
    "FILES": _files,
    "COST": _cost,
    "MODEL": lambda task, now: task.model or "",
}
"""The columns on a terminal, in their order."""
OPTIONAL = ("MODEL",)
"""Columns that are left out where there is no room."""

PLAIN: dict[str, Callable[[BaseTask], str]] = {
    "ID": lambda task: task.id,
    "STATUS": lambda task: task.status,
    "CREATED": lambda task: str(task.data.get("created_at") or ""),
    "FAMILY": lambda task: task.family,
    "MODEL": lambda task: task.model or "",
    "TAGS": lambda task: ",".join(task.tags),
    "FILES": lambda task: f"{file_statuses(task.data).count('stored')}/{len(file_statuses(task.data))}",
    "COST": _cost,
    "PROMPT": lambda task: prompt_of(task.data.get("request")),
}
"""The fields elsewhere: always these, whatever the tasks."""


def _plain(cell: str) -> dict[str, Any]:
    return {}


STYLES: dict[str, Callable[[str], dict[str, Any]]] = {
    "STATUS": lambda cell: {"fg": COLORS.get(cell, GOING_ON)},
    "AGE": lambda cell: {"dim": True},
    "FILES": lambda cell: {"fg": "red"} if "failed" in cell else {},
}
"""The arguments of `terminal.style` for the cells of a column."""

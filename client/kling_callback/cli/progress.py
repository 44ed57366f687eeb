"""Live progress on stderr, if it is a terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from kling_callback.batch.summary import Summary
from kling_callback.batch.waiting import UNFINISHED
from kling_callback.cli.terminal import file_statuses, log_to
from kling_callback.display import counted, escape
from kling_callback.protocol.events import Event

AGE_TOLERANCE_SECONDS = 10
"""A task that is older than this command by less may have been created by it: the clocks of two machines differ."""


class TaskDisplay:
    """The progress of one task. Without a `bar`, nothing is shown. `is_shown`: whether there is one."""

    def __init__(self, task_id: str, bar: Progress | None = None) -> None:
        self._id, self._bar = escape(task_id), bar
        self._row = bar.add_task(f"{self._id} waiting", total=None, age=0.0, expected=None) if bar else None
        self._seconds: float | None = None
        self._is_at_kling = True

    @property
    def is_shown(self) -> bool:
        return self._bar is not None

    def update(self, event: Event) -> None:
        """Show the task's status, its place in the queue, or how many of its files are stored; and its age."""
        self._is_at_kling = event.task.get("status") in UNFINISHED and not event.task.get("queue_position")
        self._show(_progress_text(event), expected=self._expected, age=self._age(event.task))

    def expect(self, seconds: float | None) -> None:
        """Show from now on how long such a task takes, unless it waits for a slot or is over; None shows nothing."""
        self._seconds = seconds
        self._show(expected=self._expected)

    @property
    def _expected(self) -> float | None:
        return self._seconds if self._is_at_kling else None

    def say(self, text: str) -> None:
        """Show a message until the next event."""
        self._show(text)

    def _show(self, text: str = "", **fields: Any) -> None:
        if self._bar and self._row is not None:
            description = f"{self._id} {escape(text)}" if text else None
            self._bar.update(self._row, description=description, **fields)

    def _age(self, task: dict[str, Any]) -> float:
        """Seconds that the task is older than this command."""
        elapsed = (self._bar.tasks[0].elapsed or 0) if self._bar else 0
        try:
            created_at = datetime.fromisoformat(str(task.get("created_at"))).timestamp()
        except (ValueError, OverflowError):
            return 0
        age = time.time() - created_at - elapsed
        return age if age > AGE_TOLERANCE_SECONDS else 0


@contextmanager
def live_progress(task_id: str, console: Console | None = None) -> Iterator[TaskDisplay]:
    """Show the progress of a task while the block runs, if `console` (default: stderr) is a terminal."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield TaskDisplay(task_id)
        return
    columns = (_spinner(console), TimeColumn(), _text())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        display = TaskDisplay(task_id, progress)
        with log_to(display.say):
            yield display


class TimeColumn(ProgressColumn):
    """The age of a task, and the time that such a task takes, if it is known."""

    def render(self, task: Task) -> Text:
        """As `0:12 of ~2:10`."""
        age, expected = (task.elapsed or 0) + task.fields["age"], task.fields["expected"]
        usual = f" of ~{format_seconds(expected)}" if expected else ""
        return Text(f"{format_seconds(age)}{usual}", style="progress.elapsed")


def format_seconds(seconds: float) -> str:
    """As minutes and seconds, `2:10`; from an hour on as `1:02:10`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _progress_text(event: Event) -> str:
    files, status = file_statuses(event.task), str(event.task.get("status"))
    if position := event.task.get("queue_position"):
        return f"place {position} in the queue"
    return f"{status}, {files.count('stored')} of {counted(len(files), 'file')}" if files else status


class BatchDisplay:
    """The progress of a batch. Without a `bar`, nothing is shown."""

    def __init__(self, bar: Progress | None = None) -> None:
        self._bar = bar
        self._row = bar.add_task("", total=None) if bar else None

    def update(self, summary: Summary) -> None:
        """Show the counts of the jobs."""
        if self._bar and self._row is not None:
            text = batch_text(summary)
            self._bar.update(self._row, total=summary.jobs, completed=summary.ended, description=text)

    def say(self, text: str) -> None:
        """Show a message until the counts change."""
        if self._bar and self._row is not None:
            self._bar.update(self._row, description=escape(text))

    @contextmanager
    def printing(self) -> Iterator[None]:
        """Take the progress off the terminal while the block prints data on it."""
        if not self._bar or not sys.stdout.isatty():
            yield
            return
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


@contextmanager
def batch_progress(console: Console | None = None) -> Iterator[BatchDisplay]:
    """Show the progress of a batch while the block runs, if `console` (default: stderr) is a terminal."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield BatchDisplay()
        return
    columns = (_spinner(console), TimeElapsedColumn(), BarColumn(20), MofNCompleteColumn(), _text())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        display = BatchDisplay(progress)
        with log_to(display.say):
            yield display


def batch_text(summary: Summary) -> str:
    """The counts that are not zero, after that of the jobs that have ended."""
    queued, here = summary.statuses["queued"], summary.statuses["succeed"] + summary.statuses["failed"]
    at_kling = summary.statuses["submitted"] + summary.statuses["processing"]
    files = "file" if summary.files == 1 else "files"
    counts = {
        "failed": len(summary.failures),
        files: summary.files,
        "at Kling": at_kling,
        "fetched": here,
        "queued": queued + summary.statuses["created"],
        "to submit": summary.jobs - summary.submitted - summary.refused,
    }
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _spinner(console: Console) -> SpinnerColumn:
    return SpinnerColumn("dots" if console.encoding.lower().startswith("utf") else "line")


def _text() -> TextColumn:
    return TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))

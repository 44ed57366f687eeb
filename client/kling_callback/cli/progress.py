"""Live progress on stderr, if it is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from kling_callback.batch.summary import Summary
from kling_callback.cli.terminal import file_statuses, log_to
from kling_callback.display import counted, escape
from kling_callback.protocol.events import Event


@contextmanager
def live_progress(task_id: str, console: Console | None = None) -> Iterator[Callable[[Event], None]]:
    """Show live progress while the block runs, if `console` (default: stderr) is a terminal. Yields its update."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda event: None
        return
    columns = (_spinner(console), TimeElapsedColumn(), _text())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        bar = progress.add_task(f"{escape(task_id)} waiting", total=None)

        def update(text: str) -> None:
            progress.update(bar, description=f"{escape(task_id)} {escape(text)}")

        with log_to(update):
            yield lambda event: update(_progress_text(event))


def _progress_text(event: Event) -> str:
    """The task's status, and its place in the queue, or how many of its files are stored."""
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

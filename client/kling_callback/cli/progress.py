"""Live progress on stderr, if it is a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from kling_callback.cli.terminal import file_statuses, log_to
from kling_callback.display import escape
from kling_callback.protocol.events import Event


@contextmanager
def live_progress(task_id: str, console: Console | None = None) -> Iterator[Callable[[Event], None]]:
    """Show live progress while the block runs, if `console` (default: stderr) is a terminal. Yields its update."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield lambda event: None
        return
    text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    spinner = SpinnerColumn("dots" if console.encoding.lower().startswith("utf") else "line")
    columns = (spinner, TimeElapsedColumn(), text)
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
        return f"waits for a slot, at place {position} of the queue"
    return f"{status}, {files.count('stored')} of {len(files)} files here" if files else status

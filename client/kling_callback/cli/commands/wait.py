"""The command `kling wait`: wait for one task, for several, or for those with a tag."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import click

from kling_callback import errors
from kling_callback.batch.files import save_missing
from kling_callback.batch.waiting import TaskGroup
from kling_callback.cli import options, progress, terminal, usage
from kling_callback.cli.param_types import TaskId
from kling_callback.cli.run import WaitOptions, run_task, with_kling
from kling_callback.display import counted
from kling_callback.kling import AsyncKling
from kling_callback.settings import TO_WAIT
from kling_callback.tasks import AsyncTask

MAX_NAMED = 20
"""Tasks that a message names."""


@click.command(
    "wait",
    cls=usage.Command,
    examples=[
        "kling wait order-42 --output out",
        "kling wait --tag spring --timeout 900 --output out",
    ],
)
@usage.argument("task_ids", metavar="[ID]...", nargs=-1, type=TaskId())
@usage.option("--tag", metavar="TAG", help="All tasks with this tag that are not done now.")
@options.wait_options
def wait_for(task_ids: tuple[str, ...], tag: str | None, **waiting: Any) -> None:
    """Wait for tasks, then save or print their results.

    The results of several are printed as each task ends. The exit code is 1 if a task failed, and 3 if the time ran
    out before the last one ended.
    """
    problems, wait_options = usage.problems(), WaitOptions(**waiting)
    if not task_ids and not tag and not problems.refused & {"task_ids", "tag"}:
        problems.refuse("Name tasks by their ids, or set --tag.")
    with problems:
        wait_options.check()
    if len(task_ids) == 1 and not tag:
        only = task_ids[0]

        async def begin(kling: AsyncKling) -> AsyncTask:
            return kling.attach(only)

        return run_task(begin, TO_WAIT, only, wait_options)
    output = wait_options.output
    if output and output.name:
        with problems:
            raise errors.ParameterError(
                [f"output: {output.text!r} is a file. Name a folder for the files of all tasks."]
            )
    return GroupCommand(task_ids, tag, wait_options).run()


class GroupCommand:
    """One run of the command for several tasks."""

    def __init__(self, task_ids: Sequence[str], tag: str | None, wait_options: WaitOptions) -> None:
        self._task_ids, self._tag, self._options = task_ids, tag, wait_options
        self._group: TaskGroup | None = None

    def run(self) -> None:
        """Wait, and print what becomes of the tasks. Raises KlingError if one failed, or is not done in time."""
        try:
            in_time = with_kling(TO_WAIT, self._call)
        except KeyboardInterrupt:
            terminal.print_message(f"Interrupted. The tasks continue. Wait for them with:\n{usage.command_line()}")
            raise
        if self._group is None:
            return
        summary, waiting = self._group.summary, list(self._group.open.values())
        failures = [f"{failure.task_id}: {failure.reason}" for failure in summary.failures]
        failed = "\n".join([f"{len(failures)} of {counted(summary.jobs, 'task')} failed:", *_named(failures)])
        if in_time:
            if not summary.jobs:
                terminal.print_message(f"No unfinished task has the tag {self._tag}.")
            if failures:
                raise errors.KlingError(failed)
            return
        if failures:
            terminal.print_message(failed)
        if self._options.as_json:
            for task in waiting:
                terminal.print_json(task.data)
        undone = f"{summary.jobs - summary.ended} of {counted(summary.jobs, 'task')} are"
        raise errors.WaitTimeout(
            f"{undone if summary.jobs else 'The tasks are'} not done after {self._options.timeout:g} seconds. "
            "They continue.",
            hint=f"Wait again with:\n{usage.command_line()}",
        )

    async def _call(self, kling: AsyncKling) -> bool:
        """Whether all tasks ended in time."""
        with progress.batch_progress() as display, anyio.move_on_after(self._options.timeout) as scope:
            self._group = TaskGroup(
                kling,
                self._task_ids,
                tag=self._tag,
                on_end=lambda task: self._end(task, display.printing),
                on_change=display.update,
            )
            await self._group.wait()
        return not scope.cancelled_caught

    async def _end(self, task: AsyncTask, printing: Callable[[], Any]) -> list[str]:
        """Save the files of a task, and print their paths or links, then outputs that are no files."""
        result, output = task.stored(), self._options.output
        paths, problems = await save_missing(result.files, output.folder) if output else (list[Path](), list[str]())
        if self._group:
            self._group.summary.files += len(paths)
        with printing():
            if self._options.as_json:
                terminal.print_json(task.data)
            else:
                for line in paths if output else [file.href for file in result.files]:
                    terminal.print_data(str(line))
                for each in result.outputs:
                    terminal.print_json(each)
            for file in result.files:
                if file.warning:
                    terminal.print_message(f"{file.name}: {file.warning}")
        return problems


def _named(lines: Sequence[str]) -> list[str]:
    hidden = len(lines) - MAX_NAMED
    return [*lines[:MAX_NAMED], *([f"and {hidden} more."] if hidden > 0 else [])]

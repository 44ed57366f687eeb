"""The command `kling batch`."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import anyio
import click

from kling_callback import errors
from kling_callback.batch.costs import EstimateSum
from kling_callback.batch.lines import BatchFile, BatchJob
from kling_callback.batch.runner import Batch, Ended
from kling_callback.batch.summary import Summary
from kling_callback.cli import completion, options, param_types, progress, terminal, usage
from kling_callback.cli.output import Destination
from kling_callback.cli.run import with_kling
from kling_callback.creation import priority_problems
from kling_callback.display import counted, escape
from kling_callback.kling import AsyncKling
from kling_callback.settings import TO_WAIT
from kling_callback.tasks import AsyncTask

MAX_SHOWN_FAILURES = 100
"""Failed jobs that the summary lists. The others are in `kling list --status failed`."""
AFTER_FAILURES = (
    "The same command again submits what Kling did not accept, and fetches files that are missing. "
    "A task that Kling has failed stays failed: to pay for another, give its line a new external_task_id."
)


@click.command(
    cls=usage.Command,
    examples=[
        "kling batch jobs.jsonl --estimate",
        "kling batch jobs.jsonl --output out --tag spring",
    ],
)
@usage.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@usage.option(
    "--output",
    metavar="DIR",
    type=param_types.OutputParam(),
    shell_complete=completion.files,
    help="Write the files into this folder, as ID-N.EXT. Without it, print one link per file.",
)
@usage.option("--timeout", type=param_types.Timeout(), help="Wait at most so many seconds; the tasks continue.")
@usage.option("--tag", "tags", metavar="TAG", multiple=True, help="A word to find all these tasks by; repeatable.")
@usage.option(
    "--priority",
    type=click.INT,
    metavar="N",
    help="Of the lines without one; the receiver sends the highest first.",
)
@usage.option("--no-wait", is_flag=True, help="Print the tasks' ids, and do not wait.")
@usage.option(
    "--estimate",
    "estimate_only",
    is_flag=True,
    help="Print what each line and all would cost by Kling's list prices, and create nothing.",
)
@options.json_option
def batch(
    path: Path | None,
    output: Destination | None,
    timeout: float | None,
    tags: tuple[str, ...],
    priority: int | None,
    no_wait: bool,
    estimate_only: bool,
    as_json: bool,
) -> None:
    """Create the jobs of a file, one on each line.

    A line is a JSON object: a typed job with its parameters, or a family with its body.

    \b
    {"job": "text-to-video", "prompt": "...", "duration": 5}
    {"family": "videos/effects", "body": {...}}

    It may also have external_task_id, tags, hook, hook_events, callback_url and priority.

    The receiver sends the creates, each when a slot of the account is free. The same command again continues: a line is
    known by its external_task_id, or without one by its content, and is paid once.
    """
    problems, file, jobs = usage.problems(), BatchFile(path or Path(), tags=tags, priority=priority), list[BatchJob]()
    with problems:
        if wrong := priority_problems(priority):
            raise errors.ParameterError(wrong)
    with problems:
        _check_output(output, no_wait=no_wait)
    if path:
        with problems:
            jobs = file.check()
    if estimate_only:
        problems.raise_all()
        print_estimates(jobs, as_json=as_json)
    else:
        BatchCommand(file, jobs, output.folder if output else None, timeout, wait=not no_wait, as_json=as_json).run()


class BatchCommand:
    """One run of the command over checked jobs."""

    def __init__(
        self,
        file: BatchFile,
        jobs: Sequence[BatchJob],
        output: Path | None,
        timeout: float | None,
        *,
        wait: bool,
        as_json: bool,
    ) -> None:
        self._file, self._jobs, self._output, self._timeout = file, jobs, output, timeout
        self._wait, self._as_json = wait, as_json
        self._summary, self._again = Summary(len(jobs)), f"Continue with:\n{usage.command_line()}"

    def run(self) -> None:
        """Run the jobs, and print what becomes of them. Raises KlingError if one failed, or is not done in time."""
        try:
            in_time = with_kling(TO_WAIT, self._call, through_receiver=True)
        except KeyboardInterrupt:
            submitted = f"{self._summary.submitted} of {len(self._jobs)} jobs"
            terminal.print_message(f"Interrupted. {submitted} were submitted, and continue. {self._again}")
            raise
        except errors.ReceiverError as error:
            error.hint = "\n".join([*filter(None, [error.hint]), f"The batch stopped. {self._again}"])
            raise
        except OSError:
            terminal.print_message(f"The batch stopped. {self._again}")
            raise
        if self._wait:
            print_summary(self._summary)
        if not in_time:
            waiting = f"{len(self._jobs) - self._summary.ended} of {len(self._jobs)} jobs are not done"
            raise errors.WaitTimeout(
                f"{waiting} after {self._timeout:g} seconds. Those that were submitted continue.", hint=self._again
            )
        if self._summary.failures:
            raise errors.KlingError(format_failures(self._summary), hint=AFTER_FAILURES)

    async def _call(self, kling: AsyncKling) -> bool:
        """Whether the batch ended in time."""
        with progress.batch_progress() as display, anyio.move_on_after(self._timeout) as scope:
            batch = Batch(
                kling,
                self._file,
                self._jobs,
                wait=self._wait,
                output=self._output,
                on_submit=partial(self._print_submitted, display),
                on_end=partial(self._print_ended, display),
                on_change=display.update,
            )
            self._summary = batch.summary
            await batch.run()
        return not scope.cancelled_caught

    def _print_submitted(self, display: progress.BatchDisplay, task: AsyncTask) -> None:
        """Print the task's id, or its JSON, if the command does not wait for its files."""
        if not self._wait:
            with display.printing():
                terminal.print_json(task.data) if self._as_json else terminal.print_data(task.id)

    def _print_ended(self, display: progress.BatchDisplay, ended: Ended) -> None:
        """Print the paths or links of a task's files, and its other outputs; or its JSON. Warnings go to stderr."""
        result = ended.task.stored()
        with display.printing():
            if self._as_json:
                terminal.print_json(ended.task.data)
            else:
                for line in ended.paths if self._output else [file.href for file in result.files]:
                    terminal.print_data(str(line))
                for each in result.outputs:
                    terminal.print_json(each)
            for file in result.files:
                if file.warning:
                    terminal.print_message(f"{file.name}: {file.warning}")


def _check_output(output: Destination | None, *, no_wait: bool) -> None:
    """Check that the folder can be written, and that its files are waited for. Raises ParameterError."""
    if output and output.name:
        raise errors.ParameterError([f"output: {output.text!r} is a file. Name a folder for the files of all jobs."])
    if output and no_wait:
        raise errors.ParameterError(["output: nothing is written with --no-wait. Run the command without it later."])
    if output:
        output.check()


def print_summary(summary: Summary) -> None:
    """Print on stderr what has become of the jobs, and what they cost."""
    files = f", {counted(summary.files, 'file')}" if summary.files else ""
    terminal.print_message(
        f"{summary.succeeded} of {summary.jobs} jobs succeeded, {len(summary.failures)} failed{files}."
    )
    if summary.charges.tasks:
        terminal.print_message(
            f"Cost by Kling's figures: {summary.charges} ({counted(summary.charges.tasks, 'task')})."
        )
    if summary.succeeded:
        terminal.print_message(f"Cost by list prices: {summary.estimate}.")


def format_failures(summary: Summary) -> str:
    """The jobs that failed, each with the reason, in the order of the file."""
    shown = [str(failure) for failure in sorted(summary.failures, key=lambda each: each.line)[:MAX_SHOWN_FAILURES]]
    hidden = len(summary.failures) - len(shown)
    return "\n".join(
        [
            f"{len(summary.failures)} of {summary.jobs} jobs failed:",
            *shown,
            *([f"and {hidden} more."] if hidden else []),
        ]
    )


def print_estimates(jobs: Sequence[BatchJob], *, as_json: bool) -> None:
    """Print the expected cost of each job, and the sum. Raises KlingError if it is not known of some."""
    total = EstimateSum((job.family, job.cost) for job in jobs)
    if as_json:
        for job in jobs:
            cost = asdict(job.cost) if job.cost else None
            terminal.print_json({"line": job.line, "external_task_id": job.task_id, "estimate": cost})
        terminal.print_json({"sum": total.document()})
    else:
        columns = {
            "LINE": [str(job.line) for job in jobs],
            "ID": [escape(job.task_id) for job in jobs],
            "FAMILY": [job.family for job in jobs],
            "ESTIMATE": [str(job.cost).removesuffix(" (estimate)") if job.cost else "unknown" for job in jobs],
        }
        terminal.print_table(list(columns.items()), always=columns)
        terminal.print_data(f"Sum: {total}")
    if total.unknown:
        raise errors.KlingError(
            f"The cost of {total.unknown} of {len(jobs)} jobs cannot be estimated.",
            hint="Add model_name to them (docs/jobs.md has those with a price); of some, only a second has a price.",
        )

"""Run a command's work with an open client: wait for a task, and output its files."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from errno import EPIPE
from typing import TypeVar

from kling_callback import errors
from kling_callback.cli import progress, terminal, usage
from kling_callback.cli.output import Destination
from kling_callback.display import escape
from kling_callback.kling import AsyncKling
from kling_callback.protocol.events import Event
from kling_callback.settings import TO_CREATE, ClientSettings
from kling_callback.tasks import AsyncResult, AsyncTask

Begin = Callable[[AsyncKling], Awaitable[AsyncTask]]
T = TypeVar("T")


def with_kling(
    require: tuple[str, ...],
    call: Callable[[AsyncKling], Awaitable[T]],
    *,
    task_id: str = "",
    through_receiver: bool = False,
) -> T:
    """Run `call` with an open client, and return its result. On Ctrl-C, print how to wait for the task.

    `require`: names of the settings that must be set. `through_receiver`: a Kling key is not used.
    Raises all problems of the command line and the settings before anything is opened; then KlingError,
    KeyboardInterrupt.
    """
    problems = usage.problems()
    with problems:
        settings = ClientSettings.load(require=require)
    problems.raise_all()
    kling = AsyncKling(settings=settings.without_key() if through_receiver else settings)
    for warning in ClientSettings.warnings():
        terminal.print_message(warning)

    async def run() -> T:
        async with kling:
            return await call(kling)

    try:
        return asyncio.run(run())
    except KeyboardInterrupt:
        sender = "Kling" if kling.sends_creates else "the receiver"
        if require == TO_CREATE and kling.sends_creates and not kling.receiver_reached:
            terminal.print_message("Interrupted. The receiver had not answered yet: nothing was sent to Kling.")
        elif task_id:
            terminal.print_message(
                f"Interrupted. If {sender} took the task, it continues. Wait for it with:\nkling wait {task_id}"
            )
        raise


@dataclass(frozen=True, kw_only=True)
class WaitOptions:
    """The options of `options.wait_options`. `timeout`: seconds; `no_wait`: print the task without waiting."""

    output: Destination | None
    timeout: float | None
    as_json: bool
    no_wait: bool = False

    def check(self) -> None:
        """Check that the files can be written, and are waited for. Raises ParameterError."""
        if self.output and self.no_wait:
            raise errors.ParameterError(["output: nothing is written with --no-wait. Use: kling wait ID --output DIR"])
        if self.output:
            self.output.check()


def run_task(begin: Begin, require: tuple[str, ...], task_id: str, wait_options: WaitOptions) -> None:
    """Create or attach to a task, wait for it unless `no_wait`, and output its files."""

    async def call(kling: AsyncKling) -> None:
        try:
            with progress.live_progress(task_id) as display:
                task = await begin(kling)
                warn_about_create(task, sent=kling.sends_creates)
                outcome = None if wait_options.no_wait else await wait(task, wait_options.timeout, display)
        except errors.WaitTimeout as timeout:
            if wait_options.as_json:
                terminal.print_json(timeout.task)
            raise
        try:
            if outcome is None:
                terminal.print_json(task.data) if wait_options.as_json else terminal.print_data(task.id)
            else:
                await output_files(outcome, wait_options)
        except OSError as error:
            if error.errno != EPIPE:  # whose reader wants no more
                terminal.print_message(f"The result can be printed again with:\nkling wait {task.id}")
            raise

    with_kling(require, call, task_id=task_id)


def warn_about_create(task: AsyncTask, *, sent: bool = True) -> None:
    """Print a warning if the receiver missed the create's outcome, or the outcome is unknown.

    `sent`: by this client. A create that the receiver sends may be still to come, unless the task has a message.
    """
    if task.unreported:
        terminal.print_message(task.unreported)
    if task.outcome == "unknown" and task.family and not task.done and (sent or task.status_msg):
        terminal.print_message(
            f"It is not known yet whether Kling took task {task.id}. It is not sent again; a callback will show. "
            f"{escape(task.status_msg)}".rstrip()
        )


@dataclass(frozen=True)
class WaitResult:
    """The end of a wait: the stored files, and the error if the task or a file failed."""

    result: AsyncResult
    error: errors.KlingError | None = None


async def wait(task: AsyncTask, timeout: float | None, display: progress.TaskDisplay) -> WaitResult:
    """Wait for a task. A failed one has its stored files in the result too, for they were paid for."""
    asking: asyncio.Task[None] | None = None

    def on_event(event: Event) -> None:
        nonlocal asking
        display.update(event)
        if display.is_shown and asking is None and not task.done:
            asking = asyncio.create_task(_expect(task, display))

    try:
        return WaitResult(await task.wait(timeout, on_event=on_event))
    except (errors.TaskFailed, errors.ResultFailed) as error:
        return WaitResult(task.stored(), error)
    finally:
        if asking:
            asking.cancel()
            await asyncio.wait([asking])


async def _expect(task: AsyncTask, display: progress.TaskDisplay) -> None:
    """Let the display show how long such a task takes, if the receiver knows."""
    with suppress(errors.ReceiverError):
        display.expect(await task.usual_seconds())


async def output_files(outcome: WaitResult, wait_options: WaitOptions) -> None:
    """Save the files, all that can be; print paths or links, then outputs that are no files; raise what went wrong.

    Nothing is printed before all files are saved: stdout may be closed, and the files are paid for.
    """
    output, files, problems = wait_options.output, outcome.result.files, list[str]()
    lines = [str(file.href) for file in files]
    if output:
        paths, problems = await output.save(files)
        lines = [str(path) for path in paths]
    if wait_options.as_json:
        terminal.print_json(outcome.result.task)
    else:
        for line in lines:
            terminal.print_data(line)
        for each in outcome.result.outputs:
            terminal.print_json(each)
    for file in files:
        if file.warning:
            terminal.print_message(f"{file.name}: {file.warning}")
    if output and problems:
        task = outcome.result.task
        hint = f"Download the files of task {task['id']} again with:\n{output.again(task['id'])}"
        unsaved = errors.ResultFailed("\n".join(problems), task=task, hint=hint)
        if outcome.error is None:
            raise unsaved
        terminal.print_message(terminal.format_error(unsaved))
    if outcome.error:
        raise outcome.error

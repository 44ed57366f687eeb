"""The command `kling`. Data to stdout, talk to stderr; an error is one message and what to do, no traceback."""

import asyncio
import logging
import shlex
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import click
from anyio import to_thread

from kling_callback import errors
from kling_callback.cli import options, terminal
from kling_callback.http import create_client
from kling_callback.jobs.body import chosen_id
from kling_callback.jobs.catalog import JOBS, Job
from kling_callback.kling import AsyncKling
from kling_callback.listen import listener
from kling_callback.listen.cursor import Cursor
from kling_callback.listen.exec import ExecHandler
from kling_callback.listen.forward import ForwardHandler
from kling_callback.protocol.events import Event
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.webhooks import new_secret
from kling_callback.settings import ClientSettings, ListenSettings, ReceiverAccessSettings
from kling_callback.tasks import AsyncResult, AsyncTask, OnEvent

T = TypeVar("T")
Begin = Callable[[AsyncKling], Awaitable[AsyncTask]]
Create = Callable[[AsyncKling, str], Awaitable[AsyncTask]]

FAILED, USAGE_ERROR, TIMED_OUT, INTERRUPTED = 1, 2, 3, 130

EPILOG = "Settings come from the environment or from .env; each begins with KLING_."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EPILOG)
@click.version_option(version("kling-callback"), prog_name="kling")
def kling() -> None:
    """Make images and videos with Kling. You are called back; nothing polls."""


def main(arguments: list[str] | None = None) -> None:
    """The program. Ends by SystemExit: 0 success, 1 failed, 2 wrong usage, 3 timed out, 130 Ctrl-C."""
    terminal.use_utf8()
    # What it would log is said here in other words.
    logging.getLogger("client").addHandler(logging.NullHandler())
    try:
        sys.exit(kling.main(arguments, prog_name="kling", standalone_mode=False))
    except Exception as error:
        sys.exit(report_error(error))


def report_error(error: Exception) -> int:
    """Say what went wrong and what to do; the exit code for it."""
    match error:
        case click.ClickException():
            error.show()
            return error.exit_code
        case click.Abort():
            return INTERRUPTED
        case errors.KlingError():
            terminal.print_message(_format(error))
            return _exit_code(error)
        case OSError():
            terminal.print_message(f"{error.filename or 'A file'} cannot be written: {error.strerror or error}.")
            return FAILED
        case _:
            raise error


def _format(error: errors.KlingError) -> str:
    if isinstance(error, errors.SettingsError):
        return "\n".join(["The settings are not right:", *error.problems])
    about = f" (request {error.request_id})" if error.request_id else ""
    return f"{error.message}{about}{chr(10) + error.hint if error.hint else ''}"


def _exit_code(error: errors.KlingError) -> int:
    if isinstance(error, errors.SettingsError | errors.ParameterError):
        return USAGE_ERROR
    return TIMED_OUT if isinstance(error, errors.WaitTimeout) else FAILED


def with_kling(
    settings: type[ReceiverAccessSettings], call: Callable[[AsyncKling], Awaitable[T]], *, task_id: str = ""
) -> T:
    """What `call` returns; Ctrl-C says how to go on with the task."""

    kling = AsyncKling(settings=settings.load())
    for doubt in settings.unknown_variables():
        terminal.print_message(doubt)

    async def opened() -> T:
        async with kling:
            return await call(kling)

    try:
        return asyncio.run(opened())
    except KeyboardInterrupt:
        if settings is ClientSettings and not kling.receiver_reached:
            terminal.print_message("Interrupted. The receiver had not answered yet: nothing was sent to Kling.")
        elif task_id:
            terminal.print_message(
                f"Interrupted. What Kling has taken goes on; wait for it with:\nkling wait {task_id}"
            )
        raise


def run_task(begin: Begin, settings: type[ReceiverAccessSettings], task_id: str, given: dict[str, Any]) -> None:
    """Begin with a task, wait for it unless told otherwise, hand over what came of it."""

    async def call(kling: AsyncKling) -> None:
        try:
            with terminal.live_progress(task_id) as heard:
                task = await begin(kling)
                warn_about_create(task)
                ended = None if given.get("no_wait") else await wait(task, given["timeout"], heard)
        except errors.WaitTimeout as late:
            if given["as_json"]:
                terminal.print_json(late.task)
            raise
        if ended is None:
            terminal.print_json(task.data) if given["as_json"] else terminal.print_data(task.id)
        else:
            await output_files(ended, **given)

    with_kling(settings, call, task_id=task_id)


def warn_about_create(task: AsyncTask) -> None:
    """Say what is unusual about a create."""
    if task.unreported:
        terminal.print_message(task.unreported)
    if task.outcome == "unknown" and task.family:
        terminal.print_message(
            f"Nobody knows yet whether Kling took task {task.id}. It is not sent again; a callback will tell."
        )


@dataclass(frozen=True)
class WaitResult:
    """How a wait ended: what there is, and what is wrong with it."""

    result: AsyncResult
    error: errors.KlingError | None = None


async def wait(task: AsyncTask, timeout: float | None, on_event: OnEvent) -> WaitResult:
    """The result; of a task with trouble what there is of it, for it was paid for."""
    try:
        return WaitResult(await task.wait(timeout, on_event=on_event))
    except (errors.TaskFailed, errors.ResultFailed) as error:
        return WaitResult(task.stored(), error)


async def output_files(ended: WaitResult, output: Path | None, as_json: bool, **_: Any) -> None:
    """The files into `output`, or a link to each; then the trouble, if there was any."""
    if as_json:
        terminal.print_json(ended.result.task)
    if output:
        await to_thread.run_sync(partial(output.mkdir, parents=True, exist_ok=True))
    for file in ended.result.files:
        line = await file.save(output / file.name) if output else file.href
        if not as_json:
            terminal.print_data(str(line))
    if ended.error:
        raise ended.error


def create_and_run(create: Create, family: str, body: Any, given: dict[str, Any]) -> None:
    """Create a task. Its id is made here, so that Ctrl-C can name it at any moment."""
    task_id = chosen_id(family, body, given["external_task_id"]) or new_id()
    run_task(lambda kling: create(kling, task_id), ClientSettings, task_id, given)


def add_job(job: Job) -> None:
    """The command of one typed job."""
    names = [parameter.name for parameter in job.parameters]
    parameters = [*options.job_parameters(job), options.SET_OPTION, *options.CREATE_OPTIONS]

    @options.command(kling, job.name.replace("_", "-"), parameters, job.summary)
    def typed(**given: Any) -> None:
        values = {name: given[name] for name in names} | dict(given["more"])
        create = partial(AsyncKling.run, job=job, values=values, tags=given["tags"], hook=given["hook"])
        create_and_run(lambda it, task_id: create(it, external_task_id=task_id), job.family, values, given)


for each in JOBS:
    add_job(each)


@options.command(kling, "create", options.ANY_JOB + options.CREATE_OPTIONS, "Make any other job.")
def create_any(family: str, body: Any, **given: Any) -> None:
    create = partial(AsyncKling.create, family=family, body=body, tags=given["tags"], hook=given["hook"])
    create_and_run(lambda it, task_id: create(it, external_task_id=task_id), family, body, given)


@options.command(kling, "wait", [options.ID, *options.WAIT_OPTIONS], "Wait for a task, then hand over its files.")
def wait_for(**given: Any) -> None:
    async def begin(kling: AsyncKling) -> AsyncTask:
        return kling.attach(given["task_id"])

    run_task(begin, ReceiverAccessSettings, given["task_id"], given)


@options.command(kling, "show", [options.ID, options.AS_JSON], "Print all that is known of a task, as JSON.")
def show(task_id: str, as_json: bool) -> None:
    task = with_kling(ReceiverAccessSettings, lambda kling: kling.task(task_id))
    terminal.print_json(task.data, nicely=not as_json)


@options.command(kling, "list", options.LIST_OPTIONS, "List tasks, newest first.")
def list_tasks(as_json: bool, **filters: Any) -> None:
    tasks = with_kling(ReceiverAccessSettings, lambda kling: kling.tasks(**filters))
    if not as_json:
        return terminal.print_tasks(tasks)
    for task in tasks:
        terminal.print_json(task.data)
    return None


@options.command(kling, "listen", options.LISTEN_OPTIONS, options.LISTEN_HELP)
def listen(forward: str | None, command: tuple[str, ...] | None, as_json: bool, **given: Any) -> None:
    if forward and command:
        raise click.UsageError("--forward and --exec do not go together. Run kling listen twice.")
    settings = ListenSettings.load()
    to = forward or (shlex.join(command) if command else "")
    wanted = listener.EventFilter(given["types"], given["tag"])
    cursor = Cursor(given["state"].expanduser(), settings.receiver_base, to, only=wanted.key)

    def told(event: Event, handled: listener.HandlerResult) -> None:
        terminal.print_json(event.document) if as_json else terminal.print_event(event, handled.label)
        if handled.problem:
            terminal.print_message(
                f"Event {event.id}: {handled.problem}. The next follows; to have it again: --from {event.id}"
            )

    async def call(kling: AsyncKling) -> None:
        await listener.position_cursor(kling, cursor, given["first"], terminal.print_message)
        terminal.print_message(f"Listening to {settings.receiver_base}, behind event {cursor.after}. Ctrl-C ends it.")
        async with AsyncExitStack() as stack:
            handle: listener.Handle = ExecHandler(command) if command else listener.print_only
            if forward:
                http = await stack.enter_async_context(create_client(forward))
                handle = ForwardHandler(http, forward, hook_secret(settings, cursor), report=terminal.print_message)
            await listener.listen(kling, cursor, handle, event_filter=wanted, report=told)

    with cursor.lock(), terminal.print_problems():
        with_kling(ReceiverAccessSettings, call)


def hook_secret(settings: ListenSettings, cursor: Cursor) -> str:
    """What signs the events that are forwarded."""
    if settings.hook_secret:
        return settings.hook_secret
    secret = cursor.secret(new_secret)
    terminal.print_message(f"What is forwarded is signed with the secret {secret}")
    return secret

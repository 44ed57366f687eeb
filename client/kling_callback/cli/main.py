"""The command `kling`. Data goes to stdout, messages to stderr; an error is a message and its remedy, no traceback."""

import shlex
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from anyio import to_thread

from kling_callback import errors
from kling_callback.api.http import create_client
from kling_callback.cli import options, terminal
from kling_callback.cli.call import call
from kling_callback.cli.run import with_kling
from kling_callback.cli.tasks import list_tasks, show
from kling_callback.jobs.body import chosen_id, model_of
from kling_callback.jobs.catalog import JOBS
from kling_callback.jobs.job import Job
from kling_callback.jobs.prices import estimate
from kling_callback.jobs.untyped import prepare
from kling_callback.kling import AsyncKling
from kling_callback.protocol.events import TYPES, Event
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.webhooks import new_secret
from kling_callback.settings import TO_CREATE, TO_WAIT, ClientSettings
from kling_callback.tasks import AsyncResult, AsyncTask, OnEvent

if TYPE_CHECKING:
    from kling_callback.listen.cursor import Cursor

T = TypeVar("T")
Begin = Callable[[AsyncKling], Awaitable[AsyncTask]]
Create = Callable[..., Awaitable[AsyncTask]]
"""Called with the client and `external_task_id=`."""

FAILED, USAGE_ERROR, TIMED_OUT, INTERRUPTED = 1, 2, 3, 130

EPILOG = "Settings are environment variables whose names begin with KLING_, or lines of a .env file."


@click.group(
    name="kling", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EPILOG
)
@click.version_option(version("kling-callback"), prog_name="kling")
def kling() -> None:
    """Create images and videos with Kling. Results arrive by callback, without polling."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command. Raises SystemExit: 0 success, 1 failed, 2 wrong usage, 3 wait timed out, 130 Ctrl-C."""
    terminal.use_utf8()
    with terminal.quiet_log():
        try:
            sys.exit(kling.main(arguments, prog_name="kling", standalone_mode=False))
        except Exception as error:
            sys.exit(report_error(error))


def report_error(error: Exception) -> int:
    """Print what is wrong and what to do. Returns the exit code; raises errors that are bugs again."""
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
        return "\n".join(["The settings are invalid:", *error.problems])
    request = f" (request {error.request_id})" if error.request_id else ""
    return f"{error.message}{request}{chr(10) + error.hint if error.hint else ''}"


def _exit_code(error: errors.KlingError) -> int:
    if isinstance(error, errors.SettingsError | errors.ParameterError):
        return USAGE_ERROR
    return TIMED_OUT if isinstance(error, errors.WaitTimeout) else FAILED


@dataclass(frozen=True, kw_only=True)
class WaitOptions:
    """The options of `options.wait_options`. `timeout`: seconds; `no_wait`: print the task without waiting."""

    output: Path | None
    timeout: float | None
    as_json: bool
    no_wait: bool = False


def run_task(begin: Begin, require: tuple[str, ...], task_id: str, wait_options: WaitOptions) -> None:
    """Create or attach to a task, wait for it unless `no_wait`, and output its files."""

    async def call(kling: AsyncKling) -> None:
        try:
            with terminal.live_progress(task_id) as update:
                task = await begin(kling)
                warn_about_create(task)
                outcome = None if wait_options.no_wait else await wait(task, wait_options.timeout, update)
        except errors.WaitTimeout as timeout:
            if wait_options.as_json:
                terminal.print_json(timeout.task)
            raise
        if outcome is None:
            terminal.print_json(task.data) if wait_options.as_json else terminal.print_data(task.id)
        else:
            await output_files(outcome, wait_options)

    with_kling(require, call, task_id=task_id)


def warn_about_create(task: AsyncTask) -> None:
    """Print a warning if the receiver missed the create's outcome, or the outcome is unknown."""
    if task.unreported:
        terminal.print_message(task.unreported)
    if task.outcome == "unknown" and task.family and not task.done:
        terminal.print_message(
            f"It is not known yet whether Kling took task {task.id}. It is not sent again; a callback will show. "
            f"{task.status_msg}".rstrip()
        )


@dataclass(frozen=True)
class WaitResult:
    """The end of a wait: the stored files, and the error if the task or a file failed."""

    result: AsyncResult
    error: errors.KlingError | None = None


async def wait(task: AsyncTask, timeout: float | None, on_event: OnEvent) -> WaitResult:
    """Wait for a task. A failed one has its stored files in the result too, for they were paid for."""
    try:
        return WaitResult(await task.wait(timeout, on_event=on_event))
    except (errors.TaskFailed, errors.ResultFailed) as error:
        return WaitResult(task.stored(), error)


async def output_files(outcome: WaitResult, wait_options: WaitOptions) -> None:
    """Save the files into the output folder, or print a link to each, and print the outputs that are no files.

    Raises the outcome's error, if any.
    """
    output = wait_options.output
    if wait_options.as_json:
        terminal.print_json(outcome.result.task)
    if output:
        await to_thread.run_sync(partial(output.mkdir, parents=True, exist_ok=True))
    for file in outcome.result.files:
        line = await file.save(output / file.name) if output else file.href
        if not wait_options.as_json:
            terminal.print_data(str(line))
        if file.warning:
            terminal.print_message(f"{file.name}: {file.warning}")
    if not wait_options.as_json:
        for each in outcome.result.outputs:
            terminal.print_json(each)
    if outcome.error:
        raise outcome.error


def create_and_run(create: Create, family: str, body: Any, external_task_id: str | None, **waiting: Any) -> None:
    """Create a task and run it. Its id is generated here, so that Ctrl-C can name it at any moment."""
    task_id = chosen_id(family, body, external_task_id) or new_id()
    run_task(lambda kling: create(kling, external_task_id=task_id), TO_CREATE, task_id, WaitOptions(**waiting))


def print_estimate(family: str, body: dict[str, Any], *, as_json: bool) -> None:
    """Print the expected cost of a create that is not sent. Raises KlingError if no price is known."""
    cost = estimate(family, body)
    if cost is None:
        raise errors.KlingError(
            f"No list price is known for {model_of(family, body) or 'a job without model_name'} at {family}.",
            hint="Kling's console has the prices; `kling show ID` prints the cost of a finished task.",
        )
    terminal.print_json({"estimate": asdict(cost)}) if as_json else terminal.print_data(str(cost))


def add_job(job: Job) -> None:
    """Add the command of a typed job; its parameters come from the table of jobs."""

    @kling.command(job.name.replace("_", "-"), params=options.job_parameters(job), help=job.summary)
    @options.set_option
    @options.create_options
    def run_job(
        more: tuple[tuple[str, Any], ...],
        tags: tuple[str, ...],
        hook: str | None,
        external_task_id: str | None,
        estimate_only: bool,
        **values: Any,
    ) -> None:
        waiting = {field.name: values.pop(field.name) for field in fields(WaitOptions)}
        values |= dict(more)
        if estimate_only:
            return print_estimate(*job.create(values), as_json=waiting["as_json"])
        create = partial(AsyncKling.run, job=job, values=values, tags=tags, hook=hook)
        create_and_run(create, "", values, external_task_id, **waiting)
        return None


for each in JOBS:
    add_job(each)


@kling.command("create")
@click.argument("family", metavar="FAMILY")
@click.option("--body", type=options.Json(), required=True, help="Kling's parameters as JSON; @FILE reads them.")
@options.create_options
def create_any(
    family: str,
    body: Any,
    tags: tuple[str, ...],
    hook: str | None,
    external_task_id: str | None,
    estimate_only: bool,
    **waiting: Any,
) -> None:
    """Create a task of any family.

    FAMILY is a path under /v1, such as videos/effects, or a new-standard path with a leading slash, such as
    /text-to-video/kling-3.0-turbo.
    """
    if estimate_only:
        return print_estimate(family, prepare(family, body), as_json=waiting["as_json"])
    create = partial(AsyncKling.create, family=family, body=body, tags=tags, hook=hook)
    create_and_run(create, family, body, external_task_id, **waiting)
    return None


@kling.command("wait")
@options.id_argument
@options.wait_options
def wait_for(task_id: str, **waiting: Any) -> None:
    """Wait for a task, then save its files or print their links, and print its other outputs."""

    async def begin(kling: AsyncKling) -> AsyncTask:
        return kling.attach(task_id)

    run_task(begin, TO_WAIT, task_id, WaitOptions(**waiting))


for command in (call, show, list_tasks):
    kling.add_command(command)


@kling.command()
@click.option("--forward", type=options.UrlParam(), help="POST each event to this URL, signed as for a hook.")
@click.option(
    "--exec",
    "command",
    type=options.CommandLine(),
    help="Run this command for each event, without a shell: the event on stdin, KLING_TASK_ID, KLING_EVENT and "
    "KLING_FILES (one link per line) in the environment.",
)
@click.option(
    "--event",
    "types",
    type=click.Choice(TYPES),
    metavar="TYPE",
    multiple=True,
    help="Only events of this type; repeatable.",
)
@click.option("--tag", help="Only events of tasks with this tag.")
@click.option(
    "--from",
    "first",
    metavar="ID|latest",
    type=options.EventPosition(),
    help="Begin with this event (1: all events), or with the next one (latest), instead of where the same command "
    "stopped.",
)
@click.option(
    "--state",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="XDG_STATE_HOME",
    default=Path("~/.local/state"),
    show_default="$XDG_STATE_HOME, or ~/.local/state",
    help="The position is stored in this folder, under kling-callback.",
)
@options.json_option
def listen(
    forward: str | None,
    command: tuple[str, ...] | None,
    types: tuple[str, ...],
    tag: str | None,
    first: int | None,
    state: Path,
    as_json: bool,
) -> None:
    """Print events live, or pass them to a local URL or command.

    Each event arrives at least once, in order, one at a time; events that happen while no listener runs arrive when it
    runs again. The first run begins with the next event. An application that cannot be reached is waited for; any
    response, or 15 seconds without one, completes the event. A response other than 2xx and an exit code other than 0
    are reported, and the next event follows.

    KLING_HOOK_SECRET signs forwarded events; without it, a secret is generated, stored, and printed at each start.
    """
    # Imported here: file locks are missing on Windows, where the other commands run.
    from kling_callback.listen import listener
    from kling_callback.listen.cursor import Cursor
    from kling_callback.listen.exec import ExecHandler
    from kling_callback.listen.forward import ForwardHandler

    if forward and command:
        raise click.UsageError("--forward and --exec cannot be combined. Run kling listen twice.")
    settings = ClientSettings.load(require=TO_WAIT)
    target = forward or (shlex.join(command) if command else "")
    event_filter = listener.EventFilter(types, tag)
    cursor = Cursor(state.expanduser(), settings.receiver_base, target, only=event_filter.key)

    def report(event: Event, handled: listener.HandlerResult) -> None:
        terminal.print_json(event.document) if as_json else terminal.print_event(event, handled.label)
        if handled.problem:
            terminal.print_message(
                f"Event {event.id}: {handled.problem}. The next event follows. To repeat this one: --from {event.id}"
            )

    async def call(kling: AsyncKling) -> None:
        await listener.position_cursor(kling, cursor, first, terminal.print_message)
        terminal.print_message(
            f"Listening to {settings.receiver_base}, after event {cursor.after}. Stop it with Ctrl-C."
        )
        async with AsyncExitStack() as stack:
            handle: listener.Handle = ExecHandler(command) if command else listener.print_only
            if forward:
                http = await stack.enter_async_context(create_client(forward))
                handle = ForwardHandler(http, forward, hook_secret(settings, cursor), report=terminal.print_message)
            await listener.listen(kling, cursor, handle, event_filter=event_filter, report=report)

    with cursor.lock(), terminal.print_problems():
        with_kling(TO_WAIT, call)


def hook_secret(settings: ClientSettings, cursor: "Cursor") -> str:
    """The secret that signs forwarded events: the setting, or one generated for this cursor and printed."""
    if settings.hook_secret:
        return settings.hook_secret
    secret = cursor.secret(new_secret)
    terminal.print_message(f"Forwarded events are signed with the secret {secret}")
    return secret

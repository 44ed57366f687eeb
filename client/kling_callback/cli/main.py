"""The command `kling`. Data goes to stdout, messages to stderr; an error is a message and its remedy, no traceback."""

import shlex
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, fields
from errno import EPIPE
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kling_callback import errors
from kling_callback.api.http import create_client
from kling_callback.cli import options, terminal
from kling_callback.cli.call import call
from kling_callback.cli.output import Output
from kling_callback.cli.run import with_kling
from kling_callback.cli.tasks import list_tasks, show
from kling_callback.creation import check_call, check_key
from kling_callback.jobs.body import model_of
from kling_callback.jobs.catalog import JOBS
from kling_callback.jobs.job import Job
from kling_callback.jobs.prices import estimate
from kling_callback.jobs.untyped import prepare
from kling_callback.kling import AsyncKling
from kling_callback.protocol.events import TYPES, Event
from kling_callback.protocol.webhooks import new_secret
from kling_callback.settings import TO_CREATE, TO_WAIT, ClientSettings
from kling_callback.tasks import AsyncResult, AsyncTask, OnEvent

if TYPE_CHECKING:
    from kling_callback.listen.cursor import Cursor

T = TypeVar("T")
Begin = Callable[[AsyncKling], Awaitable[AsyncTask]]

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
            try:
                error.show()
            except OSError:
                terminal.discard_unwritten()
            return error.exit_code
        case click.Abort():
            return INTERRUPTED
        case errors.KlingError():
            terminal.print_message(_format(error))
            return _exit_code(error)
        case OSError() | UnicodeEncodeError():
            return terminal.report_bad_stream(error)
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

    output: Output | None
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
        terminal.print_message(_format(unsaved))
    if outcome.error:
        raise outcome.error


def create_and_run(
    family: str,
    make: Callable[[], tuple[str, dict[str, Any]]],
    given: Any,
    *,
    tags: tuple[str, ...],
    hook: str | None,
    external_task_id: str | None,
    estimate_only: bool,
    **waiting: Any,
) -> None:
    """Check everything, report all problems at once, then create a task and run it, or print its price.

    `make` returns the family and the body to send; until then, `family` and `given` stand for them. The id is
    generated here, so that Ctrl-C can name it at any moment.
    """
    problems, wait_options = errors.ProblemCollector(), WaitOptions(**waiting)
    body, task_id = given, ""
    with problems:
        family, body = make()
    if estimate_only:
        problems.raise_all()
        return print_estimate(family, body, as_json=wait_options.as_json)
    with problems:
        task_id, tags = check_call(family, body, tags=tags, hook=hook, external_task_id=external_task_id)
    with problems:
        if wait_options.output:
            wait_options.output.check()
    with problems:
        check_key(ClientSettings.load(require=TO_CREATE), family)
    problems.raise_all()

    async def begin(kling: AsyncKling) -> AsyncTask:
        return await kling.create(family, body, tags=tags, hook=hook, external_task_id=task_id)

    return run_task(begin, TO_CREATE, task_id, wait_options)


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
        create_and_run(
            job.endpoints[0].family,
            lambda: job.create(values),
            values,
            tags=tags,
            hook=hook,
            external_task_id=external_task_id,
            estimate_only=estimate_only,
            **waiting,
        )


for each in JOBS:
    add_job(each)


@kling.command("create")
@click.argument("family", metavar="FAMILY")
@click.option(
    "--body",
    type=options.Json(),
    required=True,
    help="Kling's parameters as JSON; @FILE reads them from a file, @- from stdin.",
)
@options.create_options
def create_any(family: str, body: Any, **others: Any) -> None:
    """Create a task of any family.

    FAMILY is a path under /v1, such as videos/effects, or a new-standard path with a leading slash, such as
    /text-to-video/kling-3.0-turbo.
    """
    create_and_run(family, lambda: (family, prepare(family, body)), body, **others)


@kling.command("wait")
@options.id_argument
@options.wait_options
def wait_for(task_id: str, **waiting: Any) -> None:
    """Wait for a task, then save its files or print their links, and print its other outputs."""

    async def begin(kling: AsyncKling) -> AsyncTask:
        return kling.attach(task_id)

    problems, wait_options = errors.ProblemCollector(), WaitOptions(**waiting)
    with problems:
        if wait_options.output:
            wait_options.output.check()
    with problems:
        ClientSettings.load(require=TO_WAIT)
    problems.raise_all()
    run_task(begin, TO_WAIT, task_id, wait_options)


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
    try:
        folder = state.expanduser()
    except RuntimeError:
        raise click.UsageError("There is no home folder. Name a folder with --state.") from None
    cursor = Cursor(folder, settings.receiver_base, target, only=event_filter.key)

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
                http = await stack.enter_async_context(create_client())
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

"""The command `kling listen`."""

import shlex
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kling_callback.api.http import create_client
from kling_callback.cli import options, param_types, terminal, usage
from kling_callback.cli.run import with_kling
from kling_callback.environment import EnvironmentProblem, proxy_for
from kling_callback.errors import KlingError, SettingsError
from kling_callback.kling import AsyncKling
from kling_callback.protocol.events import TYPES, Event
from kling_callback.protocol.webhooks import new_secret
from kling_callback.settings import TO_WAIT, ClientSettings

if TYPE_CHECKING:
    from kling_callback.listen.cursor import Cursor


@click.command(
    cls=usage.Command,
    examples=[
        "kling listen --forward http://localhost:3000/hook",
        "kling listen --exec 'python3 publish.py' --event task.done --tag spring",
    ],
)
@usage.option("--forward", type=param_types.UrlParam(), help="POST each event to this URL, signed as for a hook.")
@usage.option(
    "--exec",
    "command",
    type=param_types.CommandLine(),
    help="Run this command for each event, without a shell: the event on stdin, KLING_TASK_ID, KLING_EVENT and "
    "KLING_FILES (one link per line) in the environment.",
)
@usage.option(
    "--event",
    "types",
    type=click.Choice(TYPES),
    metavar="TYPE",
    multiple=True,
    help="Only events of this type; repeatable.",
)
@usage.option("--tag", help="Only events of tasks with this tag.")
@usage.option(
    "--from",
    "first",
    metavar="ID|latest",
    type=param_types.EventPosition(),
    help="Begin with this event (1: all events), or with the next one (latest), instead of where the same command "
    "stopped.",
)
@usage.option(
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
    state: Path | None,
    as_json: bool,
) -> None:
    """Print events live, or pass them to a local URL or command.

    Each event arrives at least once, in order, one at a time; events that happen while no listener runs arrive when it
    runs again. The first run begins with the next event. An application that cannot be reached is waited for; any
    response, or 15 seconds without one, completes the event. A response other than 2xx and an exit code other than 0
    are reported, and the next event follows.

    KLING_HOOK_SECRET signs forwarded events; without it, a secret is generated, stored, and printed at each start.
    """
    # Imported here: the other commands start faster without.
    from kling_callback.listen import listener
    from kling_callback.listen.cursor import Cursor
    from kling_callback.listen.exec import ExecHandler
    from kling_callback.listen.forward import ForwardHandler

    problems, folder = usage.problems(), Path()
    if forward and command:
        problems.refuse("--forward and --exec cannot be combined. Run kling listen twice.")
    try:
        folder = (state or folder).expanduser()
    except RuntimeError:
        problems.refuse("There is no home folder. Name a folder with --state.")
    with problems:
        settings = ClientSettings.load(require=TO_WAIT)
    if forward:
        try:
            proxy_for(forward)
        except EnvironmentProblem as problem:
            with problems:
                raise SettingsError([str(problem)]) from None
    problems.raise_all()
    target = forward or (shlex.join(command) if command else "")
    event_filter = listener.EventFilter(types, tag)
    with state_errors(folder):
        cursor = Cursor(folder, settings.receiver_base, target, only=event_filter.key)

    def report(event: Event, handled: listener.HandlerResult) -> None:
        terminal.print_json(event.document) if as_json else terminal.print_event(event, handled.label)
        if handled.problem:
            terminal.print_message(
                f"Event {event.id}: {handled.problem}. The next event follows. To repeat this one: --from {event.id}"
            )

    async def call(kling: AsyncKling) -> None:
        await listener.position_cursor(kling, cursor, first, terminal.print_message)
        last = cursor.after.event_id if cursor.after else 0
        terminal.print_message(f"Listening to {settings.receiver_base}, after event {last}. Stop it with Ctrl-C.")
        async with AsyncExitStack() as stack:
            handle: listener.Handle = ExecHandler(command) if command else listener.print_only
            if forward:
                http = await stack.enter_async_context(create_client())
                handle = ForwardHandler(http, forward, hook_secret(settings, cursor), report=terminal.print_message)
            await listener.listen(
                kling, cursor, handle, event_filter=event_filter, report=report, warn=terminal.print_message
            )

    with state_errors(folder), cursor.lock(), terminal.print_problems():
        with_kling(TO_WAIT, call)


@contextmanager
def state_errors(folder: Path) -> Iterator[None]:
    """Name the option in an OSError about a file in the folder of all state. Raises KlingError."""
    try:
        yield
    except OSError as error:
        if not error.filename or not Path(error.filename).is_relative_to(folder):
            raise
        raise KlingError(
            f"{error.filename} cannot be used: {error.strerror}.",
            code="bad_state",
            hint="It is of the listener's position. Fix its folder, or name another one with --state.",
        ) from error


def hook_secret(settings: ClientSettings, cursor: "Cursor") -> str:
    """The secret that signs forwarded events: the setting, or one generated for this cursor and printed."""
    if settings.hook_secret:
        return settings.hook_secret
    secret = cursor.secret(new_secret)
    terminal.print_message(f"Forwarded events are signed with the secret {secret}")
    return secret

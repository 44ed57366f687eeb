"""Command-line options made from the table of jobs, so that both always say the same."""

import json
import math
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from kling_callback.jobs.catalog import Job, Parameter
from kling_callback.jobs.parameters import CameraControl, Choice, Integer, Number, Seconds
from kling_callback.protocol.events import TYPES
from kling_callback.protocol.urls import normalize_url

MAX_FILE_BYTES = 32_000_000
"""Bytes of a `--body @FILE`."""


class Json(click.ParamType[Any]):
    """JSON on the command line, or in a file as @NAME."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            text = _read(value[1:]) if value.startswith("@") else value
            return json.loads(text, parse_constant=_refuse)
        except OSError as error:
            self.fail(f"{value[1:]} cannot be read: {error.strerror}.", param, ctx)
        except (ValueError, RecursionError) as error:
            self.fail(f"this is no JSON: {error}.", param, ctx)


class JsonAssignment(Json):
    """NAME=JSON; what is no JSON is taken as text."""

    name = "NAME=JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        name, equals, text = value.partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is not NAME=JSON.", param, ctx)
        try:
            return name, json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return name, text


class Timeout(click.ParamType[float]):
    """Seconds, more than none."""

    name = "SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not seconds > 0:
            self.fail(f"{value!r} is no number of seconds.", param, ctx)
        return seconds


class UrlParam(click.ParamType[str]):
    """Where to POST: http or https."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path, _, query = value.partition("?")
        try:
            normalize_url(path)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)
        if not query.isprintable():
            self.fail(f"{value!r} holds letters that no address has.", param, ctx)
        return str(value)


class CommandLine(click.ParamType[tuple[str, ...]]):
    """A command with its arguments, as a shell would split them; no shell runs it."""

    name = "CMD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        try:
            words = tuple(shlex.split(value))
        except ValueError as error:
            self.fail(f"it cannot be split: {error}.", param, ctx)
        if not words or shutil.which(words[0]) is None:
            self.fail(f"there is no command {words[0] if words else ''!r} that may be run here.", param, ctx)
        return words


class EventPosition(click.ParamType[int]):
    """An event's id, or `latest`, which is 0."""

    name = "ID|latest"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        said = str(value)
        if said == "latest":
            return 0
        if not (said.isascii() and said.isdigit() and len(said) < 19 and int(said)):
            self.fail(f"{value!r} is neither an event's id, from 1, nor `latest`.", param, ctx)
        return int(said)


def job_parameters(job: Job) -> list[click.Parameter]:
    """The argument and the options of a typed job, in the order of its table."""
    return [_parameter(parameter) for parameter in job.parameters]


AS_JSON = click.Option(["--json", "as_json"], is_flag=True, help="Print JSON, one object a line.")

LISTEN_HELP = """Print what happens to tasks as it happens, or hand it to an application or command here.

Each event comes at least once, in order, one after the other; what comes while this is not running
comes when it runs again. The first time begins with what comes next. An application that cannot be
reached is waited for; any answer of it ends an event, and so do 15 seconds without one. Of these,
an answer other than 2xx, and an exit code other than 0, you are told, and the next event follows.

KLING_HOOK_SECRET signs what is forwarded; without it a secret is made, kept, and told at each start.
"""

LISTEN_OPTIONS: list[click.Parameter] = [
    click.Option(["--forward"], type=UrlParam(), help="POST each event there, signed as a hook's."),
    click.Option(
        ["--exec", "command"],
        type=CommandLine(),
        help="Run this for each event, without a shell: the event on stdin, KLING_TASK_ID, KLING_EVENT and "
        "KLING_FILES (a link a line) in the environment.",
    ),
    click.Option(
        ["--event", "types"],
        type=click.Choice(TYPES),
        metavar="TYPE",
        multiple=True,
        help="Only these; repeatable.",
    ),
    click.Option(["--tag"], help="Only of tasks with this tag."),
    click.Option(
        ["--from", "first"],
        type=EventPosition(),
        help="Begin with this event (1: with all that ever happened), or with what comes next (latest), "
        "instead of where the same command left off.",
    ),
    click.Option(
        ["--state"],
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="XDG_STATE_HOME",
        default=Path("~/.local/state"),
        show_default="$XDG_STATE_HOME, or ~/.local/state",
        help="How far it came is kept there, in kling-callback.",
    ),
    click.Option(["--json", "as_json"], is_flag=True, help="Print each event as JSON, one a line."),
]

ID = click.Argument(["task_id"], metavar="ID")

WAIT_OPTIONS: list[click.Parameter] = [
    click.Option(
        ["--output"],
        metavar="DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help="Write the files here, as ID-N.EXT. Without it a link to each is printed.",
    ),
    click.Option(["--timeout"], type=Timeout(), help="Wait at most so long after the create; the task goes on."),
    AS_JSON,
]

CREATE_OPTIONS: list[click.Parameter] = [
    click.Option(
        ["--external-task-id"],
        metavar="ID",
        help="The task's id. The same one again continues that task instead of creating another.",
    ),
    click.Option(["--tag", "tags"], metavar="TAG", multiple=True, help="A word to find it by; repeatable."),
    click.Option(["--hook"], metavar="URL", help="The receiver POSTs what happens to this task there, signed."),
    click.Option(["--no-wait"], is_flag=True, help="Print the task's id and leave it at that."),
    *WAIT_OPTIONS,
]

SET_OPTION = click.Option(
    ["--set", "more"],
    type=JsonAssignment(),
    multiple=True,
    help="A parameter that only Kling knows; repeatable.",
)

ANY_JOB: list[click.Parameter] = [
    click.Argument(["family"], metavar="FAMILY"),
    click.Option(
        ["--body"], type=Json(), required=True, help="What Kling wants for this job; @FILE reads it from there."
    ),
]

LIST_OPTIONS: list[click.Parameter] = [
    click.Option(["--status"], type=click.Choice(["created", "submitted", "processing", "succeed", "failed"])),
    click.Option(["--family"], help="Such as videos/text2video."),
    click.Option(["--tag"]),
    click.Option(["--limit"], type=click.IntRange(1), default=50, show_default=True),
    AS_JSON,
]


def command(
    group: click.Group, name: str, parameters: Sequence[click.Parameter], summary: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes the function below it a command of `group` with these parameters."""

    def made(function: Callable[..., None]) -> Callable[..., None]:
        group.add_command(click.Command(name, callback=function, params=list(parameters), help=summary))
        return function

    return made


def _parameter(parameter: Parameter) -> click.Parameter:
    if parameter.name == "prompt":
        return click.Argument(["prompt"])
    option = "--" + parameter.name.replace("_", "-")
    kind, metavar = _type(parameter)
    return click.Option(
        [option, parameter.name], type=kind, metavar=metavar, help=parameter.help, required=parameter.required
    )


def _type(parameter: Parameter) -> tuple[click.ParamType[Any], str | None]:
    """How click reads it; the ranges are left to the table, which tells all problems at once."""
    match parameter.kind:
        case Choice(words):
            return click.STRING, "|".join(words)
        case Integer(low, high):
            return click.INT, f"{low}-{high}"
        case Number(low, high):
            return click.FLOAT, f"{low}-{high}"
        case Seconds():
            return click.STRING, "SECONDS"
        case CameraControl():
            return Json(), "JSON"
        case _:
            return click.STRING, "FILE_OR_URL" if parameter.name == "image" else "TEXT"


def _read(name: str) -> str:
    with Path(name).open(encoding="utf-8") as file:
        return file.read(MAX_FILE_BYTES)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not allowed")

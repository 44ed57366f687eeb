"""Command-line parameters: types, shared options as decorators, and the options generated from the table of jobs."""

import json
import math
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from kling_callback.jobs.job import Job, Parameter
from kling_callback.jobs.parameters import (
    CameraControl,
    Choice,
    Flag,
    ImageInput,
    Integer,
    ListOf,
    Number,
    ObjectWith,
    Seconds,
    VideoInput,
)
from kling_callback.protocol.reports import IDENTIFIER
from kling_callback.protocol.statuses import TASK_STATUSES
from kling_callback.protocol.urls import normalize_url

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]

MAX_FILE_CHARS = 32_000_000
"""Characters of a `--body @FILE`: room for two images of 10 MB in base64."""
MAX_EVENT_ID_DIGITS = 18
"""Digits of an event id: a larger number does not fit into the database's 64 bits."""


class Json(click.ParamType[Any]):
    """JSON as an argument, in a file as @NAME, or on stdin as @-."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            text = _read(value[1:]) if value.startswith("@") else value
            return json.loads(text, parse_constant=_reject_constant)
        except OSError as error:
            self.fail(f"{value[1:]} cannot be read: {error.strerror}.", param, ctx)
        except (ValueError, RecursionError) as error:
            self.fail(f"not valid JSON: {error}.", param, ctx)


class JsonOrText(Json):
    """JSON, also in a file as @NAME; a value that is not JSON is text."""

    name = "VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or value.startswith("@"):
            return super().convert(value, param, ctx)
        try:
            return json.loads(value, parse_constant=_reject_constant)
        except (ValueError, RecursionError):
            return value


class JsonAssignment(Json):
    """NAME=JSON; a value that is not JSON is text."""

    name = "NAME=JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        name, equals, text = value.partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is not NAME=JSON.", param, ctx)
        try:
            return name, json.loads(text, parse_constant=_reject_constant)
        except (ValueError, RecursionError):
            return name, text


class Timeout(click.ParamType[float]):
    """Seconds, more than 0."""

    name = "SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not seconds > 0:
            self.fail(f"{value!r} is not a number of seconds above 0.", param, ctx)
        return seconds


class UrlParam(click.ParamType[str]):
    """An http or https URL to POST to."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path, _, query = value.partition("?")
        try:
            normalize_url(path)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)
        if not query.isprintable():
            self.fail(f"{value!r} contains characters that a URL cannot have.", param, ctx)
        return str(value)


class TaskId(click.ParamType[str]):
    """Any id of a task. It is one part of a URL's path."""

    name = "ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not IDENTIFIER.fullmatch(str(value)):
            self.fail(
                f"{value!r} is not a task's id: it must be one part of a path. Use the receiver's id.", param, ctx
            )
        return str(value)


class CommandLine(click.ParamType[tuple[str, ...]]):
    """A command with its arguments, split as a shell would split them; no shell runs it."""

    name = "CMD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        try:
            arguments = tuple(shlex.split(value))
        except ValueError as error:
            self.fail(f"{value!r} cannot be split into arguments: {error}.", param, ctx)
        if not arguments or shutil.which(arguments[0]) is None:
            self.fail(f"{arguments[0] if arguments else ''!r} is not a command that can be run here.", param, ctx)
        return arguments


class EventPosition(click.ParamType[int]):
    """An event's id; `latest` is 0."""

    name = "ID|latest"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text == "latest":
            return 0
        if not (text.isascii() and text.isdigit() and len(text) <= MAX_EVENT_ID_DIGITS and int(text)):
            self.fail(f"{value!r} is not an event's id (from 1), and not `latest`.", param, ctx)
        return int(text)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
id_argument = click.argument("task_id", metavar="ID", type=TaskId())
"""Any id of a task: ours, Kling's, or the caller's at Kling."""
set_option = click.option(
    "--set",
    "more",
    type=JsonAssignment(),
    multiple=True,
    help="A parameter of Kling that has no option here; repeatable.",
)


def wait_options(function: Function) -> Function:
    """Add the options of a command that waits for a task: `output`, `timeout`, `as_json`."""
    return _apply(
        function,
        click.option(
            "--output",
            metavar="DIR",
            type=click.Path(path_type=Path, file_okay=False),
            help="Write the files into this folder, as ID-N.EXT. Without it, print one link per file.",
        ),
        click.option(
            "--timeout", type=Timeout(), help="Wait at most so many seconds after the create; the task continues."
        ),
        json_option,
    )


def create_options(function: Function) -> Function:
    """Add the options of a command that creates a task: id, tags, hook, `no_wait`, and those of `wait_options`."""
    return _apply(
        function,
        click.option(
            "--external-task-id",
            metavar="ID",
            help="The task's id. The same id again continues that task instead of creating another.",
        ),
        click.option("--tag", "tags", metavar="TAG", multiple=True, help="A word to find the task by; repeatable."),
        click.option("--hook", metavar="URL", help="The receiver POSTs the task's events to this URL, signed."),
        click.option("--no-wait", is_flag=True, help="Print the task's id, and do not wait."),
        click.option(
            "--estimate",
            "estimate_only",
            is_flag=True,
            help="Print what it would cost by Kling's list prices, and create nothing.",
        ),
        wait_options,
    )


def list_options(function: Function) -> Function:
    """Add the options of a command that lists tasks: filters, `limit`, `as_json`."""
    return _apply(
        function,
        click.option("--status", type=click.Choice(TASK_STATUSES)),
        click.option("--family", help="Such as videos/text2video."),
        click.option("--model", help="Such as kling-v3."),
        click.option("--tag"),
        click.option("--task-id", metavar="ID", help="Kling's id."),
        click.option("--limit", type=click.IntRange(1), default=50, show_default=True),
        json_option,
    )


def _apply(function: Function, *decorators: Decorator[Function]) -> Function:
    """Apply decorators as if they stood above `function` in this order."""
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def job_parameters(job: Job) -> list[click.Parameter]:
    """The argument and the options of a typed job, in the order of its table."""
    return [_parameter(parameter) for parameter in job.parameters]


def _parameter(parameter: Parameter) -> click.Parameter:
    name, option = parameter.name, "--" + parameter.name.replace("_", "-")
    if name == "prompt":
        return click.Argument(["prompt"], required=False)
    if isinstance(parameter.kind, Flag | ObjectWith):
        return click.Option([f"{option}/--no{option[1:]}", name], default=None, help=parameter.help)
    if isinstance(parameter.kind, ListOf):
        item = JsonOrText()
        return click.Option([option, name], type=item, multiple=True, callback=_flatten, help=parameter.help)
    kind, metavar = _type(parameter)
    return click.Option([option, name], type=kind, metavar=metavar, help=parameter.help)


def _flatten(context: click.Context, parameter: click.Parameter, values: Sequence[Any]) -> list[Any]:
    """The items of a repeatable option: each value is one item, or a JSON list of items."""
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _type(parameter: Parameter) -> tuple[click.ParamType[Any], str | None]:
    """click's type and metavar. Ranges are left to the table of jobs, which reports all problems at once."""
    match parameter.kind:
        case Choice(values):
            return click.STRING, "|".join(values)
        case Integer(low, high):
            return click.INT, f"{low}-{high}"
        case Number(low, high):
            return click.FLOAT, f"{low}-{high}"
        case Seconds():
            return click.STRING, "SECONDS"
        case CameraControl():
            return Json(), "JSON"
        case ImageInput():
            return click.STRING, "FILE_OR_URL"
        case VideoInput():
            return click.STRING, "URL"
        case _:
            return click.STRING, "TEXT"


def _read(name: str) -> str:
    if name == "-":
        return sys.stdin.buffer.read(MAX_FILE_CHARS).decode()
    with Path(name).open(encoding="utf-8") as file:
        return file.read(MAX_FILE_CHARS)


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not allowed")

"""Shared command-line options as decorators, and the options generated from the table of jobs."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from kling_callback.cli import completion, usage
from kling_callback.cli.param_types import (
    Json,
    JsonAssignment,
    JsonOrText,
    NumberParam,
    OutputParam,
    TaskId,
    Timeout,
)
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
from kling_callback.protocol.statuses import TASK_STATUSES

Function = TypeVar("Function", bound=Callable[..., Any])
Decorator = Callable[[Function], Function]

json_option = usage.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
id_argument = usage.argument("task_id", metavar="ID", type=TaskId())
"""Any id of a task: ours, Kling's, or the caller's at Kling."""
priority_option = usage.option(
    "--priority",
    type=click.INT,
    metavar="N",
    help="The receiver sends the highest first. Only without a Kling key: the receiver sends the creates then.",
)
set_option = usage.option(
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
        usage.option(
            "--output",
            metavar="DIR|FILE",
            type=OutputParam(),
            shell_complete=completion.files,
            help="Write the files into this folder, as ID-N.EXT. A name with a suffix is a file: x.png, then x-1.png "
            "and so on. Without it, print one link per file.",
        ),
        usage.option("--timeout", type=Timeout(), help="Wait at most so many seconds; the task continues."),
        json_option,
    )


def create_options(function: Function) -> Function:
    """Add the options of a command that creates a task: id, tags, hook, priority, ..., and those of `wait_options`."""
    return _apply(
        function,
        usage.option(
            "--external-task-id",
            metavar="ID",
            help="The task's id. The same id again continues that task instead of creating another.",
        ),
        usage.option("--tag", "tags", metavar="TAG", multiple=True, help="A word to find the task by; repeatable."),
        usage.option("--hook", metavar="URL", help="The receiver POSTs the task's events to this URL, signed."),
        usage.option(
            "--hook-event",
            "hook_events",
            metavar="TYPE",
            multiple=True,
            shell_complete=completion.event_types,
            help="The hook receives only events of this type, such as task.done; repeatable.",
        ),
        usage.option(
            "--callback-url",
            metavar="URL",
            help="Instead of a hook: the receiver POSTs to this URL what Kling would post, with links to its files.",
        ),
        priority_option,
        usage.option("--no-wait", is_flag=True, help="Print the task's id, and do not wait."),
        usage.option(
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
        usage.option("--status", type=click.Choice(TASK_STATUSES)),
        usage.option("--family", shell_complete=completion.all_families, help="Such as videos/text2video."),
        usage.option("--model", shell_complete=completion.all_models, help="Such as kling-v3."),
        usage.option("--tag"),
        usage.option("--task-id", metavar="ID", help="Kling's id."),
        usage.option("--limit", type=click.IntRange(1), default=50, show_default=True),
        json_option,
    )


def _apply(function: Function, *decorators: Decorator[Function]) -> Function:
    """Apply decorators as if they stood above `function` in this order."""
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


def job_parameters(job: Job) -> list[click.Parameter]:
    """The argument and the options of a typed job, in the order of its table."""
    elsewhere = job.endpoints[0].refused or {}
    options = [_parameter(job, parameter) for parameter in job.parameters]
    known = {option.name for option in options}
    # The table says which job has them, where click would only know no such option.
    return options + [usage.Option([_option(name), name], hidden=True) for name in elsewhere if name not in known]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parameter(job: Job, parameter: Parameter) -> click.Parameter:
    name, option = parameter.name, _option(parameter.name)
    if name == "prompt":
        return usage.Argument(["prompt"], required=False)
    if isinstance(parameter.kind, Flag | ObjectWith):
        return usage.Option([f"{option}/--no{option[1:]}", name], default=None, help=parameter.help)
    if isinstance(parameter.kind, ListOf):
        text = f"{parameter.help} Repeatable, or a JSON list."
        return usage.Option([option, name], type=JsonOrText(), multiple=True, callback=_flatten, help=text)
    kind, metavar = _type(parameter)
    complete = completion.of_parameter(job, parameter)
    return usage.Option([option, name], type=kind, metavar=metavar, help=parameter.help, **complete)


def _flatten(context: click.Context, parameter: click.Parameter, values: Sequence[Any]) -> list[Any]:
    """The items of a repeatable option: each value is one item, or a JSON list of items."""
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _type(parameter: Parameter) -> tuple[click.ParamType[Any], str | None]:
    """click's type and metavar. Checks are left to the table of jobs, which reports all problems at once."""
    match parameter.kind:
        case Choice(values):
            return click.STRING, "|".join(values)
        case Integer(low, high):
            return NumberParam(int), f"{low}-{high}"
        case Number(low, high):
            return NumberParam(float), f"{low}-{high}"
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

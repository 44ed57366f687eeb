"""What a shell completes: values that are known without a request. `docs/terminal.md` says how to install it."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from kling_callback.jobs.catalog import JOBS
from kling_callback.jobs.job import Job, Parameter
from kling_callback.jobs.parameters import Choice, ImageInput
from kling_callback.protocol.events import TYPES
from kling_callback.protocol.families import ASYNCHRONOUS, SYNCHRONOUS_GET, SYNCHRONOUS_POST

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], "list[CompletionItem]"]
"""Called with the beginning of a word; returns what it may become. Imports what only a completion needs."""


def words(values: Iterable[str], helps: dict[str, str] | None = None) -> Complete:
    """Complete one of these words. `helps`: what a word means, for the shells that show it."""
    known = tuple(dict.fromkeys(values))

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem

        return [CompletionItem(each, help=(helps or {}).get(each)) for each in known if each.startswith(incomplete)]

    return complete


def _paths(context: click.Context, parameter: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def models_of(job: Job) -> tuple[str, ...]:
    """The models of a typed job that the table knows."""
    return tuple(model for endpoint in job.endpoints for model in endpoint.models)


families: Complete = words(ASYNCHRONOUS, ASYNCHRONOUS)
"""Families that Kling lists under `/v1`."""

all_families: Complete = words(
    [*ASYNCHRONOUS, *(each.family for job in JOBS for each in job.endpoints if each.family.startswith("/"))],
    ASYNCHRONOUS,
)
"""Those, and the paths of the new standard."""

all_models: Complete = words(model for job in JOBS for model in models_of(job))
synchronous_paths: Complete = words([*SYNCHRONOUS_GET, *SYNCHRONOUS_POST], SYNCHRONOUS_GET | SYNCHRONOUS_POST)
event_types: Complete = words(TYPES)
files: Complete = _paths
"""Names of files and folders, as the shell completes them."""


def of_parameter(job: Job, parameter: Parameter) -> dict[str, Any]:
    """The argument `shell_complete` for the option of a job's parameter; none if any text may be its value."""
    if parameter.name == "model_name":
        return {"shell_complete": words(models_of(job))}
    if isinstance(parameter.kind, Choice):
        return {"shell_complete": words(parameter.kind.values)}
    return {"shell_complete": files} if isinstance(parameter.kind, ImageInput) else {}

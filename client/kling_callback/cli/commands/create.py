"""The commands that create tasks: one for each typed job, and `kling create` for any other."""

from collections.abc import Callable
from dataclasses import asdict, fields
from typing import Any

import click

from kling_callback import errors
from kling_callback.cli import completion, options, param_types, terminal, usage
from kling_callback.cli.run import WaitOptions, run_task
from kling_callback.creation import check_call, check_sender
from kling_callback.jobs.body import model_of
from kling_callback.jobs.job import Job
from kling_callback.jobs.prices import estimate
from kling_callback.jobs.untyped import prepare, prepare_job
from kling_callback.kling import AsyncKling
from kling_callback.settings import TO_CREATE, ClientSettings
from kling_callback.tasks import AsyncTask

REFUSED = object()
"""Stands for a parameter whose value click refused: it is given, so that no other check calls it missing."""

EXAMPLES = {
    "text_to_image": (
        'kling text-to-image "a kangaroo" --model-name kling-v3 --n 2 --output .',
        'kling text-to-image "一只举着牌子的袋鼠" --aspect-ratio 3:4 --no-wait',
    ),
    "image_to_image": (
        'kling image-to-image "at night" --image kangaroo.png --output night.png',
        """kling image-to-image "as a sculptor" --image face.jpg --output out \\
  --image-reference face --model-name kling-v1-5""",
    ),
    "text_to_video": (
        'kling text-to-video "it waves" --model-name kling-v3 --output waves.mp4',
        'kling text-to-video "it waves" --model-name kling-v3 --duration 10 --estimate',
    ),
    "image_to_video": (
        'kling image-to-video "it waves" --image kangaroo.png --output waves.mp4',
        """kling image-to-video "day becomes night" --model-name kling-v3 \\
  --image day.png --image-tail night.png --mode pro --output out""",
    ),
    "omni_video": (
        """kling omni-video "<<<image_1>>> jumps over a fence" \\
  --image-list kangaroo.png --output out""",
        'kling omni-video "it dances" --model-name kling-3.0-omni --aspect-ratio 16:9',
    ),
    "motion_control": (
        """kling motion-control --image kangaroo.png --output out \\
  --video https://example.com/dance.mp4 --character-orientation image""",
    ),
}
"""By the name of a typed job."""


def create_and_run(
    family: str,
    make: Callable[[], tuple[str, dict[str, Any]]],
    given: Any,
    *,
    tags: tuple[str, ...],
    hook: str | None,
    hook_events: tuple[str, ...],
    callback_url: str | None,
    external_task_id: str | None,
    priority: int | None,
    estimate_only: bool,
    **waiting: Any,
) -> None:
    """Check everything, report all problems at once, then create a task and run it, or print its price.

    `make` returns the family and the body to send; until then, `family` and `given` stand for them. The id is
    generated here, so that Ctrl-C can name it at any moment.
    """
    problems, wait_options = usage.problems(), WaitOptions(**waiting)
    body, task_id = given, ""
    with problems:
        family, body = make()
    if estimate_only:
        problems.raise_all()
        return print_estimate(family, body, as_json=wait_options.as_json)
    with problems:
        task_id, tags, task_hook = check_call(
            family,
            body,
            tags=tags,
            hook=hook,
            hook_events=hook_events,
            callback_url=callback_url,
            external_task_id=external_task_id,
        )
        hook_events = task_hook.events
    with problems:
        wait_options.check()
    with problems:
        check_sender(ClientSettings.load(require=TO_CREATE), family, priority)

    async def begin(kling: AsyncKling) -> AsyncTask:
        return await kling.create(
            family,
            body,
            tags=tags,
            hook=hook,
            hook_events=hook_events,
            callback_url=callback_url,
            external_task_id=task_id,
            priority=priority,
        )

    return run_task(begin, TO_CREATE, task_id, wait_options)


def print_estimate(family: str, body: dict[str, Any], *, as_json: bool) -> None:
    """Print the expected cost of a create that is not sent. Raises KlingError if no price is known."""
    cost = estimate(family, body)
    if cost is None:
        model = model_of(family, body)
        priceless = f"{model} at {family}" if model else f"{family} without a model"
        raise errors.KlingError(
            f"No list price is known for {priceless}.",
            hint="Add --model-name (docs/jobs.md has the models with a price); `kling show ID` prints the cost of a "
            "finished task.",
        )
    terminal.print_json({"estimate": asdict(cost)}) if as_json else terminal.print_data(str(cost))


def job_command(job: Job) -> click.Command:
    """The command of a typed job; its parameters come from the table of jobs."""

    @click.command(
        job.name.replace("_", "-"),
        cls=usage.Command,
        params=options.job_parameters(job),
        help=job.summary,
        examples=EXAMPLES.get(job.name, ()),
    )
    @options.set_option
    @options.create_options
    def run_job(
        more: tuple[tuple[str, Any], ...],
        tags: tuple[str, ...],
        hook: str | None,
        hook_events: tuple[str, ...],
        callback_url: str | None,
        external_task_id: str | None,
        priority: int | None,
        estimate_only: bool,
        **values: Any,
    ) -> None:
        waiting = {field.name: values.pop(field.name) for field in fields(WaitOptions)}
        values |= {name: values[name] or REFUSED for name in values.keys() & usage.problems().refused} | dict(more)
        create_and_run(
            job.endpoints[0].family,
            lambda: prepare_job(job, values),
            values,
            tags=tags,
            hook=hook,
            hook_events=hook_events,
            callback_url=callback_url,
            external_task_id=external_task_id,
            priority=priority,
            estimate_only=estimate_only,
            **waiting,
        )

    return run_job


@click.command(
    "create",
    cls=usage.Command,
    examples=[
        "kling create videos/effects --output out --body @squish.json",
        "kling create /text-to-video/kling-3.0-turbo --body @body.json --no-wait",
    ],
)
@usage.argument("family", metavar="FAMILY", shell_complete=completion.all_families)
@usage.option(
    "--body",
    type=param_types.Json(),
    required=True,
    help="Kling's parameters as JSON; @FILE reads them from a file, @- from stdin.",
)
@options.create_options
def create_any(family: str | None, body: Any, **others: Any) -> None:
    """Create a task of any family.

    FAMILY is a path under /v1, such as videos/effects, or a new-standard path with a leading slash, such as
    /text-to-video/kling-3.0-turbo.
    """
    name = family or ""
    create_and_run(name, lambda: (name, prepare(name, body)), body, **others)

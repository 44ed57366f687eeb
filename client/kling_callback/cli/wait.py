"""The command `kling wait`."""

from typing import Any

import click

from kling_callback.cli import options, usage
from kling_callback.cli.run import WaitOptions, run_task
from kling_callback.kling import AsyncKling
from kling_callback.settings import TO_WAIT
from kling_callback.tasks import AsyncTask


@click.command("wait", cls=usage.Command)
@options.id_argument
@options.wait_options
def wait_for(task_id: str, **waiting: Any) -> None:
    """Wait for a task, then save or print its results."""

    async def begin(kling: AsyncKling) -> AsyncTask:
        return kling.attach(task_id)

    wait_options = WaitOptions(**waiting)
    with usage.problems():
        wait_options.check()
    run_task(begin, TO_WAIT, task_id, wait_options)

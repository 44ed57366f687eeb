"""Run a command's work with an open client."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kling_callback.cli import terminal
from kling_callback.kling import AsyncKling
from kling_callback.settings import TO_CREATE, ClientSettings

T = TypeVar("T")


def with_kling(require: tuple[str, ...], call: Callable[[AsyncKling], Awaitable[T]], *, task_id: str = "") -> T:
    """Run `call` with an open client, and return its result. On Ctrl-C, print how to wait for the task.

    `require`: names of the settings that must be set. Raises KlingError, KeyboardInterrupt.
    """
    kling = AsyncKling(settings=ClientSettings.load(require=require))
    for warning in ClientSettings.unknown_variables():
        terminal.print_message(warning)

    async def run() -> T:
        async with kling:
            return await call(kling)

    try:
        return asyncio.run(run())
    except KeyboardInterrupt:
        if require == TO_CREATE and not kling.receiver_reached:
            terminal.print_message("Interrupted. The receiver had not answered yet: nothing was sent to Kling.")
        elif task_id:
            terminal.print_message(
                f"Interrupted. If Kling took the task, it continues. Wait for it with:\nkling wait {task_id}"
            )
        raise

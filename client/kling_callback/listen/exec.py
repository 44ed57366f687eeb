"""A command that is run for each event: an argument list, no shell; the event on its stdin."""

import asyncio
import os
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from contextlib import suppress

from kling_callback.base import stored_files
from kling_callback.errors import KlingError
from kling_callback.listen.listener import HandlerResult
from kling_callback.protocol.events import Event
from kling_callback.protocol.webhooks import hook_body


class ExecHandler:
    """Runs a command for each event."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    async def __call__(self, event: Event) -> HandlerResult:
        """One event."""
        code = await _run(self._command, event)
        return HandlerResult(f"exit code {code}", f"{self._command[0]} ended with exit code {code}" if code else "")


async def _run(command: Sequence[str], event: Event) -> int:
    """Its exit code; minus the number of the signal that ended it. Raises KlingError when it cannot be started.

    Its environment is ours, with KLING_TASK_ID, KLING_EVENT and KLING_FILES (a link a line).
    """
    environment = {**os.environ, **{name: _fit(value) for name, value in _about(event).items()}}
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, env=environment)
    except OSError as error:
        why = error.strerror or str(error)
        raise KlingError(f"{command[0]} cannot be run: {why}.", code="not_runnable") from None
    try:
        await process.communicate(hook_body(event.document))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert process.returncode is not None
    return process.returncode


def _about(event: Event) -> dict[str, str]:
    files = [str(file.get("href") or "") for file in stored_files(event.task)]
    return {"KLING_TASK_ID": event.task["id"], "KLING_EVENT": event.type, "KLING_FILES": "\n".join(files)}


def _fit(value: str) -> str:
    """What an environment can hold."""
    return value.replace("\0", "").encode("utf-8", "replace").decode()

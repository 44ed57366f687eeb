"""Run a command for each event: an argument list, without a shell, with the event on its stdin."""

import asyncio
import os
from asyncio.subprocess import PIPE
from collections.abc import Sequence

from kling_callback.base import stored_files
from kling_callback.errors import KlingError
from kling_callback.listen.listener import HandlerResult
from kling_callback.listen.processes import VARIABLE, kill_run, new_run_id
from kling_callback.protocol.events import Event
from kling_callback.protocol.webhooks import hook_body


class ExecHandler:
    """Runs a command for each event. Raises KlingError when it cannot be started."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    async def __call__(self, event: Event) -> HandlerResult:
        """Run the command for one event, and wait for its end."""
        code = await _run(self._command, event)
        return HandlerResult(f"exit code {code}", f"{self._command[0]} ended with exit code {code}" if code else "")


async def _run(command: Sequence[str], event: Event) -> int:
    """Run the command, and return its exit code, or minus the number of the signal that ended it.

    Its environment is ours, and KLING_TASK_ID, KLING_EVENT and KLING_FILES (one link per line). At its end, or if
    cancelled, every process that it started is killed.
    """
    run_id = new_run_id()
    variables = {name: _sanitize(value) for name, value in _variables(event).items()}
    environment = {**os.environ, **variables, VARIABLE: run_id}
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, env=environment)
    except OSError as error:
        why = error.strerror or str(error)
        raise KlingError(f"{command[0]} cannot be run: {why}.", code="not_runnable") from None
    try:
        await process.communicate(hook_body(event.document))
    finally:
        kill_run(run_id, process.pid if process.returncode is None else None)
        await process.wait()
    assert process.returncode is not None
    return process.returncode


def _variables(event: Event) -> dict[str, str]:
    files = [str(file.get("href") or "") for file in stored_files(event.task)]
    return {"KLING_TASK_ID": event.task["id"], "KLING_EVENT": event.type, "KLING_FILES": "\n".join(files)}


def _sanitize(value: str) -> str:
    """Make text usable as a variable: no NUL, no lone surrogate."""
    return value.replace("\0", "").encode("utf-8", "replace").decode()

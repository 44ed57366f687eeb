"""An event to a command of this machine: an argument list, never a shell; the event on its stdin.

Its environment has KLING_TASK_ID, KLING_EVENT and KLING_FILES (a path a line), and none of our settings.
"""

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import tempfile
from asyncio.subprocess import PIPE, STDOUT, Process
from pathlib import Path

from receiver.sinks import ANSWER_BYTES, Message, NotTaken, Taken

SCHEME = "command:"
GRACE = 2.0
"""Seconds that a command which took too long has to end by itself."""


def arguments(address: str) -> list[str]:
    """The argument list of `command:`, written as JSON or as in a shell; its program with its whole path.

    Raises ValueError when there is no such program.
    """
    said = address.removeprefix(SCHEME).strip()
    try:
        found = json.loads(said) if said.startswith("[") else shlex.split(said)
    except ValueError as error:
        raise ValueError(f"the command cannot be read ({error}).") from None
    if not (found and all(isinstance(each, str) and "\0" not in each for each in found)):
        raise ValueError('the command is empty. Write command:["/path/to/program", "argument"].')
    program = shutil.which(found[0])
    if program is None:
        raise ValueError(f"there is no command {found[0]} that may be run here.")
    return [str(Path(program).absolute()), *found[1:]]


def written(argv: list[str]) -> str:
    """The one form in which an argument list is kept."""
    return SCHEME + json.dumps(argv)


class CommandSink:
    """One command."""

    def __init__(self, address: str) -> None:
        self._argv: list[str] = json.loads(address.removeprefix(SCHEME))

    async def send(self, message: Message) -> Taken:
        """One run. When it is cancelled, all that the command started is ended."""
        try:
            with tempfile.TemporaryFile() as stdin:  # not a pipe: it need not read what it does not want
                stdin.write(message.body)
                stdin.seek(0)
                process = await asyncio.create_subprocess_exec(
                    *self._argv,
                    stdin=stdin,
                    stdout=PIPE,
                    stderr=STDOUT,
                    env=_environment(message),
                    start_new_session=True,
                )
        except OSError as error:
            raise NotTaken(f"the command cannot be run: {error.strerror or error}") from error
        try:
            answer = await _end(process)
            code = await process.wait()
        finally:
            await asyncio.shield(_end_group(process))
        if code:
            raise NotTaken(_ended(code), status=code, answer=answer)
        return Taken(code, answer)

    async def close(self) -> None:
        """Nothing is held between runs."""


def _environment(message: Message) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KLING_")}
    event = message.event
    return {
        **kept,
        "KLING_TASK_ID": event["task"]["id"],
        "KLING_EVENT": event["type"],
        "KLING_FILES": "\n".join(map(str, message.files)),
    }


async def _end(process: Process) -> str:
    """The end of what it wrote."""
    assert process.stdout
    read = b""
    while chunk := await process.stdout.read(65_536):
        read = (read + chunk)[-ANSWER_BYTES:]
    return read.decode("utf-8", "replace")


async def _end_group(process: Process) -> None:
    """End what is left of a command and all that it started: first with a word, then without."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await process.wait()
    _signal(process, signal.SIGKILL)
    await process.wait()


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _ended(code: int) -> str:
    return f"it was ended by signal {-code}" if code < 0 else f"it ended with code {code}"

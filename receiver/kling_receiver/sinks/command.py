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
from asyncio.subprocess import STDOUT, Process
from collections.abc import AsyncIterator
from pathlib import Path

from kling_receiver.sinks import MAX_RESPONSE_BYTES, Delivered, Message, NotDelivered

SCHEME = "command:"
GRACE_SECONDS = 2.0
"""Seconds that a command which took too long has to end by itself."""
DRAIN_SECONDS = 1.0
"""Seconds for which more is read of what it wrote, once it has ended and something that it left has not."""


def parse_command(address: str) -> list[str]:
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


def to_address(argv: list[str]) -> str:
    """The one form in which an argument list is kept."""
    return SCHEME + json.dumps(argv)


class CommandSink:
    """One command."""

    def __init__(self, address: str) -> None:
        self._argv: list[str] = json.loads(address.removeprefix(SCHEME))

    async def send(self, message: Message) -> Delivered:
        """One run. When it is cancelled, all that the command started is ended."""
        async with _output() as (output, writing):
            process = await self._begin(message, writing)
            try:
                code = await process.wait()
                await output.drain()
            finally:
                await asyncio.shield(_end_group(process))
        if code:
            raise NotDelivered(_exit_reason(code), status=code, response=output.text)
        return Delivered(code, output.text)

    async def _begin(self, message: Message, output: int) -> Process:
        try:
            with tempfile.TemporaryFile() as stdin:  # not a pipe: it need not read what it does not want
                stdin.write(message.body)
                stdin.seek(0)
                return await asyncio.create_subprocess_exec(
                    *self._argv,
                    stdin=stdin,
                    stdout=output,
                    stderr=STDOUT,
                    env=_environment(message),
                    start_new_session=True,
                )
        except OSError as error:
            raise NotDelivered(f"the command cannot be run: {error.strerror or error}") from error
        finally:
            os.close(output)

    async def close(self) -> None:
        """Nothing is held between runs."""


def _environment(message: Message) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("KLING_")}
    event = message.event
    return {
        **kept,
        "KLING_TASK_ID": event["task"]["id"],
        "KLING_EVENT": event["type"],
        "KLING_FILES": "\n".join(map(str, message.files)),
    }


class _Output(asyncio.Protocol):
    """The end of what a command writes."""

    def __init__(self) -> None:
        self._read = b""
        self._closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._read = (self._read + data)[-MAX_RESPONSE_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()

    async def drain(self) -> None:
        """Wait for what is still to be read, but not for ever: a child of the command may hold it open."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._closed.wait()

    @property
    def text(self) -> str:
        return self._read.decode("utf-8", "replace")


@contextlib.asynccontextmanager
async def _output() -> AsyncIterator[tuple[_Output, int]]:
    """A pipe of our own, and its end to write to: asyncio takes a process for ended only with its pipes."""
    reading, writing = os.pipe()
    pipe, output = await asyncio.get_running_loop().connect_read_pipe(_Output, os.fdopen(reading, "rb", 0))
    try:
        yield output, writing
    finally:
        pipe.close()


async def _end_group(process: Process) -> None:
    """End what is left of a command and all that it started: first with a word, then without."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                await process.wait()
    _signal(process, signal.SIGKILL)
    await process.wait()


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _exit_reason(code: int) -> str:
    return f"it was ended by signal {-code}" if code < 0 else f"it ended with code {code}"

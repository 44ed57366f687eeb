"""Deliver events to a local command: an argument list, never a shell, with the event on stdin.

Its environment has KLING_TASK_ID, KLING_EVENT and KLING_FILES (one path per line), and none of our settings.
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

from kling_callback.listen.processes import VARIABLE, kill_run, new_run_id, signal_run
from kling_callback.listen.processes import Process as RunProcess
from kling_receiver.sinks import MAX_RESPONSE_BYTES, Delivered, Message, NotDelivered

SCHEME = "command:"
GRACE_SECONDS = 2.0
"""Seconds between SIGTERM and SIGKILL for a command that exceeded its time limit."""
DRAIN_SECONDS = 1.0
"""Seconds to read the rest of a command's output after its exit, while a child of it holds the pipe open."""


def parse_command(address: str) -> list[str]:
    """Parse the argument list of a `command:` address, written as JSON or as in a shell; resolve its program's path.

    Raises ValueError if it is malformed or the program does not exist.
    """
    text = address.removeprefix(SCHEME).strip()
    try:
        argv = json.loads(text) if text.startswith("[") else shlex.split(text)
    except ValueError as error:
        raise ValueError(f"the command cannot be parsed ({error}).") from None
    if not (argv and all(isinstance(each, str) and "\0" not in each for each in argv)):
        raise ValueError('the command is empty or invalid. Write command:["/path/to/program", "argument"].')
    program = shutil.which(argv[0])
    if program is None:
        raise ValueError(f"the command {argv[0]} does not exist here or is not executable. Check its path.")
    return [str(Path(program).absolute()), *argv[1:]]


def to_address(argv: list[str]) -> str:
    """The normal form of a `command:` address, in which it is stored."""
    return SCHEME + json.dumps(argv)


class CommandSink:
    """Runs one command for each event; exit code 0 means delivered. `grace_seconds`: from SIGTERM to SIGKILL."""

    def __init__(self, address: str, *, grace_seconds: float = GRACE_SECONDS) -> None:
        self._argv: list[str] = json.loads(address.removeprefix(SCHEME))
        self._grace_seconds = grace_seconds

    async def send(self, message: Message) -> Delivered:
        """Run the command once. At the end, or if cancelled, kill every process that the command started."""
        run_id = new_run_id()
        async with _output() as (output, write_fd):
            process = await self._start(message, run_id, write_fd)
            try:
                code = await process.wait()
                await output.drain()
            finally:
                await asyncio.shield(_end_run(process, run_id, self._grace_seconds))
        if code:
            raise NotDelivered(_exit_reason(code), status=code, response=output.text)
        return Delivered(code, output.text)

    async def _start(self, message: Message, run_id: str, output: int) -> Process:
        try:
            with tempfile.TemporaryFile() as stdin:  # not a pipe: the command need not read it
                stdin.write(message.body)
                stdin.seek(0)
                return await asyncio.create_subprocess_exec(
                    *self._argv,
                    stdin=stdin,
                    stdout=output,
                    stderr=STDOUT,
                    env={**_environment(message), VARIABLE: run_id},
                    start_new_session=True,
                )
        except OSError as error:
            raise NotDelivered(f"the command cannot be run: {error.strerror or error}") from error
        finally:
            os.close(output)

    async def close(self) -> None:
        """Do nothing: no process outlives its attempt."""


def _environment(message: Message) -> dict[str, str]:
    foreign = {name: value for name, value in os.environ.items() if not name.upper().startswith("KLING_")}
    event = message.event
    return {
        **foreign,
        "KLING_TASK_ID": event["task"]["id"],
        "KLING_EVENT": event["type"],
        "KLING_FILES": "\n".join(map(str, message.files)),
    }


class _Output(asyncio.Protocol):
    """The last MAX_RESPONSE_BYTES of a command's output."""

    def __init__(self) -> None:
        self._tail = b""
        self._closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-MAX_RESPONSE_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()

    async def drain(self) -> None:
        """Read to the end, for DRAIN_SECONDS at most: a child of the command may hold the pipe open."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._closed.wait()

    @property
    def text(self) -> str:
        return self._tail.decode("utf-8", "replace")


@contextlib.asynccontextmanager
async def _output() -> AsyncIterator[tuple[_Output, int]]:
    """A pipe of our own and its write end: asyncio's `wait` would otherwise wait for the pipe's end, too."""
    read_fd, write_fd = os.pipe()
    pipe, output = await asyncio.get_running_loop().connect_read_pipe(_Output, os.fdopen(read_fd, "rb", 0))
    try:
        yield output, write_fd
    finally:
        pipe.close()


async def _end_run(process: Process, run_id: str, grace_seconds: float) -> None:
    """Kill every process that a command started: SIGTERM if the command still runs, then SIGKILL."""
    known: list[RunProcess] = []
    if process.returncode is None:
        known = await asyncio.to_thread(signal_run, run_id, process.pid, signal.SIGTERM)
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await process.wait()
    await asyncio.to_thread(kill_run, run_id, process.pid if process.returncode is None else None, known)
    _signal_group(process, signal.SIGKILL)
    await process.wait()


def _signal_group(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _exit_reason(code: int) -> str:
    return f"the command was killed by signal {-code}" if code < 0 else f"the command ended with exit code {code}"

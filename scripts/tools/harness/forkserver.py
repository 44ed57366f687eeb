"""A fork server: the commands run as forks of one process that has imported them, instead of as new interpreters.

The imports take about a second of CPU, a fork some milliseconds. Each fork is a process of its own, with the arguments,
environment, folder and streams of the request: it can be signalled, stopped and killed.
"""

import atexit
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PROGRAMS = {
    "kling": "kling_callback.cli.main",
    "kling-receiver": "kling_receiver.cli.main",
    "kling-sandbox": "kling_sandbox.__main__",
}
"""The modules whose `main` is a command."""
IMPORTED = (
    *("kling_receiver.cli.access", "kling_receiver.cli.backup", "kling_receiver.cli.deliveries"),
    *("kling_receiver.cli.doctor", "kling_receiver.cli.hooks", "kling_receiver.cli.serve", "kling_receiver.cli.tasks"),
    *("alembic.autogenerate", "alembic.command", "psycopg", "uvicorn", "uvloop", "httptools"),
)
"""What the commands import when they are invoked."""
READ_AT_START = ("LANG", "LC_", "LD_", "PYTHON")
"""Variables that only the start of an interpreter reads."""
MAX_REQUEST_BYTES = 1 << 20


class Forked:
    """A process of the fork server: what this harness uses of `subprocess.Popen`."""

    def __init__(self, args: Sequence[str], pid: int, status: int) -> None:
        """`status`: the end of a pipe from which the exit code can be read once the process has ended."""
        self.args, self.pid, self._status = args, pid, status
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, or minus the number of the signal that ended the process; None while it runs."""
        return self._await(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process. Raises subprocess.TimeoutExpired."""
        if (code := self._await(timeout)) is None:
            raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
        return code

    def _await(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._status, selectors.EVENT_READ)
                if selector.select(timeout):
                    self.returncode = int(os.read(self._status, 100))
                    os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the process by SIGKILL."""
        self.send_signal(signal.SIGKILL)


Started = Forked | subprocess.Popen[bytes]


class ForkServer:
    """The server's client. `pid`: the server's process."""

    def __init__(self, connection: socket.socket, environment: Mapping[str, str], pid: int) -> None:
        """`environment`: that of the server, of which forks get what only a start reads."""
        self._connection, self._at_start, self.pid = connection, _read_at_start(environment), pid
        self._lock = threading.Lock()

    def can_run(self, args: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether a fork does what a new process would."""
        path = Path(args[0])
        return (
            path.name in PROGRAMS
            and path.parent == Path(sys.executable).parent
            and (_read_at_start(environment) == self._at_start)
        )

    def start(self, args: Sequence[str], environment: Mapping[str, str], folder: Path, streams: list[int]) -> Forked:
        """Start a command. `streams`: the descriptors of its standard streams."""
        status, for_server = os.pipe()
        try:
            request = json.dumps([list(args), dict(environment), str(folder)]).encode()
            with self._lock:
                socket.send_fds(self._connection, [request], [*streams, for_server])
                return Forked(args, int(self._connection.recv(100)), status)
        finally:
            os.close(for_server)


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_START) and name != "PYTHONIOENCODING"
    }


running: ForkServer | None = None
"""The server by which `start` starts commands; None: each is a new process."""


def start(
    args: Sequence[str | Path],
    environment: Mapping[str, str],
    folder: Path | None = None,
    *,
    stdin: int | None = None,
    stdout: int,
    stderr: int,
    fork: bool = True,
) -> Started:
    """Start a command. The streams are descriptors. `fork`: as a fork, if a server runs that can do so."""
    words, folder = [str(each) for each in args], folder or Path.cwd()
    if fork and running and running.can_run(words, environment):
        return running.start(words, environment, folder, [0 if stdin is None else stdin, stdout, stderr])
    return subprocess.Popen(words, env=environment, cwd=folder, stdin=stdin, stdout=stdout, stderr=stderr)


def run(
    args: Sequence[str | Path],
    environment: Mapping[str, str],
    *,
    stdin: bytes = b"",
    stdout: int | None = None,
    stderr: int | None = None,
    timeout: float,
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end; a stream that is no descriptor is captured. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(stdin)
        given.seek(0)
        process = start(
            args,
            environment,
            stdin=given.fileno(),
            stdout=out.fileno() if stdout is None else stdout,
            stderr=err.fileno() if stderr is None else stderr,
        )
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        for stream in (out, err):
            stream.seek(0)
        return subprocess.CompletedProcess(args, code, out.read(), err.read())


@contextmanager
def server(environment: Mapping[str, str]) -> Iterator[ForkServer]:
    """Run a fork server. Processes that it has started outlive it."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    own = {**environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    program = [sys.executable, "-P", "-c", f"from {__name__} import main; main()"]
    with ours:
        with its:
            process = subprocess.Popen(program, env=own, stdin=its.fileno(), stdout=subprocess.DEVNULL)
        yield ForkServer(ours, environment, process.pid)
    process.wait()


def main() -> None:
    """The server's process. In a fork this returns after the command's end."""
    for module in (*PROGRAMS.values(), *IMPORTED):
        importlib.import_module(module)
    assert threading.active_count() == 1, "a fork has one thread"
    gc.collect()
    gc.freeze()  # forks share these objects: no collection needs to write to them
    if command := _serve(socket.socket(fileno=os.dup(0))):
        _run_to_its_end(command)


def _run_to_its_end(command: Callable[[], Any]) -> None:
    """Run a command, and end the process without freeing its modules, which would copy all memory of the server.

    Returns or raises if the interpreter has more to do: an error to print, threads to wait for, output to lose.
    """
    try:
        command()
    except SystemExit as exited:
        if not isinstance(exited.code, int | None):
            raise
        code = exited.code or 0
    else:
        code = 0
    if threading.active_count() > 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the interpreter's own end tries again, and says so
            sys.exit(code)
    os._exit(code & 0xFF)


def _serve(connection: socket.socket) -> Callable[[], Any] | None:
    """Fork for each request, and report each end, until the connection is closed. Returns, in a fork, its command."""
    with selectors.DefaultSelector() as selector, connection:
        selector.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not connection:
                    pid, status = key.data
                    _, code = os.waitpid(pid, 0)
                    with suppress(BrokenPipeError):
                        os.write(status, str(os.waitstatus_to_exitcode(code)).encode())
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    os.close(status)
                    continue
                request, descriptors, _, _ = socket.recv_fds(connection, MAX_REQUEST_BYTES, 4)
                if not request:
                    return None
                *streams, status = descriptors
                if (pid := os.fork()) == 0:
                    for other in list(selector.get_map().values()):
                        if other.data:
                            os.close(other.fd)
                            os.close(other.data[1])
                    os.close(status)
                    args, environment, folder = json.loads(request)
                    return _become(args, environment, folder, streams)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
                for stream in streams:
                    os.close(stream)
                connection.send(str(pid).encode())


def _become(args: list[str], environment: dict[str, str], folder: str, streams: list[int]) -> Callable[[], Any]:
    """Make this process what the request describes. Returns the command's function."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    for stream in streams:
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    _open_streams(environment.get("PYTHONIOENCODING", ""))
    sys.argv[:] = args
    return sys.modules[PROGRAMS[Path(args[0]).name]].main  # type: ignore[no-any-return]


def _open_streams(encoding: str) -> None:
    """Open the standard streams as an interpreter does: those of the server have their kind of file, and its buffers.

    `encoding`: as in PYTHONIOENCODING.
    """
    codec, _, errors = encoding.partition(":")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        old = getattr(sys, name)
        stream = open(  # noqa: SIM115
            number,
            "r" if name == "stdin" else "w",
            buffering=1 if name == "stderr" or os.isatty(number) else -1,
            encoding=codec or old.encoding,
            errors="backslashreplace" if name == "stderr" else (errors or "strict") if encoding else old.errors,
            closefd=False,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)

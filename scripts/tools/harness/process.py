"""`kling-receiver` in a process of its own, as an operator runs the command; ended by signals only."""

import os
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Self

from kling_callback.protocol.signing import CallbackSigner, Role, api_token
from kling_sandbox.receiver import API_KEY as KEY
from kling_sandbox.receiver import SIGNING_SECRET as SECRET
from tools.harness import forkserver, loopback

COMMAND = Path(sys.executable).with_name("kling-receiver")
CLIENT = COMMAND.with_name("kling")


def environment(data: Path, **settings: str) -> dict[str, str]:
    """The command's environment: defaults for loopback and the folder `data`, overridden by `settings`."""
    defaults = {
        "KLING_API_KEY": KEY,
        "KLING_SIGNING_SECRETS": SECRET,
        "KLING_DATA_DIR": str(data),
        "KLING_PRIVATE_RESULT_HOSTS": "127.0.0.1",
        "KLING_PRIVATE_HOOK_HOSTS": "127.0.0.1",
        "KLING_PRIVATE_CLIENT_HOOK_HOSTS": "127.0.0.1",
    }
    return loopback.environment(**{**defaults, **settings})


def run(
    *arguments: str, env: dict[str, str], command: Path = COMMAND, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `kling-receiver`, or another command, until the process exits. Raises TimeoutExpired after 60 s."""
    ran = forkserver.run([command, *arguments], env, stdin=stdin.encode(), timeout=60)
    return subprocess.CompletedProcess(ran.args, ran.returncode, ran.stdout.decode(), ran.stderr.decode())


class Ended(Exception):
    """The process exited before it was ready, or was not ready in time; the message is its log."""


class Process:
    """A process `kling-receiver serve`, which may be killed and started again on the same data."""

    def __init__(self, data: Path, **settings: str) -> None:
        reservation = loopback.reserve_port()  # between a kill and the next start no other process may take the port
        self.port = reservation.getsockname()[1]
        weakref.finalize(self, os.close, reservation.detach())
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [str(COMMAND), "serve", "--port", str(self.port)]
        self.env = environment(data, **{"KLING_RECEIVER_URL": self.url, **settings})
        self.log = data.with_name(f"{data.name}.log")
        self._process: forkserver.Started | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process:
            self.kill()

    def launch(self, *prefix: str, fork: bool = True) -> None:
        """Start the process without waiting. `prefix`: a command that runs the receiver, such as strace.

        `fork`: whether it may be a fork of a fork server, which inherits nothing of the calling thread.
        """
        with self.log.open("ab") as log:
            command, output = [*prefix, *self.command], log.fileno()
            self._process = forkserver.start(
                command, self.env, self.log.parent, stdout=output, stderr=output, fork=fork
            )

    def start(self, *prefix: str) -> None:
        """Start the process and wait until the receiver is ready. Raises Ended."""
        self.launch(*prefix)
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until the receiver is ready. Raises Ended."""
        if not loopback.answers(f"{self.url}/readyz", 60, alive=lambda: not self.ended):
            raise Ended(self.log_text())

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process has exited, or was never started."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """End the process by SIGKILL: no shutdown code runs."""
        assert self._process
        self._process.kill()
        self._process.wait(20)
        self._process = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process
        self._process.send_signal(number)

    def wait(self, timeout: float = 20) -> tuple[int, float]:
        """Wait until the process exits: its exit code, and the seconds of waiting."""
        assert self._process
        started = time.monotonic()
        code = self._process.wait(timeout)
        self._process = None
        return code, time.monotonic() - started

    def log_text(self) -> str:
        """The output of the process, all starts included."""
        return self.log.read_text()

    def headers(self, role: Role = "client") -> dict[str, str]:
        """The headers of a request with this role."""
        return {"Authorization": f"Bearer {api_token((SECRET,), role, 300)}"}

    def callback_url(self, task_id: str, family: str = "images/generations") -> str:
        """A signed callback address of this receiver."""
        return CallbackSigner([SECRET]).url(self.url, task_id, family)

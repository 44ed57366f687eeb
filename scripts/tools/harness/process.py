"""The receiver as an operator runs it: `kling-receiver` in a process of its own, ended by signals only."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from kling_callback.protocol.signing import CallbackSigner, Role, api_token
from kling_sandbox.receiver import API_KEY as KEY
from kling_sandbox.receiver import SIGNING_SECRET as SECRET
from tools.harness import loopback

COMMAND = Path(sys.executable).with_name("kling-receiver")
CLIENT = COMMAND.with_name("kling")


def environment(data: Path, **settings: str) -> dict[str, str]:
    """What the command's environment is: this process's without settings, then those given."""
    usual = {
        "KLING_API_KEY": KEY,
        "KLING_SIGNING_SECRETS": SECRET,
        "KLING_DATA_DIR": str(data),
        "KLING_PRIVATE_RESULT_HOSTS": "127.0.0.1",
        "KLING_PRIVATE_HOOK_HOSTS": "127.0.0.1",
    }
    return loopback.environment(**{**usual, **settings})


def run(
    *arguments: str, env: dict[str, str], command: Path = COMMAND, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """The command, or the other one, to its end."""
    return subprocess.run(
        [command, *arguments], env=env, input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


class Ended(Exception):
    """The process ended before it was ready, or never was; what it wrote."""


class Process:
    """`kling-receiver serve`; it may be started, killed and started again on the same data."""

    def __init__(self, data: Path, **settings: str) -> None:
        self.port = loopback.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [str(COMMAND), "serve", "--port", str(self.port)]
        self.env = environment(data, **{"KLING_RECEIVER_URL": self.url, **settings})
        self.log = data.with_name(f"{data.name}.log")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process:
            self.kill()

    def launch(self, *before: str) -> None:
        """Start it, by the command that stands `before` it, if any; it is not ready yet."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*before, *self.command], env=self.env, cwd=self.log.parent, stderr=log, stdout=log
            )

    def start(self, *before: str) -> None:
        """Start it, and wait until it is ready. Raises Ended."""
        self.launch(*before)
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until it is ready. Raises Ended."""
        if not loopback.answers(f"{self.url}/readyz", 60, alive=lambda: not self.ended):
            raise Ended(self.said())

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """kill -9: nothing is tidied up."""
        assert self._process
        self._process.kill()
        self._process.wait(20)
        self._process = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process
        self._process.send_signal(number)

    def wait(self, timeout: float = 20) -> tuple[int, float]:
        """Wait for its end: the exit code, and the seconds that it took."""
        assert self._process
        began = time.monotonic()
        code = self._process.wait(timeout)
        self._process = None
        return code, time.monotonic() - began

    def said(self) -> str:
        """All that it wrote."""
        return self.log.read_text()

    def headers(self, role: Role = "client") -> dict[str, str]:
        """The headers of a request by someone with this role."""
        return {"Authorization": f"Bearer {api_token((SECRET,), role, 300)}"}

    def callback_url(self, task: str, family: str = "images/generations") -> str:
        """A signed callback address."""
        return CallbackSigner([SECRET]).url(self.url, task, family)

"""Server processes of benches and tools: started for a block, with their CPU time and memory."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kling_sandbox.receiver import API_KEY
from tools.harness import forkserver, loopback

SECRET = "a-signing-secret-for-benches-0123456789"
SCRIPTS = Path(__file__).parents[2]
RECEIVER = (str(Path(sys.executable).with_name("kling-receiver")),)

pids: dict[str, int] = {}
"""The process id of the server at each address."""


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU that a process has used, all threads included."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> int:
    """Megabytes of a process in memory."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) // 1000


@contextmanager
def process(command: Sequence[str], url: str, settings: dict[str, str] | None = None) -> Iterator[str]:
    """Run a server until the block ends; gives `url` once it answers. Its folder is `scripts`."""
    with Path(os.devnull).open("wb") as nothing:
        output = nothing.fileno()
        environment = loopback.environment(**(settings or {}))
        server = forkserver.start(command, environment, SCRIPTS, stdout=output, stderr=output)
    pids[url] = server.pid
    try:
        if not loopback.answers(url):
            raise SystemExit(f"{' '.join(command)}: {url} does not answer.")
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


@contextmanager
def module(name: str) -> Iterator[str]:
    """Run a server module of the tools (`python -m NAME PORT`); gives its address."""
    with (
        loopback.reserved_port() as port,
        process([sys.executable, "-m", name, str(port)], f"http://127.0.0.1:{port}") as url,
    ):
        yield url


@contextmanager
def sandbox(*options: str) -> Iterator[str]:
    """Run a Kling sandbox with these options; gives its address."""
    with loopback.reserved_port() as port:
        command = [sys.executable, "-m", "kling_sandbox", "--port", str(port), *options]
        with process(command, f"http://127.0.0.1:{port}") as url:
            yield url


@contextmanager
def receiver(
    database_url: str = "",
    api_base: str = "http://127.0.0.1:9",
    *,
    folder: str | None = None,
    command: Sequence[str] = RECEIVER,
    **settings: str,
) -> Iterator[str]:
    """Run a receiver; gives its address once it is ready.

    SQLite in a temporary folder, unless `database_url` or `folder` is set. `command`: a program with the arguments
    of `kling-receiver`; `settings`: by the names of their variables.
    """
    with loopback.reserved_port() as port, tempfile.TemporaryDirectory() as temporary:
        url = f"http://127.0.0.1:{port}"
        variables = {
            "KLING_API_BASE": api_base,
            "KLING_API_KEY": API_KEY,
            "KLING_SIGNING_SECRETS": SECRET,
            "KLING_RECEIVER_URL": url,
            "KLING_DATA_DIR": folder or temporary,
            "KLING_DATABASE_URL": database_url,
            "KLING_PRIVATE_RESULT_HOSTS": "127.0.0.1",
            **settings,
        }
        with process([*command, "serve", "--port", str(port)], f"{url}/readyz", variables):
            pids[url] = pids[f"{url}/readyz"]
            yield url

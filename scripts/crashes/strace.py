"""strace around a receiver: it kills at the N-th call, or writes down every call. Nothing is patched."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.processes import Process

ATTACH_SECONDS = 20


def present() -> bool:
    """Whether this machine has it, and lets us use it."""
    found = shutil.which("strace")
    tried = [found or "false", "-qq", "-e", "trace=none", "true"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def command(out: Path, calls: str, *more: str) -> list[str]:
    """strace of these calls into a file; put it before a command, or give it `-p`."""
    return ["strace", "-f", "-qq", "-y", "-o", str(out), "-e", f"trace={calls}", *more]


def kill_at(calls: str, n: int) -> list[str]:
    """SIGKILL when any thread enters its n-th call of one of these, before the call does anything."""
    return ["-e", f"inject={calls}:signal=KILL:when={n}"]


@contextmanager
def attached(receiver: Process, strace: Sequence[str]) -> Iterator[None]:
    """Trace a receiver that runs, all threads that it has and will have; the block is to bring its end."""
    process = subprocess.Popen([*strace, "-p", str(receiver.pid)], stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + ATTACH_SECONDS
        while not _is_traced(receiver.pid):
            assert process.poll() is None, "strace ended"
            assert time.monotonic() < end, "strace did not attach"
            time.sleep(0.005)
        yield
    finally:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()  # and with it what it traces
            raise


def _is_traced(pid: int) -> bool:
    try:
        said = [each.read_text() for each in Path(f"/proc/{pid}/task").glob("*/status")]
    except OSError:
        return True  # a thread, or all of it, has ended
    return all("TracerPid:\t0\n" not in each for each in said)


LANDED = re.compile(r"^\d+ +(\w+)\((?:\d+<(.*?)>)?.*(?:= \?|unfinished \.\.\.>)$")


PLACES = (
    (r"socket:.*", "socket"),
    (r".*eventfd.*", "wake"),
    (r"part-.*", "part"),
    (r"[0-9A-Z]{26}", "task folder"),
)


def landed(out: Path) -> str:
    """The call that was never made, and on what, in a few words."""
    lines = out.read_text(errors="replace").splitlines()
    found = [match for line in lines if (match := LANDED.match(line))]
    place = Path(found[-1][2] or "").name if found else ""
    for pattern, name in PLACES:
        place = re.sub(pattern, name, place)
    return f"{found[-1][1]} {place}".strip() if found else ""

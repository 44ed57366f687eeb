"""The client on Windows, simulated: without the modules that Windows lacks, and with its names for the system.

Simulated are `sys.platform`, the missing modules, a module `msvcrt` whose lock is that of this system, and folders that
cannot be opened. Not simulated are the console, the event loop of Windows, and its file system.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kling_callback.cli.output import Destination
from kling_callback.cli.param_types import CommandLine
from kling_callback.errors import ParameterError
from kling_callback.listen.cursor import Cursor
from kling_callback.protocol.events import LogPosition
from kling_callback.protocol.media_types import is_device
from kling_callback.tasks import AsyncFile
from kling_sandbox import Sandbox
from tests.client.loops.test_thread import receiver
from tests.support.receiver import KEY, SECRET, Running

__all__ = ["receiver"]

WINDOWS = """
import fcntl, os, shutil, subprocess, sys, types
import asyncio, anyio._backends._asyncio, httpx, httpcore, httpx_sse, jwt, pydantic_settings, rich.progress, stamina
import click.testing, imagesize, itsdangerous, multiprocessing.context

def locking(number, mode, size):
    assert (mode, size) == (2, 1)
    real.flock(number, real.LOCK_EX | real.LOCK_NB)

def open_no_folder(path, flags, *rest, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", path)
    return real_open(path, flags, *rest, **options)

real, real_open = fcntl, os.open
for name in ("fcntl", "pwd", "grp", "resource", "termios", "uvloop"):
    sys.modules[name] = None
sys.modules["msvcrt"] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)
os.open = open_no_folder
shutil._use_fd_functions = False
del os.register_at_fork, os.fork
sys.platform = "win32"

from kling_callback.cli.main import main
"""


@pytest.fixture
def run(receiver: Running, gateway: Sandbox) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a program on that system."""
    settings = {"API_BASE": gateway.url, "API_KEY": KEY, "SIGNING_SECRETS": SECRET, "RECEIVER_URL": receiver.url}
    env = {**os.environ, **{f"KLING_{name}": value for name, value in settings.items()}}
    return lambda program: subprocess.run(
        [sys.executable, "-c", f"{WINDOWS}{program}"], env=env, capture_output=True, text=True, timeout=30, check=False
    )


def test_the_commands(run: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """A task, its file, and the list of tasks."""
    ran = run("main(['text-to-image', 'x', '--external-task-id', 'nul.1', '--output', 'out'])")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (tmp_path / "out" / "_nul.1-0.png").read_bytes().startswith(b"\x89PNG")
    assert run("main(['list'])").stdout.count("nul.1") == 1


def test_python(run: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    """Both clients."""
    ran = run(
        """
from kling_callback import AsyncKling, Kling
with Kling() as kling:
    print(kling.text_to_image("x").wait(20).images[0].save("a.png"))

async def use():
    async with AsyncKling() as kling:
        print(await (await (await kling.text_to_image("x")).wait(20)).images[0].save("b.png"))

asyncio.run(use())
"""
    )
    assert (ran.stdout, ran.stderr) == ("a.png\nb.png\n", "")


def test_listening(run: Callable[[str], subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    """One listener with a cursor at a time; the command runs for each event."""
    assert run("main(['text-to-image', 'x', '--no-wait', '--external-task-id', 'a'])").returncode == 0
    arguments = ["listen", "--from", "1", "--state", "state", "--exec", f"{sys.executable} -c 'raise SystemExit(9)'"]
    ran = run(
        f"""
from kling_callback.listen.cursor import Cursor
from kling_callback.cli import terminal

def stop(event, label):
    print(event.type, label)
    again = Cursor.__new__(Cursor)
    again.path = next(__import__("pathlib").Path("state", "kling-callback").glob("*.json"))
    try:
        with again.lock():
            print("twice")
    except Exception as error:
        print(error.code)
    raise KeyboardInterrupt

terminal.print_event = stop
main({arguments!r})
"""
    )
    assert (ran.returncode, ran.stdout) == (130, "task.created exit code 9\nheld\n"), ran.stderr


def test_a_folder_of_the_client_stays_readable(tmp_path: Path) -> None:
    """The cursor is written and read with the lock of this system, too."""
    cursor = Cursor(tmp_path, "http://x", "")
    with cursor.lock():
        cursor.advance(LogPosition("8c1f2e3a5b6d7f90", 5))
    assert str(Cursor(tmp_path, "http://x", "").after) == "8c1f2e3a5b6d7f90-5"


@pytest.mark.parametrize(
    ("name", "device"),
    [
        *((name, True) for name in ("nul", "NUL.png", "con.a-0.png", "Aux", "com1.mp4", "lpt9", "com\u00b9", "nul .x")),
        *((name, False) for name in ("null", "console.png", "com10.mp4", "com.png", "a.nul", "-nul", "con-0.png")),
    ],
)
def test_names_of_devices(name: str, device: bool) -> None:
    """In any case, with any suffix."""
    assert is_device(name) is device


def test_a_file_is_never_named_as_a_device() -> None:
    """On any system: files move."""
    data = {"index": 0, "kind": "image", "content_type": "image/png"}
    names = [AsyncFile(None, data, {"id": each}).name for each in ("con.x", "con", "a:b")]  # type: ignore[arg-type]
    assert names == ["_con.x-0.png", "con-0.png", "a_b-0.png"]


def test_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A backslash is part of a path; a program has its suffix; a command to repeat is quoted for that shell."""
    (tmp_path / "tool.cmd").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr("shutil.which", lambda name: f"{tmp_path}/tool.cmd" if name == "C:\\a b\\tool" else None)
    command = CommandLine().convert(r'"C:\a b\tool" --to C:\x\y "a b"', None, None)
    assert command == (f"{tmp_path}/tool.cmd", "--to", "C:\\x\\y", "a b")
    assert Destination.parse("a b").again("x") == 'kling wait x --output "a b"'
    for name in ("nul", "nul.png", "out/con/x.png"):
        with pytest.raises(ParameterError, match="device of Windows"):
            Destination.parse(name).check()

"""`scripts/demo`, the first command of the README, as a new user runs it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import httpx
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def run_demo(folder: Path) -> subprocess.Popen[str]:
    """Start the demo as a terminal does: in a process group of its own, all of which Ctrl-C reaches."""
    return subprocess.Popen(
        [str(ROOT / "scripts" / "demo"), str(folder)],
        env={**os.environ, "VENV": str(Path(sys.executable).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def answers(url: str) -> bool:
    """Whether a server answers at this address."""
    try:
        httpx.get(url)
    except httpx.TransportError:
        return False
    return True


def decode(kind: str, path: Path) -> Any:
    """Decode a file: the number of video frames, or the image format."""
    if kind == "mp4":
        with av.open(path) as video:
            return sum(1 for _ in video.decode(video=0))
    with Image.open(path) as image:
        image.load()
        return image.format


def test_the_demo_ends_with_three_files_and_an_account(tmp_path: Path) -> None:
    """A PNG, a JPEG and an MP4 that decode; nine callbacks, three queries; no process is left running."""
    process = run_demo(tmp_path)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    files = {path.suffix: path for path in map(Path, re.findall(r"^ +(/.*)$", output, re.MULTILINE))}
    assert decode("png", files[".png"]) == "PNG"
    assert decode("jpg", files[".jpg"]) == "JPEG"
    assert decode("mp4", files[".mp4"]) > 10
    assert "task.processing" in output
    assert "callbacks received: 9, queries to the gateway: 3" in output
    assert not any(answers(url) for url in re.findall(r"http://127\.0\.0\.1:\d+", output))
    assert (tmp_path / "by-hand" / ".env").stat().st_mode & 0o777 == 0o600
    check_next_commands(output.splitlines()[-3:], tmp_path / "by-hand")


def check_next_commands(lines: list[str], folder: Path) -> None:
    """Paste them: the last one writes an image."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("KLING_")}
    script = folder.parent / "pasted"
    script.write_text("\n".join(lines))
    shell = subprocess.Popen(
        ["bash", "-e", str(script)], env=env, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, _ = shell.communicate(timeout=60)
        assert shell.returncode == 0
    finally:
        os.killpg(shell.pid, signal.SIGTERM)  # the sandbox and the receiver go on in the background
    [path] = printed.splitlines()
    assert decode("png", folder / path) == "PNG"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM in the middle of a job ends the commands and both servers."""
    process = run_demo(tmp_path)
    assert process.stdout is not None
    output = ""
    while "task.submitted" not in output:
        output += process.stdout.readline()
    os.killpg(process.pid, number)
    output += process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert not any(answers(url) for url in re.findall(r"http://127\.0\.0\.1:\d+", output))

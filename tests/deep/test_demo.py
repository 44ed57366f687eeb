"""The first command of the README, as a newcomer runs it."""

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
    """Start it as from a terminal: in a process group of its own, which Ctrl-C reaches as a whole."""
    return subprocess.Popen(
        [str(ROOT / "scripts" / "demo"), str(folder)],
        env={**os.environ, "VENV": str(Path(sys.executable).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def answers(url: str) -> bool:
    """Whether a server listens there."""
    try:
        httpx.get(url)
    except httpx.TransportError:
        return False
    return True


def open_as(kind: str, path: Path) -> Any:
    """What a decoder makes of a file."""
    if kind == "mp4":
        with av.open(path) as video:
            return sum(1 for _ in video.decode(video=0))
    with Image.open(path) as image:
        image.load()
        return image.format


def test_the_demo_ends_with_three_files_and_an_account(tmp_path: Path) -> None:
    """A PNG, a JPEG and an MP4 that open; nine callbacks, three questions; nothing is left running."""
    process = run_demo(tmp_path)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    files = {path.suffix: path for path in map(Path, re.findall(r"^ +(/.*)$", said, re.MULTILINE))}
    assert open_as("png", files[".png"]) == "PNG"
    assert open_as("jpg", files[".jpg"]) == "JPEG"
    assert open_as("mp4", files[".mp4"]) > 10
    assert "task.processing" in said
    assert "callbacks received: 9, questions asked to the gateway: 3" in said.splitlines()[-1]
    assert not any(answers(url) for url in re.findall(r"http://127\.0\.0\.1:\d+", said))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C in the middle of a job ends the commands and both servers."""
    process = run_demo(tmp_path)
    assert process.stdout is not None
    said = ""
    while "task.submitted" not in said:
        said += process.stdout.readline()
    os.killpg(process.pid, number)
    said += process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert not any(answers(url) for url in re.findall(r"http://127\.0\.0\.1:\d+", said))

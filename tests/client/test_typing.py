"""A user's program passes the type checkers in strict mode, and a wrong argument does not."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.node import MODULES, NODE

PROGRAM = Path(__file__).with_name("user_program.py")

WRONG = """
from kling_callback import Kling

kling = Kling()
kling.text_to_image("x", aspect_ratio="5:4")
kling.text_to_video(prompt=5)
kling.motion_control("a.png", "https://host/a.mp4")
kling.text_to_image("x").wait().images[0].save(5)
"""


def mypy(folder: Path) -> str:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={folder / 'cache'}"]
    ran = subprocess.run([*command, *folder.glob("*.py")], capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    return ran.stdout


def pyright(folder: Path) -> str:
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    command = [NODE, MODULES / "pyright" / "index.js", "--pythonpath", sys.executable, "-p", folder]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("check", [mypy, pyright])
def test_a_user_s_program_passes_in_strict_mode(check: Callable[[Path], str], tmp_path: Path) -> None:
    """Every kind of call, with the types that it returns; beside it four wrong arguments, each found."""
    (tmp_path / "program.py").write_text(PROGRAM.read_text())
    (tmp_path / "wrong.py").write_text(WRONG)
    output = check(tmp_path)
    errors = [line.split(":") for line in output.splitlines() if "error" in line and ".py:" in line]
    assert {(Path(path.strip()).name, int(number)) for path, number, *_ in errors} == {
        ("wrong.py", line) for line in (5, 6, 7, 8)
    }, output

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


def mypy(program: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={program.parent / 'cache'}"]
    ran = subprocess.run([*command, str(program)], capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def pyright(program: Path) -> tuple[int, str]:
    (program.parent / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    command = [NODE, MODULES / "pyright" / "index.js", "--pythonpath", sys.executable, "-p", program.parent]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.parametrize("check", [mypy, pyright])
def test_a_user_s_program_passes_in_strict_mode(check: Callable[[Path], tuple[int, str]], tmp_path: Path) -> None:
    """Every kind of call, with the types that it returns; then four wrong arguments, each found."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.read_text())
    code, output = check(program)
    assert code == 0, output
    program.write_text(WRONG)
    code, output = check(program)
    assert code == 1
    lines = {int(line.split(":")[1]) for line in output.splitlines() if "error" in line and ".py:" in line}
    assert lines == {5, 6, 7, 8}, output

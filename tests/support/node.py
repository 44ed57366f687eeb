"""Node, with the packages that scripts/setup installed for it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.receiver import ABSENT

MODULES = Path(sys.prefix, "node", "node_modules")


def node(folder: Path) -> str:
    """The command, for scripts in `folder`: the packages are there. Skips the test where there is none."""
    command = shutil.which("node")
    if command is None or not MODULES.is_dir():
        pytest.skip(f"{ABSENT}Node")
    (folder / "node_modules").symlink_to(MODULES)
    return command


def run(folder: Path, script: str, given: str) -> str:
    """What a script (CommonJS) writes, with this on its stdin."""
    (folder / "script.cjs").write_text(script)
    ran = subprocess.run(
        [node(folder), "script.cjs"],
        cwd=folder,
        input=given,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout

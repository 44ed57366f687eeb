"""The pytest fixtures in sessions of their own: docs/testing.md as it is, without the extra, and without use."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text(encoding="utf-8")


def run_pytest(folder: Path, *arguments: str, **environment: str) -> str:
    """Run pytest in a folder as a user does, with an environment of its own; what it prints."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_", "KLING_"))
    }
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--strict-markers", "-W", "error", *arguments],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return ran.stdout + ran.stderr


def test_the_examples_of_the_guide_pass(tmp_path: Path) -> None:
    """Each block is written to the file that its first line names, and all its tests run."""
    blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
    assert [name for name, _ in blocks] == ["test_kling.py", "app.py", "test_app.py"]
    for name, code in blocks:
        (tmp_path / name).write_text(code, encoding="utf-8")
    assert "5 passed" in run_pytest(tmp_path)


def test_without_the_extra_only_the_receiver_is_missing(tmp_path: Path) -> None:
    """The fixture fails with one line that says what to install; the sandbox runs."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys; sys.modules['sqlalchemy'] = sys.modules['starlette'] = None"
    )
    (tmp_path / "test_it.py").write_text(
        "def test_sandbox(kling_sandbox): assert kling_sandbox.url\ndef test_receiver(kling_settings): pass\n"
    )
    output = run_pytest(tmp_path, PYTHONPATH=str(tmp_path))
    assert "1 passed, 1 error" in output
    (line,) = [line for line in output.splitlines() if line.startswith("The fixture")]
    assert "Run: pip install '.[receiver]'" in line


def test_a_session_without_the_fixtures_imports_nothing(tmp_path: Path) -> None:
    """pytest loads the plugin itself and no more."""
    (tmp_path / "test_it.py").write_text(
        """
import sys

def test_it():
    ours = {name for name in sys.modules if name.startswith("kling_")}
    assert ours == {"kling_sandbox", "kling_sandbox.pytest_plugin"}
    assert not sys.modules.keys() & {"httpx", "h11", "jwt", "click"}
"""
    )
    assert "1 passed" in run_pytest(tmp_path, "-p", "no:anyio", "-p", "no:schemathesis", "-p", "no:hypothesispytest")

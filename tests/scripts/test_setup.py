"""scripts/setup: what it must not remove."""

import os
import subprocess
from pathlib import Path

SETUP = Path(__file__).parents[2] / "scripts" / "setup"


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path) -> None:
    """Whatever VENV names by mistake: exit code 2, the reason, and not a file less."""
    mine = tmp_path / "mine"
    mine.write_text("dear")
    for named in (tmp_path, mine):
        ran = subprocess.run(
            [str(SETUP)], env={**os.environ, "VENV": str(named)}, capture_output=True, text=True, check=False
        )
        assert (ran.returncode, mine.read_text()) == (2, "dear")
        assert f"{named} exists and is no Python environment" in ran.stderr

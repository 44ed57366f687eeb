"""What bash completes: commands, options, and values that are known without a request."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kling_callback.cli.main import kling
from kling_callback.protocol.statuses import TASK_STATUSES
from tests.support.receiver import ABSENT

FOLDER = str(Path(sys.executable).parent)
PROGRAM = """
eval "$(_KLING_COMPLETE=bash_source kling)"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
compopt() { echo "compopt:$2"; }
_kling_completion kling
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash(*words: str) -> list[str]:
    """What bash offers for the last of these words, by the script that the command prints."""
    program = shutil.which("bash")
    if program is None:
        pytest.skip(f"{ABSENT}bash")
    environment = {**os.environ, "PATH": f"{FOLDER}{os.pathsep}{os.environ['PATH']}"}
    command = [program, "--norc", "-c", PROGRAM, "bash", *words]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.splitlines()


def test_bash_completes_files() -> None:
    """By the script that a user's bash runs, with bash's own completion of files."""
    assert bash("kling", "image-to-video", "'it waves'", "--image", "") == ["compopt:default", ""]


def test_bash_completes_statuses() -> None:
    """After the option, all of them."""
    assert bash("kling", "list", "--status", "") == list(TASK_STATUSES)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["li"], ["list", "listen"]),
        (["wait", "--ou"], ["--output"]),
        (["create", "videos/eff"], ["videos/effects"]),
        (["create", "/motion"], ["/motion-control/kling-3.0", "/motion-control/kling-2.6"]),
        (["list", "--at-kling", "videos/text"], ["videos/text2video"]),
        (["list", "--at-kling", "/"], []),
        (["list", "--model", "kling-video"], ["kling-video-o1"]),
        (["text-to-video", "x", "--model-name", "kling-3.0"], ["kling-3.0", "kling-3.0-turbo"]),
        (["text-to-image", "x", "--model-name", "kling-3"], []),
        (["text-to-video", "x", "--mode", ""], ["std", "pro", "4k"]),
        (["call", "general/presets"], ["general/presets-voices"]),
        (["text-to-image", "x", "--hook-event", "task.d"], ["task.done"]),
        (["batch", "--output", ""], [""]),
    ],
)
def test_values_are_completed_without_a_request(
    words: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Families, models, statuses and choices, without any setting; of a job, its own models."""
    from click.shell_completion import ShellComplete

    monkeypatch.setenv("KLING_RECEIVER_URL", "nonsense")
    found = ShellComplete(kling, {}, "kling", "_KLING_COMPLETE").get_completions(words[:-1], words[-1])
    assert [each.value for each in found] == expected

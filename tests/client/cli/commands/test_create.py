"""`--estimate` of each command that creates a task."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from kling_callback.cli.main import kling as command
from kling_callback.jobs.catalog import JOBS
from kling_callback.jobs.prices import estimate
from tests.client.cli.test_main import Ran
from tests.client.cli.test_main import bare as bare  # a fixture
from tests.client.jobs.test_catalog import picture

Run = Callable[..., Ran]

ESTIMATES: dict[str, tuple[str, str]] = {
    "text-to-image": ("x --model-name kling-v2-1 --n 3", "12 units, 0.042 USD (estimate)"),
    "image-to-image": ("x --image a.png --model-name kling-v2-1", "8 units, 0.028 USD (estimate)"),
    "text-to-video": ("x --model-name kling-3.0-turbo --resolution 1080p", "5 units, 0.7 USD (estimate)"),
    "image-to-video": (
        "--image a.png --model-name kling-v3 --duration 10",
        "6 units, 0.84 USD (estimate)",
    ),
    "omni-video": ("x --model-name kling-v3-omni --mode pro", "4 units, 0.56 USD (estimate)"),
    "motion-control": (
        "--image a.png --video https://example.com/x --character-orientation image --mode std --model-name kling-v2-6",
        "0.3 units, 0.042 USD per second (estimate)",
    ),
    "create": ("videos/lip-sync --body '{}'", "0.1 units, 0.014 USD per second (estimate)"),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_each_job_has_an_estimate(bare: Run, tmp_path: Path, name: str) -> None:
    """Without settings; as text, or as JSON whose figures can be added up."""
    (tmp_path / "a.png").write_bytes(picture())
    options, text = ESTIMATES[name]
    arguments = shlex.split(options)
    ran = bare(name, *arguments, "--estimate")
    assert (ran.code, ran.out) == (0, f"{text}\n"), ran.err
    cost = bare(name, *arguments, "--estimate", "--json").json["estimate"]
    assert text.startswith(f"{cost['units']:g} units, {cost['usd']:.3g} USD")


def test_each_command_that_creates_a_task_is_covered() -> None:
    """`create`, and one for each job of the table. That of a batch is in test_batch."""
    with_estimate = {
        name for name, each in command.commands.items() if "estimate_only" in {p.name for p in each.params}
    }
    assert with_estimate - {"batch"} == set(ESTIMATES) == {"create", *(job.name.replace("_", "-") for job in JOBS)}


def test_a_body_of_the_new_standard_has_an_estimate(bare: Run) -> None:
    """The model is in the path; the figure is that of the function."""
    family, body = "/text-to-video/kling-3.0", {"settings": {"resolution": "4k", "duration": 10}}
    assert bare("create", family, "--body", json.dumps(body), "--estimate").out == f"{estimate(family, body)}\n"

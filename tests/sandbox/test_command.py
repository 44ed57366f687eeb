"""The command `kling-sandbox`: options that it refuses."""

import pytest
from click.testing import CliRunner

from kling_sandbox.__main__ import main


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--port", port] for port in ("-1", "65536", "9" * 30, "x")),
        *([f"--{kind}-seconds", value] for kind in ("image", "video", "result") for value in ("nan", "inf", "-1")),
        *([f"--{kind}-bytes", value] for kind in ("image", "video") for value in ("-1", "9" * 30)),
        ["--host", "\udcff"],
        ["--host", "no-such-host.invalid"],
        ["--ready-file", "/"],
        ["--ready-file", ""],
        ["--ready-file", "/nonexistent/file"],
    ],
)
def test_a_value_that_cannot_be(arguments: list[str]) -> None:
    """One message, exit code 1 or 2, no traceback; the sandbox does not stay."""
    ran = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert ran.exit_code in (1, 2)
    assert "Error: " in ran.stderr


def test_all_problems_are_reported_at_once() -> None:
    """Not only the first one, as click would."""
    arguments = ["--port", "x", "--seed", "y", "--image-seconds", "nan", "--misbehave", "z", "--no-such-option", "more"]
    ran = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert ran.exit_code == 2
    for part in ("--port", "--seed", "--image-seconds", "--misbehave", "--no-such-option"):
        assert part in ran.stderr, part
    assert "Usage: " in ran.stderr

"""All problems of a command line are one report: what click refuses, beside parameters, files and settings."""

import shlex
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path

import click
import pytest

from kling_callback.cli import usage
from kling_callback.cli.main import kling as command
from kling_callback.errors import ParameterError, SettingsError
from kling_sandbox import Sandbox
from tests.client.cli.test_main import Ran
from tests.client.cli.test_main import bare as bare  # a fixture
from tests.client.cli.test_main import receiver as receiver
from tests.client.cli.test_main import run as run
from tests.client.cli.test_main import settings as settings

Run = Callable[..., Ran]

TO_CALL = ["KLING_API_KEY is missing"]
TO_WAIT = ["KLING_RECEIVER_URL is missing", "KLING_RECEIVER_TOKEN is missing"]
TO_CREATE = [*TO_CALL, *TO_WAIT]

TIMEOUT = "Invalid value for '--timeout': 'x' is not a number of seconds above 0."
JSON = "Invalid value for '--body': not valid JSON: "
CAMERA = "Invalid value for '--camera-control': not valid JSON: "
UNKNOWN = "No such option"

REPORTS: dict[str, tuple[str, list[str]]] = {
    "a job": (
        "text-to-video x --timeout x --camera-control '{' --cfg-scale 7 --tag '' --hook y --output a-file --bogus",
        [UNKNOWN, TIMEOUT, CAMERA, "cfg_scale: ", "tags: ", "hook: ", "output: ", *TO_CREATE],
    ),
    "an output": (
        "image-to-image x --output '' --timeout x",
        ["Invalid value for '--output'", TIMEOUT, "image: is missing", *TO_CREATE],
    ),
    "items of an option": (
        "image-to-video --element-list @a --element-list @b --set x --set =1 --n x",
        [UNKNOWN, *[f"Invalid value for '--element-list': @{name}" for name in "ab"]]
        + [f"Invalid value for '--set': '{text}'" for text in ("x", "=1")]
        + ["image: is missing", *TO_CREATE],
    ),
    "a list that is refused is not missing": (
        "text-to-video --set multi_shot=true --multi-prompt @a --set x_image=missing.png",
        ["Invalid value for '--multi-prompt': @a", "x_image: ", *TO_CREATE],
    ),
    "a body": (
        "create effects --body '{' --timeout x --external-task-id a/b",
        [JSON, TIMEOUT, "family: ", "external_task_id: ", *TO_CREATE],
    ),
    "a file": (
        "create --body @missing --no-wait --output out",
        ["Invalid value for '--body': @missing cannot be read: ", "Missing argument 'FAMILY'.", "output: ", *TO_CREATE],
    ),
    "no body": ("create effects --tag ''", ["Missing option '--body'.", "family: ", "tags: ", *TO_CREATE]),
    "nothing": ("create", ["Missing argument 'FAMILY'.", "Missing option '--body'.", *TO_CREATE]),
    "an estimate": (
        'create effects --body \'{"a_image": "missing.png"}\' --estimate --timeout x',
        [TIMEOUT, "family: ", "a_image: "],
    ),
    "a call": ("call --body '{' --bogus", [UNKNOWN, JSON, "Missing argument 'PATH'.", *TO_CALL]),
    "a call's path": ("call images/generations --body '{'", [JSON, "path: ", *TO_CALL]),
    "a call's body": (
        'call images/generations x --body \'{"image": "missing.png"}\'',
        ["Got unexpected extra argument (x).", "path: ", "image: ", *TO_CALL],
    ),
    "a wait": (
        "wait a/b --timeout x --output a-file",
        [TIMEOUT, "Invalid value for '[ID]...'", "output: ", *TO_WAIT],
    ),
    "no id": ("wait --output a-file", ["Name tasks by their ids", "output: ", *TO_WAIT]),
    "several waits": (
        "wait a a/b c/d --tag t --timeout x --output x.png",
        [TIMEOUT, *["Invalid value for '[ID]...'"] * 2, "output: 'x.png' is a file", *TO_WAIT],
    ),
    "an id": ("show a/b --bogus=1", [UNKNOWN, "Invalid value for 'ID'", *TO_WAIT]),
    "filters": (
        "list --status lost --limit 0 videos/text2video",
        ["Invalid value for '--status'", "Invalid value for '--limit'", "Set --family videos/text2video", *TO_WAIT],
    ),
    "Kling's list": (
        "list --at-kling --status lost --tag a audio/tts /text-to-video/kling-3.0-turbo",
        [
            "Invalid value for '--status'",
            "--at-kling cannot be combined with --status, --tag",
            "family: audio/tts",
            "family: Kling has no list",
            *TO_CALL,
        ],
    ),
    "a listener": (
        "listen --event x --event y --from 0 --forward z --state a-file",
        [f"Invalid value for '--event': '{name}'" for name in "xy"]
        + ["Invalid value for '--from'", "Invalid value for '--forward'", "Invalid value for '--state'", *TO_WAIT],
    ),
    "two handlers": (
        "listen --forward http://127.0.0.1 --exec true --state '~no-such-user/state'",
        ["--forward and --exec cannot be combined", "There is no home folder", *TO_WAIT],
    ),
    "options without a value": (
        "show x --json=1 -x -yz",
        ["Option '--json' does not take a value.", UNKNOWN, UNKNOWN, *TO_WAIT],
    ),
    "the last option": (
        "text-to-image x --tag a --tag",
        ["Option '--tag' requires an argument.", *TO_CREATE],
    ),
    "too many arguments": ("show x y z", ["Got unexpected extra arguments (y z).", *TO_WAIT]),
    "a value of an unknown option": ("show --bogus a/b x", [UNKNOWN, *TO_WAIT]),
    "an unknown option of a command without arguments": ("listen --bogus x --from 0", [UNKNOWN, "Invalid", *TO_WAIT]),
    "an uncertain argument": ("create --bogus y effects --body '{'", [UNKNOWN, JSON, *TO_CREATE]),
    "a certain argument": ("create effects --bogus --body '{'", [UNKNOWN, JSON, "family: ", *TO_CREATE]),
}


@pytest.mark.parametrize("case", REPORTS)
def test_all_problems_are_one_report(bare: Run, tmp_path: Path, case: str) -> None:
    """A line for each, in this order, then how to get help; none is reported twice, or is the result of another."""
    (tmp_path / "a-file").touch()
    line, expected = REPORTS[case]
    ran = bare(*shlex.split(line))
    assert (ran.code, ran.out) == (2, "")
    *lines, last = ran.err.splitlines()
    assert last == f"Try 'kling {line.split()[0]} --help' for help."
    assert len(lines) == len(expected), ran.err
    for problem, start in zip(lines, expected, strict=True):
        assert problem.startswith(start), ran.err


@pytest.mark.parametrize("name", [name for name in command.commands if name != "list"])
def test_each_command_reports_all_at_once(bare: Run, name: str) -> None:
    """An unknown option, a missing argument and the settings."""
    ran = bare(name, "--bogus")
    assert (ran.code, ran.out) == (2, "")
    assert UNKNOWN in ran.err
    assert "is missing" in ran.err
    assert isinstance(command.commands[name], usage.Command)


def test_nothing_is_sent(run: Run, gateway: Sandbox) -> None:
    """With valid settings, a command with any problem ends before it calls Kling or the receiver."""
    wrong = ["--timeout", "x"]
    for arguments in (
        ["text-to-image", "x", *wrong],
        ["text-to-video", "x", "--camera-control", "{"],
        ["create", "images/generations", "--body", '{"prompt": "x"}', *wrong],
        ["create", "images/generations", "--body", '{"prompt": "x"}', "--bogus"],
        ["text-to-image", "x", "too many"],
        ["call", "audio/tts", "--body", "{}", "--bogus"],
        ["call", "audio/tts", "--body", "{}", "too many"],
    ):
        ran = run(*arguments)
        assert (ran.code, ran.out) == (2, "")
        assert len(ran.err.splitlines()) == 2, ran.err
    assert (gateway.creates, gateway.calls) == ([], [])
    assert run("list", "--json").out == ""


def test_a_wrong_option_is_named_by_the_next(bare: Run) -> None:
    """As click does alone."""
    line = bare("text-to-image", "x", "--timout", "5").err.splitlines()[0]
    assert line.startswith(UNKNOWN)
    assert "--timeout" in line


def test_stdin_is_read_once(bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the command line is parsed again without the option that does not exist."""
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b'{"prompt": "x"}')))
    ran = bare("create", "images/generations", "--body", "@-", "--bogus", "--timeout", "x")
    assert ran.err.splitlines()[1] == TIMEOUT
    assert "Invalid value for '--body'" not in ran.err


def test_help_is_shown_beside_mistakes(bare: Run) -> None:
    """`--help` ends the command at once."""
    ran = bare("create", "--bogus", "--help")
    assert (ran.code, ran.err, "Usage: kling create" in ran.out) == (0, "", True)


def test_settings_alone_are_reported_as_such(bare: Run) -> None:
    """Without the hint, which is about the command line."""
    ran = bare("show", "x")
    assert ran.err.splitlines()[0] == "The settings are invalid:"
    assert "--help" not in ran.err


def test_problems_of_a_refused_parameter_are_dropped() -> None:
    """Those that follow from its missing value; others stay, and so does the kind of the error."""
    problems = usage.UsageProblems("Get help.")
    problems.refuse("Missing option '--body'.", "body")
    with problems:
        raise ParameterError(["body: must be a JSON object.", "tags: are wrong."])
    with problems:
        raise ParameterError(["body: is odd."])
    with problems:
        raise SettingsError(["body: is a setting."])
    with pytest.raises(ParameterError) as error:
        problems.raise_all()
    assert error.value.problems == ["Missing option '--body'.", "tags: are wrong.", "body: is a setting."]
    assert error.value.hint == "Get help."


def test_a_command_of_click_alone_ends_at_its_first_problem() -> None:
    """Outside of a command, and in one that collects none, there are no problems to raise."""
    usage.problems().raise_all()
    with click.Context(click.Command("x"), obj="another's"):
        usage.problems().raise_all()
    plain = click.Command("x", params=[usage.Option(["--n"], type=int), usage.Argument(["name"])])
    for arguments in (["y", "--n", "z"], []):
        with pytest.raises(click.UsageError):
            plain.make_context("x", arguments)

"""All problems of a command of `kling-receiver` are one report: what click refuses, beside hooks and settings."""

import shlex
from importlib import import_module
from typing import Any

import click
import pytest

from kling_callback.cli import usage
from kling_receiver.cli.main import COMMANDS
from tests.receiver.cli.test_hooks import Operator
from tests.receiver.cli.test_hooks import operator as operator  # a fixture
from tests.receiver.cli.test_main import invoke

SECRETS = "KLING_SIGNING_SECRETS"
TO_SERVE = ["KLING_API_KEY", SECRETS, "KLING_RECEIVER_URL"]
TO_ADMINISTER = [SECRETS, "KLING_RECEIVER_URL"]

REPORTS: dict[str, tuple[str, list[str]]] = {
    "serve": ("serve --port x --host ''", ["Invalid value for '--port'", "--host is empty", *TO_SERVE]),
    "token": ("token --days 0 --role x", ["Invalid value for '--days'", "Invalid value for '--role'", SECRETS]),
    "tasks": ("tasks list --limit 0 --status x", ["Invalid value for '--limit'", "Invalid value for '--status'"]),
    "adopt": ("tasks adopt videos/text2video a/b --bogus", ["No such option", "Invalid value for 'TASK_ID'"]),
    "a hook": (
        "hooks add kafka://host/topic --name 'My Hook' --concurrency x --rate-limit 0 --retry-schedule soon",
        [f"Invalid value for '--{name}'" for name in ("concurrency", "rate-limit", "retry-schedule")]
        + ["name: must be small letters", "address: no sink delivers to kafka"],
    ),
    "a hook at a web address": (
        "hooks add https:///x --event x --event y --status z --timeout nan --family /",
        [f"Invalid value for '--{name}" for name in ("event': 'x'", "event': 'y'", "status'", "timeout'")]
        + ["families: ", "address: its host or port is not valid"],
    ),
    "no address": ("hooks add --secret short", ["Missing argument 'ADDRESS'", "secret: "]),
    "rotate": ("hooks rotate --overlap x", ["Invalid value for '--overlap'", "Missing argument 'NAME'"]),
    "deliveries": (
        "deliveries retry x y --dead",
        [*[f"Invalid value for '[EVENT/HOOK]...': {name}" for name in "xy"], "Name deliveries"],
    ),
    "replay": ("replay --from 0 --since now", ["Invalid value for '--from'", "Set one of --from, --since and --task."]),
}


@pytest.mark.parametrize("case", REPORTS)
def test_all_problems_are_one_report(case: str) -> None:
    """A line for each, the settings after the parameters, then how to get help."""
    line, expected = REPORTS[case]
    if line.split()[0] not in ("serve", "token"):
        expected = [*expected, *TO_ADMINISTER]
    ran = invoke(*shlex.split(line))
    assert (ran.exit_code, ran.stdout) == (2, "")
    *lines, last = [each.removeprefix("kling-receiver: ") for each in ran.stderr.splitlines()]
    assert last.startswith("Try '")
    assert sorted(start for start in expected if any(each.startswith(start) for each in lines)) == sorted(expected), (
        ran.stderr
    )
    assert len(lines) == len(expected), ran.stderr


def commands(command: click.Command, *names: str) -> dict[tuple[str, ...], click.Command]:
    """The commands of a group and of the groups in it, by their names."""
    if not isinstance(command, click.Group):
        return {names: command}
    return {path: each for name, sub in command.commands.items() for path, each in commands(sub, *names, name).items()}


LAZY: dict[str, Any] = {name: getattr(import_module(lazy.module), lazy.attribute) for name, lazy in COMMANDS.items()}
ALL = {path: each for name, command in LAZY.items() for path, each in commands(command, name).items()}


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_each_command_reports_what_click_refuses(path: tuple[str, ...]) -> None:
    """Every command is of the kind that collects its problems, and raises them before it begins."""
    assert isinstance(ALL[path], usage.Command)
    ran = invoke(*path, "--bogus")
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("kling-receiver: No such option")
    assert ran.exception is None or isinstance(ran.exception, SystemExit)


def test_nothing_is_changed(operator: Operator) -> None:
    """With valid settings and a receiver that runs, a command with any problem ends before it is called."""
    for line in ("hooks add https://hooks.example/in --bogus", "hooks add https://hooks.example/in --concurrency x"):
        assert operator.run(*shlex.split(line)).returncode == 2
    assert operator.states() == {}


def test_a_private_host_is_left_to_the_receiver(operator: Operator) -> None:
    """Whose settings allow it, although the command has none of them."""
    done = operator.run("hooks", "add", "http://10.0.0.1/", "--json")
    assert (done.returncode, "is not a public address" in done.stderr) == (1, True)
    assert operator.run("hooks", "add", "http://127.0.0.1:9/").returncode == 0

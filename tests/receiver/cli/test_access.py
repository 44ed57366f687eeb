"""The commands `kling-receiver token`, `tokens` and `audit`: with a running receiver, without one, and their errors."""

import json
import shutil
import sys
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import httpx
import pytest

from kling_callback.protocol.signing import api_token, verify_api_token
from kling_receiver.cli.access import TOKEN_NAME
from kling_receiver.hooks.config import NAME
from tests.support.commands import run_here
from tests.support.pages import Browser
from tests.support.receiver import SECRET, Running, Start
from tests.support.wire import Wire, reply
from tools.harness.process import environment

NO_KLING = "http://127.0.0.1:9"


class Operator:
    """A person who types commands on the machine of a receiver with this database."""

    def __init__(self, start: Start, data: Path, database_url: str) -> None:
        self._start, self._port, self._url = start, 0, database_url
        self.start()
        self.env = environment(
            data, KLING_RECEIVER_URL=self.receiver.url, KLING_API_BASE=NO_KLING, KLING_DATABASE_URL=database_url
        )

    def start(self, **settings: Any) -> None:
        """Start the receiver, at the same address as before."""
        self.receiver: Running = self._start(port=self._port, api_base=NO_KLING, database_url=self._url, **settings)
        self._port = int(self.receiver.url.rpartition(":")[2])

    def run(self, *arguments: str, **settings: str) -> CompletedProcess[str]:
        """Run one command."""
        return run_here(*arguments, env={**self.env, **settings})

    def output(self, *arguments: str) -> str:
        """The stdout of a command that succeeds."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def documents(self, *arguments: str) -> list[dict[str, Any]]:
        """The JSON documents that a command prints."""
        return [json.loads(line) for line in self.output(*arguments, "--json").splitlines()]

    def actions(self) -> list[tuple[str, str, str, str | None]]:
        """The audit log, oldest first."""
        rows = reversed(self.documents("audit", "--limit", "1000"))
        return [(row["actor"], row["action"], row["target"], row["result"]) for row in rows]

    def accepts(self, token: str) -> bool:
        """Whether the receiver accepts a token."""
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.get(f"{self.receiver.url}/api/tasks", headers=headers).status_code == 200


@pytest.fixture
def operator(start: Start, tmp_path: Path, database_url: str) -> Operator:
    """An operator whose receiver runs."""
    return Operator(start, tmp_path / "data", database_url)


def test_a_named_token_through_its_life(operator: Operator) -> None:
    """Made, listed and revoked by the running receiver: it counts at once, and the token is printed only once."""
    token = operator.output("token", "--name", "ci", "--role", "read", "--days", "3").strip()
    content = verify_api_token([SECRET], token)
    assert (content.role, content.name) == ("read", "ci")
    assert operator.accepts(token)
    taken = operator.run("token", "--name", "ci")
    assert (taken.returncode, taken.stdout) == (1, "")
    assert "There is a token ci already. " in taken.stderr
    [row] = operator.documents("tokens", "list")
    assert (row["name"], row["role"]) == ("ci", "read")
    assert row["last_used_at"]
    shown = operator.output("tokens", "list")
    assert [word in shown for word in ("NAME", "EXPIRES", "ci", "read")] == [True] * 4
    assert token not in shown
    revoked = operator.run("tokens", "revoke", "ci")
    assert (revoked.returncode, revoked.stderr) == (0, "ci revoked.\n")
    assert not operator.accepts(token)
    assert operator.documents("tokens", "list") == []
    again = operator.run("tokens", "revoke", "ci")
    assert (again.returncode, "There is no such token" in again.stderr) == (1, True)
    assert operator.actions() == [
        ("local command", "tokens add", "ci", "done"),
        ("local command", "tokens add", "ci", "name_taken"),
        ("local command", "tokens revoke", "ci", "done"),
        ("local command", "tokens revoke", "ci", "unknown_token"),
    ]


def test_without_a_running_receiver_the_commands_open_its_database(operator: Operator) -> None:
    """A token that is made or revoked meanwhile is accepted or refused from the next start on."""
    kept, revoked = (operator.output("token", "--name", name).strip() for name in ("kept", "revoked"))
    operator.receiver.stop()
    made = operator.output("token", "--name", "made", "--max-age", "300").strip()
    operator.output("tokens", "revoke", "revoked")
    assert [row["name"] for row in operator.documents("tokens", "list")] == ["kept", "made"]
    operator.start()
    assert [operator.accepts(token) for token in (kept, made, revoked)] == [True, True, False]
    assert [action for _, action, _, _ in operator.actions()] == ["tokens add"] * 3 + ["tokens revoke"]


def test_a_command_that_enqueues_nothing_promises_no_jobs(operator: Operator) -> None:
    """Without a running receiver: only what is enqueued is done after the next start."""
    operator.receiver.stop()
    script = f"command:{sys.executable} -c pass"
    assert operator.run("hooks", "add", script, "--name", "script").returncode == 0
    note, opened = "is done after the next start", "so its database is opened"
    for arguments, notes in (
        (["audit"], False),
        (["tokens", "list"], False),
        (["tasks", "list"], False),
        (["hooks", "pause", "script"], False),
        (["hooks", "resume", "script"], True),
    ):
        said = operator.run(*arguments).stderr
        assert (opened in said, note in said) == (True, notes), arguments


def test_every_command_that_changes_something_is_in_the_log(operator: Operator) -> None:
    """Also those that write the database themselves, and hooks that settings add, change and remove."""
    script = f"command:{sys.executable} -c pass"
    assert operator.run("hooks", "add", script, "--name", "script").returncode == 0
    assert operator.run("hooks", "pause", "script").returncode == 0
    assert operator.run("replay", "--from", "1").returncode == 0
    assert operator.run("deliveries", "retry", "--dead").returncode == 0
    assert operator.run("tasks", "ask", "nobody").returncode == 1
    operator.receiver.stop()
    assert operator.run("hooks", "remove", "script").returncode == 0
    assert operator.run("migrate").returncode == 0
    secret = "whsec_" + "a" * 32
    for settings in (
        {"hook_url": "https://h.example/hidden", "hook_secret": secret},
        {"hook_url": "https://h.example/hidden", "hook_secret": secret},  # unchanged
        {"hook_url": "https://other.example/hidden", "hook_secret": secret},
        {},
    ):
        operator.start(**settings)
        operator.receiver.stop()
    found = operator.actions()
    assert found == [
        ("local command", "hooks add", "script", "done"),
        ("local command", "hooks pause", "script", "done"),
        ("local command", "replay", "", "done"),
        ("local command", "deliveries retry", "", "done"),
        ("local command", "tasks ask", "nobody", "unknown_task"),
        ("local command", "hooks remove", "script", "done"),
        ("local command", "migrate", "", "done"),
        ("KLING_HOOK_URL", "hooks add", "default", "done"),
        ("KLING_HOOK_URL", "hooks change", "default", "done"),
        ("KLING_HOOK_URL", "hooks remove", "default", "done"),
    ]
    shown = operator.output("audit")
    assert "local command" in shown
    assert not any(part in shown for part in ("hidden", secret))


def test_the_newest_entries_come_first(operator: Operator) -> None:
    """As many as asked for, of any number of pages."""
    headers = operator.receiver.headers("admin")
    with httpx.Client(base_url=operator.receiver.url, headers=headers) as http:
        for number in range(120):
            http.delete(f"/api/tokens/n{number}")
    assert [row["target"] for row in operator.documents("audit", "--limit", "110")] == [
        f"n{number}" for number in range(119, 9, -1)
    ]
    [row] = operator.documents("audit", "--limit", "1")
    assert (row["actor"], row["result"]) == ("unnamed admin token", "unknown_token")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", ["", "A", "a b", "a\nb", "\x1b[2J", "x" * 64, "../x", "-x", "\u202e"])
def test_a_wrong_name_is_refused(operator: Operator, name: str) -> None:
    """Before anything is signed; no token is printed, and no terminal is changed."""
    refused = operator.run("token", f"--name={name}")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--name" in refused.stderr
    assert all(line.isprintable() for line in refused.stderr.splitlines())


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_all_problems_are_reported_at_once(operator: Operator) -> None:
    """Of the name and of the age, which is given in one way."""
    refused = operator.run("token", "--name", "A", "--days", "3", "--max-age", "60")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert [word in refused.stderr for word in ("--name", "--days", "--max-age")] == [True] * 3


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_token_without_a_name_needs_no_receiver(operator: Operator) -> None:
    """It is signed here and recorded nowhere, as before; `--max-age` is in seconds."""
    operator.receiver.stop()
    token = operator.output("token", "--max-age", "60").strip()
    expected = verify_api_token([SECRET], api_token([SECRET], "client", 60))
    content = verify_api_token([SECRET], token)
    assert (content.role, content.name, content.id) == ("client", "", "")
    assert abs(content.expires - expected.expires) < 30
    operator.start()
    assert operator.accepts(token)
    assert operator.actions() == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_receiver_with_other_secrets_adds_nothing(operator: Operator) -> None:
    """The command says so, and prints no token that nobody would accept."""
    refused = operator.run("token", "--name", "ci", KLING_SIGNING_SECRETS="y" * 40)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert operator.documents("tokens", "list") == []


@pytest.mark.parametrize("arguments", [["token", "--name", "ci"], ["tokens", "list"], ["audit"]])
def test_an_answer_of_another_server_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    """With one line instead of a traceback."""
    with Wire(reply(200, b'{"tasks": [], "tokens": [1], "entries": "x"}')) as server:
        env = environment(tmp_path, KLING_RECEIVER_URL=server.url)
        refused = run_here(*arguments, env=env)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "cannot be read" in refused.stderr


def test_a_name_is_as_that_of_a_hook() -> None:
    """The command repeats the rule, because its module takes long to import."""
    assert f"^{TOKEN_NAME}$" == NAME


@pytest.mark.parametrize("role", ["admin", "client", "read"])
def test_a_login_link_works_with_and_without_a_running_receiver(
    start: Start, tmp_path: Path, sqlite_template: Path, role: str
) -> None:
    """It is signed by the secrets, and begins with the address at which people reach the pages."""
    operator = Operator(
        start, tmp_path / "data", f"sqlite:///{shutil.copyfile(sqlite_template, tmp_path / 'kling.db')}"
    )
    link = operator.output("login-link", "--role", role).strip()
    assert link.startswith(f"{operator.receiver.url}/dashboard/login?link=")
    operator.receiver.stop()
    later = operator.output("login-link", "--role", role).strip()
    assert later != link
    other = operator.run("login-link", KLING_LINKS_URL="https://pages.example/kling").stdout
    assert other.startswith("https://pages.example/kling/dashboard/login?link=")
    operator.start()
    for each in (link, later):
        with Browser(operator.receiver) as browser:
            assert f"role <strong>{role}</strong>" in browser.http.get(each).text
            assert browser.login(each).status_code == 303
            assert browser.get().status_code == 200
    assert "--role" in operator.run("login-link", "--role", "nobody").stderr

"""The commands `kling-receiver hooks`, `deliveries` and `replay`, on a receiver that runs, or on its database."""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from kling_callback.cli.main import main as kling
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import task_hook_secrets
from kling_receiver.hooks import records as hook_records
from kling_receiver.store.database import Database
from kling_sandbox import Sandbox
from tests.support.commands import leaves_no_trace, run_here
from tests.support.receiver import Start
from tests.support.web import Host, host
from tools.harness.process import COMMAND, environment
from tools.harness.submitting import events, register

SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
NEXT = "whsec_" + base64.b64encode(b"the-next-secret-for-these-tests.").decode()
SHORT = "whsec_" + base64.b64encode(b"short").decode()
GOOD = "https://hooks.example/in"
NO_KLING = "http://127.0.0.1:9"
"""An address that accepts no connection."""


class Operator:
    """A person who types commands on the receiver's machine; the receiver and the commands run in this process."""

    def __init__(self, start: Start, data: Path) -> None:
        self._start, self._data, self._port = start, data, 0
        self.start()

    def start(self, *, api_base: str = NO_KLING, **settings: Any) -> None:
        """Start the receiver, at the same address as before."""
        self.receiver = self._start(port=self._port, api_base=api_base, **settings)
        self._port = int(self.receiver.url.rpartition(":")[2])
        self.env = environment(self._data, KLING_RECEIVER_URL=self.receiver.url, KLING_API_BASE=api_base)

    def restart(self, **settings: Any) -> None:
        """Stop the receiver and start it with these settings."""
        self.receiver.stop()
        self.start(**settings)

    def run(self, *arguments: str, stdin: str = "", **settings: str) -> CompletedProcess[str]:
        """Run one command."""
        return run_here(*arguments, env={**self.env, **settings}, stdin=stdin)

    def output(self, *arguments: str) -> str:
        """The stdout of a command that succeeds."""
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def states(self) -> dict[str, str]:
        """The hooks with their states."""
        rows = [json.loads(line) for line in self.output("hooks", "list", "--json").splitlines()]
        return {row["name"]: row["state"] for row in rows}


@pytest.fixture
def operator(start: Start, tmp_path: Path) -> Operator:
    """An operator whose receiver runs."""
    return Operator(start, tmp_path / "data")


@pytest.fixture
def endpoint() -> Iterator[Host]:
    """An application that answers 200 to each event."""
    with host(lambda visit: visit.answer(200, b"thank you")) as application:
        yield application


def test_a_test_of_any_type(operator: Operator, endpoint: Host) -> None:
    """`--event`: the outcome is shown, also of one that fails; an unknown type is wrong usage."""
    operator.output("hooks", "add", endpoint.url, "--name", "web")
    tested = operator.run("hooks", "test", "web", "--event", "task.done")
    assert tested.stdout == "thank you\n"
    assert re.fullmatch(r"Delivered \(200\) after \d+ ms\.\n", tested.stderr)
    assert json.loads(endpoint.wait_for(1)[0].body)["type"] == "task.done"
    operator.output("hooks", "add", endpoint.url, "--name", "kling", "--format", "kling")
    refused = operator.run("hooks", "test", "kling", "--event", "result.stored")
    assert (refused.returncode, "task.done only" in refused.stderr) == (1, True)
    unknown = operator.run("hooks", "test", "web", "--event", "task.over")
    assert (unknown.returncode, "task.overdue" in unknown.stderr) == (2, True)


def test_a_hook_in_kling_s_format(operator: Operator, endpoint: Host) -> None:
    """`--format kling`; the list shows which hooks have it. What it cannot have is refused."""
    operator.output("hooks", "add", endpoint.url, "--name", "plain")
    assert "FORMAT" not in operator.output("hooks", "list")
    operator.output("hooks", "add", endpoint.url, "--name", "web", "--format", "kling")
    assert json.loads(operator.output("hooks", "show", "web"))["format"] == "kling"
    assert "kling" in next(line for line in operator.output("hooks", "list").splitlines() if line.startswith("web"))
    assert "FORMAT" in operator.output("hooks", "list")
    operator.output("hooks", "test", "web")
    assert json.loads(endpoint.wait_for(1)[0].body)["status"] == "submitted"
    for wrong in ([endpoint.url, "--event", "task.done"], ["redis://127.0.0.1/x"]):
        refused = operator.run("hooks", "add", *wrong, "--format", "kling")
        assert (refused.returncode, "format kling" in refused.stderr) == (2, True), refused.stderr


@pytest.mark.parametrize("runs", [True, False], ids=["running", "stopped"])
def test_the_life_of_a_hook(operator: Operator, endpoint: Host, runs: bool) -> None:
    """The commands work with and without a running receiver; jobs enqueued meanwhile run at the next start."""
    if not runs:
        operator.receiver.stop()
    added = operator.run("hooks", "add", endpoint.url, "--event", "task.created", "--name", "web")
    assert added.returncode == 0, added.stderr
    assert "kling-receiver hooks test web" in added.stderr
    secret = added.stdout.strip()
    assert "thank you" in operator.output("hooks", "test", "web")
    [visit] = endpoint.wait_for(1)
    assert Webhook(secret).verify(visit.body, dict(visit.headers))["type"] == "hook.test"
    shown = operator.output("hooks", "show", "web")
    assert json.loads(shown)["events"] == ["task.created"]
    fresh = operator.output("hooks", "rotate", "web", "--overlap", "60").strip()
    assert fresh.startswith("whsec_")
    assert secret not in shown + operator.output("hooks", "list")
    assert "web paused" in operator.run("hooks", "pause", "web").stderr
    assert operator.states() == {"web": "paused"}
    operator.output("hooks", "resume", "web")
    if not runs:
        operator.start()
    register(operator.receiver, new_id())
    visit = endpoint.wait_for(2)[1]
    for each in (secret, fresh):
        Webhook(each).verify(visit.body, dict(visit.headers))
    operator.output("hooks", "remove", "web")
    assert operator.states() == {}


@pytest.mark.parametrize("runs", [True, False], ids=["running", "stopped"])
def test_a_command_is_added_on_the_machine(operator: Operator, tmp_path: Path, runs: bool) -> None:
    """With and without a running receiver; the command runs from the next event on."""
    if not runs:
        operator.receiver.stop()
    book, script = tmp_path / "book", tmp_path / "hook.py"
    script.write_text("import os, sys; open(sys.argv[1], 'a').write(os.environ['KLING_TASK_ID'] + '\\n')")
    argv = json.dumps([sys.executable, str(script), str(book)])
    added = operator.output("hooks", "add", f"command:{argv}", "--event", "task.created", "--json")
    assert json.loads(added) == {"name": "hook-1", "secret": None}
    if not runs:
        operator.start()
    task = new_id()
    register(operator.receiver, task)
    delivered = ["deliveries", "list", "--state", "delivered", "--json"]
    while not (found := operator.output(*delivered)):
        events(operator.receiver, task, "task.created")
    assert book.read_text() == f"{task}\n"
    [delivery] = map(json.loads, found.splitlines())
    shown = json.loads(operator.output("deliveries", "show", delivery["id"]))
    assert [(each["delivered"], each["response_status"]) for each in shown["attempts"]] == [(True, 0)]


def test_a_command_is_added_to_the_database_of_the_receiver_that_runs(operator: Operator, tmp_path: Path) -> None:
    """With the settings of another database, or beside a hooks file, nothing is added anywhere."""
    adding = ["hooks", "add", "command:true"]
    operator.output(*adding)
    none = operator.run(*adding, KLING_DATA_DIR=str(tmp_path / "none"))
    assert (none.returncode, none.stdout) == (1, "")
    assert "There is no database" in none.stderr
    other = Database(f"sqlite:///{tmp_path}/other/kling.db")
    other.migrate()
    wrong = operator.run(*adding, KLING_DATA_DIR=str(tmp_path / "other"))
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "has another database" in wrong.stderr
    with other.read() as connection:
        assert hook_records.hooks(connection) == []
    other.close()
    assert operator.states() == {"hook-1": "active"}
    (tmp_path / "hooks.toml").write_text("")
    operator.restart(hooks_file=str(tmp_path / "hooks.toml"))
    kept = operator.run(*adding, KLING_HOOKS_FILE="")
    assert (kept.returncode, kept.stdout) == (1, "")
    assert "are kept in KLING_HOOKS_FILE" in kept.stderr
    assert operator.states() == {}


def test_an_empty_list_says_so(operator: Operator) -> None:
    """On stderr: stdout has the head of the table only."""
    for command, message in (("hooks", "Add one: kling-receiver hooks add"), ("deliveries", "No deliveries.")):
        ran = operator.run(command, "list")
        assert message in ran.stderr
        assert len(ran.stdout.splitlines()) == 1


def test_a_failed_delivery_is_listed_and_retried(operator: Operator) -> None:
    """`list` finds it and `retry` sends it; a replay sends delivered events again, too."""
    refusing = True
    with host(lambda visit: visit.answer(503 if refusing else 200)) as application:
        web = ["--name", "web", "--event", "task.created", "--retry-schedule", "3600,3600"]
        operator.output("hooks", "add", application.url, *web)
        task = new_id()
        register(operator.receiver, task)
        application.wait_for(1)
        listing = ["deliveries", "list", "--hook", "web", "--state", "pending"]
        while "the hook answered 503" not in operator.output(*listing):
            pass
        [delivery] = operator.output("deliveries", "list", "--json").splitlines()
        name = json.loads(delivery)["id"]
        refusing = False
        retried = operator.run("deliveries", "retry", name).stderr
        assert "Deliveries to be sent again: 1. A paused hook gets them once it is resumed." in retried
        application.wait_for(2)
        for chosen in (["--task", task], ["--from", "1"], ["--since", "2026-01-01"]):
            message = operator.run("replay", *chosen, "--hook", "web").stderr
            assert "Of 1 events, those that match are delivered again to web." in message, message
        assert "Deliveries to be sent again: 0." in operator.run("deliveries", "retry", "--dead").stderr
        visits = application.wait_for(3)
    assert len({visit.headers["webhook-id"] for visit in visits}) == 1


WRONG: dict[str, tuple[list[str], int, str]] = {
    "a forbidden address": (["hooks", "add", "http://10.0.0.1/"], 1, "is not a public address"),
    "an unknown scheme": (["hooks", "add", "kafka://host/topic"], 2, "no sink delivers to kafka"),
    "no such command": (["hooks", "add", "command:no-such-command"], 2, "the command no-such-command does not exist"),
    "a short secret": (["hooks", "add", GOOD, "--secret", SHORT], 2, "is too short"),
    "a filter of nothing": (
        ["hooks", "add", GOOD, "--event", "task.failed", "--status", "succeed"],
        2,
        "the filter matches nothing",
    ),
    "no secret": (["hooks", "add", GOOD, "--secret", "-"], 2, "there is no secret on stdin"),
    "another's event": (["hooks", "add", GOOD, "--event", "x"], 2, "--event"),
    "a bad schedule": (["hooks", "add", GOOD, "--retry-schedule", "soon"], 2, "not a list of seconds"),
    "a bad name": (["hooks", "add", GOOD, "--name", "My Hook"], 2, "must be small letters"),
    "a bad broker": (["hooks", "add", "redis://host"], 2, "redis://host:port/stream"),
    "nobody's name": (["hooks", "show", "nobody"], 1, "There is no such hook"),
    "no name": (["hooks", "test"], 2, "NAME"),
    "no delivery": (["deliveries", "show", "x"], 2, "is not a delivery"),
    "nobody's delivery": (["deliveries", "retry", "1/nobody"], 1, "There is no such hook"),
    "nothing to retry": (["deliveries", "retry"], 2, "or set --dead"),
    "nothing to replay": (["replay"], 2, "Set one of"),
    "no time": (["replay", "--since", "yesterday"], 1, "since: yesterday is not a time, such as 2026-"),
}


def test_a_refused_command_prints_the_reason(operator: Operator) -> None:
    """Exit code 2 for wrong usage, 1 for a refusal of the receiver; no hook is added."""
    for kind, (arguments, code, reason) in WRONG.items():
        done = operator.run(*arguments)
        assert (done.returncode, done.stdout) == (code, ""), (kind, done.stderr)
        assert reason.lower() in done.stderr.lower(), (kind, done.stderr)
        assert SHORT not in done.stderr
    assert operator.states() == {}


def test_a_secret_is_read_from_stdin(operator: Operator, endpoint: Host) -> None:
    """`--secret -` of `hooks add` and `hooks rotate` keeps the secret out of the list of processes."""
    added = operator.run("hooks", "add", endpoint.url, "--name", "web", "--secret", "-", stdin=SECRET)
    assert (added.returncode, added.stdout) == (0, ""), added.stderr
    rotated = operator.run("hooks", "rotate", "web", "--secret", "-", stdin=f"{NEXT}\nmore\n")
    assert (rotated.returncode, rotated.stdout) == (0, ""), rotated.stderr
    operator.output("hooks", "test", "web")
    [visit] = endpoint.wait_for(1)
    for each in (SECRET, NEXT):
        Webhook(each).verify(visit.body, dict(visit.headers))


def test_a_pause_has_a_reason_and_a_test_a_format(operator: Operator, endpoint: Host) -> None:
    """`--reason` is shown with the hook; `--format` sends the body that the hook would receive in it."""
    operator.run("hooks", "add", endpoint.url, "--name", "web")
    operator.run("hooks", "pause", "web", "--reason", "their maintenance")
    assert json.loads(operator.output("hooks", "show", "web"))["paused_because"] == "their maintenance"
    tested = operator.run("hooks", "test", "web", "--event", "task.done", "--format", "kling")
    assert tested.returncode == 0, tested.stderr
    assert "type" not in json.loads(endpoint.wait_for(1)[0].body)


def test_a_test_that_fails_ends_with_1(operator: Operator) -> None:
    """The status and the body of the response are printed."""
    with host(lambda visit: visit.answer(403, b"who are you?")) as application:
        operator.output("hooks", "add", application.url)
        done = operator.run("hooks", "test", "hook-1")
    assert (done.returncode, "Not delivered (403)" in done.stderr) == (1, True)
    assert "who are you?" in done.stdout


def test_a_database_that_cannot_be_written(operator: Operator) -> None:
    """The error is one line, and no hook is added."""
    limited = ["-c", 'ulimit -f 0; exec "$@"', "sh", str(COMMAND), "hooks", "add", "command:true"]
    # Through pipes: no file could take its output either.
    done = subprocess.run(["/bin/sh", *limited], env=operator.env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    # The measurement of coverage cannot write either, and may print its own line.
    [line] = [each for each in done.stderr.splitlines() if each.startswith("kling-receiver:")]
    assert "kling.db cannot be used: disk I/O error. Check the disk" in line
    assert operator.states() == {}


def test_with_a_hooks_file_no_hook_is_added(operator: Operator, tmp_path: Path) -> None:
    """Neither a web address by the API nor a command in the database."""
    file = tmp_path / "hooks.toml"
    file.write_text("")
    operator.restart(hooks_file=str(file))
    operator.env["KLING_HOOKS_FILE"] = str(file)
    for address in (GOOD, "command:true"):
        done = operator.run("hooks", "add", address)
        assert done.returncode in (1, 2)
        assert "Change the file" in done.stderr


def test_a_hook_for_one_task_by_the_client(
    operator: Operator, endpoint: Host, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kling ... --hook URL` is signed with the derived secret; the events of a refused create are delivered."""
    operator.restart(api_base=gateway.url, hook_secret=SECRET)
    for name in ("KLING_API_KEY", "KLING_SIGNING_SECRETS", "KLING_RECEIVER_URL", "KLING_API_BASE"):
        monkeypatch.setenv(name, operator.env[name])
    with leaves_no_trace(), pytest.raises(SystemExit):
        kling(["text-to-image", "a cat [sandbox: arrears]", "--hook", endpoint.url, "--no-wait"])
    visits = endpoint.wait_for(2)
    webhook = Webhook(operator.receiver.task_hook_secret)
    types = [webhook.verify(visit.body, dict(visit.headers))["type"] for visit in visits]
    assert "task.created" in types


def test_the_secret_of_the_hooks_of_single_tasks(operator: Operator, endpoint: Host) -> None:
    """The command prints the secret that a recipient needs, also without a receiver; of several, the newest."""
    secret = operator.output("hooks", "task-secret").strip()
    register(operator.receiver, "t", hook=endpoint.url)
    visit = endpoint.wait_for(1)[0]
    Webhook(secret).verify(visit.body, dict(visit.headers))
    operator.receiver.stop()
    assert operator.output("hooks", "task-secret").strip() == secret
    both = f"{'x' * 32},{operator.env['KLING_SIGNING_SECRETS']}"
    rotated = operator.run("hooks", "task-secret", KLING_SIGNING_SECRETS=both)
    assert rotated.stdout.strip() == task_hook_secrets(["x" * 32])[0] != secret
    refused = operator.run("hooks", "task-secret", KLING_SIGNING_SECRETS="short")
    assert (refused.returncode, refused.stdout) == (2, "")

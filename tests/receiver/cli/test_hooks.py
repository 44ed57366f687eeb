"""`kling-receiver hooks`, `deliveries` and `replay`, as an operator types them."""

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from standardwebhooks.webhooks import Webhook

from kling_callback.protocol.ids import new_id
from kling_receiver.hooks import records as hook_records
from kling_receiver.store.database import Database
from tests.support.web import Host, host
from tools.harness.process import CLIENT, COMMAND, Process, run
from tools.harness.submitting import events, register

SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
NEXT = "whsec_" + base64.b64encode(b"the-next-secret-for-these-tests.").decode()
SHORT = "whsec_" + base64.b64encode(b"short").decode()
GOOD = "https://hooks.example/in"


class Operator:
    """Somebody at the receiver's machine."""

    def __init__(self, receiver: Process) -> None:
        self.receiver = receiver

    def types(self, *words: str, **settings: str) -> CompletedProcess[str]:
        """One command."""
        return run(*words, env={**self.receiver.env, **settings})

    def told(self, *words: str) -> str:
        """What a command that works writes for programs."""
        done = self.types(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def states(self) -> dict[str, str]:
        """The hooks, and how they fare."""
        rows = [json.loads(line) for line in self.told("hooks", "list", "--json").splitlines()]
        return {row["name"]: row["state"] for row in rows}


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    """At a receiver that runs; where Kling should be, nobody is."""
    with Process(tmp_path / "data", KLING_API_BASE="http://127.0.0.1:9") as receiver:
        yield Operator(receiver)


@pytest.fixture
def endpoint() -> Iterator[Host]:
    """A hook that takes everything."""
    with host(lambda visit: visit.answer(200, b"thank you")) as there:
        yield there


@pytest.mark.parametrize("runs", [True, False], ids=["running", "stopped"])
def test_the_life_of_a_hook(operator: Operator, endpoint: Host, runs: bool) -> None:
    """Said the same whether the receiver runs or not; what is ordered meanwhile is done at the next start."""
    if not runs:
        operator.receiver.kill()
    added = operator.types("hooks", "add", endpoint.url, "--event", "task.created", "--name", "web")
    assert added.returncode == 0, added.stderr
    assert "kling-receiver hooks test web" in added.stderr
    secret = added.stdout.strip()
    assert "thank you" in operator.told("hooks", "test", "web")
    [visit] = endpoint.wait_for(1)
    assert Webhook(secret).verify(visit.body, dict(visit.headers))["type"] == "hook.test"
    shown = operator.told("hooks", "show", "web")
    assert json.loads(shown)["events"] == ["task.created"]
    fresh = operator.told("hooks", "rotate", "web", "--overlap", "60").strip()
    assert fresh.startswith("whsec_")
    assert secret not in shown + operator.told("hooks", "list")
    assert "web is paused" in operator.types("hooks", "pause", "web").stderr
    assert operator.states() == {"web": "paused"}
    operator.told("hooks", "resume", "web")
    if not runs:
        operator.receiver.start()
    register(operator.receiver, new_id())
    visit = endpoint.wait_for(2)[1]
    for each in (secret, fresh):
        Webhook(each).verify(visit.body, dict(visit.headers))
    operator.told("hooks", "remove", "web")
    assert operator.states() == {}


@pytest.mark.parametrize("runs", [True, False], ids=["running", "stopped"])
def test_a_command_is_added_on_the_machine(operator: Operator, tmp_path: Path, runs: bool) -> None:
    """Whether the receiver runs or not; it is used from the next event on."""
    if not runs:
        operator.receiver.kill()
    book, script = tmp_path / "told", tmp_path / "hook.py"
    script.write_text("import os, sys; open(sys.argv[1], 'a').write(os.environ['KLING_TASK_ID'] + '\\n')")
    argv = json.dumps([sys.executable, str(script), str(book)])
    added = operator.told("hooks", "add", f"command:{argv}", "--event", "task.created", "--json")
    assert json.loads(added) == {"name": "hook-1", "secret": None}
    if not runs:
        operator.receiver.start()
    task = new_id()
    register(operator.receiver, task)
    delivered = ["deliveries", "list", "--state", "delivered", "--json"]
    while not (found := operator.told(*delivered)):
        events(operator.receiver, task, "task.created")
    assert book.read_text() == f"{task}\n"
    [delivery] = map(json.loads, found.splitlines())
    shown = json.loads(operator.told("deliveries", "show", delivery["id"]))
    assert [(each["taken"], each["status"]) for each in shown["attempts"]] == [(True, 0)]


def test_a_command_is_added_to_the_database_of_the_receiver_that_runs(operator: Operator, tmp_path: Path) -> None:
    """Called with the settings of another, it says so and leaves nothing there; likewise beside a file."""
    adding = ["hooks", "add", "command:true"]
    operator.told(*adding)
    none = operator.types(*adding, KLING_DATA_DIR=str(tmp_path / "none"))
    assert (none.returncode, none.stdout) == (1, "")
    assert "There is no database" in none.stderr
    other = Database(f"sqlite:///{tmp_path}/other/kling.db")
    other.migrate()
    wrong = operator.types(*adding, KLING_DATA_DIR=str(tmp_path / "other"))
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "has another database" in wrong.stderr
    with other.read() as connection:
        assert hook_records.hooks(connection) == []
    other.close()
    assert operator.states() == {"hook-1": "active"}
    (tmp_path / "hooks.toml").write_text("")
    operator.receiver.kill()
    operator.receiver.env["KLING_HOOKS_FILE"] = str(tmp_path / "hooks.toml")
    operator.receiver.start()
    kept = operator.types(*adding, KLING_HOOKS_FILE="")
    assert (kept.returncode, kept.stdout) == (1, "")
    assert "are kept in KLING_HOOKS_FILE" in kept.stderr
    assert operator.states() == {}


def test_what_fails_is_found_and_sent_again(operator: Operator) -> None:
    """From `list` to `retry`; a replay sends what was taken as well."""
    refusing = True
    with host(lambda visit: visit.answer(503 if refusing else 200)) as there:
        web = ["--name", "web", "--event", "task.created", "--schedule", "3600,3600"]
        operator.told("hooks", "add", there.url, *web)
        task = new_id()
        register(operator.receiver, task)
        there.wait_for(1)
        while not (listed := operator.told("deliveries", "list", "--hook", "web", "--state", "waiting")):
            pass
        assert "the hook answered 503" in listed
        [delivery] = operator.told("deliveries", "list", "--json").splitlines()
        name = json.loads(delivery)["id"]
        refusing = False
        assert (
            "To be sent again: 1; to a paused hook once it is resumed."
            in operator.types("deliveries", "retry", name).stderr
        )
        there.wait_for(2)
        for chosen in (["--task", task], ["--from", "1"], ["--since", "2026-01-01"]):
            said = operator.types("replay", *chosen, "--hook", "web").stderr
            assert "Of 1 events, those that are wanted go again to web." in said, said
        assert "To be sent again: 0;" in operator.types("deliveries", "retry", "--dead").stderr
        visits = there.wait_for(3)
    assert len({visit.headers["webhook-id"] for visit in visits}) == 1


WRONG: dict[str, tuple[list[str], int, str]] = {
    "a forbidden address": (["hooks", "add", "http://10.0.0.1/"], 1, "is not a public address"),
    "an unknown scheme": (["hooks", "add", "kafka://host/topic"], 2, "no sink delivers to kafka"),
    "no such command": (["hooks", "add", "command:no-such-command"], 2, "the command no-such-command does not exist"),
    "a short secret": (["hooks", "add", GOOD, "--secret", SHORT], 1, "is too short"),
    "a filter of nothing": (
        ["hooks", "add", GOOD, "--event", "task.failed", "--status", "succeed"],
        1,
        "the filter matches nothing",
    ),
    "no secret": (["hooks", "add", GOOD, "--secret", "-"], 2, "no secret came on stdin"),
    "another's event": (["hooks", "add", GOOD, "--event", "x"], 2, "--event"),
    "a bad schedule": (["hooks", "add", GOOD, "--schedule", "soon"], 2, "no list of seconds"),
    "a bad name": (["hooks", "add", GOOD, "--name", "My Hook"], 1, "must be small letters"),
    "a bad broker": (["hooks", "add", "redis://host"], 2, "redis://host:port/stream"),
    "nobody's name": (["hooks", "show", "nobody"], 1, "There is no such hook"),
    "no name": (["hooks", "test"], 2, "NAME"),
    "no delivery": (["deliveries", "show", "x"], 2, "is no delivery"),
    "nobody's delivery": (["deliveries", "retry", "1/nobody"], 1, "There is no such hook"),
    "nothing to retry": (["deliveries", "retry"], 2, "or give --dead"),
    "nothing to replay": (["replay"], 2, "Give one of"),
    "no time": (["replay", "--since", "yesterday"], 1, "since: yesterday is no time, such as 2026-"),
}


def test_what_is_wrong_is_said(operator: Operator) -> None:
    """With the reason: 2 for what was typed wrong, 1 for what the receiver refuses; nothing is added."""
    for kind, (words, code, said) in WRONG.items():
        done = operator.types(*words)
        assert (done.returncode, done.stdout) == (code, ""), (kind, done.stderr)
        assert said.lower() in done.stderr.lower(), (kind, done.stderr)
        assert SHORT not in done.stderr
    assert operator.states() == {}


def test_a_secret_is_given_on_stdin(operator: Operator, endpoint: Host) -> None:
    """No list of processes shows it; when the hook is added, and when its secret changes."""
    added = run("hooks", "add", endpoint.url, "--name", "web", "--secret", "-", env=operator.receiver.env, stdin=SECRET)
    assert (added.returncode, added.stdout) == (0, ""), added.stderr
    rotated = run("hooks", "rotate", "web", "--secret", "-", env=operator.receiver.env, stdin=f"{NEXT}\nmore\n")
    assert (rotated.returncode, rotated.stdout) == (0, ""), rotated.stderr
    operator.told("hooks", "test", "web")
    [visit] = endpoint.wait_for(1)
    for each in (SECRET, NEXT):
        Webhook(each).verify(visit.body, dict(visit.headers))


def test_a_test_that_fails_ends_with_1(operator: Operator) -> None:
    """And shows the answer."""
    with host(lambda visit: visit.answer(403, b"who are you?")) as there:
        operator.told("hooks", "add", there.url)
        done = operator.types("hooks", "test", "hook-1")
    assert (done.returncode, "Not taken (403)" in done.stderr) == (1, True)
    assert "who are you?" in done.stdout


def test_a_database_that_cannot_be_written(operator: Operator) -> None:
    """Is told in one line, and nothing is added."""
    limited = ["-c", 'ulimit -f 0; exec "$@"', "sh", str(COMMAND), "hooks", "add", "command:true"]
    done = run(*limited, env=operator.receiver.env, command=Path("/bin/sh"))
    assert (done.returncode, done.stdout) == (1, "")
    # Whatever measures this run cannot write either, and may say so.
    [line] = [each for each in done.stderr.splitlines() if each.startswith("kling-receiver:")]
    assert "kling.db cannot be used: disk I/O error. Check its disk" in line
    assert operator.states() == {}


def test_with_a_file_nothing_is_added(operator: Operator, tmp_path: Path) -> None:
    """Neither what would come over the network nor what would not."""
    file = tmp_path / "hooks.toml"
    file.write_text("")
    operator.receiver.kill()
    operator.receiver.env["KLING_HOOKS_FILE"] = str(file)
    operator.receiver.start()
    for address in (GOOD, "command:true"):
        done = operator.types("hooks", "add", address)
        assert done.returncode in (1, 2)
        assert "Change the file" in done.stderr


def test_a_hook_for_one_task_by_the_client(operator: Operator, endpoint: Host) -> None:
    """`kling ... --hook URL`, signed with the receiver's own secret; the create fails, and that is told."""
    operator.receiver.kill()
    operator.receiver.env["KLING_HOOK_SECRET"] = SECRET
    operator.receiver.start()
    env = {**operator.receiver.env, "KLING_API_BASE": "http://127.0.0.1:9"}
    run("text-to-image", "a cat", "--hook", endpoint.url, "--no-wait", env=env, command=CLIENT)
    visits = endpoint.wait_for(2)
    told = [Webhook(SECRET).verify(visit.body, dict(visit.headers))["type"] for visit in visits]
    assert "task.created" in told

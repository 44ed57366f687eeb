"""`kling listen`: each event once and in order without faults, and none missed whatever fails."""

import base64
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kling_callback import verify_hook
from kling_callback.cli.main import main
from kling_sandbox import Sandbox
from tests.support.kling import LOG, task_json
from tests.support.kling import event as frame
from tests.support.receiver import KEY, SECRET, Running, Start
from tests.support.web import Visit, host
from tests.support.wire import Wire, reply
from tools.harness import forkserver, loopback
from tools.harness.submitting import finished, poll_until, stream, submit

KLING = str(Path(sys.executable).with_name("kling"))
HOOK_SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
Json = dict[str, Any]

pytestmark = pytest.mark.usefixtures("processes_are_forked")


class Listener:
    """`kling listen` in a process of its own."""

    def __init__(self, receiver: str, state: Path, *arguments: str, **settings: str) -> None:
        given = {"KLING_SIGNING_SECRETS": SECRET, "KLING_RECEIVER_URL": receiver, **settings}
        (stdout, out), (stderr, err) = os.pipe(), os.pipe()
        self.process = forkserver.start(
            [KLING, "listen", *arguments],
            {**os.environ, "XDG_STATE_HOME": str(state), **given},
            stdout=out,
            stderr=err,
        )
        os.close(out)
        os.close(err)
        self.stdout, self.stderr = os.fdopen(stdout), os.fdopen(stderr)

    def message(self, text: str) -> str:
        """The line of stderr with this text in it."""
        passed = []
        for line in self.stderr:
            if text in line:
                return line
            passed.append(line)
        raise AssertionError(f"it ended without saying {text!r}, but {passed}")

    def line(self) -> str:
        """The next line of stdout."""
        return self.stdout.readline()

    def events(self, until: str = "task.done") -> list[Json]:
        """What it prints with --json, to the first of this type."""
        found = [json.loads(self.line())]
        while found[-1]["type"] != until:
            found.append(json.loads(self.line()))
        return found

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """The exit code after this signal."""
        self.process.send_signal(number)
        return self.process.wait(20)

    def close(self) -> None:
        """End it, and close the pipes."""
        self.end(signal.SIGTERM)
        self.stdout.close()
        self.stderr.close()


Begin = Callable[..., Listener]


@pytest.fixture
def running(start: Start, gateway: Sandbox) -> Running:
    return start(api_base=gateway.url)


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start listening to a receiver; all listeners share a state folder."""
    begun: list[Listener] = []

    def begin(running: Any, *arguments: str, **settings: str) -> Listener:
        begun.append(Listener(running.url, tmp_path / "state", *arguments, **settings))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


def done(running: Running, gateway: Sandbox) -> str:
    """A task that is done."""
    task, _ = submit(running, gateway)
    finished(running, task)
    return task


def ids(happened: list[Json]) -> list[int]:
    return [each["id"] for each in happened]


def everything(running: Running, task: str) -> list[Json]:
    """All events of a task, late ones too."""
    with stream(running, "/api/events") as coming:
        found = []
        for each in coming:
            if each["task"]["id"] == task:
                found.append(each)
            if each["type"] == "task.done" and each["task"]["id"] == task:
                return found
    raise AssertionError


def test_a_new_listener_begins_with_the_next_event(running: Running, gateway: Sandbox, begin: Begin) -> None:
    """Past events are not printed; each event is the receiver's, complete, on one line."""
    done(running, gateway)
    listener = begin(running, "--json")
    listener.message("Listening to")
    task = done(running, gateway)
    printed = listener.events()
    assert {each["task"]["id"] for each in printed} == {task}
    expected = everything(running, task)
    assert [(each["id"], each["type"], each["at"], each["data"]) for each in printed] == [
        (each["id"], each["type"], each["at"], each["data"]) for each in expected
    ]
    assert printed[-1]["task"].keys() == expected[-1]["task"].keys()


def test_events_between_two_runs_are_not_missed(running: Running, gateway: Sandbox, begin: Begin) -> None:
    """Killed at any moment, the listener continues after the last event that it printed."""
    listener = begin(running, "--json")
    listener.message("Listening to")
    first = done(running, gateway)
    printed = listener.events()
    listener.end()
    second = done(running, gateway)
    listener = begin(running, "--json")
    again = listener.events()
    if again[-1]["id"] == printed[-1]["id"]:  # printed, and killed before that was on disk
        again = listener.events()
    assert ids(printed + again) == ids(everything(running, first) + everything(running, second))


def test_a_listener_may_begin_before_the_first_event(running: Running, gateway: Sandbox, begin: Begin) -> None:
    """Killed before the first event, the next run begins at the same place."""
    listener = begin(running, "--json")
    listener.message("after event 0")
    listener.end()
    task = done(running, gateway)
    assert ids(begin(running, "--json").events()) == ids(everything(running, task))


def test_from_an_event_or_from_the_latest(running: Running, gateway: Sandbox, begin: Begin) -> None:
    """Whatever the cursor says."""
    all_of_it = ids(everything(running, done(running, gateway)))
    for first in (0, 2):
        listener = begin(running, "--json", "--from", str(all_of_it[first]))
        assert ids(listener.events()) == all_of_it[first:]
        listener.end()
    begin(running, "--from", "latest").message(f"after event {all_of_it[-1]}")


def test_the_same_command_twice_is_1(running: Running, gateway: Sandbox, begin: Begin) -> None:
    """Two would forward each event twice; a listener with other filters may run."""
    begin(running).message("Listening to")
    begin(running, "--event", "task.done").message("Listening to")
    again = begin(running)
    assert "already listening" in again.message("already")
    assert again.process.wait(20) == 1


def test_events_are_filtered(running: Running, gateway: Sandbox, begin: Begin) -> None:
    """By types and by a tag."""
    done(running, gateway)
    listener = begin(running, "--from", "1", "--event", "task.created", "--event", "task.done")
    lines = [listener.line().split() for _ in range(2)]
    assert [line[2] for line in lines] == ["task.created", "task.done"]
    assert [line[4] for line in lines] == ["succeed", "succeed"]
    tagged = begin(running, "--from", "1", "--tag", "spring")
    tagged.message("Listening to")
    created = forkserver.run(
        [KLING, "text-to-image", "x", "--tag", "spring", "--external-task-id", "order-42"],
        {
            **os.environ,
            "KLING_API_KEY": KEY,
            "KLING_API_BASE": gateway.url,
            "KLING_SIGNING_SECRETS": SECRET,
            "KLING_RECEIVER_URL": running.url,
        },
        timeout=60,
    )
    assert created.returncode == 0, created.stderr
    assert tagged.line().split()[2:4] == ["task.created", "order-42"]


def test_forwarded_events_are_those_of_a_hook(start: Start, gateway: Sandbox, begin: Begin) -> None:
    """The same ids, bodies and signatures, in order, with the receiver's secret."""
    with host(lambda visit: visit.answer(204)) as hook, host(lambda visit: visit.answer(200)) as there:
        running = start(api_base=gateway.url, hook_url=hook.url, hook_secret=HOOK_SECRET)
        listener = begin(running, "--from", "1", "--forward", f"{there.url}/in?x=1", KLING_HOOK_SECRET=HOOK_SECRET)
        happened = everything(running, done(running, gateway))
        forwarded, hooked = (each.wait_for(len(happened)) for each in (there, hook))
        assert listener.line().split()[-1] == "200"
    taken = [verify_hook(visit.body, visit.headers, HOOK_SECRET) for visit in forwarded]
    assert [each.id for each in taken] == ids(happened)
    assert (forwarded[0].method, forwarded[0].path) == ("POST", "/in?x=1")
    assert forwarded[0].headers["Content-Type"] == "application/json"
    theirs = {visit.headers["webhook-id"]: json.loads(visit.body) for visit in hooked}
    for visit in forwarded:
        ours, its = json.loads(visit.body), theirs.pop(visit.headers["webhook-id"])
        assert {**ours, "task": 0} == {**its, "task": 0}
        assert ours["task"].keys() == its["task"].keys()
        assert "?" not in "".join(str(result["source_url"]) for result in ours["task"]["results"])
    assert theirs == {}


def test_a_secret_is_made_and_stays(running: Running, gateway: Sandbox, begin: Begin, tmp_path: Path) -> None:
    """Without one in the settings, each run signs with the same secret."""
    done(running, gateway)
    with host(lambda visit: visit.answer(200)) as there:
        listener = begin(running, "--from", "1", "--forward", there.url)
        secret = listener.message("signed with the secret").split()[-1]
        (visit,) = there.wait_for(1)[:1]
        assert verify_hook(visit.body, visit.headers, secret).type == "task.created"
        listener.end()
        again = begin(running, "--forward", there.url)
        assert again.message("signed with the secret").split()[-1] == secret
    folder = tmp_path / "state" / "kling-callback"
    assert folder.stat().st_mode & 0o077 == 0


def test_an_event_is_forwarded_again_after_a_kill(running: Running, gateway: Sandbox, begin: Begin) -> None:
    """An unanswered event is repeated; none is missed, and the order is kept."""
    happened = ids(everything(running, done(running, gateway)))
    killed = threading.Event()

    def respond(visit: Visit) -> None:
        if visit.count == 2:
            assert killed.wait(20)
        else:
            visit.answer(200)

    with host(respond) as there:
        listener = begin(running, "--from", "1", "--forward", there.url, KLING_HOOK_SECRET=HOOK_SECRET)
        there.wait_for(3)
        listener.end()
        killed.set()
        begin(running, "--forward", there.url, KLING_HOOK_SECRET=HOOK_SECRET)
        visits = there.wait_for(len(happened) + 1)
    came = [json.loads(visit.body)["id"] for visit in visits]
    again = came[3]  # the one under way, or the one before it as well
    assert came[:3] == happened[:3]
    assert again in happened[1:3]
    assert came[3:] == happened[happened.index(again) :][: len(came) - 3]


def test_an_application_that_is_down_is_waited_for(running: Running, gateway: Sandbox, begin: Begin) -> None:
    """One message is printed; once the application runs again, nothing is missing."""
    happened = ids(everything(running, done(running, gateway)))
    port = loopback.free_port()
    listener = begin(running, "--from", "1", "--forward", f"http://127.0.0.1:{port}", KLING_HOOK_SECRET=HOOK_SECRET)
    assert f"Event {happened[0]} is retried" in listener.message("No answer from")
    with host(lambda visit: visit.answer(200), port=port) as there:
        visits = there.wait_for(len(happened))
    assert [json.loads(visit.body)["id"] for visit in visits] == happened


def test_an_application_that_hangs_up_is_waited_for(running: Running, gateway: Sandbox, begin: Begin) -> None:
    """Without an answer it may or may not have the event: it is sent again, with the same id."""
    done(running, gateway)

    def respond(visit: Visit) -> None:
        if visit.count:
            visit.answer(200)

    with host(respond) as there:
        begin(running, "--from", "1", "--forward", there.url, KLING_HOOK_SECRET=HOOK_SECRET)
        first, second, third = (visit.headers["webhook-id"] for visit in there.wait_for(3)[:3])
    assert first == second != third


@pytest.mark.parametrize("status", [302, 400, 410, 500])
def test_an_error_answer_is_reported_and_ends_the_event(
    running: Running, gateway: Sandbox, begin: Begin, status: int
) -> None:
    """A redirect too, which is not followed; the next event is sent at once."""
    done(running, gateway)

    def respond(visit: Visit) -> None:
        visit.answer(200 if visit.count else status, Location="/elsewhere")

    with host(respond) as there:
        listener = begin(running, "--from", "1", "--forward", there.url, KLING_HOOK_SECRET=HOOK_SECRET)
        assert f"answered {status}" in listener.message("Event 1:")
        visits = there.wait_for(2)
    assert [json.loads(visit.body)["id"] for visit in visits[:2]] == [1, 2]
    assert [listener.line().split()[-1] for _ in range(2)] == [str(status), "200"]
    assert {visit.path for visit in visits} == {"/"}


COMMAND = """
import json, os, sys
event = json.load(sys.stdin)
about = [os.environ["KLING_" + name] for name in ("TASK_ID", "EVENT", "FILES")]
with open(sys.argv[1], "a") as file:
    file.write(json.dumps([event, *about]) + "\\n")
sys.exit(3 if event["type"] == "task.submitted" else 0)
"""


def test_a_command_for_each_event(running: Running, gateway: Sandbox, begin: Begin, tmp_path: Path) -> None:
    """The event is on its stdin, the main values in its environment; no shell; an exit code is reported."""
    happened = everything(running, done(running, gateway))
    out, script = tmp_path / "out; echo $HOME", tmp_path / "script.py"
    script.write_text(COMMAND)
    listener = begin(running, "--from", "1", "--exec", shlex.join([sys.executable, str(script), str(out)]))
    lines = [listener.line() for _ in happened]
    handled = [json.loads(line) for line in out.read_text().splitlines()]
    assert [event["id"] for event, *_ in handled] == ids(happened)
    event, task, kind, files = handled[-1]
    assert (task, kind) == (event["task"]["id"], event["type"])
    assert files.split("\n") == [result["href"] for result in event["task"]["results"]]
    assert lines[0].endswith("exit code 0\n")
    failed = next(number for number, line in enumerate(lines) if line.endswith("exit code 3\n"))
    assert f"Event {happened[failed]['id']}:" in listener.message("ended with exit code 3")


LEAVES_ITS_SESSION = """
import os, sys, time
for depth in range(2):
    if os.fork() == 0:
        os.setsid()
        if depth and os.fork():
            os._exit(0)
        with open(sys.argv[1], "a") as file:
            file.write(f"{os.getpid()} ")
        time.sleep(600)
while not os.path.exists(sys.argv[1]) or len(open(sys.argv[1]).read().split()) < 2:
    time.sleep(0.01)
time.sleep(float(sys.argv[2]))
"""


def runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("seconds", [0, 600])
def test_children_that_leave_the_session_end_with_the_command(
    running: Running, gateway: Sandbox, begin: Begin, tmp_path: Path, seconds: int
) -> None:
    """When it succeeds, and when the listener is stopped meanwhile."""
    done(running, gateway)
    pids, script = tmp_path / "pids", tmp_path / "script.py"
    script.write_text(LEAVES_ITS_SESSION)
    command = shlex.join([sys.executable, str(script), str(pids), str(seconds)])
    listener = begin(running, "--from", "1", "--event", "task.done", "--exec", command)
    poll_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    if seconds:
        listener.process.send_signal(signal.SIGINT)
        listener.process.wait(20)
    else:
        assert listener.line().endswith("exit code 0\n")
    poll_until(lambda: not any(runs(int(pid)) for pid in pids.read_text().split()))


def test_a_command_need_not_read(running: Running, gateway: Sandbox, begin: Begin) -> None:
    """The main values of the event are in its environment."""
    done(running, gateway)
    listener = begin(running, "--from", "1", "--exec", "true")
    assert listener.line().endswith("exit code 0\n")


def test_ctrl_c_is_130_and_the_current_event_is_repeated(
    running: Running, gateway: Sandbox, begin: Begin, tmp_path: Path
) -> None:
    """The command ends with the listener; no traceback."""
    done(running, gateway)
    os.mkfifo(tmp_path / "fifo")
    listener = begin(running, "--from", "1", "--json", "--exec", shlex.join(["tee", str(tmp_path / "fifo")]))
    with (tmp_path / "fifo").open() as coming:  # opens when the command runs; it waits until we read
        assert json.load(coming)["id"] == 1
        listener.line()
    listener.message("Listening to")
    assert (listener.end(signal.SIGINT), listener.stderr.read().strip()) == (130, "")


def test_a_receiver_that_restarts_is_waited_for(start: Start, running: Running, gateway: Sandbox, begin: Begin) -> None:
    """The stream is resumed."""
    listener = begin(running, "--json")
    listener.message("Listening to")
    first = done(running, gateway)
    assert ids(listener.events()) == ids(everything(running, first))
    running.stop()
    listener.message("The event stream broke")
    again = start(api_base=gateway.url, port=int(running.url.rpartition(":")[2]))
    second = done(again, gateway)
    assert ids(listener.events()) == ids(everything(again, second))


def test_a_replaced_database_is_read_from_its_first_event(
    start: Start, running: Running, gateway: Sandbox, begin: Begin, tmp_path: Path
) -> None:
    """Its ids are small again; waiting for the old ones would miss them all."""
    listener = begin(running, "--json")
    listener.message("Listening to")
    for _ in range(2):
        done(running, gateway)
        listener.events()
    listener.end()
    running.stop()
    port = int(running.url.rpartition(":")[2])
    anew = start(api_base=gateway.url, port=port, data_dir=tmp_path / "anew")
    task = done(anew, gateway)
    again = begin(anew, "--json")
    again.message("another")
    assert ids(again.events()) == ids(everything(anew, task))


LATEST = reply(200, f": hello\nid: {LOG}-0\n\n".encode(), Content_Type="text/event-stream")


def streamed(*frames: str) -> bytes:
    return reply(200, "".join(frames).encode(), Content_Type="text/event-stream")


@pytest.mark.parametrize(
    "answers",
    [
        [reply(200, b"<html>")],
        [reply(404, b"<html>")],
        [streamed("data: 1\n\n")],
        [streamed("id: x\n\n")],
        [streamed("id: 17\n\n")],
        [streamed()],
        [LATEST, streamed("data: no json\n\n")],
        [LATEST, streamed('id: 1\ndata: {"task": {}}\n\n')],
        [LATEST, streamed('id: x\ndata: {"task": {"id": "mine", "status": "created"}}\n\n')],
        [LATEST, streamed(frame(1, "task.created", task_json(), "No log"))],
        [LATEST, reply(200, b"\0\1\2", Content_Type="text/html")],
        [LATEST, reply(401, {"error": {"code": "bad_token", "message": "no"}})],
    ],
)
def test_an_address_without_a_receiver_is_1(
    answers: list[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A web page, a garbled stream, a refusal: one message, and no event counts as handled."""
    with Wire(*answers) as wire:
        monkeypatch.setenv("KLING_RECEIVER_URL", wire.url)
        monkeypatch.setenv("KLING_SIGNING_SECRETS", SECRET)
        with pytest.raises(SystemExit) as ended:
            main(["listen", "--state", str(tmp_path)])
    captured = capsys.readouterr()
    assert (ended.value.code, captured.out) == (1, "")
    assert "Traceback" not in captured.err
    assert [json.loads(path.read_text())["after"] for path in tmp_path.rglob("*.json")] in ([], [f"{LOG}-0"])


def test_an_event_with_an_invalid_time_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Without a time an event has no webhook id."""
    content = frame(1, "task.created", task_json()).replace("2026-01-01T00:00:00Z", "yesterday")
    with Wire(LATEST, streamed(content)) as wire, host(lambda visit: visit.answer(200)) as there:
        monkeypatch.setenv("KLING_RECEIVER_URL", wire.url)
        monkeypatch.setenv("KLING_SIGNING_SECRETS", SECRET)
        with pytest.raises(SystemExit) as ended:
            main(["listen", "--state", str(tmp_path), "--forward", there.url])
    assert (ended.value.code, there.visits) == (1, [])
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--forward", "localhost:3000"], "is not an address"),
        (["--forward", "ftp://localhost/x"], "is not an address"),
        (["--forward", "http://"], "is not an address"),
        (["--forward", "http://[/"], "is not an address"),
        (["--forward", "http://localhost/?\n"], "a URL cannot have"),
        (["--exec", "no-such-command x"], "'no-such-command' is not a command"),
        (["--exec", ""], "'' is not a command"),
        (["--exec", "'"], "cannot be split"),
        (["--exec", "true", "--forward", "http://localhost:1"], "cannot be combined"),
        (["--event", "task.lost"], "task.done"),
        (["--from", "0"], "not an event's id"),
        (["--from", "yesterday"], "not an event's id"),
        (["--state", "a-file"], "a-file"),
    ],
)
def test_wrong_usage_is_2(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Before any request is sent."""
    (tmp_path / "a-file").touch()
    with pytest.raises(SystemExit) as ended:
        main(["listen", *arguments])
    assert ended.value.code == 2
    assert part in capsys.readouterr().err


def test_a_folder_that_cannot_be_used_names_the_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Before any request is sent: the position could not be kept."""
    (tmp_path / "kling-callback").write_text("a file")
    monkeypatch.setenv("KLING_RECEIVER_URL", "http://localhost:1")
    monkeypatch.setenv("KLING_SIGNING_SECRETS", SECRET)
    with pytest.raises(SystemExit) as ended:
        main(["listen", "--state", str(tmp_path)])
    err = capsys.readouterr().err
    assert (ended.value.code, f"{tmp_path}/kling-callback" in err, "--state" in err) == (1, True, True)


@pytest.mark.parametrize("secret", ["whsec_c2hvcnQ=", "phrase"])
def test_a_wrong_secret_is_2(secret: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the setting, without its value."""
    for name, value in {
        "RECEIVER_URL": "http://localhost:1",
        "SIGNING_SECRETS": SECRET,
        "HOOK_SECRET": secret,
    }.items():
        monkeypatch.setenv(f"KLING_{name}", value)
    with pytest.raises(SystemExit) as ended:
        main(["listen"])
    err = capsys.readouterr().err
    assert (ended.value.code, "KLING_HOOK_SECRET" in err, secret in err) == (2, True, False)

"""Commands as hooks: an argument list without a shell, the event on stdin, and limits on time and number."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kling_receiver.hooks.config import InvalidHook, parse_hook
from kling_receiver.net.guard import Allowlist
from kling_receiver.results import records as result_records
from kling_receiver.sinks import Message, NotDelivered
from kling_receiver.sinks.command import CommandSink, parse_command, to_address
from kling_receiver.tasks import transitions
from tests.support.database import FILE, STORED, says
from tests.support.outgoing import PATIENCE, Outgoing, outgoing
from tests.support.receiver import make_settings

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """asyncio's event loop, and uvloop, the receiver's: they handle the end of pipes and processes differently."""
    return "asyncio", {"use_uvloop": request.param}


def command(*argv: str) -> str:
    """The address of a command."""
    return to_address(parse_command(f"command:{json.dumps(argv)}"))


def python(program: str, *argv: str) -> str:
    """The address of a Python program; its two outputs keep their order (`-u`)."""
    return command(sys.executable, "-u", "-c", program, *argv)


def message(files: tuple[Path, ...] = (), body: bytes = b'{"id":7}') -> Message:
    """An event to deliver."""
    event = {"id": 7, "type": "task.done", "task": {"id": "a-task"}}
    return Message("hook_7_1", event, body, "https://receiver.test", files)


SHOW = """
import os, sys
shown = {name: value for name, value in os.environ.items() if "KLING" in name.upper() or name == "NOT_OURS"}
print(shown, sys.stdin.read())
"""


async def run(address: str, sent: Message | None = None) -> str:
    """Run a command that accepts the event; its output."""
    delivered = await CommandSink(address).send(sent or message())
    assert delivered.status == 0
    return delivered.response


@pytest.mark.parametrize(
    "awkward", ["two words", "a'b\"c", "; touch pwned", "$(touch pwned)", "`id`", "*", "", "--", "\n", "é\\"]
)
async def test_arguments_are_passed_unchanged(tmp_path: Path, awkward: str) -> None:
    """No shell interprets them."""
    answer = await run(python("import json, sys; json.dump(sys.argv[1:], sys.stdout)", awkward, "last"))
    assert json.loads(answer) == [awkward, "last"]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("address", "argv"),
    [
        ("command:true", ["true"]),
        ("command: true  a 'b c' \"d e\"", ["true", "a", "b c", "d e"]),
        ('command:["true", "a b", ";"]', ["true", "a b", ";"]),
        ("command:true ; rm -rf /", ["true", ";", "rm", "-rf", "/"]),
    ],
)
def test_a_command_is_parsed(address: str, argv: list[str]) -> None:
    """Written as in a shell, or as JSON; stored as JSON, with the absolute path of its program."""
    parsed = parse_command(address)
    assert parsed[1:] == argv[1:]
    assert Path(parsed[0]).is_absolute()
    assert os.access(parsed[0], os.X_OK)
    assert parse_command(to_address(parsed)) == parsed


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("command:", "the command is empty"),
        ("command:[]", "the command is empty"),
        ('command:["true", 1]', "the command is empty"),
        ('command:["true", "a\\u0000b"]', "the command is empty"),
        ("command:'", "cannot be parsed"),
        ("command:[", "cannot be parsed"),
        ("command:no-such-program-here x", "the command no-such-program-here does not exist"),
        ("command:/etc/passwd", "the command /etc/passwd does not exist here or is not executable"),
        ("command:/", "the command / does not exist"),
    ],
)
def test_an_invalid_command(address: str, reason: str) -> None:
    """It is refused when the hook is added."""
    with pytest.raises(InvalidHook, match=reason):
        parse_hook({"address": address}, Allowlist())


async def test_the_environment_of_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the task, the event and the files, but none of the receiver's settings; stdin has the event."""
    monkeypatch.setenv("KLING_API_KEY", "a-secret")
    monkeypatch.setenv("KLING_SIGNING_SECRETS", "another-secret")
    monkeypatch.setenv("kling_webhook_secrets", "a-lower-case-secret")
    monkeypatch.setenv("NOT_OURS", "kept")
    answer = await run(
        python(SHOW),
        message((Path("/results/a/0.png"), Path("/results/a/1.png"))),
    )
    assert "secret" not in answer
    for each in (
        "'KLING_TASK_ID': 'a-task'",
        "'KLING_EVENT': 'task.done'",
        "'KLING_FILES': '/results/a/0.png\\n/results/a/1.png'",
        "'NOT_OURS': 'kept'",
        '{"id":7}',
    ):
        assert each in answer
    assert "'KLING_RUN_ID': '" in answer
    assert answer.count("KLING_") == 4


async def test_the_paths_of_stored_files(tmp_path: Path) -> None:
    """KLING_FILES lists the files that are stored, by their paths on this machine."""
    async with outgoing(make_settings(tmp_path)) as stage:
        name = await stage.add(python("import os; print(os.environ['KLING_FILES'])"), events=["result.stored"])
        await stage.add_events("task.created")
        await stage.change(lambda tx: transitions.apply_report(tx, tx.require_task("t"), says("succeed", FILE, FILE)))
        await stage.change(lambda tx: result_records.mark_stored(tx, tx.require_task("t"), 0, STORED))
        await stage.until(lambda: stage.attempts(hook_name=name))
        [attempt] = stage.attempts(hook_name=name)
        assert (attempt["delivered"], attempt["response_status"]) == (True, 0)
        assert attempt["response_body"].strip() == str(stage.receiver.store.storage.path(STORED.path))


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("import sys; print('no disk'); sys.exit(3)", 3, "the command ended with exit code 3"),
        (
            "import os, signal; print('no disk', flush=True); os.kill(os.getpid(), 9)",
            -9,
            "the command was killed by signal 9",
        ),
    ],
)
async def test_a_command_that_fails(program: str, status: int, reason: str) -> None:
    """The attempt records its exit code or signal, and the end of its output."""
    with pytest.raises(NotDelivered, match=reason) as failed:
        await CommandSink(python(program)).send(message())
    assert (failed.value.status, failed.value.response.strip()) == (status, "no disk")


async def test_the_end_of_a_long_output_is_kept() -> None:
    """Of stdout and stderr; the command need not read the event, however large it is."""
    program = "import sys; print('x' * 9_000_000); print('the last words', file=sys.stderr)"
    answer = await run(python(program), message(body=b"y" * 1_000_000))
    assert len(answer) == 1000
    assert answer.endswith("the last words\n")


async def test_commands_that_read_nothing_succeed() -> None:
    """However fast they end, and many at once."""
    sink = CommandSink(command("true"))
    for size in (10, 1_000_000):
        delivered = await asyncio.gather(*[sink.send(message(body=b"x" * size)) for _ in range(16)])
        assert {each.status for each in delivered} == {0}


async def test_output_that_is_not_text() -> None:
    """Invalid UTF-8 is replaced."""
    answer = await run(python(r"import sys; sys.stdout.buffer.write(b'\xff\x00ok')"))
    assert answer == "\ufffd\0ok"


@pytest.fixture
async def stage(tmp_path: Path, database_url: str) -> AsyncIterator[Outgoing]:
    """A receiver that delivers events."""
    async with outgoing(make_settings(tmp_path, database_url=database_url)) as stage:
        yield stage


FAMILY_OF_PROCESSES = """
import os, subprocess, sys, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
stay = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", stay])
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""


def runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def until(condition: Callable[[], bool]) -> None:
    """Poll a condition of other processes."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.to_thread(time.sleep, 0.01)


async def test_a_cancelled_command_is_killed_with_its_children(tmp_path: Path) -> None:
    """Also if all of them ignore SIGTERM."""
    pids = tmp_path / "pids"
    sink = CommandSink(python(FAMILY_OF_PROCESSES, str(pids)), grace_seconds=0.2)
    sending = asyncio.create_task(sink.send(message()))
    await until(lambda: pids.exists() and " " in pids.read_text())
    numbers = [int(each) for each in pids.read_text().split()]
    assert all(map(runs, numbers))
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await until(lambda: not any(map(runs, numbers)))


LEAVES_ITS_SESSION = """
import os, subprocess, sys, time
path, kind, seconds = sys.argv[1:]
stay = f"open({path!r}, 'a').write(f'{{os.getpid()}} '); signal.signal(15, signal.SIG_IGN); time.sleep(600)"
once = f"import os, signal, time; os.setsid(); {stay}"
twice = f"import os, signal, time; os.setsid(); os.fork() and os._exit(0); os.setsid(); {stay}"
programs, environment = ([once], {}) if kind == "clean" else ([once, twice], None)
for program in programs:
    subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=-3, stderr=-3)
while not os.path.exists(path) or len(open(path).read().split()) < len(programs):
    time.sleep(0.01)
time.sleep(float(seconds))
"""
"""`kind`: `clean` for a child without the command's environment; else there is a daemon, too, whose parent is gone."""


@pytest.mark.parametrize("kind", ["marked", "clean"])
async def test_children_that_leave_the_session_are_killed_when_the_command_is(tmp_path: Path, kind: str) -> None:
    """Those that called setsid, daemons whose parent is gone, and those without the command's environment."""
    pids = tmp_path / "pids"
    sink = CommandSink(python(LEAVES_ITS_SESSION, str(pids), kind, "600"), grace_seconds=0.2)
    sending = asyncio.create_task(sink.send(message()))
    await until(lambda: pids.exists() and len(pids.read_text().split()) == (1 if kind == "clean" else 2))
    numbers = [int(each) for each in pids.read_text().split()]
    assert all(map(runs, numbers))
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    await until(lambda: not any(map(runs, numbers)))


async def test_children_that_leave_the_session_are_killed_at_the_end(tmp_path: Path) -> None:
    """Of a command that succeeds; a process of another run with such a child is not touched."""
    pids, other = tmp_path / "pids", tmp_path / "other"
    bystander = asyncio.create_task(
        CommandSink(python(LEAVES_ITS_SESSION, str(other), "marked", "600")).send(message())
    )
    await until(lambda: other.exists() and len(other.read_text().split()) == 2)
    await run(python(LEAVES_ITS_SESSION, str(pids), "marked", "0"))
    await until(lambda: not any(runs(int(each)) for each in pids.read_text().split()))
    assert all(runs(int(each)) for each in other.read_text().split())
    bystander.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bystander


async def test_the_time_limit_of_a_command(stage: Outgoing) -> None:
    """It is the hook's own; the attempt is recorded and retried."""
    await stage.add(python("import time; time.sleep(600)"), timeout=0.2)
    await stage.add_events("one")
    await stage.until(stage.attempts)
    [attempt] = stage.attempts()
    assert (attempt["delivered"], attempt["error"]) == (False, "the hook did not answer within 0.2 s")
    assert len(stage.jobs("delivery")) == 1


LEAVES_A_CHILD = """
import subprocess, sys
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], **quiet)
with open(sys.argv[1], "w") as file:
    file.write(str(child.pid))
"""


async def test_children_of_a_command_are_killed_at_its_end(tmp_path: Path) -> None:
    """A child in the background cannot evade the limits."""
    pid = tmp_path / "pid"
    await run(python(LEAVES_A_CHILD, str(pid)))
    await until(lambda: not runs(int(pid.read_text())))


HOLDS_THE_OUTPUT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1], "w") as file:
    file.write(str(child.pid))
print("done")
"""


async def test_a_child_that_holds_the_output_delays_nothing(tmp_path: Path) -> None:
    """The command's own exit decides; the child is killed."""
    pid = tmp_path / "pid"
    async with asyncio.timeout(PATIENCE):
        assert await run(python(HOLDS_THE_OUTPUT, str(pid))) == "done\n"
    await until(lambda: not runs(int(pid.read_text())))


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_no_descriptor_leaks() -> None:
    """Whether the command could be run or not."""
    sink = CommandSink('command:["/no/such/program"]')
    await run(command("true"))
    before = open_descriptors()
    for _ in range(3):
        await run(command("true"))
        with pytest.raises(NotDelivered, match="cannot be run"):
            await sink.send(message())
    await asyncio.sleep(0)
    assert open_descriptors() <= before


COUNTS_RUNS = """
import os, sys, time
mine = f"{sys.argv[1]}/{os.getpid()}"
open(mine, "x").close()
time.sleep(0.05)
print(len(os.listdir(sys.argv[1])))
os.unlink(mine)
"""


async def test_the_concurrency_of_commands(stage: Outgoing, tmp_path: Path) -> None:
    """By default two: each run prints how many there are."""
    folder = tmp_path / "running"
    folder.mkdir()
    await stage.add(python(COUNTS_RUNS, str(folder)))
    ids = await stage.add_events(*["event"] * 8)
    await stage.until(lambda: len(stage.attempts()) == len(ids))
    assert {int(each["response_body"]) for each in stage.attempts()} <= {1, 2}


async def test_a_command_is_removed_and_restored(stage: Outgoing, tmp_path: Path) -> None:
    """Deliveries fail meanwhile, and are retried afterwards."""
    script = tmp_path / "hook.sh"

    def write() -> None:
        script.write_text("#!/bin/sh\ncat > /dev/null\necho accepted\n")
        script.chmod(0o755)

    write()
    await stage.add(command(str(script)), name="script")
    await stage.add_events("one")
    await stage.until(lambda: len(stage.attempts()) == 1)
    script.unlink()
    await stage.add_events("two")
    await stage.until(lambda: len(stage.attempts()) == 2)
    assert stage.attempts()[1]["error"] == "the command cannot be run: No such file or directory"
    write()
    await stage.advance(5)
    await stage.until(lambda: len(stage.attempts()) == 3)
    assert [(each["delivered"], each["response_body"]) for each in stage.attempts()] == [
        (True, "accepted\n"),
        (False, ""),
        (True, "accepted\n"),
    ]

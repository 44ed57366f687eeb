"""The command `kling`: exit codes, data on stdout, messages on stderr, no secret in either."""

import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kling_callback.api.receiver import ReceiverApi
from kling_callback.base import BaseTask
from kling_callback.cli.main import kling as command
from kling_callback.cli.main import main, report_error
from kling_callback.cli.progress import format_seconds, live_progress
from kling_callback.cli.run import warn_about_create
from kling_callback.cli.terminal import print_json, print_records, print_task
from kling_callback.display import escape
from kling_callback.jobs.catalog import JOBS
from kling_callback.protocol.events import Event
from kling_callback.protocol.ids import is_id
from kling_callback.tasks import AsyncTask
from kling_sandbox import Sandbox
from tests.client.jobs.test_catalog import picture
from tests.support.commands import leaves_no_trace
from tests.support.kling import LOG, task_json
from tests.support.receiver import KEY, SECRET, Running, Start
from tests.support.web import Visit, host
from tests.support.wire import Wire
from tools.harness import forkserver

KLING = str(Path(sys.executable).with_name("kling"))
NOBODY = "http://127.0.0.1:9"


@dataclass
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def receiver(start: Start, gateway: Sandbox) -> Running:
    return start(api_base=gateway.url)


@pytest.fixture
def settings(receiver: Running, gateway: Sandbox) -> dict[str, str]:
    return {
        "KLING_API_BASE": gateway.url,
        "KLING_API_KEY": KEY,
        "KLING_SIGNING_SECRETS": SECRET,
        "KLING_RECEIVER_URL": receiver.url,
    }


@pytest.fixture
def bare(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, without settings but those of the test."""

    def run(*arguments: str) -> Ran:
        with leaves_no_trace(), pytest.raises(SystemExit) as exited:
            main(list(arguments))
        captured = capsys.readouterr()
        return Ran(int(exited.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def run(bare: Run, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process, set up for the receiver and the sandbox."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return bare


@pytest.fixture
def offline(bare: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process, set up for addresses where nobody answers: what is refused is refused before."""
    settings = {"API_BASE": NOBODY, "API_KEY": KEY, "SIGNING_SECRETS": SECRET, "RECEIVER_URL": NOBODY}
    for name, value in settings.items():
        monkeypatch.setenv(f"KLING_{name}", value)
    return bare


@dataclass
class Terminal:
    """The command in a process of its own whose stderr is a terminal."""

    process: forkserver.Started
    stdout: BinaryIO
    descriptor: int
    output: bytes = b""

    def until(self, text: str) -> None:
        """Read the terminal until `text` has appeared."""
        while text.encode() not in self.output:
            self.output += os.read(self.descriptor, 10_000)

    def interrupt(self) -> int:
        """Send SIGINT. Returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


@pytest.fixture
def terminal(settings: dict[str, str], processes_are_forked: None) -> Iterator[Callable[..., Terminal]]:
    begun: list[Terminal] = []

    def begin(*arguments: str, **changed: str) -> Terminal:
        master, slave = pty.openpty()
        environment = {**os.environ, **settings, "TERM": "xterm", "COLUMNS": "120", **changed}
        reading, writing = os.pipe()
        process = forkserver.start([KLING, *arguments], environment, stdout=writing, stderr=slave, stdin=slave)
        os.close(writing)
        os.close(slave)
        begun.append(Terminal(process, os.fdopen(reading, "rb"), master))
        return begun[-1]

    yield begin
    for each in begun:
        each.process.kill()
        each.process.wait(20)
        each.stdout.close()
        os.close(each.descriptor)


def piped(settings: dict[str, str], *arguments: str, **changed: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **settings, **changed}
    return subprocess.run([KLING, *arguments], capture_output=True, env=environment, timeout=60, check=False)


def test_files_are_one_link_per_line(run: Run, gateway: Sandbox) -> None:
    """Without --output, stdout has the links alone, and stderr nothing, in a pipe."""
    ran = run("text-to-image", "a kangaroo", "--n", "2", "--model-name", "kling-v1-5", "--aspect-ratio", "16:9")
    lines = ran.out.splitlines()
    assert (ran.code, len(lines), ran.err) == (0, 2, "")
    assert all("/results/" in line and "signature=" in line for line in lines)
    assert gateway.creates[0]["n"] == 2
    assert gateway.creates[0]["aspect_ratio"] == "16:9"


def test_with_output_the_files_are_written(run: Run, tmp_path: Path) -> None:
    """The folder is created, and the paths are printed, each ID-N.EXT."""
    ran = run("text-to-image", "x", "--n", "2", "--output", "new/folder", "--external-task-id", "order-42")
    assert ran.out.splitlines() == ["new/folder/order-42-0.png", "new/folder/order-42-1.png"]
    assert all((tmp_path / line).read_bytes().startswith(b"\x89PNG") for line in ran.out.splitlines())


def test_json_is_the_task_on_one_line(run: Run) -> None:
    """One document, the finished task; with --output the files are written as well."""
    ran = run("text-to-video", "x", "--duration", "5", "--json", "--tag", "a", "--tag", "b", "--output", "out")
    assert (ran.code, ran.out.count("\n")) == (0, 1)
    assert (ran.json["status"], ran.json["done"], sorted(ran.json["tags"])) == ("succeed", True, ["a", "b"])
    assert Path("out", f"{ran.json['id']}-0.mp4").exists()


def test_no_wait_prints_the_id(run: Run) -> None:
    """The id alone, or the task with --json; `wait` continues from there."""
    ran = run("text-to-image", "x", "--no-wait")
    assert (ran.code, is_id(ran.out.strip())) == (0, True)
    assert run("wait", ran.out.strip(), "--json").json["done"]
    assert run("text-to-image", "x", "--no-wait", "--json").json["done"] is False


def test_an_image_from_a_file(run: Run, tmp_path: Path) -> None:
    """The name of a file, with the options of this job."""
    (tmp_path / "in.png").write_bytes(picture())
    ran = run("image-to-image", "x", "--image", "in.png", "--image-reference", "face", "--image-fidelity", "0.7")
    assert ran.code == 0


def test_a_video_from_an_image(run: Run, gateway: Sandbox, tmp_path: Path) -> None:
    """Repeatable options are lists, of texts or of JSON; a flag is true, false, or absent."""
    (tmp_path / "in.png").write_bytes(picture())
    options = ("--image", "in.png", "--element-list", "1", "--element-list", '[{"element_id": "x"}, 3]')
    flags = ("--no-multi-shot", "--watermark-info", "--no-wait")
    assert run("image-to-video", "x", *options, "--model-name", "kling-v3", *flags).code == 0
    sent = gateway.creates[0]
    assert sent["element_list"] == [{"element_id": 1}, {"element_id": "x"}, {"element_id": 3}]
    assert (sent["multi_shot"], sent["watermark_info"], "voice_list" in sent) == (False, {"enabled": True}, False)


def test_an_estimate_creates_nothing(run: Run, gateway: Sandbox) -> None:
    """Units and money, marked as an estimate; without a known price, exit code 1 says so. Wrong parameters stay 2."""
    job = ("text-to-video", "x", "--model-name", "kling-v3", "--duration", "10", "--estimate")
    assert run(*job).out == "6 units, 0.84 USD (estimate)\n"
    assert run(*job, "--json").json == {"estimate": {"units": 6.0, "usd": 0.84, "per": ""}}
    body = '{"model_name": "kling-v3", "n": 2}'
    assert run("create", "images/generations", "--body", body, "--estimate").out.startswith("16 units")
    unknown = run("text-to-video", "x", "--model-name", "kling-v9", "--estimate")
    assert (unknown.code, unknown.out, "No list price" in unknown.err) == (1, "", True)
    assert run(*job, "--cfg-scale", "7").code == 2
    assert gateway.creates == []


def test_parameters_without_an_option(run: Run, gateway: Sandbox) -> None:
    """--set accepts JSON; other values are text."""
    ran = run("text-to-image", "x", "--set", 'a={"b": [1]}', "--set", "c=plain text", "--set", "d=5", "--no-wait")
    assert ran.code == 0
    sent = gateway.creates[0]
    assert (sent["a"], sent["c"], sent["d"]) == ({"b": [1]}, "plain text", 5)


def test_a_camera_is_json(run: Run, gateway: Sandbox) -> None:
    """The JSON is sent as an object."""
    camera = {"type": "simple", "config": {"zoom": 5}}
    assert run("text-to-video", "x", "--camera-control", json.dumps(camera), "--no-wait").code == 0
    assert gateway.creates[0]["camera_control"] == camera


def test_any_other_job(run: Run, tmp_path: Path, gateway: Sandbox) -> None:
    """`create` accepts a body as an argument or in a file, and a new-standard path."""
    (tmp_path / "body.json").write_text('{"prompt": "袋鼠"}', encoding="utf-8")
    assert run("create", "/text-to-video/kling-3.0-turbo", "--body", "@body.json").code == 0
    assert run("create", "images/generations", "--body", '{"prompt": "x"}').code == 0
    assert gateway.creates[0]["prompt"] == "袋鼠"


@pytest.mark.parametrize("content", [b'\xef\xbb\xbf{"prompt": "\xe8\xa2\x8b"}', b'\n {"prompt": "\xe8\xa2\x8b"}\r\n'])
def test_a_body_in_a_file_or_on_stdin(
    run: Run, tmp_path: Path, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """With or without a byte order mark, in any locale; the same for each option that takes JSON."""
    (tmp_path / "body.json").write_bytes(content)
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(content), encoding="gbk"))
    for body in ("@body.json", "@-", content.decode()):
        assert run("create", "images/generations", "--body", body, "--no-wait").code == 0
    assert [create["prompt"] for create in gateway.creates] == ["袋"] * 3
    camera = BytesIO(b'{"type": "down_back"}')
    monkeypatch.setattr("sys.stdin", TextIOWrapper(camera))
    assert run("text-to-video", "x", "--camera-control", "@-", "--no-wait").code == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16"),
        ('{"a": "ÿ"}'.encode("latin-1"), "not UTF-8 text. Save it as UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b"1" * 5_000, "not valid JSON"),
        (b'{"prompt": ', "not valid JSON"),
        (None, "is closed"),
    ],
)
def test_a_body_that_cannot_be_read(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, message: str
) -> None:
    """One message, and exit code 2; in a file as on stdin."""
    (tmp_path / "body.json").write_bytes(content or b"")
    monkeypatch.setattr("sys.stdin", None if content is None else TextIOWrapper(BytesIO(content)))
    for body in ["@-"] if content is None else ["@body.json", "@-"]:
        ran = run("create", "images/generations", "--body", body)
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err


@pytest.mark.parametrize("name", ["", "missing", ".", "x" * 5_000])
def test_a_file_that_cannot_be_opened(run: Run, name: str) -> None:
    """The message has the system's reason."""
    ran = run("create", "images/generations", "--body", f"@{name}")
    assert (ran.code, "cannot be read: " in ran.err) == (2, True)


def test_a_pipe_is_read_like_a_file(run: Run, tmp_path: Path, gateway: Sandbox) -> None:
    """As a shell passes the output of a command: @<(...)."""
    os.mkfifo(tmp_path / "pipe")
    writing = threading.Thread(target=(tmp_path / "pipe").write_text, args=['{"prompt": "x"}'])
    writing.start()
    assert run("create", "images/generations", "--body", "@pipe", "--no-wait").code == 0
    writing.join()
    assert gateway.creates[0]["prompt"] == "x"


def test_without_a_home_folder_listen_asks_for_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A position that cannot be stored is wrong usage."""
    monkeypatch.setenv("XDG_STATE_HOME", "~no-such-user/state")
    ran = run("listen")
    assert (ran.code, "--state" in ran.err) == (2, True)


def test_the_same_id_again_continues(run: Run, gateway: Sandbox) -> None:
    """A second run with the same id sends no second create, and has the same result."""
    first, second = (run("text-to-image", "x", "--external-task-id", "order-42", "--json") for _ in range(2))
    assert first.json["task_id"] == second.json["task_id"]
    assert len(gateway.creates) == 1


def test_a_lost_file_is_1_and_the_others_are_saved(run: Run, receiver: Running, tmp_path: Path) -> None:
    """If the receiver lost one file of two, the other is written and printed."""
    run("text-to-image", "x", "--n", "2", "--external-task-id", "order-42")
    stored = sorted((tmp_path / "data" / "results").rglob("*.png"))
    assert len(stored) == 2
    run("wait", "order-42", "--output", "before")
    next(each for each in stored if each.read_bytes() == Path("before/order-42-1.png").read_bytes()).unlink()
    ran = run("wait", "order-42", "--output", "out")
    assert (ran.code, ran.out) == (1, "out/order-42-0.png\n")
    assert "File 1 of task order-42 cannot be downloaded" in ran.err


@pytest.mark.parametrize("as_json", [False, True])
def test_a_failed_generation_is_1(run: Run, as_json: bool) -> None:
    """Kling's reason goes to stderr; with --json the failed task goes to stdout as well."""
    ran = run("text-to-image", "x [sandbox: failed]", *(["--json"] if as_json else []))
    assert (ran.code, "asked to fail" in ran.err) == (1, True)
    assert (ran.json["status"] == "failed") if as_json else (ran.out == "")


def test_an_id_in_the_body_is_the_tasks_id(run: Run) -> None:
    """An external_task_id in --set or in the body becomes the task's id; two different ones are wrong usage."""
    assert run("text-to-image", "x", "--set", "external_task_id=order-1", "--no-wait").out == "order-1\n"
    body = '{"prompt": "x", "external_task_id": "order-2"}'
    assert run("create", "images/generations", "--body", body, "--no-wait").out == "order-2\n"
    assert run("create", "images/generations", "--body", body, "--external-task-id", "x").code == 2


def test_a_refused_request_is_1_with_what_to_do(run: Run) -> None:
    """stderr has Kling's message, its request id, and the hint."""
    ran = run("text-to-image", "x [sandbox: arrears]")
    assert (ran.code, ran.out) == (1, "")
    assert "1101" in ran.err
    assert "request " in ran.err
    assert "top it up" in ran.err


def test_a_result_that_could_not_be_stored_is_1(run: Run) -> None:
    """The task succeeded, but its file could not be downloaded: stderr has the reason."""
    ran = run("text-to-image", "x [sandbox: file-html]")
    assert (ran.code, ran.out) == (1, "")
    assert "could not be stored" in ran.err


def test_an_unknown_outcome_is_resolved_without_a_second_create(run: Run, gateway: Sandbox) -> None:
    """The create is not sent again, and the result comes by callback."""
    ran = run("text-to-image", "x [sandbox: create-garbage]")
    assert (ran.code, len(gateway.creates)) == (0, 1)


def test_an_unknown_outcome_is_shown_with_the_words_of_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """At once; of a task that is done, its own end tells more."""
    words = "Kling answered HTTP 502: 502 Bad Gateway."
    for done in (False, True):
        data = task_json("t", status_msg=words, done=done)
        warn_about_create(AsyncTask(cast(ReceiverApi, None), data))
    assert capsys.readouterr().err == (
        "It is not known yet whether Kling took task t. It is not sent again; a callback will show. "
        "Kling answered HTTP 502: 502 Bad Gateway.\n"
    )


def test_waiting_too_long_is_3(run: Run, gateway: Sandbox) -> None:
    """The task continues; stderr has the command to wait again."""
    gateway.hold()
    ran = run("text-to-image", "x", "--timeout", "0.05", "--external-task-id", "order-42")
    assert (ran.code, ran.out) == (3, "")
    assert "kling wait order-42" in ran.err
    gateway.release()
    assert run("wait", "order-42").code == 0


def test_waiting_too_long_with_json_prints_the_unfinished_task(run: Run, gateway: Sandbox) -> None:
    """stdout has one document, not done; messages stay on stderr."""
    gateway.hold()
    ran = run("text-to-image", "x", "--timeout", "1", "--json", "--external-task-id", "order-42")
    assert (ran.code, ran.out.count("\n"), ran.json["id"], ran.json["done"]) == (3, 1, "order-42", False)
    assert "kling wait order-42" in ran.err
    gateway.release()


def test_invalid_tags_are_2(run: Run, gateway: Sandbox) -> None:
    """All their problems are reported, before a request is sent."""
    tags = [argument for number in range(21) for argument in ("--tag", f"{number}" * 100)]
    ran = run("text-to-image", "x", *tags)
    assert (ran.code, ran.out, gateway.creates) == (2, "", [])
    assert ran.err.splitlines() == [
        "tags: each must be text, not empty, on one line, at most 100 characters.",
        "tags: there are 21, at most 20.",
    ]
    assert run("list", "--json").out == ""


def test_wrong_parameters_are_2_all_at_once(run: Run, gateway: Sandbox) -> None:
    """All problems are reported, and no create is sent."""
    ran = run("text-to-image", "x", "--n", "11", "--aspect-ratio", "5:4")
    assert ran.code == 2
    assert [line.partition(":")[0] for line in ran.err.splitlines()] == ["n", "aspect_ratio"]
    assert gateway.creates == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["text-to-image"],
        ["text-to-image", "x", "--callback-url", "https://x", "--hook", "https://x"],
        ["text-to-image", "x", "--n", "many"],
        ["text-to-image", "x", "--timeout", "0"],
        ["text-to-image", "x", "--timeout", "soon"],
        ["text-to-image", "x", "--timeout", "nan"],
        ["text-to-image", "x", "--set", "nonsense"],
        ["text-to-image", "x", "--set", "=1"],
        ["text-to-image", "x", "--set", "callback_url=/callbacks"],
        ["create", "videos/effects", "--body", '{"callback_url": 5}'],
        ["text-to-image", "x", "--external-task-id", "a/b"],
        ["text-to-image", "x", "--output", "a-file"],
        ["text-to-video", "x", "--camera-control", "{"],
        ["text-to-video", "x", "--camera-control", "NaN"],
        ["image-to-image", "x"],
        ["image-to-video", "x"],
        ["text-to-image", "x", "--set", "apsect_ratio=1:1"],
        ["text-to-video", "x", "--image", "in.png"],
        ["text-to-image", "x", "--no-wait", "--output", "out"],
        ["create", "videos/effect", "--body", "{}"],
        ["create", "text-to-video/kling-3.0", "--body", "{}"],
        ["text-to-video", "x", "--model-name", "kling-3.0", "--mode", "pro"],
        ["image-to-image", "x", "--image", "missing.png"],
        ["create", "videos/effects"],
        ["create", "videos/effects", "--body", "@missing.json"],
        ["create", "videos/effects", "--body", "[]"],
        ["create", "effects", "--body", "{}"],
        ["wait"],
        ["wait", "a/b"],
        ["show", "a/b"],
        ["list", "--status", "lost"],
        ["list", "--limit", "0"],
        ["dance"],
        [],
    ],
)
def test_wrong_usage_is_2(offline: Run, tmp_path: Path, arguments: list[str]) -> None:
    """One clear message on stderr, no traceback, nothing on stdout; nobody is asked."""
    (tmp_path / "a-file").touch()
    ran = offline(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err
    assert "Traceback" not in ran.err


def test_wrong_settings_are_2_all_at_once(bare: Run) -> None:
    """The message names every missing variable."""
    ran = bare("text-to-image", "x")
    assert ran.code == 2
    assert all(name in ran.err for name in ("KLING_API_KEY", "KLING_RECEIVER_URL", "KLING_RECEIVER_TOKEN"))


def test_waiting_needs_no_kling_key(run: Run, receiver: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """wait, show and list talk to the receiver only."""
    task_id = run("text-to-image", "x", "--no-wait").out.strip()
    monkeypatch.delenv("KLING_API_KEY")
    assert [run("wait", task_id).code, run("show", task_id).code, run("list").code] == [0, 0, 0]
    assert run("call", "general/presets-voices").code == 2


@pytest.mark.parametrize("name", ["wait", "show"])
def test_an_unknown_task_is_1(run: Run, name: str) -> None:
    """stderr has the receiver's message."""
    ran = run(name, "nobody")
    assert (ran.code, ran.out) == (1, "")
    assert "no such task" in ran.err


def test_show_lists_fields_and_files(run: Run) -> None:
    """A line for each field and each file, with its link; with --json the task on one line."""
    run("text-to-image", "x", "--n", "2", "--external-task-id", "order-42")
    text, line = run("show", "order-42").out, run("show", "order-42", "--json")
    assert line.out.count("\n") == 1
    fields, files = text.split("\n\n")
    shown = dict(each.split(maxsplit=1) for each in fields.splitlines())
    assert (shown["id"], shown["status"], shown["done"]) == ("order-42", "succeed", "true")
    assert json.loads(shown["request"]) == line.json["request"]
    heading, *rows = (each.split() for each in files.splitlines())
    assert heading == ["FILE", "KIND", "STATUS", "TYPE", "BYTES", "ADDRESS"]
    assert [row[:5] for row in rows] == [
        [str(each["index"]), "image", "stored", "image/png", str(each["size"])] for each in line.json["results"]
    ]
    assert all("/api/tasks/order-42/results/" in row[5] for row in rows)


def test_show_prints_failures_warnings_and_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    """A file that failed has Kling's address; outputs that are no files are JSON."""
    lost = {"index": 0, "kind": "image", "status": "failed", "error": "gone", "source_url": "https://kling/x"}
    odd = {"index": 1, "kind": "image", "status": "stored", "warning": "its type is\x1b unknown", "href": "https://r/1"}
    element = {"element_id": 829836802793406551, "name": "袋鼠"}
    print_task(BaseTask({"id": "a", "status": "succeed", "cost": None, "results": [lost, odd], "outputs": [element]}))
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["id", "a"],
        ["status", "succeed"],
        [],
        ["FILE", "KIND", "STATUS", "NOTE", "ADDRESS"],
        ["0", "image", "failed", "gone", "https://kling/x"],
        ["1", "image", "stored", "its", "type", "is\\x1b", "unknown", "https://r/1"],
        [],
        ['{"element_id":', "829836802793406551,", '"name":', '"袋鼠"}'],
    ]


def test_a_narrow_terminal_has_the_links_below_the_files(capsys: pytest.CaptureFixture[str]) -> None:
    """Whole, on a line of their own, so that they can be opened; a wide one has them in the table."""
    link = f"https://kling.example.com/api/tasks/a/results/0?signature={'x' * 60}"
    file = {"index": 0, "kind": "image", "status": "stored", "content_type": "image/png", "size": 9, "href": link}
    task = BaseTask({"id": "a", "status": "succeed", "results": [file, {"index": 1, "status": "pending"}]})
    for width, rows in ((60, 4), (200, 3)):
        print_task(task, width)
        lines = capsys.readouterr().out.split("\n\n")[1].splitlines()
        assert (len(lines), [line.split()[-1] for line in lines].count(link)) == (rows, 1)
        assert max(len(line) for line in lines if link not in line) <= width


def test_the_settings_of_a_narrow_terminal_are_one_below_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    """In a table where it fits; each cell on a line of its own where they do not fit together."""
    columns = [("SETTING", ["KLING_A", "KLING_B"]), ("VALUE", ["on", "x" * 30]), ("FROM", ["default", "/home/me/.env"])]
    shown = {}
    for width in (80, 44, 80):
        print_records(columns, width)
        shown[width] = capsys.readouterr().out.splitlines()
    assert shown[80] == [
        "SETTING  VALUE                           FROM",
        "KLING_A  on                              default",
        f"KLING_B  {'x' * 30}  /home/me/.env",
    ]
    assert shown[44] == ["KLING_A", "  on  default", "KLING_B", f"  {'x' * 30}", "  /home/me/.env"]


def test_outputs_that_are_no_files_are_printed(
    run: Run, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line of JSON for each, by the job and by wait; the exit code is 0."""
    element = {"element_id": 829836802793406551, "element_name": "kangaroo"}

    def respond(visit: Visit) -> None:
        record = {"task_id": "k", "task_status": "succeed", "task_result": {"elements": [element]}}
        visit.answer(200, json.dumps({"code": 0, "request_id": "r", "data": record}).encode())

    with host(respond) as there:
        receiver = start(api_base=there.url, overdue_seconds=0.1, data_dir=tmp_path / "other")
        monkeypatch.setenv("KLING_API_BASE", there.url)
        monkeypatch.setenv("KLING_RECEIVER_URL", receiver.url)
        create = ("create", "general/advanced-custom-elements", "--body", '{"element_name": "kangaroo"}')
        made = run(*create, "--external-task-id", "e")
        waited, shown = run("wait", "e"), run("wait", "e", "--json")
    assert (made.code, made.json) == (waited.code, waited.json) == (0, element)
    assert (shown.json["outputs"], shown.json["done"], shown.json["results"]) == ([element], True, [])


def test_list_is_a_table_or_json(run: Run) -> None:
    """A table with a line per task, or with --json a document per line; filters apply to both."""
    for number in range(3):
        run("text-to-image", "x", "--external-task-id", f"order-{number}", "--tag", f"tag-{number}")
    lines = run("list").out.splitlines()
    assert lines[0].split() == ["ID", "STATUS", "CREATED", "FAMILY", "MODEL", "TAGS", "FILES", "COST", "PROMPT"]
    assert [line.split()[0] for line in lines[1:]] == ["order-2", "order-1", "order-0"]
    assert [json.loads(line)["id"] for line in run("list", "--tag", "tag-1", "--json").out.splitlines()] == ["order-1"]
    assert len(run("list", "--limit", "2", "--status", "succeed").out.splitlines()) == 3
    assert len(run("list", "--family", "videos/text2video").out.splitlines()) == 1


def test_an_output_that_cannot_be_written_is_2_before_the_create(run: Run, tmp_path: Path, gateway: Sandbox) -> None:
    """stderr has the reason, and nothing was paid for."""
    (tmp_path / "a-file").touch()
    for output in ("a-file/out", "a-file/x.png", "a-file", "x" * 300, f"{'x' * 300}.png", "/proc/new/folder", ""):
        ran = run("text-to-image", "x", "--output", output)
        assert (ran.code, "output" in ran.err) == (2, True), output
    assert gateway.creates == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-file", "data"]


def test_an_output_with_a_suffix_is_a_file(run: Run) -> None:
    """The first result has this name, the others a number; its folder is created, and a folder of this name stays."""
    ran = run("text-to-image", "x", "--n", "3", "--output", "new/kangaroo.jpeg")
    assert ran.out.splitlines() == ["new/kangaroo.jpeg", "new/kangaroo-1.png", "new/kangaroo-2.png"]
    assert all(Path(line).read_bytes() for line in ran.out.splitlines())
    Path("folder.png").mkdir()
    for folder in ("folder.png", "v1.2", "slash.png/"):
        ran = run("text-to-image", "x", "--output", folder, "--external-task-id", f"order-{folder.strip('/')}")
        assert ran.out == f"{Path(folder)}/order-{Path(folder)}-0.png\n"


def test_a_file_that_cannot_be_written_later_is_1_and_the_others_are_saved(run: Run) -> None:
    """stderr names the task's id and the command that downloads again."""
    Path("out", "order-42-0.png", "order-42-0.png").mkdir(parents=True)
    ran = run("text-to-image", "x", "--n", "2", "--output", "out", "--external-task-id", "order-42")
    assert (ran.code, ran.out) == (1, "out/order-42-1.png\n")
    assert ran.err.splitlines()[0].startswith("out/order-42-0.png cannot be written: ")
    assert ran.err.splitlines()[1:] == [
        "Download the files of task order-42 again with:",
        "kling wait order-42 --output out",
    ]


def test_all_problems_of_a_call_are_reported_at_once(
    run: Run, gateway: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters, tags, hook, output and settings, before a request is sent; for typed and other jobs."""
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("KLING_SIGNING_SECRETS", "short")
    monkeypatch.setenv("KLING_RECEIVER_URL", "nonsense")
    wrong = ["--tag", "", "--hook", "nonsense", "--output", "a-file", "--external-task-id", "a/b"]
    wrong += ["--hook-event", "task.dome", "--hook-event", "task.done", "--hook-event", "x"]
    typed = run("text-to-image", "x", "--n", "many", "--aspect-ratio", "5:4", *wrong)
    other = run("create", "effects", "--body", "[]", *wrong)
    common = ["external_task_id", "tags", "hook", *["hook_events"] * 2, "output"]
    common += ["KLING_SIGNING_SECRETS", "KLING_RECEIVER_URL"]
    for ran, own in ((typed, ["n", "aspect_ratio"]), (other, ["family", "body"])):
        assert ran.code == 2
        assert [re.split(r"[: ]", line)[0] for line in ran.err.splitlines()] == [*own, *common]
    assert gateway.creates == []


def test_a_hook_receives_the_events_that_the_command_names(run: Run) -> None:
    """`--hook-event` of typed and other jobs; repeatable."""
    with host(lambda visit: visit.answer(204)) as hook:
        options = ["--hook", hook.url, "--hook-event", "task.done", "--hook-event", "task.failed"]
        assert run("text-to-image", "x", *options).code == 0
        assert run("create", "images/generations", "--body", '{"prompt": "x"}', *options).code == 0
        assert [json.loads(visit.body)["type"] for visit in hook.wait_for(2)] == ["task.done"] * 2


def test_a_callback_url_receives_what_kling_would_post(run: Run) -> None:
    """`--callback-url` of typed and other jobs; also among their parameters."""
    with host(lambda visit: visit.answer(200)) as handler:
        body = json.dumps({"prompt": "x", "callback_url": handler.url})
        assert run("text-to-image", "x", "--callback-url", handler.url).code == 0
        assert run("create", "images/generations", "--body", body).code == 0
        assert run("text-to-image", "x", "--set", f"callback_url={handler.url}").code == 0
        statuses = [json.loads(visit.body)["task_status"] for visit in handler.wait_for(9)]
        assert [statuses.count(each) for each in ("submitted", "processing", "succeed")] == [3, 3, 3]


def test_no_receiver_no_create(run: Run, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the receiver refuses this client, the exit code is 1 and no create is sent."""
    monkeypatch.setenv("KLING_SIGNING_SECRETS", "another-secret-of-at-least-32-characters")
    ran = run("text-to-image", "x")
    assert (ran.code, gateway.creates) == (1, [])
    assert "KLING_" in ran.err or "token" in ran.err


def test_help_and_version(bare: Run) -> None:
    """The help has every command and every parameter of the table; the version is the package's."""
    assert all(job.name.replace("_", "-") in bare("--help").out for job in JOBS)
    for job in JOBS:
        shown = " ".join(bare(job.name.replace("_", "-"), "--help").out.split())
        for parameter in job.parameters[1:]:
            assert f"--{parameter.name.replace('_', '-')} " in shown
            assert parameter.help.split(".")[0].split()[0] in shown
    assert bare("--version").out == f"kling, version {version('kling-callback')}\n"
    assert bare("-h").code == 0
    assert sorted(command.commands) == [
        "batch",
        "call",
        "cancel",
        "config",
        "create",
        "image-to-image",
        "image-to-video",
        "list",
        "listen",
        "motion-control",
        "omni-video",
        "show",
        "text-to-image",
        "text-to-video",
        "wait",
    ]


def test_text_from_kling_cannot_control_the_terminal() -> None:
    """Control characters are escaped; line ends become blanks."""
    assert escape("a\x1b[31mb\nc\x9bd\u202e") == "a\\x1b[31mb c\\x9bd\\x202e"
    assert escape("袋鼠\u3000👩\u200d🚀") == "袋鼠\u3000👩\u200d🚀"


@given(st.recursive(st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_json_output_is_the_same_document(document: Any) -> None:
    """Control characters are written as JSON escapes, so that a program reads the same document."""
    for pretty in (False, True):
        with StringIO() as out, redirect_stdout(out):
            print_json(document, pretty=pretty)
            text = out.getvalue()
        assert json.loads(text) == document
        assert "\x1b" not in text
        text.encode()


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ({"status": "created", "queue_position": 999}, "place 999 in the queue"),
        ({"status": "succeed", "results": [{"status": "stored"}] * 2}, "succeed, 2 of 2 files"),
    ],
)
def test_progress_fits_60_columns(task: dict[str, Any], text: str) -> None:
    """With an id of ours, nothing is cut off, neither a place in a long queue nor the number of files."""
    out, task_id = StringIO(), "01M8BY2G2EB8FKSM2S0KYN8W39"
    with live_progress(task_id, Console(file=out, force_terminal=True, width=60)) as display:
        display.update(Event(1, "task.queued", "", {}, task, LOG))
    assert f"{task_id} {text}" in out.getvalue()
    assert "…" not in out.getvalue()


def test_progress_shows_status_and_files() -> None:
    """A terminal shows the status and how many files are stored; elsewhere nothing is written."""
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    task = {"id": "a", "status": "succeed", "results": [{"status": "stored"}, {"status": "pending"}]}
    with live_progress("a", console) as display:
        display.update(Event(1, "task.processing", "", {}, {"id": "a", "status": "processing"}, LOG))
        display.update(Event(2, "result.stored", "", {}, task, LOG))
    assert "a succeed, 1 of 2 files" in out.getvalue()
    with live_progress("a", Console(file=StringIO())) as display:
        display.update(Event(1, "task.processing", "", {}, task, LOG))


def test_progress_shows_the_age_and_the_usual_time() -> None:
    """Within 60 columns: while the task is at Kling, and not in the queue or while files are fetched."""
    out, task_id = StringIO(), "01M8BY2G2EB8FKSM2S0KYN8W39"
    hour_ago = datetime.fromtimestamp(time.time() - 3600, UTC).isoformat()
    with live_progress(task_id, Console(file=out, force_terminal=True, width=60)) as display:
        display.expect(3730)
        display.update(Event(1, "", "", {}, {"status": "processing", "created_at": hour_ago}, LOG))
        assert display.is_shown
    shown = re.sub("\x1b[^a-zA-Z]*[a-zA-Z]", "", out.getvalue())
    assert f"1:00:00 of ~1:02:10 {task_id} processing\n" in shown
    for task in ({"status": "created", "queue_position": 2}, {"status": "succeed"}):
        with StringIO() as out, live_progress(task_id, Console(file=out, force_terminal=True, width=60)) as display:
            display.update(Event(1, "", "", {}, task, LOG))
            display.expect(130)
            display.update(Event(1, "", "", {}, task, LOG))
            assert " of ~" not in out.getvalue()
    assert [format_seconds(each) for each in (0.4, 59.6, 130)] == ["0:00", "1:00", "2:10"]


def test_progress_shows_retries(bare: Run) -> None:
    """Log messages of the client appear in the line of progress, and no longer after it."""
    out = StringIO()
    with live_progress("a", Console(file=out, force_terminal=True, width=100)):
        logging.getLogger("kling_callback").info("The receiver cannot be reached. Trying again.")
    assert "a The receiver cannot be reached. Trying again." in out.getvalue()
    logging.getLogger("kling_callback").info("This is not shown.")
    assert "This is not" not in out.getvalue()


def test_ctrl_c_before_the_receiver_answers_is_130(
    terminal: Callable[..., Terminal],
) -> None:
    """No task is registered or created: the message says that nothing was sent."""
    with Wire(b"", hold=1) as silent:
        screen = terminal("text-to-image", "x", KLING_RECEIVER_URL=silent.url)
        assert silent.came.wait(60)
        assert screen.interrupt() == 130
        screen.until("nothing was sent to Kling")
    assert b"kling wait" not in screen.output


def test_a_misspelt_setting_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """stderr has a warning, and the command runs."""
    monkeypatch.setenv("KLING_API_BAES", "https://example.com")
    ran = run("list")
    assert (ran.code, ran.err) == (
        0,
        "KLING_API_BAES is not a setting. Did you mean KLING_API_BASE?\n",
    )


def test_other_secrets_than_the_receivers_are_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver with other signing secrets refuses the client's own token: the message names the setting."""
    monkeypatch.setenv("KLING_SIGNING_SECRETS", "another-secret-of-enough-letters-0123456789")
    ran = run("list")
    assert ran.code == 1
    assert "KLING_SIGNING_SECRETS that the receiver has" in ran.err


def test_another_server_at_the_receivers_address_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that passes on callbacks only: the message names the setting of another address."""
    with host(lambda visit: visit.answer(404, b"<html>nginx</html>")) as proxy:
        monkeypatch.setenv("KLING_RECEIVER_URL", proxy.url)
        ran = run("list")
    assert ran.code == 1
    assert "KLING_RECEIVER_INTERNAL_URL" in ran.err


def test_a_bug_is_raised() -> None:
    """An unexpected exception keeps its traceback."""
    with pytest.raises(ZeroDivisionError):
        report_error(ZeroDivisionError())


def test_no_secret_is_printed(run: Run) -> None:
    """Keys, secrets and tokens appear in no output, of a success or an error."""
    for arguments in (["x"], ["x [sandbox: arrears]"], ["x [sandbox: failed]"], ["x", "--json"]):
        ran = run("text-to-image", *arguments)
        assert not any(secret in ran.out + ran.err for secret in (KEY, SECRET, "/callbacks/", "Bearer"))


def test_a_pipe_gets_utf_8_in_any_locale(settings: dict[str, str]) -> None:
    """An ASCII locale does not change the text of a task."""
    prompt = "袋鼠 🦘"
    ran = piped(settings, "text-to-image", prompt, "--json", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert ran.returncode == 0
    assert json.loads(ran.stdout.decode("utf-8"))["request"]["prompt"] == prompt
    assert ran.stderr == b""


def test_a_closed_pipe_is_1_without_a_message(settings: dict[str, str]) -> None:
    """`kling list | head` ends without a traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, **settings}
    ran = subprocess.run(
        [KLING, "list"], stdout=writing, stderr=subprocess.PIPE, env=environment, timeout=60, check=False
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, b"")


def test_a_terminal_shows_live_progress(terminal: Callable[..., Terminal], gateway: Sandbox) -> None:
    """Progress goes to stderr while the command waits; stdout has only the link."""
    gateway.hold()
    screen = terminal("text-to-image", "x", "--external-task-id", "order-42")
    screen.until("order-42 submitted")
    gateway.release()
    assert screen.process.wait(60) == 0
    out = screen.stdout.read()
    assert out.count(b"\n") == 1
    assert b"/results/0?" in out


def test_ctrl_c_while_waiting_is_130(terminal: Callable[..., Terminal], gateway: Sandbox) -> None:
    """The task continues; stderr has the command to wait for it."""
    gateway.hold()
    screen = terminal("text-to-image", "x", "--external-task-id", "order-42")
    screen.until("order-42 submitted")
    assert screen.interrupt() == 130
    screen.until("kling wait order-42")
    assert b"Traceback" not in screen.output


def test_ctrl_c_while_creating_is_130_and_unknown(
    terminal: Callable[..., Terminal],
    settings: dict[str, str],
    start: Start,
    tmp_path: Path,
) -> None:
    """Kling has the request and does not answer: stderr names the id, and a second run sends no second create."""
    with Wire(b"", hold=1) as silent:
        other = start(api_base=silent.url, data_dir=tmp_path / "other")
        changed = {"KLING_API_BASE": silent.url, "KLING_RECEIVER_URL": other.url}
        again = ["text-to-image", "x", "--external-task-id", "order-42"]
        screen = terminal(*again, **changed)
        assert silent.came.wait(60)
        assert screen.interrupt() == 130
        screen.until("kling wait order-42")
        ran = piped(settings, *again, "--no-wait", **changed)
    assert b"Traceback" not in screen.output
    assert (ran.returncode, ran.stdout) == (0, b"order-42\n")
    assert b"It is not known yet whether Kling took task order-42" in ran.stderr
    assert [request.split()[0] for request in silent.requests] == [b"POST", b"GET"]


HEAVY = {"aiohttp", "alembic", "kling_receiver", "prometheus_client", "sqlalchemy", "sqlmodel", "starlette", "uvicorn"}


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_import_no_heavy_module(option: str) -> None:
    """Neither the receiver and its packages nor the listener. (httpx imports rich in any case.)"""
    code = (
        f"import sys; from kling_callback.cli.main import main\ntry: main(['{option}'])\nfinally: print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    imported = set(ran.stdout.splitlines()[-1].split())
    assert "click" in imported
    assert {name.partition(".")[0] for name in imported} & HEAVY == set()
    assert "kling_callback.listen" not in imported


@pytest.mark.parametrize(
    ("arguments", "code", "stdout", "stderr"),
    [
        (["create", "images/generations", "--body", '{"prompt": "x"}', "--no-wait"], 0, "\n", ""),
        (["wait", "missing"], 1, "", "no such task"),
        (["show", "missing"], 1, "", "no such task"),
        (["list"], 0, "ID\tSTATUS\t", ""),
        (["listen", "--from", "0"], 2, "", "not an event's id"),
    ],
)
def test_a_process_of_each_command(
    settings: dict[str, str], arguments: list[str], code: int, stdout: str, stderr: str
) -> None:
    """The exit code of the process, data on stdout, messages on stderr."""
    ran = piped(settings, *arguments)
    assert ran.returncode == code, ran.stderr
    assert (stdout in ran.stdout.decode()) if stdout else (ran.stdout == b"")
    assert (stderr in ran.stderr.decode()) if stderr else (ran.stderr == b"")


def test_python_m_is_the_same_command() -> None:
    """`python -m kling_callback`, by the name of the command."""
    command = [sys.executable, "-m", "kling_callback"]
    version_line = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=False)
    assert (version_line.returncode, version_line.stdout) == (0, f"kling, version {version('kling-callback')}\n")
    wrong = subprocess.run([*command, "dance"], capture_output=True, text=True, timeout=60, check=False)
    assert (wrong.returncode, wrong.stderr.splitlines()[0]) == (2, "Usage: kling [OPTIONS] COMMAND [ARGS]...")

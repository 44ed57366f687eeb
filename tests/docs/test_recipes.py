"""docs/hooks.md: each recipe, as printed, accepts a real receiver's events once, and rejects forgeries."""

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kling_callback import HookError
from kling_callback.protocol.events import POSITION, LogPosition
from kling_callback.protocol.webhooks import hook_body, sign, webhook_id
from kling_sandbox import Sandbox
from tests.docs.test_docs import DOCS, blocks
from tests.support.kling import LOG, task_json
from tests.support.node import node
from tests.support.receiver import Start
from tools.harness import loopback
from tools.harness.submitting import events, submit

PAGE = (DOCS / "hooks.md").read_text(encoding="utf-8")
SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
OTHER = "whsec_" + base64.b64encode(b"another-secret-for-these-tests--").decode()
PRINTED = re.compile(rf"default_{POSITION} [a-z]+\.[a-z]+ (?:mine|[0-9A-Z]{{26}})")
PYTHON = [sys.executable, "-m"]


def section(title: str, language: str = "python") -> str:
    """The only example of a section."""
    (code,) = blocks(PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0], language)
    return code


class Application:
    """A running recipe; its `work` prints a line for each event."""

    def __init__(self, url: str, process: "subprocess.Popen[str]") -> None:
        self.url, self._process = url, process
        self._printed: list[list[str]] = []

    def next_event(self) -> list[str]:
        """Wait for the next event that the recipe worked on: its webhook-id, type and task."""
        assert self._process.stdout
        while not self._printed:  # servers write there as well, and two threads may share a line
            line = self._process.stdout.readline()
            assert line, "the recipe ended"
            self._printed += [match.split() for match in PRINTED.findall(line)]
        return self._printed.pop(0)

    def post(self, body: bytes, name: str, *, secret: str = SECRET, ago: int = 0, **changed: str) -> int:
        """Post one message; its response's status. `changed`: headers, by the last word of their names."""
        at = int(time.time()) - ago
        headers = {"id": name, "timestamp": str(at), "signature": sign(secret, name, at, body), **changed}
        encoded = {f"webhook-{key}".encode(): value.encode() for key, value in headers.items() if value}
        encoded[b"Content-Type"] = b"application/json"
        return httpx.post(self.url, content=body, headers=encoded, timeout=20).status_code


@pytest.fixture(params=["FastAPI", "Starlette", "Flask", "Express"])
def application(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Application]:
    """Each recipe in turn, run by the command that the page prints below it."""
    port = loopback.free_port()
    if request.param == "Express":
        command = [node(tmp_path), "app.mjs"]
        (tmp_path / "app.mjs").write_text(section(request.param, "js"))
    else:
        server = ["flask", "--app", "app", "run"] if request.param == "Flask" else ["uvicorn", "app:app"]
        command = [*PYTHON, *server, "--port", str(port)]
        (tmp_path / "inbox.py").write_text(section("Dropping repeats"))
        (tmp_path / "app.py").write_text(section(request.param))
    environment = {**os.environ, "KLING_HOOK_SECRET": SECRET, "PORT": str(port), "PYTHONPATH": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    url = f"http://127.0.0.1:{port}/hook"
    assert loopback.answers(url, 60, alive=lambda: process.poll() is None), (tmp_path / "log").read_text()
    yield Application(url, process)
    process.kill()
    process.communicate()


def event(number: int) -> tuple[bytes, str]:
    """The body of an event, and its webhook-id."""
    task = task_json("mine", "succeed", done=True)
    at = "2027-01-15T08:00:00.000Z"
    document = {"id": number, "log_id": LOG, "type": "task.done", "at": at, "data": {}, "task": task}
    return hook_body(document), webhook_id(LogPosition(LOG, number, 1_800_000_000_000))


def test_a_recipe_works_on_each_event_once(start: Start, gateway: Sandbox, application: Application) -> None:
    """A real receiver sends all events of a task."""
    running = start(api_base=gateway.url, hook_url=application.url, hook_secret=SECRET)
    task, _ = submit(running, gateway)
    logged = events(running, task)
    printed = [application.next_event() for _ in logged]
    positions = [LogPosition.parse(name.split("_")[1]) for name, *_ in printed]
    assert sorted(each.event_id for each in positions) == [each["id"] for each in logged]
    assert {tuple(words[1:]) for words in printed} == {(each["type"], task) for each in logged}


def test_a_recipe_rejects_forgeries_and_drops_repeats(application: Application) -> None:
    """A forgery is answered 4xx and a repeat 2xx; neither causes any work."""
    body, name = event(1)
    altered = body.replace(b"succeed", b"failed")
    assert application.post(body, name) == 204
    assert application.next_event() == [name, "task.done", "mine"]
    assert application.post(body, name) == 204
    for status in (
        application.post(altered, "hook_2", signature=sign(SECRET, "hook_2", int(time.time()), body)),
        application.post(*event(2), secret=OTHER),
        application.post(*event(2), ago=301),
        application.post(*event(2), ago=-302),
        application.post(*event(2), signature=""),
        application.post(*event(2), signature="v1,\u00e9"),
        application.post(*event(2), timestamp="soon"),
        application.post(b"\xff\xfe", "hook_2", secret=OTHER),
        application.post(b"", "hook_2", secret=OTHER),
        httpx.post(application.url, timeout=20).status_code,
    ):
        assert 400 <= status < 500
    assert application.post(*event(3)) == 204
    assert application.next_event()[0] == event(3)[1]


def test_the_error_codes_on_the_page_are_those_of_hook_error() -> None:
    """The page and the docstring of the error list the same codes."""
    codes = PAGE.partition("its `code` is\n")[2].partition(". An invalid secret")[0]
    assert set(re.findall(r"`(\w+)`", codes)) == set(re.findall(r"`(\w+)`", str(HookError.__doc__))) - {"code"}


def test_the_example_of_verify_hook() -> None:
    """It accepts a valid message and rejects a forged one."""
    names: dict[str, Any] = {}
    exec(section("verify_hook"), names)
    body, name = event(1)
    at = int(time.time())
    headers = {
        "webhook-id": name,
        "webhook-timestamp": str(at),
        "webhook-signature": sign(SECRET, name, at, body),
    }
    assert names["receive"](body, headers, SECRET)[:3] == (204, name, 1)
    assert names["receive"](body, headers, OTHER) == (400, "bad_signature")
    assert json.loads(body)["task"]["id"] == names["receive"](body, headers, [OTHER, SECRET])[6]

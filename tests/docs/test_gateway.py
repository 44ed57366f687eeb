"""docs/gateway.md: its programs, as printed, get a file from a receiver with Kling's own API."""

import json
import subprocess
from pathlib import Path

import httpx
import pytest

from kling_sandbox import Sandbox
from tests.docs.test_docs import DOCS, blocks, run, sh
from tests.support.node import node
from tests.support.receiver import KEY, Running, Start

PAGE = (DOCS / "gateway.md").read_text(encoding="utf-8")


def example(title: str, language: str) -> str:
    """The only example of a program, in its language."""
    (code,) = blocks(PAGE.partition(f"\n### {title}\n")[2].partition("\n##")[0], language)
    return code


@pytest.fixture
def running(start: Start, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Running:
    """A receiver, and the environment of the page's programs."""
    running = start(api_base=gateway.url, compat_api="on")
    monkeypatch.setenv("BASE", running.url)
    monkeypatch.setenv("KEY", KEY)
    return running


def check_file(running: Running, url: str, magic: bytes) -> None:
    """The printed address is the receiver's, and needs no key."""
    assert url.startswith(f"{running.url}/")
    assert magic in httpx.get(url).content[:12]


def test_curl(running: Running, gateway: Sandbox) -> None:
    """Two commands: the second one prints the finished task."""
    ran = sh(example("curl", "sh"))
    assert (ran.returncode, ran.stderr) == (0, "")
    created, rest = json.JSONDecoder().raw_decode(ran.stdout)
    assert created["code"] == 0
    data = json.loads(ran.stdout[rest:])["data"]
    assert data["task_info"] == {"external_task_id": "order-42"}
    check_file(running, data["task_result"]["images"][0]["url"], b"\x89PNG")
    assert [task.queries <= 1 for task in gateway.tasks.values()] == [True]


def test_javascript(running: Running, tmp_path: Path) -> None:
    """By Node, as a module."""
    command = [node(tmp_path), "program.mjs"]
    (tmp_path / "program.mjs").write_text(example("JavaScript", "javascript"), encoding="utf-8")
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    check_file(running, ran.stdout.strip(), b"ftyp")


def test_javascript_reports_a_failure(running: Running, gateway: Sandbox, tmp_path: Path) -> None:
    """With Kling's reason."""
    gateway.misbehave.add("failed")
    command = [node(tmp_path), "program.mjs"]
    (tmp_path / "program.mjs").write_text(example("JavaScript", "javascript"), encoding="utf-8")
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, "asked to fail" in ran.stderr) == (1, True)


def test_python(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """With httpx."""
    run([example("Python", "python")], {})
    check_file(running, capsys.readouterr().out.strip(), b"\x89PNG")

"""A receiver that is none, or no longer ours: its answers write no file elsewhere, and are no tracebacks."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.client.cli.test_main import Ran
from tests.client.cli.test_main import bare as bare  # a fixture
from tests.support.kling import event, task_json
from tests.support.web import Visit, host

Run = Callable[..., Ran]

CONTENT = b"\x89PNG\r\n\x1a\nowned"


def task(own_id: str = "K1", file: dict[str, Any] | None = None, **changed: Any) -> dict[str, Any]:
    """A task with one file."""
    usual = {"index": 0, "kind": "image", "status": "stored", "content_type": "image/png", "size": len(CONTENT)}
    return task_json(own_id, "succeed", **{"done": True, "results": [{**usual, **(file or {})}], **changed})


@contextmanager
def receiver(answered: dict[str, Any]) -> Iterator[str]:
    """A receiver that has one task, under any id."""

    def respond(visit: Visit) -> None:
        if visit.path.startswith("/api/tasks?"):
            visit.answer(200, json.dumps({"tasks": [answered], "next": None}).encode())
        elif "/results/" in visit.path:
            visit.answer(200, CONTENT)
        elif visit.path.endswith("/events"):
            visit.answer(200, event(1, "task.done", answered).encode(), Content_Type="text/event-stream")
        else:
            visit.answer(200, json.dumps(answered).encode())

    with host(respond) as web:
        yield web.url


def written(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_no_file_leaves_the_folder(bare: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file's name comes from the id, which has no slash, and from our own extensions."""
    monkeypatch.setenv("KLING_SIGNING_SECRETS", "x" * 40)
    folder = tmp_path / "a" / "b"
    for own_id in ("../../EVIL", "/" + "x/" * 3, f"{tmp_path}/EVIL", "..", "a\0b"):
        with receiver(task(own_id, {"content_type": "application/x-sh"}, task_id="K1")) as url:
            monkeypatch.setenv("KLING_RECEIVER_URL", url)
            ran = bare("wait", "K1", "--output", str(folder), "--timeout", "20")
            assert (ran.code, "cannot be read" in ran.err) == (1, True), ran
    assert written(tmp_path) == []
    script = {"content_type": "application/x-sh", "kind": "file"}
    with receiver(task("ours", script, task_id="K1")) as url:
        monkeypatch.setenv("KLING_RECEIVER_URL", url)
        assert bare("wait", "K1", "--output", str(folder)).code == 0
    assert written(tmp_path) == ["a/b/ours-0.bin"]


@pytest.mark.parametrize(
    "answered",
    [
        task("\x1b]0;x\x07"),
        task(file={"size": "x"}),
        task(file={"sha256": 5}),
        task(file={"index": 10**30}),
        task(file={"href": "http://[", "source_url": "http://["}),
        task(file={"expires_at": "zz", "error": "\x1b[2J", "status": "failed"}),
        task(outputs=5),
        task(outputs=[{"a": "\x1b[31m\u202e"}]),
        task(tags=5),
        task(tags=["\x1b[2J"]),
        task(request=json.loads("[" * 600 + "]" * 600)),
    ],
    ids=lambda answered: ascii(answered)[-90:],
)
def test_each_command_ends_with_a_message(
    bare: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: dict[str, Any]
) -> None:
    """Or with the task, but without a traceback, a control character, or a retry of what stays wrong."""
    monkeypatch.setenv("KLING_SIGNING_SECRETS", "x" * 40)
    with receiver(answered) as url:
        monkeypatch.setenv("KLING_RECEIVER_URL", url)
        waiting = ("wait", "K1", "--output", str(tmp_path), "--timeout", "20")
        for arguments in (waiting, ("show", "K1"), ("list",), ("list", "--json")):
            ran = bare(*arguments)
            assert ran.code in (0, 1)
            assert not set(ran.out + ran.err) & set("\x1b\x07\0\u202e"), arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "videos/effects", "--body", "@deep.json"),
        ("create", "videos/effects", "--body", "@list.json"),
        ("create", "videos/effects", "--body", "@deep.json", "--estimate"),
        ("text-to-image", "x", "--set", f"new={'[' * 600 + ']' * 600}"),
        ("text-to-video", "x", "--camera-control", "@deep.json"),
        ("call", "videos/identify-face", "--body", "@deep.json"),
        ("call", "videos/identify-face", "--body", "@list.json"),
    ],
)
def test_a_body_that_is_too_deep_is_wrong_usage(
    bare: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Whatever walks it. Nothing is sent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep.json").write_text('{"a":' * 600 + "1" + "}" * 600)
    (tmp_path / "list.json").write_text("[" * 600 + "]" * 600)
    for name in ("KLING_API_BASE", "KLING_RECEIVER_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("KLING_API_KEY", "the-kling-key")
    monkeypatch.setenv("KLING_SIGNING_SECRETS", "x" * 40)
    ran = bare(*arguments)
    assert (ran.code, "20 levels" in ran.err) == (2, True), ran

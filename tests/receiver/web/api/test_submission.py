"""POST /api/tasks and DELETE /api/tasks/{id}: what is refused before anything is paid, and what becomes of the rest."""

import base64
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from kling_receiver.store import writer
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.tables import HOOK, SUBMISSION, TASK
from kling_receiver.store.transaction import TASK_DEFAULTS
from kling_receiver.tasks import registration
from kling_receiver.tasks.submission import MAX_QUEUED
from kling_receiver.web.api import committer
from kling_receiver.web.api.submission import MAX_BYTES
from kling_sandbox import Sandbox
from kling_sandbox.pictures.images import png
from kling_sandbox.pictures.page import Page
from tests.support.api import error_of
from tests.support.receiver import Running, Start
from tests.support.submitting import QUICK_CREATES, VIDEOS, cancel, finish, post

PNG = png(Page("an image of the caller's"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"body": {"prompt": "x", "image": "photo.png"}}, "image: is the name of a file"),
        ({"body": {"prompt": "x", "image": "/etc/passwd"}}, "base64 or a URL"),
        ({"body": {"prompt": "x", "image": "file:///etc/passwd"}}, "base64 or a URL"),
        ({"body": {"prompt": "x", "image_list": [{"image": "~/x.jpg"}]}}, "image_list.image: is the name"),
        ({"body": {"prompt": "x", "image": "data:image/png;base64,AAAA"}}, "image: is neither a JPEG nor a PNG"),
        ({"family": VIDEOS, "body": {"video_url": "C:\\film.mp4"}}, "video_url: is the name"),
        ({"body": {"promt": "x"}}, "prompt"),
        ({"family": "videos/../x"}, "family"),
        ({"family": "account/costs"}, "family"),
        ({"body": []}, "body"),
        ({"tags": ["x" * 101]}, "tags"),
        ({"priority": 1.5}, "priority"),
        ({"unknown": 1}, "unknown"),
        ({"external_task_id": "a b"}, "external_task_id"),
        ({"external_task_id": "a", "body": {"prompt": "x", "external_task_id": "b"}}, "external_task_id"),
        ({"hook": "https://h.example", "body": {"callback_url": "https://h.example"}}, "callback_url"),
        ({"hook": "http://10.0.0.1/"}, "hook"),
        ({"body": {"prompt": "x", "callback_url": "http://10.0.0.1/"}}, "callback_url"),
        ({"hook_events": ["task.done"]}, "hook_events"),
        ({"family": "/text-to-video/kling-3.0-turbo", "body": {"options": {"callback_url": 5}}}, "callback_url"),
    ],
)
def test_a_bad_submission_names_its_problem(
    shared: Running, shared_gateway: Sandbox, fields: dict[str, Any], named: str
) -> None:
    """Nothing is registered, nothing is sent."""
    response = post(shared, **fields)
    assert error_of(response) == (422, "bad_submission")
    assert named in response.json()["error"]["message"]
    assert shared_gateway.creates == []


def test_all_problems_are_named_at_once(shared: Running) -> None:
    """So that they are fixed at once."""
    message = post(
        shared, {"prompt": "x", "image": "a.png", "image_tail": "./b.png"}, external_task_id="?", hook="ftp://x"
    ).json()["error"]["message"]
    assert all(name in message for name in ("image:", "image_tail:", "external_task_id", "hook"))


def test_no_file_of_the_receiver_is_read(shared: Running, tmp_path: Path) -> None:
    """Whatever the name looks like, also where the receiver has such a file."""
    (tmp_path / "b.png").write_bytes(PNG)
    for name in ("data:,x.png", "data:x.png", str(tmp_path / "b.png"), "a.png"):
        assert post(shared, {"prompt": "x", "image": name}).status_code == 422


def test_numbers_that_are_no_json_and_endless_nesting_are_refused(shared: Running) -> None:
    """Kling could not read them either."""
    headers = shared.headers()
    for content in (b"{", b'{"family": "videos/effects", "body": {"x": NaN}}', b"[" * 100_000):
        response = httpx.post(f"{shared.url}/api/tasks", content=content, headers=headers)
        assert error_of(response)[0] == 422


def test_a_submission_of_many_bytes(shared: Running) -> None:
    """A legacy image has 10 MB at most; the answer says what to do."""
    response = post(shared, {"prompt": "x" * MAX_BYTES})
    assert error_of(response) == (413, "too_large")
    assert "URL" in response.json()["error"]["hint"]


def test_a_receiver_without_a_key_says_so(start: Start) -> None:
    """It can verify Kling's signed callbacks, but send nothing."""
    running = start(api_key="", webhook_secrets=("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",))
    response = post(running)
    assert error_of(response) == (409, "no_key")
    assert "KLING_API_KEY" in response.json()["error"]["hint"]


def test_an_image_is_sent_and_not_stored(start: Start, gateway: Sandbox) -> None:
    """The task shows its length only; the submission with its bytes is deleted."""
    running = start(api_base=gateway.url, delays=QUICK_CREATES)
    data = base64.b64encode(PNG).decode()
    task_id = post(running, {"prompt": "x", "image": f"data:image/png;base64,{data}"}).json()["id"]
    task = finish(running, task_id)
    assert (task["status"], gateway.creates[0]["image"]) == ("succeed", data)
    assert data[:100] not in json.dumps(task)
    with running.receiver.store.database.read() as connection:
        assert connection.execute(SUBMISSION.select()).all() == []


@pytest.mark.parametrize("family", ["images/generations", "/text-to-video/kling-3.0-turbo"])
def test_a_callback_url_becomes_the_tasks_hook(start: Start, gateway: Sandbox, family: str) -> None:
    """Kling gets our address alone, also where the caller has it in the other standard's place; "" means none."""
    running = start(api_base=gateway.url, delays=QUICK_CREATES)
    gateway.hold()
    theirs = f"{running.url}/healthz?token=secret"
    body = {"prompt": "x", "callback_url": theirs, "external_task_id": "", "image": ""}
    task_id = post(running, body, family=family, hook="", external_task_id="").json()["id"]
    gateway.wait_for(lambda: gateway.creates)
    create = gateway.creates[0]
    assert create.get("options", create)["callback_url"].startswith(f"{running.url}/callbacks/")
    assert theirs not in json.dumps(create)
    with running.receiver.store.database.read() as connection:
        (hook,) = connection.execute(HOOK.select()).all()
    assert (hook.task_id, hook.address) == (task_id, theirs)
    gateway.release()
    finish(running, task_id)


def test_a_task_that_cannot_be_read_after_its_commit(
    start: Start, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is answered as it was registered: an error would make its caller submit it again, and pay twice."""
    running = start(api_base=gateway.url, delays=QUICK_CREATES)

    async def unreadable(*_: object) -> None:
        raise Unavailable("The database does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(running.receiver.store.reader, "details", unreadable)
        response = post(running, tags=["red"])
        assert post(running, external_task_id="mine").status_code == 201
        assert post(running, external_task_id="mine").status_code == 503  # of a repeat, which changes nothing
    assert response.status_code == 201
    answered, task = response.json(), finish(running, response.json()["id"])
    assert answered.keys() == task.keys()
    for name in ("family", "model", "request", "tags"):
        assert answered[name] == task[name]
    finish(running, "mine")
    assert len(gateway.creates) == 2


def test_a_queue_that_is_full_says_what_to_do(start: Start, gateway: Sandbox) -> None:
    """With ten thousand tasks in it; each shows its place, and cancelling one makes room."""
    running = start(api_base=gateway.url, concurrency="1")
    database = running.receiver.store.database
    usual = {"family": "images/generations", "outcome": "pending", "create_token": "receiver/x"}
    tasks = [
        {**TASK_DEFAULTS, **usual, "id": f"t{number}", "created_at": 1, "updated_at": 1} for number in range(MAX_QUEUED)
    ]
    waits = {"state": "queued", "rank": 0, "model": "", "slots": 1, "body": b"{}", "size": 2, "attempt": ""}
    with database.write() as connection:
        connection.execute(insert(TASK), [{**tasks[0], "id": "open", "slots": 1}, *tasks])
        connection.execute(insert(SUBMISSION), [{**waits, "task_id": task["id"], "created_at": 1} for task in tasks])
    response = post(running)
    assert error_of(response) == (429, "queue_full")
    assert "DELETE" in response.json()["error"]["hint"]
    assert response.headers["Retry-After"]
    assert cancel(running, "t5").status_code == 200
    assert (post(running).json()["queue_position"], cancel(running, "t7").status_code) == (MAX_QUEUED, 200)
    assert gateway.creates == []


@pytest.mark.parametrize(
    ("is_late", "known_by"),
    [(False, {}), (True, {}), (True, {"key": "the key"}), (True, {"external_task_id": "mine"})],
)
def test_a_commit_that_is_late(
    start: Start, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch, is_late: bool, known_by: dict[str, str]
) -> None:
    """Its caller is told to send it again: the first task is never sent then, unless the repeat is known."""
    running = start(api_base=gateway.url, delays=QUICK_CREATES)
    committed = threading.Event()
    register = registration.register

    def slow(*arguments: Any) -> Any:
        monkeypatch.setattr(registration, "register", register)
        committed.wait(20)
        return register(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "COMMIT_TIMEOUT_SECONDS", 0.1)
        patch.setattr(committer, "CONFIRM_SECONDS", 0.1 if is_late else 20)
        monkeypatch.setattr(registration, "register", slow)
        timer = threading.Timer(1, committed.set)
        timer.start()
        first = post(running, **known_by)
        assert first.status_code == (503 if is_late else 201)
        timer.join()
    again = post(running, **known_by)
    assert again.status_code == (200 if known_by else 201)
    assert finish(running, again.json()["id"])["status"] == "succeed"
    tasks = httpx.get(f"{running.url}/api/tasks", headers=running.headers("read"), trust_env=False).json()["tasks"]
    for task in tasks:
        finish(running, task["id"])
    assert len(tasks) == (1 if known_by else 2)
    assert len(gateway.creates) == (1 if known_by or is_late else 2)

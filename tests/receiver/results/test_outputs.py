"""Results that are no files, or files by other names: the task is done, and nothing of it failed."""

import json
from typing import Any

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_receiver.store.database import Database
from tests.receiver.results.test_download import picture
from tests.support.database import Ledger, callback, view
from tests.support.receiver import Start
from tests.support.web import Visit, host
from tools.harness.submitting import Json, events, post, register, show, types

ELEMENT = {"element_id": 829836802793406551, "element_name": "kangaroo", "status": "succeed"}
PICTURE, SOUND, VIDEO = picture(size=32), b"ID3" + bytes(999), b"\0\0\0\x18ftypmp42" + bytes(999)


def run(start: Start, family: str, task_result: Json, **record: Any) -> tuple[Json, list[str]]:
    """One task from its create to its end, at a Kling that answers with this result. Returns it and its events."""

    def respond(visit: Visit) -> None:
        if visit.path.startswith("/v1/"):
            result = json.loads(json.dumps(task_result).replace("https://files.example.com", there.url))
            data = {"task_id": "k", "task_status": "succeed", "task_result": result, **record}
            visit.answer(200, json.dumps({"code": 0, "request_id": "query-1", "data": data}).encode())
        else:
            visit.answer(200, {"png": PICTURE, "mp3": SOUND, "mp4": VIDEO}[visit.path.rpartition(".")[2]])

    with host(respond) as there:
        running, task = start(api_base=there.url), new_id()
        register(running, task, family)
        register(running, task, family, outcome="created", task_id="k", request_id="create-1")
        assert show(running, task)["request_id"] == "create-1"
        post(running, task, {"task_id": "k", "task_status": "succeed"}, family)
        happened = events(running, task)
        assert len([visit for visit in there.visits if visit.path.startswith("/v1/")]) == 1
        fetched = httpx.post(f"{running.url}/api/tasks/{task}/fetch", headers=running.headers("admin"))
        assert fetched.status_code == 200, fetched.text
    return happened[-1]["task"], types(happened)


@pytest.mark.parametrize(
    ("family", "task_result", "outputs", "files"),
    [
        ("general/advanced-custom-elements", {"elements": [ELEMENT]}, [ELEMENT], []),
        (
            "general/custom-voices",
            {"voices": [{"voice_id": "829", "trial_url": "https://files.example.com/v.mp3"}]},
            [{"voice_id": "829"}],
            [("audio", "audio/mpeg")],
        ),
        (
            "general/ai-multi-shot",
            {"images": [{"index": 0, **{f"url_{n}": f"https://files.example.com/{n}.png" for n in (1, 2, 3)}}]},
            [],
            [("image", "image/png")] * 3,
        ),
        (
            "videos/text2video",
            {"videos": [{"id": "v", "url": "", "watermark_url": "https://files.example.com/w.mp4"}]},
            [],
            [("video", "video/mp4")],
        ),
    ],
)
def test_a_result_without_a_usual_file_is_a_result(
    start: Start, family: str, task_result: Json, outputs: list[Json], files: list[tuple[str, str]]
) -> None:
    """Kling is asked once; the outputs are in the task, and the files are stored."""
    balance = {"quota": "1.2", "list_price": "1.5"}
    task, happened = run(start, family, task_result, final_balance_deduction=balance, created_at=1764235825)
    assert (task["status"], task["origin"], task["done"], task["outputs"]) == ("succeed", "kling", True, outputs)
    assert [(each["kind"], each["content_type"], each["status"]) for each in task["results"]] == [
        (*file, "stored") for file in files
    ]
    assert "result.failed" not in happened
    assert (task["cost"], task["request_id"], task["kling_created_at"]) == (
        balance,
        "query-1",
        "2025-11-27T09:30:25.000Z",
    )


@pytest.fixture
def ledger(any_database: Database) -> Ledger:
    """A ledger of no tasks."""
    return Ledger(any_database)


def test_a_signed_callback_with_an_output_ends_the_task(ledger: Ledger) -> None:
    """No query is needed."""
    body = json.dumps({"task_id": "k", "task_status": "succeed", "task_result": {"elements": [ELEMENT]}}).encode()
    ledger.record(callback(body=body, signed=True))
    assert view(ledger.task()) == ("succeed", "kling", True)
    assert ledger.task()["outputs"] == [ELEMENT]
    assert "ask/t" not in ledger.jobs()


def test_an_output_that_is_named_after_all_replaces_the_failure(ledger: Ledger) -> None:
    """The result that was missing is not shown any more; the event remains in the log."""
    ledger.record(callback(status="succeed", signed=True))
    ledger.accept_hint()
    assert [result["status"] for result in ledger.results()] == ["failed"]
    body = json.dumps({"task_id": "k", "task_status": "succeed", "task_result": {"elements": [ELEMENT]}}).encode()
    ledger.record(callback(body=body, signed=True))
    assert (ledger.results(), ledger.task()["outputs"]) == ([], [ELEMENT])
    assert view(ledger.task()) == ("succeed", "kling", True)


def test_an_unsigned_callback_names_no_outputs(ledger: Ledger) -> None:
    """As it names no files: only Kling does."""
    body = json.dumps({"task_id": "k", "task_status": "succeed", "task_result": {"elements": [ELEMENT]}}).encode()
    ledger.record(callback(body=body))
    assert (ledger.task()["status"], ledger.task()["outputs"]) == ("created", None)
    assert "ask/t" in ledger.jobs()

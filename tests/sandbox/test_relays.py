"""The sandbox answers as relays do: one switch for each dialect, and dialects that meet."""

import json
from typing import Any

import httpx
import pytest

from kling_sandbox import Sandbox
from tests.support.sandbox import HEADERS, IMAGES, VIDEOS, bodies, code, create, made

REASON = "The sandbox was asked to fail this task"


def queried(gateway: Sandbox, api: httpx.Client, mark: str, path: str = VIDEOS, **body: Any) -> tuple[str, list[Any]]:
    """A task's id, and what queries answer when it is submitted, processing, and at its end."""
    gateway.hold()
    answer = create(api, mark, path, **body).json()
    number = str(answer["id"] if "object" in answer else answer["data"]["task_id"])
    answers = [api.get(f"{path}/{number}").json()]
    for statuses in (("processing",), ("succeed", "failed")):
        gateway.advance(number)
        gateway.wait_for(lambda statuses=statuses: gateway.tasks[number].status in statuses)  # type: ignore[misc]
        answers.append(api.get(f"{path}/{number}").json())
    return number, answers


def test_relay_flat_has_no_envelope(gateway: Sandbox, api: httpx.Client) -> None:
    """Id, status, and address are on top."""
    number, answers = queried(gateway, api, "relay-flat")
    assert [answer["status"] for answer in answers] == ["queued", "in_progress", "completed"]
    assert [bool(answer["url"]) for answer in answers] == [False, False, True]
    last = answers[-1]
    assert (last["task_id"], last["format"], last["error"]) == (number, "mp4", None)
    assert api.get(last["url"]).headers["content-type"] == "video/mp4"
    _, answers = queried(gateway, api, "relay-flat, failed")
    assert (answers[-1]["status"], answers[-1]["error"]) == ("failed", {"message": REASON})


def test_relay_result_url_has_another_envelope(gateway: Sandbox, api: httpx.Client) -> None:
    """Code and status are words; Kling's record is missing."""
    number, answers = queried(gateway, api, "relay-result-url")
    assert {answer["code"] for answer in answers} == {"success"}
    assert [answer["data"]["status"] for answer in answers] == ["SUBMITTED", "IN_PROGRESS", "SUCCESS"]
    last = answers[-1]["data"]
    assert (last["task_id"], last["data"]) == (number, None)
    assert api.get(last["result_url"]).status_code == 200
    _, answers = queried(gateway, api, "relay-result-url, failed")
    assert (answers[-1]["data"]["status"], answers[-1]["data"]["fail_reason"]) == ("FAILURE", REASON)


def test_relay_openai_video_is_in_creates_too(gateway: Sandbox, api: httpx.Client) -> None:
    """Times are seconds; the address is in metadata, the reason in error."""
    created = create(api, "relay-openai-video", VIDEOS, model_name="kling-v2-6").json()
    assert (created["object"], created["status"], created["model"]) == ("video", "queued", "kling-v2-6")
    assert created["created_at"] == gateway.tasks[created["id"]].created_at // 1000
    number, answers = queried(gateway, api, "relay-openai-video")
    assert [answer["status"] for answer in answers] == ["queued", "in_progress", "completed"]
    assert {answer["id"] for answer in answers} == {number}
    assert ["metadata" in answer for answer in answers] == [False, False, True]
    assert api.get(answers[-1]["metadata"]["url"]).status_code == 200
    _, answers = queried(gateway, api, "relay-openai-video, failed")
    assert (answers[-1]["status"], answers[-1]["error"]) == ("failed", {"message": REASON})


def test_dialects_meet(gateway: Sandbox, api: httpx.Client) -> None:
    """A create as an OpenAI video, queries flat or with a result address; callbacks stay Kling's."""
    for other, key in (("relay-flat", "task_id"), ("relay-result-url", "data")):
        number, answers = queried(gateway, api, f"relay-openai-video, {other}")
        assert key in answers[-1]
        assert number in json.dumps(answers[-1])


def test_callbacks_are_kling_s_own_in_every_dialect(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    """A relay passes Kling's callback address on."""
    made(api, "relay-flat", VIDEOS, callback_url=recipient)
    assert [body["task_status"] for body in bodies(gateway)] == ["submitted", "processing", "succeed"]


def test_unknown_tasks_have_a_word_for_a_code(gateway: Sandbox, api: httpx.Client) -> None:
    """Of the relay, where Kling has 1201."""
    gateway.misbehave.add("relay-task-not-exist")
    answer = api.get(f"{VIDEOS}/unknown")
    assert answer.status_code == 400
    assert answer.json() == {"code": "task_not_exist", "message": "task_not_exist", "data": None}


@pytest.mark.parametrize(
    ("mark", "number"), [("full", 1303), ("used-up", 1102), ("busy", 1302), ("discontinued", 1203)]
)
def test_kling_s_error_is_text_in_a_message(api: httpx.Client, mark: str, number: int) -> None:
    """With its code, under a word of the relay's."""
    answer = create(api, f"relay-error-in-message, {mark}").json()
    assert (answer["code"], answer["data"]) == ("fail_to_fetch_task", None)
    assert json.loads(answer["message"])["code"] == number


def test_errors_of_every_call_are_text_in_a_message(gateway: Sandbox, api: httpx.Client) -> None:
    """When the switch is on for all."""
    gateway.misbehave.add("relay-error-in-message")
    refused = (create(api, n=10), api.get(f"{IMAGES}/unknown"), api.post("/v1/audio/tts", json={}))
    for answer in refused:
        assert answer.status_code == 400
        assert json.loads(answer.json()["message"])["code"] == 1201


@pytest.mark.parametrize(
    ("mark", "status", "words"),
    [
        ("relay-no-channel", 503, ('"code":"model_not_found"', "kling-v9")),
        ("relay-no-quota", 403, ('"code":"insufficient_user_quota"',)),
        ("relay-401-in-200", 200, ('{"code":401,"message":"invalid token"}',)),
        ("bad-gateway", 502, ("<html><body>502 Bad Gateway",)),
    ],
)
def test_relays_refuse_in_their_own_words(
    gateway: Sandbox, api: httpx.Client, mark: str, status: int, words: tuple[str, ...]
) -> None:
    """No task is made."""
    answer = create(api, mark, model_name="kling-v9")
    assert answer.status_code == status
    assert all(word in answer.text for word in words)
    assert gateway.tasks == {}


# Files without an address


@pytest.mark.parametrize(
    "mark", ["no-url", "no-url, relay-flat", "no-url, relay-result-url", "no-url, relay-openai-video"]
)
def test_no_url_leaves_the_address_out(gateway: Sandbox, api: httpx.Client, mark: str) -> None:
    """In every dialect."""
    _, answers = queried(gateway, api, mark)
    assert "http" not in json.dumps(answers[-1])
    assert "url" not in answers[-1]


@pytest.mark.parametrize("path", ["audio/text-to-audio", "general/custom-voices", "general/ai-multi-shot"])
def test_no_url_leaves_addresses_of_every_name_out(gateway: Sandbox, api: httpx.Client, path: str) -> None:
    """Such as `trial_url` and `url_1`; what is no address stays."""
    _, answers = queried(gateway, api, "no-url", f"/v1/{path}")
    ((result,),) = answers[-1]["data"]["task_result"].values()
    assert result
    assert "http" not in str(result)


@pytest.mark.parametrize("base_path", ["", "/kling"])
def test_the_file_is_sent_for_the_key(base_path: str) -> None:
    """Below the relay's prefix, and at its host; to nobody else."""
    with (
        Sandbox(base_path=base_path, image_seconds=0.01, video_seconds=0.01) as relay,
        httpx.Client(base_url=relay.url, headers=HEADERS) as api,
    ):
        number, _ = queried(relay, api, "no-url")
        for base in {relay.url, relay.url.removesuffix("/kling")}:
            address = f"{base}/v1/videos/{number}/content"
            assert httpx.get(address).status_code == 401
            assert code(httpx.get(address, headers={"authorization": "Bearer another"})) == (1002, 401)
            answer = api.get(address)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "video/mp4")
            part = api.get(address, headers={"range": "bytes=4-7"})
            assert (part.status_code, part.content) == (206, b"ftyp")


def test_there_is_no_content_before_the_end_and_of_other_tasks(gateway: Sandbox, api: httpx.Client) -> None:
    """400 while it is made, 404 where results have addresses."""
    gateway.hold()
    number = made(api, "no-url", VIDEOS)
    assert api.get(f"/v1/videos/{number}/content").status_code == 400
    assert api.get(f"/v1/videos/{made(api, '', VIDEOS)}/content").status_code == 404
    assert api.get("/v1/videos/unknown/content").status_code == 404


def test_files_without_an_address_fail_like_others(gateway: Sandbox, api: httpx.Client) -> None:
    """The switches of files count there, too."""
    number, _ = queried(gateway, api, "no-url, file-500-once")
    assert [api.get(f"/v1/videos/{number}/content").status_code for _ in range(2)] == [500, 200]
    number, _ = queried(gateway, api, "no-url, redirect-file")
    answer = api.get(f"/v1/videos/{number}/content", follow_redirects=True)
    assert (answer.status_code, len(answer.history)) == (200, 1)

"""What other programs send, and the types that they demand of the answers, where their packages cannot be installed.

The AI SDK's provider (npm `@ai-sdk/klingai`), the ComfyUI nodes of Kling's makers, and `klingai-api` (Python 3.14).
"""

from collections.abc import Iterator
from typing import Any

import httpx
import jwt
import pytest

from kling_sandbox import Sandbox
from tests.support.receiver import Running, Start

VIDEOS, IMAGES, MOTION = "/v1/videos/text2video", "/v1/images/generations", "/v1/videos/motion-control"


@pytest.fixture
def running(start: Start, gateway: Sandbox) -> Running:
    """A receiver with the sandbox's pair of keys, which holds queries."""
    keys = {"api_key": "", "access_key": gateway.access_key, "secret_key": gateway.secret_key}
    return start(api_base=gateway.url, compat_api="on", compat_hold_seconds=20, **keys)


@pytest.fixture
def http(running: Running, gateway: Sandbox) -> Iterator[httpx.Client]:
    """A program that signs its own JWT, with the account's keys."""
    claims = {"iss": gateway.access_key, "exp": 4_000_000_000, "nbf": 1_000_000_000}
    token = jwt.encode(claims, gateway.secret_key, headers={"alg": "HS256", "typ": "JWT"})
    with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as http:
        yield http


def success(response: httpx.Response) -> Any:
    """The data of an answer in the envelope that all of them read."""
    answer = response.json()
    assert (response.status_code, answer["code"], answer["message"]) == (200, 0, "SUCCEED")
    assert isinstance(answer["request_id"], str)
    return answer["data"]


def check_record(record: dict[str, Any]) -> None:
    """The fields of a legacy record by their types: the AI SDK refuses an answer with any other."""
    for name in ("task_id", "task_status", "task_status_msg"):
        assert isinstance(record[name], str)
    for name in ("created_at", "updated_at"):
        assert isinstance(record[name], int)
    for name in ("task_info", "task_result"):
        assert isinstance(record[name], dict)
    assert isinstance(record["task_info"].get("external_task_id", ""), str)
    assert isinstance(record.get("final_unit_deduction", ""), str)
    for video in record["task_result"].get("videos", []):
        assert all(isinstance(video[name], str) for name in ("id", "url", "duration"))


def test_the_ai_sdk(http: httpx.Client, gateway: Sandbox) -> None:
    """Its text to video and motion control; the duration is a string, a picture and a video are addresses."""
    text: dict[str, Any] = {
        "model_name": "kling-v2-6",
        "prompt": "a kangaroo",
        "sound": "off",
        "mode": "std",
        "aspect_ratio": "16:9",
        "duration": "5",
    }
    motion: dict[str, Any] = {
        "model_name": "kling-v2-6",
        "video_url": "https://example.com/dance.mp4",
        "character_orientation": "image",
        "mode": "std",
        "prompt": "a dance",
        "image_url": "https://example.com/person.png",
        "keep_original_sound": "yes",
        "watermark_info": {"enabled": True},
    }
    for path, body in ((VIDEOS, text), (MOTION, motion)):
        created = success(http.post(path, json=body))
        assert isinstance(created["task_id"], str)
        record = success(http.get(f"{path}/{created['task_id']}"))
        check_record(record)
        assert record["task_status"] == "succeed"
        assert record["task_result"]["videos"][0]["url"]
    assert isinstance(record["task_result"]["videos"][0]["watermark_url"], str)
    assert all(create.items() >= body.items() for create, body in zip(gateway.creates, (text, motion), strict=True))


def test_the_ai_sdk_reads_errors(http: httpx.Client) -> None:
    """Code and message of an HTTP error: a number and a string."""
    for response in (http.post(VIDEOS, json={"prompt": "x" * 10_000}), http.get(f"{VIDEOS}/nobody")):
        assert response.status_code == 400
        assert isinstance(response.json()["code"], int)
        assert response.json()["message"]


def test_the_comfyui_nodes(http: httpx.Client, gateway: Sandbox) -> None:
    """Each field that is not set is sent as null. `data` and `task_result` are read from every answer."""
    body = {
        "model_name": "kling-v2-1",
        "prompt": "a kangaroo",
        "negative_prompt": None,
        "image": None,
        "image_fidelity": None,
        "n": 1,
        "aspect_ratio": "1:1",
        "callback_url": None,
    }
    created = success(http.post(IMAGES, json=body))
    unfinished = http.get(f"{IMAGES}/{created['task_id']}", headers={"Prefer": "wait=0"})
    check_record(success(unfinished))
    record = success(http.get(f"{IMAGES}/{created['task_id']}"))
    check_record(record)
    assert record["task_result"]["images"][0].keys() >= {"index", "url"}
    assert len(gateway.creates) == 1


def test_klingai_api(http: httpx.Client, gateway: Sandbox) -> None:
    """It asks for the account's costs first, then creates, and lists tasks by page."""
    assert http.get("/account/costs", params={"start_time": 1, "end_time": 2}).status_code == 200
    body = {"model_name": "kling-v1", "prompt": "a kangaroo", "mode": "std", "aspect_ratio": "16:9", "duration": "5"}
    task_id = success(http.post(VIDEOS, json=body))["task_id"]
    record = success(http.get(f"{VIDEOS}/{task_id}"))
    assert success(http.get(VIDEOS, params={"pageNum": 1, "pageSize": 30})) == [record]
    assert gateway.tasks[record["task_id"]].queries <= 1

"""Scripts that people use today, with nothing changed but host and scheme, create their tasks at the sandbox."""

import base64
import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kling_sandbox import Sandbox
from tests.support.sandbox import picture

IMAGES = "/kling/v1/images/generations"


@pytest.fixture
def relay() -> Iterator[Sandbox]:
    """A sandbox with the prefix of a relay."""
    with Sandbox(base_path="/kling", keys=["sk-XXXXXXXXXX"], image_seconds=0.03, video_seconds=0.03) as relay:
        yield relay


def send(relay: Sandbox, method: str, path: str, body: Any = None) -> Any:
    """One request, as these scripts send it; the JSON of its answer."""
    connection = http.client.HTTPConnection(f"127.0.0.1:{relay.port}")
    headers = {"Authorization": "Bearer sk-XXXXXXXXXX", "Content-Type": "application/json"}
    try:
        connection.request(method, path, json.dumps(body) if body else None, headers)
        return json.loads(connection.getresponse().read().decode())
    finally:
        connection.close()


def poll(relay: Sandbox, path: str, created: Any) -> Any:
    """Ask until the task is at its end; its record."""
    assert (created["code"], created["message"]) == (0, "SUCCEED")
    address = f"{path}/{created['data']['task_id']}"
    while (data := send(relay, "GET", address)["data"])["task_status"] not in ("succeed", "failed"):
        time.sleep(0.01)
    return data


def test_text_to_image_with_an_odd_query(relay: Sandbox) -> None:
    """The script appends `?=null` to the path of its create."""
    body = {"model_name": "kling-v1-5", "prompt": "一只举着牌子的袋鼠"}
    data = poll(relay, IMAGES, send(relay, "POST", f"{IMAGES}?=null", body))
    assert data["task_result"]["images"][0]["url"].startswith(relay.url)


def test_image_to_image_with_empty_fields(relay: Sandbox) -> None:
    """The script always sends a callback address, which is empty."""
    picture = base64.b64encode(b"a picture from a file").decode()
    body = {
        "model_name": "kling-v1-5",
        "prompt": "in oil",
        "image": picture,
        "image_reference": "subject",
        "image_fidelity": 0.5,
        "human_fidelity": 0.5,
        "output_format": "png",
        "n": 2,
        "aspect_ratio": "16:9",
        "callback_url": "",
    }
    data = poll(relay, IMAGES, send(relay, "POST", IMAGES, body))
    assert len(data["task_result"]["images"]) == 2
    assert relay.callbacks == []


def test_text_to_video_with_empty_fields(relay: Sandbox) -> None:
    """Twice: an empty external id is none, so the second task is no repeat of the first."""
    body = {
        "model_name": "kling-v1",
        "prompt": "a kangaroo",
        "negative_prompt": "",
        "cfg_scale": 0.5,
        "mode": "std",
        "aspect_ratio": "16:9",
        "duration": "5",
        "callback_url": "",
        "external_task_id": "",
    }
    path = "/kling/v1/videos/text2video"
    for _ in range(2):
        data = poll(relay, path, send(relay, "POST", path, body))
        assert data["task_result"]["videos"][0].keys() >= {"id", "url"}
        assert data["task_info"] == {}


def test_the_example_of_a_gateway_page_fails_at_its_end(relay: Sandbox) -> None:
    """A tiny image beside an empty negative prompt: accepted, and failed when the task runs."""
    body = {
        "model_name": "kling-v1-5",
        "prompt": "flow",
        "negative_prompt": "",
        "image": picture(5, 5),
        "aspect_ratio": "1:1",
        "human_fidelity": 1,
        "image_reference": "subject",
    }
    data = poll(relay, IMAGES, send(relay, "POST", IMAGES, body))
    assert (data["task_status"], data["task_status_msg"]) == ("failed", "Image pixel is invalid")
    assert data["task_result"] == {}

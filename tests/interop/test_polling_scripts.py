"""Scripts that poll Kling over TLS work through the receiver with nothing changed but their host.

What they send is what such scripts send (tests/sandbox/test_polling_scripts.py); Kling is asked at most once a task.
"""

import base64
import http.client
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kling_sandbox import Sandbox
from tests.support.receiver import Start
from tests.support.sandbox import picture
from tests.support.tls import TlsFront

KEY = "sk-XXXXXXXXXX"
IMAGES = "/kling/v1/images/generations"
VIDEOS = "/kling/v1/videos/text2video"


@pytest.fixture
def relay() -> Iterator[Sandbox]:
    """A sandbox with the prefix of a relay."""
    with Sandbox(base_path="/kling", keys=[KEY], image_seconds=0.1, video_seconds=0.3) as relay:
        yield relay


class Script:
    """One connection, kept for create and queries, as `http.client` keeps it."""

    def __init__(self, host: str) -> None:
        self._connection = http.client.HTTPSConnection(host, timeout=30)
        self.queries = 0

    def create(self, path: str, body: dict[str, Any]) -> str:
        """Send a create, whose answer must be a success; the task's id."""
        answer = self._send("POST", path, json.dumps(body))
        assert answer["code"] == 0, answer
        return str(answer["data"]["task_id"])

    def query(self, path: str, task_id: str) -> dict[str, Any]:
        """Ask for a task once; its record."""
        self.queries += 1
        answer = self._send("GET", f"{path}/{task_id}", None)
        assert answer["code"] == 0, answer
        record: dict[str, Any] = answer["data"]
        return record

    def poll(self, path: str, task_id: str) -> dict[str, Any]:
        """Ask until the task has succeeded, as these scripts do, which look at no other status."""
        end = time.monotonic() + 20
        while (record := self.query(path, task_id))["task_status"] != "succeed":
            assert time.monotonic() < end, record
            time.sleep(0.02)
        return record

    def fetch(self, url: str) -> bytes:
        """The content of a file at the same host, by its address alone."""
        self._connection.request("GET", url)
        response = self._connection.getresponse()
        assert response.status == 200, response.read()
        return response.read()

    def _send(self, method: str, path: str, body: str | None) -> Any:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        self._connection.request(method, path, body, headers)
        return json.loads(self._connection.getresponse().read().decode())

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@pytest.fixture
def serve(start: Start, relay: Sandbox, front: TlsFront) -> Iterator[Any]:
    """Start a receiver of the relay's account, and a script with its host."""
    scripts: list[Script] = []

    def serve(hold: float = 0) -> Script:
        running = start(
            api_base=relay.url,
            api_key=KEY,
            compat_api="on",
            compat_hold_seconds=hold,
            receiver_url=front.url,
        )
        front.target = running.local_url
        scripts.append(Script(front.host))
        return scripts[-1]

    yield serve
    for script in scripts:
        script.close()


def only_once(relay: Sandbox) -> None:
    """Kling got one create, and was asked about it once at most."""
    (task,) = relay.tasks.values()
    assert (len(relay.creates), task.queries <= 1) == (1, True)


def test_text_to_image(serve: Any, relay: Sandbox, front: TlsFront) -> None:
    """The create has `?=null` appended to its path. The file is the receiver's, over TLS."""
    script = serve()
    task_id = script.create(f"{IMAGES}?=null", {"model_name": "kling-v1-5", "prompt": "一只举着牌子的袋鼠"})
    url = script.poll(IMAGES, task_id)["task_result"]["images"][0]["url"]
    assert url.startswith(f"{front.url}/")
    assert script.fetch(url).startswith(b"\x89PNG")
    only_once(relay)


def test_image_to_image(serve: Any, relay: Sandbox) -> None:
    """All fields are sent, the empty callback address too; each image has its address."""
    script = serve()
    body: dict[str, Any] = {
        "model_name": "kling-v1-5",
        "prompt": "in oil",
        "image": picture(320, 320),
        "image_reference": "subject",
        "image_fidelity": 0.5,
        "human_fidelity": 0.5,
        "output_format": "png",
        "n": 2,
        "aspect_ratio": "16:9",
        "callback_url": "",
    }
    images = script.poll(IMAGES, script.create(IMAGES, body))["task_result"]["images"]
    assert [image["index"] for image in images] == [0, 1]
    assert all(script.fetch(image["url"]).startswith(b"\x89PNG") for image in images)
    only_once(relay)
    assert base64.b64decode(relay.creates[0]["image"]) == base64.b64decode(body["image"])


def test_text_to_video_that_cannot_wait(serve: Any, relay: Sandbox) -> None:
    """A script that takes its first query's answer for the last works when its query is held: one query, one file."""
    script = serve(hold=20)
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
    record = script.query(VIDEOS, script.create(VIDEOS, body))
    assert (record["task_status"], script.queries) == ("succeed", 1)
    video = record["task_result"]["videos"][0]
    assert video.keys() >= {"id", "url"}
    assert b"ftyp" in script.fetch(video["url"])[:12]
    only_once(relay)


def test_a_failed_task_is_reported(serve: Any, relay: Sandbox) -> None:
    """A picture that is too small: the task fails at Kling, with Kling's words and no result."""
    script = serve(hold=20)
    body = {"model_name": "kling-v1-5", "prompt": "flow", "negative_prompt": "", "image": picture(5, 5)}
    record = script.query(IMAGES, script.create(IMAGES, body))
    assert (record["task_status"], record["task_status_msg"]) == ("failed", "Image pixel is invalid")
    assert record["task_result"] == {}
    only_once(relay)

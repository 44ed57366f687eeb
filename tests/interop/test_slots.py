"""A gateway with five slots never receives a sixth task from programs that know nothing of slots."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import httpx

from kling_sandbox import Sandbox
from tests.support.receiver import KEY, Running, Start

IMAGES, VIDEOS = "/v1/images/generations", "/v1/videos/text2video"
SLOTS = 5

BODIES: list[tuple[str, dict[str, Any]]] = [
    *((IMAGES, {"prompt": f"image {number}", "n": number % 3 + 1}) for number in range(6)),
    *((VIDEOS, {"prompt": f"video {number}"}) for number in range(6)),
    (IMAGES, {"prompt": "all slots", "n": SLOTS}),
    (VIDEOS, {"prompt": "fails [sandbox: failed]"}),
    (VIDEOS, {"prompt": "is not called back [sandbox: no-callback]"}),
    (IMAGES, {"prompt": "is unknown [sandbox: create-504]", "n": 2}),
]


def most_slots(gateway: Sandbox) -> int:
    """The most slots that were in use at once."""
    changes = [(task.created_at, task.slots) for task in gateway.tasks.values()]
    changes += [(task.finished_at or 0, -task.slots) for task in gateway.tasks.values()]
    return max(accumulate(change for _, change in sorted(changes)))


def make(running: Running, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Create a task and wait for its end by a held query, as a program of Kling's API; its record."""
    headers = {"Authorization": f"Bearer {KEY}", "Prefer": "wait=60"}
    with httpx.Client(base_url=running.url, headers=headers, timeout=60) as http:
        created = http.post(path, json=body)
        assert (created.status_code, created.json()["code"]) == (200, 0), created.text
        record: dict[str, Any] = json.loads(http.get(f"{path}/{created.json()['data']['task_id']}").text)["data"]
        return record


def test_never_a_sixth_task(start: Start) -> None:
    """All programs create at once. Kling refuses nothing, gets each create once, and all five slots are used."""
    with Sandbox(concurrency=SLOTS, image_seconds=0.1, video_seconds=0.1) as gateway:
        running = start(api_base=gateway.url, compat_api="on", concurrency=str(SLOTS), overdue_seconds=1)
        with ThreadPoolExecutor(len(BODIES)) as programs:
            records = list(programs.map(lambda each: make(running, *each), BODIES))
        assert [record["task_status"] for record in records].count("succeed") == len(BODIES) - 1
        assert len(gateway.creates) == len(gateway.tasks) == len(BODIES)  # a refused create would be one more
        assert most_slots(gateway) == SLOTS
        assert all(task.queries <= 1 for task in gateway.tasks.values() if "no-callback" not in task.body["prompt"])

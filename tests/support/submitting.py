"""Submissions to a running receiver, and what became of them."""

from typing import Any

import httpx

from kling_receiver.jobs.backoff import Backoff
from kling_receiver.parts import Delays
from kling_receiver.tasks.creating import CreateDelays
from tests.support.receiver import Running

IMAGES, VIDEOS = "images/generations", "videos/text2video"

QUICK_CREATES = Delays(
    create=CreateDelays(
        lookup=Backoff((0.05, 0.1)), unreachable=Backoff((0.05, *[0.1] * 100)), full=Backoff((0.05, 0.1))
    )
)


def post(running: Running, body: Any = None, *, key: str = "", **fields: Any) -> httpx.Response:
    """Submit a task. `key`: the Idempotency-Key."""
    headers = {**running.headers(), **({"Idempotency-Key": key} if key else {})}
    document = {"family": IMAGES, "body": {"prompt": "a kangaroo"} if body is None else body, **fields}
    return httpx.post(f"{running.url}/api/tasks", json=document, headers=headers, trust_env=False)


def submit(running: Running, prompt: str = "a kangaroo", *, n: int = 1, **fields: Any) -> str:
    """Submit an image task. Returns its id."""
    response = post(running, {"prompt": prompt, "n": n, **fields.pop("parameters", {})}, **fields)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def cancel(running: Running, task_id: str) -> httpx.Response:
    """Take a task out of the queue."""
    return httpx.delete(f"{running.url}/api/tasks/{task_id}", headers=running.headers(), trust_env=False)


def show(running: Running, task_id: str) -> dict[str, Any]:
    """The JSON of a task."""
    response = httpx.get(f"{running.url}/api/tasks/{task_id}", headers=running.headers("read"), trust_env=False)
    task: dict[str, Any] = response.raise_for_status().json()
    return task


def events(running: Running, task_id: str) -> list[str]:
    """Wait for the end of a task. Returns the types of its events."""
    url = f"{running.url}/api/tasks/{task_id}/events"
    with httpx.stream("GET", url, headers=running.headers(), timeout=5, trust_env=False) as stream:
        return [line.removeprefix("event: ") for line in stream.iter_lines() if line.startswith("event: ")]


def finish(running: Running, task_id: str) -> dict[str, Any]:
    """Wait for the end of a task. Returns its JSON."""
    events(running, task_id)
    return show(running, task_id)

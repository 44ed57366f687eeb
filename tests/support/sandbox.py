"""Calls to a sandbox, as programs that were written for Kling send them."""

import base64
import io
import json
from typing import Any

import httpx
from PIL import Image

from kling_sandbox import Sandbox

IMAGES = "/v1/images/generations"
VIDEOS = "/v1/videos/text2video"
NEW = "/text-to-video/kling-3.0-turbo"
HEADERS = {"authorization": "Bearer sandbox-key"}


def create(api: httpx.Client, mark: str = "", path: str = IMAGES, **body: Any) -> httpx.Response:
    """Create a task whose prompt has a mark."""
    return api.post(path, json={"prompt": f"a kangaroo [sandbox: {mark}]" if mark else "a kangaroo", **body})


def made(api: httpx.Client, mark: str = "", path: str = IMAGES, **body: Any) -> str:
    """Create a task; its id."""
    data = create(api, mark, path, **body).json()["data"]
    return str(data.get("task_id") or data["id"])


def asked(api: httpx.Client, path: str, number: str) -> Any:
    """The task, as a query answers it."""
    if path.startswith("/v1"):
        return api.get(f"{path}/{number}").json()["data"]
    return api.get("/tasks", params={"task_ids": number}).json()["data"][0]


def finished(gateway: Sandbox, api: httpx.Client, mark: str = "", path: str = IMAGES, **body: Any) -> Any:
    """Create a task, wait for its end, and return what a query says."""
    number = made(api, mark, path, **body)
    gateway.wait_for(lambda: gateway.tasks[number].finished_at)
    return asked(api, path, number)


def bodies(gateway: Sandbox, count: int = 3) -> list[Any]:
    """The callbacks, once there are so many."""
    gateway.wait_for(lambda: len(gateway.callbacks) >= count)
    return [json.loads(callback.body) for callback in gateway.callbacks]


def code(response: httpx.Response) -> tuple[Any, int]:
    """Kling's code and the HTTP status."""
    return response.json()["code"], response.status_code


def picture(width: int, height: int, kind: str = "PNG") -> str:
    """An image in base64."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, kind)
    return base64.b64encode(file.getvalue()).decode()

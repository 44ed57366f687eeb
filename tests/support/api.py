"""Requests to the JSON API of a receiver, and its error responses."""

from typing import Any

import httpx

from tests.support.receiver import Running


def get(running: Running, path: str, **options: Any) -> httpx.Response:
    """A GET with the role `read`."""
    return httpx.get(f"{running.url}{path}", **{"headers": running.headers("read"), **options})


def put(running: Running, task_id: str, content: bytes) -> httpx.Response:
    """A registration with any bytes as its body."""
    return httpx.put(f"{running.url}/api/tasks/{task_id}", content=content, headers=running.headers())


def error_of(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an error response, which must have the one shape."""
    document = response.json()
    assert document.keys() == {"error"}
    assert document["error"].keys() == {"code", "message", "hint"}
    assert all(isinstance(text, str) for text in document["error"].values())
    return response.status_code, document["error"]["code"]

"""Requests to Kling's own API at a receiver, as programs that were written for Kling send them."""

import time
from typing import Any

import httpx
import jwt

from kling_sandbox.receiver import API_KEY as KEY

ACCESS_KEY, SECRET_KEY = "access-key-of-tests", "secret-key-of-tests-0123456789abcdef"

__all__ = ["ACCESS_KEY", "KEY", "SECRET_KEY", "code", "data", "signed"]


def signed(secret: str = SECRET_KEY, *, algorithm: str = "HS256", **claims: Any) -> str:
    """A JWT as Kling's samples sign it; claims that are None are left out."""
    now = int(time.time())
    content = {"iss": ACCESS_KEY, "exp": now + 1800, "nbf": now - 5, **claims}
    return jwt.encode({name: value for name, value in content.items() if value is not None}, secret, algorithm)


def code(response: httpx.Response) -> tuple[int, int]:
    """HTTP status and Kling's code of an answer, which must have the envelope."""
    document = response.json()
    assert document.keys() in ({"code", "message", "request_id"}, {"code", "message", "request_id", "data"}), document
    assert isinstance(document["message"], str)
    assert document["request_id"]
    return response.status_code, document["code"]


def data(response: httpx.Response) -> Any:
    """The data of a success."""
    assert code(response) == (200, 0), response.text
    return response.json()["data"]

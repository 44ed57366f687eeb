"""The body of a request: a JSON object, and the marks in its texts."""

import json
from typing import Any

from kling_sandbox.api.replies import ApiError
from kling_sandbox.misbehaviour import parse_marks


def parse(content: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises ApiError."""
    try:
        body = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("options") or {}, dict):
        raise ApiError(1200, "The body must be a JSON object")
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def marks(content: bytes) -> frozenset[str]:
    """The switches in the marks of a body. Raises ApiError."""
    try:
        return parse_marks(content.decode())
    except ValueError as error:
        raise ApiError(1201, str(error)) from None

"""Redact request parameters for storage: no image bytes, secrets or callback addresses; and their digest."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from kling_callback.protocol.values import sanitize

MAX_VALUE_CHARS = 4096
"""Characters of a string that the receiver stores."""

MAX_REQUEST_CHARS = 20_000
"""Characters of a whole request that the receiver stores."""

LEFT_OUT = {"note": f"longer than {MAX_REQUEST_CHARS} characters, left out"}
"""What is stored in place of a longer request."""

IMAGE_PREFIXES = ("data:", "/9j/", "iVBORw0KGgo")
"""Prefixes of data URLs and of JPEG and PNG in base64: images of any size."""

SECRET_FIELDS = frozenset(
    {"callback_url", "api_key", "apikey", "access_key", "secret_key", "authorization", "password", "token"}
)
"""Parameters that are never stored: readers of a task must not see their values."""


def redacted(request: Any) -> Any:
    """The request as the receiver stores it: JSON that any database can hold. Idempotent: both sides apply it."""
    redacted_request = _redact(request)
    if len(json.dumps(redacted_request)) > MAX_REQUEST_CHARS:
        return dict(LEFT_OUT)
    return redacted_request


SIGNED_LINK = re.compile(r"(https?://[^\s?#]+/api/tasks/[^/\s?#]+/results/[0-9]+)\?expires=[0-9]+&signature=[\w.~-]+")
"""A link to a result in the receiver's archive: the signature behind `?` differs each time, the file does not."""


def digest(request: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of a create's parameters, image bytes included; equal for bodies that mean the same.

    The order of names does not count; see `canonical` for the rest.
    """
    return hashlib.sha256(json.dumps(canonical(request), sort_keys=True).encode()).hexdigest()


def canonical(request: Mapping[str, Any]) -> dict[str, Any]:
    """A create's parameters in the one form of all bodies that mean the same.

    Empty values are absent, whole numbers are integers, links to results have no signature. The task's id and the
    callback address, which each create has, are left out.
    """
    options = request.get("options")
    request = {name: value for name, value in request.items() if name not in ADDRESSING}
    if isinstance(options, Mapping):
        request["options"] = {name: value for name, value in options.items() if name not in ADDRESSING}
    canonical_request: dict[str, Any] = _canonical(request)
    return canonical_request


def is_empty(value: Any) -> bool:
    """Whether a parameter's value means the same as none, as Kling reads it: None, or empty; 0 and False do not."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


ADDRESSING = frozenset({"external_task_id", "callback_url"})
"""The parameters that do not say what is to be created."""


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        items = {str(name): _canonical(each) for name, each in value.items()}
        return {name: each for name, each in items.items() if not is_empty(each)}
    if isinstance(value, list | tuple):
        return [_canonical(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    link = SIGNED_LINK.fullmatch(value) if isinstance(value, str) and len(value) < MAX_VALUE_CHARS else None
    return link[1] if link else value


def _redact(value: Any) -> Any:
    if isinstance(value, Mapping):
        items = ((sanitize(str(name)), each) for name, each in value.items())
        return {name: _redact(each) for name, each in items if name.lower() not in SECRET_FIELDS}
    if isinstance(value, list | tuple):
        return [_redact(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number, although Python's parser accepts it
    if isinstance(value, str):
        omitted = len(value) > MAX_VALUE_CHARS or value.startswith(IMAGE_PREFIXES)
        return f"({len(value)} characters, left out)" if omitted else sanitize(value, MAX_VALUE_CHARS)
    return value

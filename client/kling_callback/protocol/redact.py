"""Redact request parameters for storage: no image bytes, secrets or callback addresses."""

import json
import math
from collections.abc import Mapping
from typing import Any

from kling_callback.protocol.reports import sanitize

MAX_VALUE_CHARS = 4096
"""Characters of a string that the receiver stores."""

MAX_REQUEST_CHARS = 20_000
"""Characters of a whole request that the receiver stores."""

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
        return {"note": f"longer than {MAX_REQUEST_CHARS} characters, left out"}
    return redacted_request


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

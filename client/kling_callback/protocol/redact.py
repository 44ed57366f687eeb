"""Request parameters without image bytes, secrets and callback addresses, for storage."""

import json
import math
from collections.abc import Mapping
from typing import Any

from kling_callback.protocol.reports import sanitize

MAX_VALUE_CHARS = 4096
"""Characters of a string that the receiver keeps."""

MAX_REQUEST_CHARS = 20_000
"""Characters of a whole request that the receiver keeps."""

IMAGE_PREFIXES = ("data:", "/9j/", "iVBORw0KGgo")
"""How data URLs and the base64 of JPEG and PNG begin: pictures, however small."""

SECRET_FIELDS = frozenset(
    {"callback_url", "api_key", "apikey", "access_key", "secret_key", "authorization", "password", "token"}
)
"""Names whose values nobody who reads a task may learn."""


def redacted(request: Any) -> Any:
    """What the receiver stores as `request`: no picture bytes, callback address or secrets, and fit for any
    database and reader. Both sides make it so; a second time changes nothing.
    """
    fit = _redact(request)
    if len(json.dumps(fit)) > MAX_REQUEST_CHARS:
        return {"note": f"longer than {MAX_REQUEST_CHARS} characters, left out"}
    return fit


def _redact(value: Any) -> Any:
    if isinstance(value, Mapping):
        named = ((sanitize(str(name)), each) for name, each in value.items())
        return {name: _redact(each) for name, each in named if name.lower() not in SECRET_FIELDS}
    if isinstance(value, list | tuple):
        return [_redact(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number, whatever its reader took
    if isinstance(value, str):
        long = len(value) > MAX_VALUE_CHARS or value.startswith(IMAGE_PREFIXES)
        return f"({len(value)} characters, left out)" if long else sanitize(value, MAX_VALUE_CHARS)
    return value

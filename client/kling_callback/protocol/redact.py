"""Request parameters without image bytes, secrets and callback addresses, for storage."""

import json
import math
from collections.abc import Mapping
from typing import Any

from kling_callback.protocol.reports import clean

LONGEST_KEPT = 4096
"""Characters of a string that the receiver keeps."""

LONGEST_REQUEST = 20_000
"""Characters of a whole request that the receiver keeps."""

PICTURES = ("data:", "/9j/", "iVBORw0KGgo")
"""How data URLs and the base64 of JPEG and PNG begin: pictures, however small."""

WITHHELD = frozenset(
    {"callback_url", "api_key", "apikey", "access_key", "secret_key", "authorization", "password", "token"}
)
"""Names whose values nobody who reads a task may learn."""


def kept(request: Any) -> Any:
    """What the receiver stores as `request`: no picture bytes, callback address or secrets, and fit for any
    database and reader. Both sides make it so; a second time changes nothing.
    """
    fit = _fit(request)
    if len(json.dumps(fit)) > LONGEST_REQUEST:
        return {"note": f"longer than {LONGEST_REQUEST} characters, left out"}
    return fit


def _fit(value: Any) -> Any:
    if isinstance(value, Mapping):
        named = ((clean(str(name)), each) for name, each in value.items())
        return {name: _fit(each) for name, each in named if name.lower() not in WITHHELD}
    if isinstance(value, list | tuple):
        return [_fit(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number, whatever its reader took
    if isinstance(value, str):
        long = len(value) > LONGEST_KEPT or value.startswith(PICTURES)
        return f"({len(value)} characters, left out)" if long else clean(value, LONGEST_KEPT)
    return value

"""Values of Kling's JSON, made safe to store: texts, ids, addresses, numbers, times, costs.

Pure functions. No value raises: one that cannot be stored becomes None or "".
"""

import json
import math
import re
from typing import Any

MAX_TEXT_CHARS = 4000
MAX_ID_CHARS = 256
MAX_PRIORITY = 1_000_000
"""Of a task in the receiver's queue, which sends the highest first; the lowest is its negative."""
MAX_URL_CHARS = 8000
IDENTIFIER = re.compile(rf"(?!\.{{1,2}}$)[^\s/\\,?#%\0\ud800-\udfff]{{1,{MAX_ID_CHARS}}}")
"""An id that can be one part of a path, or of a list of ids: a query for `..` would query another address."""
MAX_COST_CHARS = 4000
MAX_DEPTH = 10
"""Nested lists and objects in one value that is stored as JSON."""
MAX_PARTS = 10_000
"""Brackets, braces and commas of a long body: a record has some hundreds, and each costs time to parse."""
MAX_UNCHECKED_BYTES = 16_384
"""Bytes of a body up to which MAX_PARTS is not checked: Kling's own bodies have 1 to 5 KB."""

EARLIEST_MS, LATEST_MS = 946_684_800_000, 7_258_118_400_000
"""Unix ms of the years 2000 and 2200: between them are the plausible times."""


def parse_json(body: bytes) -> Any:
    """Parse a JSON document. None for anything else, and for one that is too complex."""
    if is_too_complex(body):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # also UnicodeDecodeError, and integers of too many digits
        return None


def is_too_complex(body: bytes) -> bool:
    """Whether a JSON document has more parts than any of Kling's: parsing it would block the event loop."""
    return len(body) > MAX_UNCHECKED_BYTES and sum(map(body.count, (b"[", b"{", b","))) > MAX_PARTS


def sanitize(value: Any, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Make text storable in any database: no NUL, no lone surrogate, at most `max_chars` characters; "" for no text."""
    if not isinstance(value, str):
        return ""
    return value[:max_chars].replace("\0", "").encode("utf-8", "replace").decode()


def identifier(value: Any) -> str | None:
    """An id as text; None if it is too long: a truncated id would name another task."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**30:
        value = str(value)
    return value if isinstance(value, str) and IDENTIFIER.fullmatch(value) else None


def address(value: Any) -> str:
    """An address as it is written, without blanks around it; "" for none."""
    return sanitize(value, MAX_URL_CHARS).strip() if isinstance(value, str) and len(value) <= MAX_URL_CHARS else ""


def integer(value: Any) -> int | None:
    """A whole number that fits a database's 64 bits, or None."""
    fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    return value if fits else None


def code(value: Any) -> int | str | None:
    """A code as int where possible: Kling's are numbers; gateways may send them as text, or texts of their own."""
    text = sanitize(value, MAX_ID_CHARS)
    return int(text) if text.isascii() and text.isdecimal() else text or integer(value)


def seconds(value: Any) -> float | None:
    """A length in seconds, of a number or its text; None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 <= number < 1e6 else None


def plausible_time(time: int | None) -> int | None:
    """A time of this and the next centuries, in unix milliseconds; else None."""
    return time if time is not None and EARLIEST_MS <= time < LATEST_MS else None


def cost(value: Any) -> Any:
    """The cost unchanged, if a database's JSON can hold it: no NUL, no NaN, limited length and depth; else None."""
    if value is None or isinstance(value, str):
        return sanitize(value, MAX_ID_CHARS) or None
    return value if value not in ([], {}) and json_chars(value) <= MAX_COST_CHARS else None


def json_chars(value: Any) -> float:
    """Characters of the JSON of a value; infinity if a database's JSON cannot hold it: a NUL, NaN, great depth."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        fits = "\\u0000" not in text and _depth(value) <= MAX_DEPTH
    except (ValueError, RecursionError):  # also UnicodeEncodeError: a lone surrogate
        return math.inf
    return len(text) if fits else math.inf


def _depth(value: Any) -> int:
    """The depth of nested lists and objects. Raises RecursionError."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)

"""Pagination of lists: a page's limit, and the cursor after its last row."""

import base64
import json
from typing import Any

from kling_callback.protocol.ids import is_id

MAX_PAGE_SIZE = 200
"""Rows in one page of a list."""


def parse_limit(text: str, problems: list[str]) -> int:
    """The number of rows in a page. An invalid limit is added to `problems`."""
    if text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= MAX_PAGE_SIZE:
        return int(text)
    problems.append(f"`limit` must be 1 to {MAX_PAGE_SIZE}.")
    return 0


def encode_cursor(key: tuple[int, str]) -> str:
    """Encode the key of a row, a number and a name, as text for a URL."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, problems: list[str]) -> tuple[int, str] | None:
    """The key of a row that a cursor contains. An invalid cursor is added to `problems`."""
    if not cursor:
        return None
    number: Any
    try:
        number, name = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, TypeError, RecursionError):
        number = name = None
    if (
        type(number) is int  # not a bool, which isinstance would accept
        and abs(number) < 1 << 62
        and isinstance(name, str)
        and is_id(name.removeprefix("task:"))
    ):
        return number, name
    problems.append("`cursor` must be the `next` of an earlier response.")
    return None

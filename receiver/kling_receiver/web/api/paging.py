"""Where a list goes on: a page's limit, and the cursor after its last row."""

import base64
import json
from typing import Any

from kling_callback.protocol.ids import is_id

MAX_PAGE_SIZE = 200


def parse_limit(said: str, problems: list[str]) -> int:
    """The rows that a page may have; what is wrong with it is added to `problems`."""
    if said.isascii() and said.isdigit() and len(said) < 9 and 1 <= int(said) <= MAX_PAGE_SIZE:
        return int(said)
    problems.append(f"`limit` is 1 to {MAX_PAGE_SIZE}.")
    return 0


def encode_cursor(place: tuple[int, str]) -> str:
    """The place of a row, a number and a name, as a text for an address."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, problems: list[str]) -> tuple[int, str] | None:
    """The place that a cursor names; what is wrong with it is added to `problems`."""
    if not cursor:
        return None
    place: Any = None
    try:
        place = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        number, name = place
    except (ValueError, TypeError, RecursionError):
        number = name = None
    if (
        type(number) is int  # True is none
        and abs(number) < 1 << 62
        and isinstance(name, str)
        and is_id(name.removeprefix("task:"))
    ):
        return number, name
    problems.append("`cursor` is a `next` of an earlier answer.")
    return None

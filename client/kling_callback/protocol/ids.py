"""Task ids: made before the create, so that a task has an id even if its create is never answered."""

import os
import re
import time
from collections.abc import Callable

from kling_callback.protocol.values import IDENTIFIER

PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@=-]{0,127}")

DESCRIPTION = "Use 1 to 128 of A-Z a-z 0-9 _ . : @ = - and begin with a letter or digit."


def new_id(now: float | None = None, *, random: Callable[[int], bytes] = os.urandom) -> str:
    """Make a ULID at `now` (unix seconds): 26 characters, 48 bits of milliseconds and 80 random bits.

    Ids increase with time: random keys would make the receiver's writer touch another page for each row.
    """
    milliseconds = int((time.time() if now is None else now) * 1000)
    number = milliseconds << 80 | int.from_bytes(random(10))
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    return "".join(alphabet[number >> shift & 31] for shift in range(125, -1, -5))


def is_id(text: str) -> bool:
    """Whether `text` may be a task's id: only characters that addresses and file names allow."""
    return PATTERN.fullmatch(text) is not None


def check_any_id(text: str) -> str:
    """The text, if it may be an id by which a task is found: ours, Kling's or the caller's. Raises ValueError."""
    if not IDENTIFIER.fullmatch(text):
        raise ValueError(f"{text!r} is not a task's id: it must be one part of a path. Use the receiver's id.")
    return text

"""The headers of a file's host that say how long the file is and which version: a host may send any text as these.

Pure functions of headers that are found by name in any case. None raises.
"""

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

STRONG_DATE_SECONDS = 60
"""Seconds for which a file must have been unchanged, for its date to tell its versions apart (RFC 9110, 8.8.2.2)."""

NUMBER = "[0-9]{1,18}"
"""Digits that are read as a number: int() raises for thousands of them."""
CONTENT_LENGTH = re.compile(NUMBER)
CONTENT_RANGE = re.compile(rf"bytes ({NUMBER})-({NUMBER})/({NUMBER}|\*)")
STRONG_ETAG = re.compile(r'"[ !#-~]{0,500}"')
PLAIN_DATE = re.compile(r"[ -~]{1,100}")
"""A validator is sent back in `If-Range`: only printable ASCII of a limited length can be."""


def content_length(headers: Mapping[str, str]) -> int | None:
    """Bytes of the body, if the host names a length."""
    header = headers.get("Content-Length", "")
    return int(header) if CONTENT_LENGTH.fullmatch(header) else None


def content_range(headers: Mapping[str, str]) -> re.Match[str] | None:
    """First byte, last byte, and length of the file (`*`: unknown) of a partial response."""
    return CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))


def strong_validator(headers: Mapping[str, str]) -> str | None:
    """What tells this version of the file from any other, byte for byte; None if its host does not say so."""
    etag, date, changed = (headers.get(name, "") for name in ("ETag", "Date", "Last-Modified"))
    if etag:
        return etag if STRONG_ETAG.fullmatch(etag) else None
    if not PLAIN_DATE.fullmatch(changed):
        return None
    try:
        age = (parsedate_to_datetime(date) - parsedate_to_datetime(changed)).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return None
    return changed if age >= STRONG_DATE_SECONDS else None

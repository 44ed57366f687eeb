"""The HTTP client of this package."""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from urllib.parse import urlsplit

import httpx

from kling_callback.protocol.urls import is_loopback

AGENT = f"kling-callback/{version('kling-callback')}"


def create_client(receiver: str) -> httpx.AsyncClient:
    """A client for Kling and the receiver, without a limit of connections: each waiting task holds one.

    Redirects are not followed. A proxy from the environment is used, except for a receiver on loopback.
    """
    host = urlsplit(receiver).hostname or ""
    direct = {f"all://{f'[{host}]' if ':' in host else host}": None} if is_loopback(host) else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    return httpx.AsyncClient(limits=limits, mounts=direct, headers={"User-Agent": AGENT})


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from a `Retry-After` of either form. `headers`: found by name in any case."""
    value = headers.get("Retry-After", "")
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        at, date = parsedate_to_datetime(value), parsedate_to_datetime(headers.get("Date", value))
        return max((at - date).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None

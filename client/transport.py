"""The one place where this package's HTTP client is made."""

from importlib.metadata import version
from urllib.parse import urlsplit

import httpx

from client.addresses import is_loopback

AGENT = f"kling-callback/{version('kling-callback')}"


def new_http(receiver: str) -> httpx.AsyncClient:
    """A client for Kling and the receiver: no limit on how many wait at a time, no redirects.

    A proxy from the environment is used, but not for a receiver on this machine.
    """
    host = urlsplit(receiver).hostname or ""
    direct = {f"all://{f'[{host}]' if ':' in host else host}": None} if is_loopback(host) else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    return httpx.AsyncClient(limits=limits, mounts=direct, headers={"User-Agent": AGENT})

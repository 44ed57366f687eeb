"""Web addresses that come from settings: what they must look like, and their one spelling.

Pure; every problem is a ValueError whose message says what to write instead.
"""

import ipaddress
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}


def normalize_url(value: str) -> str:
    """An http(s) address without query, fragment or credentials, no slash at its end; else ValueError.

    Two spellings of one address come out the same (letters of the host, a port that goes without saying).
    """
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in PORTS or port == 0 or _unfit(value, parts.netloc):
        raise ValueError("is not an address like https://host/path (no query, no user, no blanks).")
    shown = f"[{host}]" if ":" in host else host
    colon = "" if port in (None, PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{shown}{colon}{parts.path}".rstrip("/")


def normalize_public_url(value: str) -> str:
    """A web address that is `https://`, unless its host is loopback; else ValueError."""
    address = normalize_url(value)
    parts = urlsplit(address)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError("must start with https:// (plain http:// is for loopback hosts only).")
    return address


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _unfit(value: str, netloc: str) -> bool:
    return "@" in netloc or any(sign in value for sign in "?#\\") or not value.isprintable() or " " in value

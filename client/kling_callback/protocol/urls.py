"""Web addresses: recognize them, and validate and normalize those from settings.

Pure functions. A ValueError's message follows the setting's name: it says what the address must be.
"""

import ipaddress
from typing import Any, TypeGuard
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

PORTS = {"http": 80, "https": 443}


def is_web_address(value: Any, *, blanks: bool = False) -> TypeGuard[str]:
    """Whether a value is the text of a web address, in any case. `blanks`: also with blanks in it, as in file names."""
    if not isinstance(value, str):
        return False
    text = value.strip()
    return text[:8].lower().startswith(("https://", "http://")) and (blanks or not any(map(str.isspace, text)))


def normalize_url(value: str) -> str:
    """Normalize an http(s) address: host in small letters, no default port, no slash at the end.

    Raises ValueError for an address with a query, a fragment or credentials, and for any other text.
    """
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in PORTS or port == 0 or _is_unsafe(value, parts.netloc):
        raise ValueError("is not an address like https://host/path (no query, no user, no blanks).")
    bracketed = f"[{host}]" if ":" in host else host
    port_suffix = "" if port in (None, PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{bracketed}{port_suffix}{parts.path}".rstrip("/")


def normalize_public_url(value: str) -> str:
    """Normalize an address that is `https://`, or whose host is loopback. Raises ValueError for any other."""
    address = normalize_url(value)
    parts = urlsplit(address)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError("must start with https:// (plain http:// is for loopback hosts only).")
    return address


def split_url(text: str) -> SplitResult:
    """The parts of an address; empty ones for a text that is none."""
    try:
        return urlsplit(text)
    except ValueError:
        return urlsplit("")


def private_parts(text: str) -> set[str]:
    """The parts of an address that no message shows: its user, password and query, as they stand there and decoded."""
    parts = split_url(text)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    encoded = {parts.username or "", parts.password or "", parts.query, *(each for pair in pairs for each in pair)}
    encoded |= set(parts.query.replace("&", "=").split("="))
    return {form for each in encoded for form in (each, unquote(each)) if form}


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, certainly leads to this machine.

    A name below `localhost` does so in browsers only: many resolvers send it to a name server.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def may_be_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, may lead to this machine: what is outside must not reach it."""
    return is_loopback(host) or host.endswith(".localhost")


NOT_PUBLIC = tuple(
    f".{end}"
    for end in (
        *("localhost", "localdomain", "localdomain4", "localdomain6", "invalid", "test", "example"),
        *("local", "internal", "intranet", "private", "corp", "home", "home.arpa", "lan", "svc"),
    )
)
"""Ends of names that no public machine has."""


def is_public(host: str) -> bool:
    """Whether `host`, a name or an address, may belong to a public machine."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host.strip(".") and not f".{host.lower().rstrip('.')}".endswith(NOT_PUBLIC)


def _is_unsafe(value: str, netloc: str) -> bool:
    return "@" in netloc or any(sign in value for sign in "?#\\") or not value.isprintable() or " " in value

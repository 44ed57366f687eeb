"""A file of an earlier task as an input of a new one."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kling_callback.protocol.relays import CONTENT_PATH
from kling_callback.protocol.urls import PORTS, is_public, split_url

MIN_LIFETIME_SECONDS = 600
"""Seconds for which an address at Kling must still be valid: Kling may start to load it minutes after the create."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """A result file that becomes an input. `kind`: `image`, `video`, ...

    `content`: bytes of an image, else None. `url`: an address at which Kling can load the file, or None.
    """

    kind: str
    content: bytes | None = None
    url: str | None = None

    def image(self) -> bytes:
        """The bytes of the image. Raises ValueError for a file of another kind."""
        if self.content is None:
            raise ValueError(f"is a file of the kind {self.kind}, not an image.")
        return self.content

    def address(self, kind: str) -> str:
        """The address at which Kling can load it. Raises ValueError without one, or for a file of another kind."""
        if self.kind != kind:
            raise ValueError(f"is a file of the kind {self.kind}, not of {kind}.")
        if self.url is None:
            raise ValueError(
                "cannot be loaded by Kling: its address at Kling has expired, and the receiver's link is not public. "
                "Put the file at a public URL, and give that."
            )
        return self.url


def reachable_url(file: Mapping[str, Any], now: float | None = None) -> str | None:
    """The address at which Kling can load a result file; None if there is none.

    Kling's own address while it is known to be valid, else the receiver's link, else an address of unknown validity.
    `file`: its JSON in the task. `now`: unix seconds, default: the time.
    """
    href, source = (_web_address(file.get(name)) for name in ("href", "source_url"))
    if CONTENT_PATH.search(split_url(source).path):
        source = ""  # only the holder of the key is served there
    if (expires_at := _unix_seconds(file.get("expires_at"))) is not None:
        source = "" if expires_at < (now or time.time()) + MIN_LIFETIME_SECONDS else source
        if source:
            return source
    return href if is_public(split_url(href).hostname or "") else source or None


def _web_address(url: str | None) -> str:
    """The address if Kling can load it by its scheme, else ""."""
    return url if url and split_url(url).scheme in PORTS else ""


def _unix_seconds(at: str | None) -> float | None:
    """The time in unix seconds; None for none, and for a text that is none."""
    try:
        return datetime.fromisoformat(at).timestamp() if at else None
    except (ValueError, OverflowError):
        return None

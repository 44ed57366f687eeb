"""A file of an earlier task as an input of a new one."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from kling_callback.protocol.urls import is_loopback

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
                "cannot be loaded by Kling: its address at Kling has expired, and the receiver's link is on loopback. "
                "Put the file at a public URL, and give that."
            )
        return self.url


def reachable_url(file: Mapping[str, Any], now: float | None = None) -> str | None:
    """The address at which Kling can load a result file: the receiver's link, or Kling's own while it is valid.

    `file`: its JSON in the task. `now`: unix seconds, default: the time. None if neither can be reached.
    """
    href, source = str(file.get("href") or ""), str(file.get("source_url") or "")
    if href and not is_loopback(urlsplit(href).hostname or ""):
        return href
    expires_at = file.get("expires_at")
    if source and isinstance(expires_at, str):
        valid_until = datetime.fromisoformat(expires_at).timestamp()
        source = source if valid_until > (now or time.time()) + MIN_LIFETIME_SECONDS else ""
    return source or None

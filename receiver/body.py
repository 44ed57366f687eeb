"""Requests' bodies, read under caps: on what is kept of one and of all, on what is read, and on time."""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Self

from starlette.requests import ClientDisconnect, Request

from receiver.database import Unavailable

KEPT = 1_000_000
"""Bytes of a body that are kept."""
DROPPED = 16_000_000
"""Bytes after those that are read and dropped, for the digest."""
READ_SECONDS = 30
FREE = 16_384
"""Bytes of a body that count for nothing: Kling's own have 1 to 5 KB, and so are never refused."""
MOST_HELD = 64_000_000
"""Bytes beyond those, of all bodies that are read or held at once."""
MOST_UNPROVEN = 16
"""Bodies that are read at once from senders who have yet to prove who they are."""


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body: its first KEPT bytes, the size and digest of all that was read."""

    kept: bytes
    size: int
    digest: str
    trouble: str | None = None


@dataclass(slots=True)
class Bodies:
    """What one process has of bodies at once. `most`: bytes that may be held."""

    most: int = MOST_HELD
    held: int = 0
    unproven: int = 0


class Share:
    """One body's part of them; given back when the block ends."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self._size = bodies, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bodies.held -= self._size

    def grow(self, size: int) -> None:
        """The body has so many bytes by now. Raises Unavailable when all together have too many."""
        more = size - FREE - self._size
        if more > 0 and self._bodies.held + more > self._bodies.most:
            raise Unavailable("Too many large requests at once.")
        if more > 0:
            self._bodies.held += more
            self._size += more


class UnprovenShare(Share):
    """The same for a sender who has yet to prove who it is: of those, few are heard at once."""

    def __enter__(self) -> Self:
        if self._bodies.unproven >= MOST_UNPROVEN:
            raise Unavailable("Too many requests without a token at once.")
        self._bodies.unproven += 1
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._bodies.unproven -= 1


async def read_body(
    request: Request, share: Share, *, dropped: int = DROPPED, seconds: float = READ_SECONDS
) -> Body:
    """Read a body, at most `seconds` long; keep KEPT bytes, and read `dropped` more for size and digest.

    Raises Unavailable when there is no room for it, and nothing for what the sender does.
    """
    kept, size, digest, trouble = bytearray(), 0, hashlib.sha256(), None
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                digest.update(chunk)
                size += len(chunk)
                if len(kept) < KEPT:
                    kept += chunk[: KEPT - len(kept)]
                    share.grow(len(kept))
                if size > KEPT + dropped:
                    break
    except (ClientDisconnect, TimeoutError):
        trouble = "cut off"
    return Body(bytes(kept), size, digest.hexdigest(), trouble)

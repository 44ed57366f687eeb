"""Requests' bodies, read under caps: on what is kept of one and of all, on what is read, and on time."""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Self

from starlette.requests import ClientDisconnect, Request

from kling_receiver.store.errors import Unavailable

KEPT = 1_000_000
"""Bytes of a body that are kept."""
DROPPED = 16_000_000
"""Bytes after those that are read and dropped, for the digest."""
READ_SECONDS = 30
LARGE = 16_384
"""Bytes beyond which a body is large. Kling's own have 1 to 5 KB, and so wait for nobody."""
MOST_LARGE = 64
"""Large bodies that are read or held at once: 64 MB at most."""
ROOM_SECONDS = 10
"""For which another one waits for room."""
MOST_UNPROVEN = 16
"""Large bodies that are read at once from senders who have yet to prove who they are."""


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body: its first KEPT bytes, the size and digest of all that was read."""

    kept: bytes
    size: int
    digest: str
    trouble: str | None = None


class Bodies:
    """What one process has of bodies at once. `large`: how many of those; `seconds`: for which one waits."""

    def __init__(self, large: int = MOST_LARGE, seconds: float = ROOM_SECONDS) -> None:
        self.large, self.seconds = asyncio.Semaphore(large), seconds
        self.unproven = 0


class Share:
    """One body's part of them; given back when the block ends."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self._is_large = bodies, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_large:
            self._bodies.large.release()

    async def enlarge(self) -> None:
        """Wait for the room of a large body. Raises Unavailable when none comes free."""
        if self._is_large:
            return
        try:
            async with asyncio.timeout(self._bodies.seconds):
                await self._bodies.large.acquire()
        except TimeoutError:
            raise Unavailable("Too many large requests at once.") from None
        self._is_large = True


class UnprovenShare(Share):
    """The same for a sender who has yet to prove who it is: of those, few large bodies are read at once."""

    async def enlarge(self) -> None:
        """Take one of those few places. Raises Unavailable when none is free."""
        if self._is_large:
            return
        if self._bodies.unproven >= MOST_UNPROVEN:
            raise Unavailable("Too many large requests without a token at once.")
        self._bodies.unproven += 1
        self._is_large = True

    def __exit__(self, *exception: object) -> None:
        self._bodies.unproven -= self._is_large


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
                if size > LARGE:
                    await share.enlarge()
                if len(kept) < KEPT:
                    kept += chunk[: KEPT - len(kept)]
                if size > KEPT + dropped:
                    break
    except (ClientDisconnect, TimeoutError):
        trouble = "cut off"
    return Body(bytes(kept), size, digest.hexdigest(), trouble)

"""Requests' bodies, read under caps: on what is kept of one and of all, on what is read, and on time."""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Self

from starlette.requests import ClientDisconnect, Request

from kling_receiver.store.errors import Unavailable

MAX_KEPT_BYTES = 1_000_000
"""Bytes of a body that are kept."""
MAX_DROPPED_BYTES = 16_000_000
"""Bytes after those that are read and dropped, for the digest."""
READ_SECONDS = 30
LARGE_BYTES = 16_384
"""Bytes beyond which a body is large. Kling's own have 1 to 5 KB, and so wait for nobody."""
MAX_LARGE = 64
"""Large bodies that are read or held at once: 64 MB at most."""
RESERVE_TIMEOUT_SECONDS = 10
"""For which another one waits for room."""
MAX_UNAUTHENTICATED = 16
"""Large bodies that are read at once from senders who have yet to prove who they are."""


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body: its first KEPT bytes, the size and digest of all that was read."""

    content: bytes
    size: int
    sha256: str
    problem: str | None = None


class BodyLimiter:
    """What one process has of bodies at once. `large`: how many of those; `seconds`: for which one waits."""

    def __init__(self, large: int = MAX_LARGE, timeout: float = RESERVE_TIMEOUT_SECONDS) -> None:
        self.large, self.timeout = asyncio.Semaphore(large), timeout
        self.unauthenticated = 0


class Reservation:
    """One body's part of them; given back when the block ends."""

    def __init__(self, limiter: BodyLimiter) -> None:
        self._limiter, self._is_large = limiter, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_large:
            self._limiter.large.release()

    async def reserve_large(self) -> None:
        """Wait for the room of a large body. Raises Unavailable when none comes free."""
        if self._is_large:
            return
        try:
            async with asyncio.timeout(self._limiter.timeout):
                await self._limiter.large.acquire()
        except TimeoutError:
            raise Unavailable("Too many large requests at once.") from None
        self._is_large = True


class UnauthenticatedReservation(Reservation):
    """The same for a sender who has yet to prove who it is: of those, few large bodies are read at once."""

    async def reserve_large(self) -> None:
        """Take one of those few places. Raises Unavailable when none is free."""
        if self._is_large:
            return
        if self._limiter.unauthenticated >= MAX_UNAUTHENTICATED:
            raise Unavailable("Too many large requests without a token at once.")
        self._limiter.unauthenticated += 1
        self._is_large = True

    def __exit__(self, *exception: object) -> None:
        self._limiter.unauthenticated -= self._is_large


async def read_body(
    request: Request,
    reservation: Reservation,
    *,
    max_dropped: int = MAX_DROPPED_BYTES,
    seconds: float = READ_SECONDS,
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
                if size > LARGE_BYTES:
                    await reservation.reserve_large()
                if len(kept) < MAX_KEPT_BYTES:
                    kept += chunk[: MAX_KEPT_BYTES - len(kept)]
                if size > MAX_KEPT_BYTES + max_dropped:
                    break
    except (ClientDisconnect, TimeoutError):
        trouble = "cut off"
    return Body(bytes(kept), size, digest.hexdigest(), trouble)

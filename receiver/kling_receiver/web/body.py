"""Read request bodies under limits: bytes kept, bytes read, time, and large bodies in memory at once."""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Self

from starlette.requests import ClientDisconnect, Request

from kling_receiver.store.errors import Unavailable

MAX_KEPT_BYTES = 1_000_000
"""Bytes of a body that are kept in memory and stored."""
MAX_DROPPED_BYTES = 16_000_000
"""Bytes read after those only for the size and the digest, and dropped."""
READ_SECONDS = 30
"""Seconds in which a whole body must arrive."""
LARGE_BYTES = 16_384
"""Bytes beyond which a body is large. Kling's callbacks have 1 to 5 KB, so they never wait for a reservation."""
MAX_LARGE = 64
"""Large bodies that are read or held at once: 64 MB of memory at most."""
RESERVE_TIMEOUT_SECONDS = 10
"""Seconds that another large body waits for a place."""
MAX_UNAUTHENTICATED = 16
"""Large bodies read at once from senders that are not authenticated yet."""


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body: its first MAX_KEPT_BYTES, and the size and digest of all that was read.

    `problem`: why it is incomplete.
    """

    content: bytes
    size: int
    sha256: str
    problem: str | None = None


class BodyLimiter:
    """Bounds the large bodies held in memory. `large`: how many at once; `timeout`: seconds to wait for a place."""

    def __init__(self, large: int = MAX_LARGE, timeout: float = RESERVE_TIMEOUT_SECONDS) -> None:
        self.large, self.timeout = asyncio.Semaphore(large), timeout
        self.unauthenticated = 0


class Reservation:
    """A body's reservation in the limiter, released when the block ends."""

    def __init__(self, limiter: BodyLimiter) -> None:
        self._limiter, self._is_large = limiter, False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_large:
            self._limiter.large.release()

    async def reserve_large(self) -> None:
        """Wait for a place for a large body. Raises Unavailable after the limiter's timeout."""
        if self._is_large:
            return
        try:
            async with asyncio.timeout(self._limiter.timeout):
                await self._limiter.large.acquire()
        except TimeoutError:
            raise Unavailable("Too many large requests at once.") from None
        self._is_large = True


class UnauthenticatedReservation(Reservation):
    """A reservation for a sender that is not authenticated yet: few of these exist at once, and none waits."""

    async def reserve_large(self) -> None:
        """Take a place at once. Raises Unavailable when none is free."""
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
    max_kept: int = MAX_KEPT_BYTES,
    max_dropped: int = MAX_DROPPED_BYTES,
    seconds: float = READ_SECONDS,
) -> Body:
    """Read a body for at most `seconds`: keep `max_kept` bytes, and read `max_dropped` more for size and digest.

    Raises Unavailable when a large body gets no place, and ApiError when the sender's token was revoked meanwhile. A
    sender that stops or disconnects raises nothing: the body then has a `problem`.
    """
    kept, size, digest, problem = bytearray(), 0, hashlib.sha256(), None
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                digest.update(chunk)
                size += len(chunk)
                if size > LARGE_BYTES:
                    await reservation.reserve_large()
                if len(kept) < max_kept:
                    kept += chunk[: max_kept - len(kept)]
                if size > max_kept + max_dropped:
                    break
    except (ClientDisconnect, TimeoutError):
        problem = "cut off"
    if recheck := getattr(request.state, "recheck", None):  # set with the check of a bearer token
        recheck()
    return Body(bytes(kept), size, digest.hexdigest(), problem)

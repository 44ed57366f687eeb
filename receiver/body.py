"""A request's body, read under a cap on what is kept, on what is read, and on time."""

import asyncio
import hashlib
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

KEPT = 1_000_000
"""Bytes of a body that are kept."""
DROPPED = 16_000_000
"""Bytes after those that are read and dropped, for the digest."""
READ_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body: its first KEPT bytes, the size and digest of all that was read."""

    kept: bytes
    size: int
    digest: str
    trouble: str | None = None


async def read_body(request: Request, *, seconds: float = READ_SECONDS) -> Body:
    """Read a body, at most `seconds` long, and keep KEPT bytes of it. Never raises for what the sender does."""
    kept, size, digest, trouble = bytearray(), 0, hashlib.sha256(), None
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                digest.update(chunk)
                size += len(chunk)
                if len(kept) < KEPT:
                    kept += chunk[: KEPT - len(kept)]
                if size > KEPT + DROPPED:
                    break
    except (ClientDisconnect, TimeoutError):
        trouble = "cut off"
    return Body(bytes(kept), size, digest.hexdigest(), trouble)

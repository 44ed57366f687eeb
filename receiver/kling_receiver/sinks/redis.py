"""Deliver events to a Redis stream by XADD: `redis://host:6379/stream` (`?db=1` for another database)."""

import json
from typing import Any
from urllib.parse import parse_qs, unquote, urlunsplit

from redis.asyncio import Redis
from redis.exceptions import RedisError

from kling_receiver.sinks import Delivered, Message, NotDelivered, describe_error, parse_address, to_cloudevent

CONNECT_SECONDS = 5
"""Seconds for a connection; shorter than a hook's time limit, so that the reason is on record."""


class RedisSink:
    """One stream. Each entry has the fields `id` and `type` of the CloudEvent, and the CloudEvent as `event` (JSON)."""

    def __init__(self, address: str) -> None:
        """Open a sink. Raises ValueError for an address without a host or a stream."""
        parts = parse_address(address)
        self._stream = unquote(parts.path.removeprefix("/")) if parts else ""
        db = parse_qs(parts.query).get("db", ["0"])[0] if parts else ""
        if not parts or not self._stream or not (db.isascii() and db.isdecimal()):
            raise ValueError("must be redis://host:port/stream, with ?db=NUMBER for another database.")
        self._redis = Redis.from_url(
            urlunsplit((parts.scheme, parts.netloc, f"/{db}", "", "")),
            socket_connect_timeout=CONNECT_SECONDS,
            decode_responses=True,
        )

    async def send(self, message: Message) -> Delivered:
        """Add one entry."""
        event = to_cloudevent(message)
        entry: Any = {"id": event["id"], "type": event["type"], "event": json.dumps(event)}
        try:
            entry_id = await self._redis.xadd(self._stream, entry)
        except (RedisError, OSError) as error:
            raise NotDelivered(describe_error(error)) from error
        return Delivered(response=f"entry {entry_id!s}")

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

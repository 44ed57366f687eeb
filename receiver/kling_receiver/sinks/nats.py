"""Deliver events to a NATS JetStream: `nats://host:4222/subject`. The stream drops repeats by `Nats-Msg-Id`."""

import asyncio
import json
from urllib.parse import unquote, urlunsplit

from nats.aio.client import Client
from nats.errors import Error

from kling_receiver.sinks import Delivered, Message, NotDelivered, describe_error, parse_address, to_cloudevent

CONNECT_SECONDS = 5
"""Seconds for a connection; shorter than a hook's time limit, so that the reason is on record."""
ACK_SECONDS = 5.0
"""Seconds for the acknowledgement of a publication; shorter for the same reason."""


class NatsSink:
    """One subject of one server. A stream must subscribe to it, or publications are not acknowledged and fail."""

    def __init__(self, address: str, *, ack_seconds: float = ACK_SECONDS) -> None:
        """Open a sink. Raises ValueError for an address without a host or a valid subject."""
        parts = parse_address(address)
        self._subject = unquote(parts.path.removeprefix("/")) if parts else ""
        if not parts or not self._subject or set(self._subject) & set(" *>\t\r\n"):
            raise ValueError("must be nats://host:port/subject, with a subject without spaces, * and >.")
        self._server = urlunsplit((parts.scheme, parts.netloc, "", "", ""))
        self._ack_seconds = ack_seconds
        self._client: Client | None = None
        self._connecting = asyncio.Lock()

    async def send(self, message: Message) -> Delivered:
        """Publish one event, and wait for the stream's acknowledgement."""
        event = to_cloudevent(message)
        headers = {"Nats-Msg-Id": event["id"], "Content-Type": "application/cloudevents+json"}
        try:
            client = await self._connection()
            stream = client.jetstream(timeout=self._ack_seconds)
            ack = await stream.publish(self._subject, json.dumps(event).encode(), headers=headers)
        except (Error, OSError) as error:
            raise NotDelivered(describe_error(error)) from error
        repeat = "; a repeat, which the stream dropped" if ack.duplicate else ""
        return Delivered(response=f"stream {ack.stream}, sequence {ack.seq}{repeat}")

    async def _connection(self) -> Client:
        async with self._connecting:
            if self._client is None or not self._client.is_connected:
                await self.close()
                self._client = await _connect(self._server)
        return self._client

    async def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client:
            await client.close()


async def _connect(server: str) -> Client:
    """Connect once: the hook's own schedule retries."""
    client = Client()
    try:
        await client.connect(
            server,
            allow_reconnect=False,
            max_reconnect_attempts=1,  # also limits the first connect, and 0 means no limit
            reconnect_time_wait=0,
            connect_timeout=CONNECT_SECONDS,
            error_cb=_ignore,
        )
    except BaseException:
        await client.close()
        raise
    return client


async def _ignore(error: Exception) -> None:
    """Do nothing: `send` raises the error."""

"""An event into a JetStream: `nats://host:4222/subject`. The stream drops what it has by `Nats-Msg-Id`."""

import asyncio
import json
from urllib.parse import unquote, urlunsplit

from nats.aio.client import Client
from nats.errors import Error

from kling_receiver.sinks import Delivered, Message, NotDelivered, describe_error, parse_address, to_cloudevent

CONNECT_SECONDS = 5


class NatsSink:
    """One subject of one server, which a stream must listen to: else nobody says that the event was taken."""

    def __init__(self, address: str) -> None:
        """Raises ValueError."""
        parts = parse_address(address)
        self._subject = unquote(parts.path.removeprefix("/")) if parts else ""
        if not parts or not self._subject or set(self._subject) & set(" *>\t\r\n"):
            raise ValueError("must be nats://host:port/subject, the subject without blanks, * and >.")
        self._server = urlunsplit((parts.scheme, parts.netloc, "", "", ""))
        self._client: Client | None = None
        self._connecting = asyncio.Lock()

    async def send(self, message: Message) -> Delivered:
        """One publication, taken once the stream says so."""
        event = to_cloudevent(message)
        headers = {"Nats-Msg-Id": event["id"], "Content-Type": "application/cloudevents+json"}
        try:
            client = await self._connected()
            stream = client.jetstream(timeout=CONNECT_SECONDS)
            answer = await stream.publish(self._subject, json.dumps(event).encode(), headers=headers)
        except (Error, OSError) as error:
            raise NotDelivered(describe_error(error)) from error
        known = "; the stream had it already" if answer.duplicate else ""
        return Delivered(response=f"stream {answer.stream}, sequence {answer.seq}{known}")

    async def _connected(self) -> Client:
        async with self._connecting:
            if self._client is None or not self._client.is_connected:
                await self.close()
                self._client = await _connect(self._server)
        return self._client

    async def close(self) -> None:
        """End the connection."""
        client, self._client = self._client, None
        if client:
            await client.close()


async def _connect(server: str) -> Client:
    """A connection; what fails is tried again by the hook's own schedule."""
    client = Client()
    try:
        await client.connect(
            server,
            allow_reconnect=False,
            max_reconnect_attempts=1,  # which counts when there was no connection yet, and 0 is without end
            reconnect_time_wait=0,
            connect_timeout=CONNECT_SECONDS,
            error_cb=_quiet,
        )
    except BaseException:
        await client.close()
        raise
    return client


async def _quiet(error: Exception) -> None:
    """Whoever sends is told."""

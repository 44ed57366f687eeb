"""Deliver events by HTTP POST, signed by Standard Webhooks. A redirect is a failure; it is not followed."""

import asyncio
import time
from collections.abc import Callable, Sequence

from kling_callback.api.http import retry_after_seconds
from kling_callback.protocol.webhooks import signed_headers
from kling_receiver.net.client import GuardedClient, RequestFailed, Response
from kling_receiver.net.guard import Allowlist, Refused, check_url
from kling_receiver.sinks import MAX_RESPONSE_BYTES, Delivered, Message, NotDelivered

GONE = 410
RESPONSE_SECONDS = 2.0
"""Seconds to read the first bytes of a response's body: the status alone decides, the body is for people."""


class HttpSink:
    """One web address. `secrets`: newest first; each of them signs, so that one can be rotated.

    `timeout`: seconds for which the hook may send nothing. `response_seconds`: for the body of its response.
    """

    def __init__(
        self,
        address: str,
        secrets: Callable[[], Sequence[str]],
        client: GuardedClient,
        *,
        timeout: Callable[[], float],
        clock: Callable[[], float] = time.time,
        response_seconds: float = RESPONSE_SECONDS,
    ) -> None:
        self._address, self._secrets, self._client = address, secrets, client
        self._timeout, self._clock, self._response_seconds = timeout, clock, response_seconds

    async def send(self, message: Message) -> Delivered:
        """Send one POST. Any status but 2xx raises NotDelivered."""
        headers = signed_headers(self._secrets(), message.id, int(self._clock()), message.body)
        try:
            response = await self._client.send(
                "POST", self._address, content=message.body, headers=headers, read_timeout=self._timeout()
            )
        except Refused as error:
            raise NotDelivered(f"refused: {error}", final=True) from error
        except RequestFailed as error:
            raise NotDelivered(str(error)[:300]) from error
        try:
            body = await self._read_start(response)
        finally:
            await response.close()
        status = response.status
        if 200 <= status < 300:
            return Delivered(status, body)
        raise NotDelivered(
            f"the hook answered {status}" + (", and redirects are not followed" if response.is_redirect else ""),
            status=status,
            response=body,
            retry_after=retry_after_seconds(response.headers),
            gone=status == GONE,
        )

    async def _read_start(self, response: Response) -> str:
        """Read the first bytes of the body, as text. A body that is cut or slow is no failure."""
        start = bytearray()
        try:
            async with asyncio.timeout(self._response_seconds):
                async for chunk in response.iter_bytes():
                    start += chunk
                    if len(start) >= MAX_RESPONSE_BYTES:
                        break
        except (RequestFailed, TimeoutError):
            pass
        return bytes(start[:MAX_RESPONSE_BYTES]).decode("utf-8", "replace")

    async def close(self) -> None:
        """Do nothing: all hooks share the connections of the client."""


def check_web_address(address: str, allowed: Allowlist) -> None:
    """Check a hook's address. Raises ValueError for one that must not be reached, or that no database stores."""
    if "\0" in address:
        raise ValueError("not a valid URL (it contains a NUL character).")
    try:
        check_url(address, allowed)
    except Refused as error:
        raise ValueError(f"{error}.") from None

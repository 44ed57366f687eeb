"""An event as a POST, signed by Standard Webhooks. Redirects are not followed: one is a failure."""

import asyncio
import os
import time
from collections.abc import Callable, Sequence

import httpx

from kling_callback.http import retry_after_seconds
from kling_callback.protocol.webhooks import signed_headers
from kling_receiver.net.client import GuardedClient
from kling_receiver.net.guard import Allowlist, Refused, check_url
from kling_receiver.sinks import MAX_RESPONSE_BYTES, Delivered, Message, NotDelivered, describe_error

GONE = 410
RESPONSE_SECONDS = 2.0
"""How long the rest of an answer is waited for: its status has said all that counts."""


class HttpSink:
    """One web address. `secrets`: newest first; each signs, so that one may be rotated out in peace.

    `timeout`: seconds for which it may be silent.
    """

    def __init__(
        self,
        address: str,
        secrets: Callable[[], Sequence[str]],
        client: GuardedClient,
        *,
        timeout: Callable[[], float],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._address, self._secrets, self._client = address, secrets, client
        self._timeout, self._clock = timeout, clock

    async def send(self, message: Message) -> Delivered:
        """One POST."""
        headers = signed_headers(self._secrets(), message.id, int(self._clock()), message.body)
        try:
            response = await self._client.send(
                "POST", self._address, content=message.body, headers=headers, read_timeout=self._timeout()
            )
        except Refused as error:
            raise NotDelivered(f"refused: {error}", final=True) from error
        except (httpx.HTTPError, OSError) as error:
            raise NotDelivered(_describe(error)) from error
        try:
            answer = await _response_head(response)
        finally:
            await response.aclose()
        status = response.status_code
        if response.is_success:
            return Delivered(status, answer)
        after = retry_after_seconds(response)
        said = f"it answered {status}" + (", and redirects are not followed" if response.is_redirect else "")
        raise NotDelivered(said, status=status, response=answer, retry_after=after, gone=status == GONE)

    async def close(self) -> None:
        """The connections are all hooks' own."""


def check_web_address(address: str, allowed: Allowlist) -> None:
    """Raises ValueError for an address that is not to be reached."""
    try:
        check_url(address, allowed)
    except Refused as error:
        raise ValueError(f"{error}.") from None


async def _response_head(response: httpx.Response) -> str:
    """The first bytes of an answer; the status says all that counts, so that a cut is no failure."""
    read = bytearray()
    try:
        async with asyncio.timeout(RESPONSE_SECONDS):
            assert isinstance(response.stream, httpx.AsyncByteStream)
            async for chunk in response.stream:
                read += chunk
                if len(read) >= MAX_RESPONSE_BYTES:
                    break
    except (httpx.HTTPError, OSError, TimeoutError):
        pass
    return bytes(read[:MAX_RESPONSE_BYTES]).decode("utf-8", "replace")


def _describe(error: BaseException) -> str:
    """What is wrong, in the system's own words where it has some."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            words = os.strerror(cause.errno) if cause.errno > 0 else cause.strerror
            return f"it cannot be reached: {words}"[:300]
        cause = cause.__cause__ or cause.__context__
    return describe_error(error)

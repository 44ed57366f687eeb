"""The HTTP client for addresses that others chose: it connects to public addresses only.

Every address that a name resolves to is checked, and the checked address is the one connected to. Nothing is
sent to a private network, to this machine, or through a proxy, unless the operator allows it. A proxy resolves the
names itself: then only the names are checked here, and what they lead to is up to the proxy.
"""

import asyncio
import functools
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver
from yarl import URL

from kling_callback.environment import tls_context
from kling_receiver import __version__
from kling_receiver.net.guard import Allowlist, Refused, check_url, split_url
from kling_receiver.net.resolver import GuardedResolver, ThreadedResolver

AGENT = {"User-Agent": f"kling-callback/{__version__}"}
DEFAULT_HEADERS = {**AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
NO_HEADERS: Mapping[str, str] = {}

CONNECT_SECONDS = 15
"""Seconds for one connection to be made."""
READ_SECONDS = 60
"""Seconds without a byte from the host; also for a place among the connections of the client."""
MAX_CONNECTIONS = 64
CHUNK_BYTES = 1 << 14
"""Bytes of a body that are handed on at once, at most."""


class RequestFailed(Exception):
    """The request or its response failed on the way; a later attempt may succeed. The message says why."""


PROXY_AUTHENTICATION_REQUIRED = 407
PROXY_ANSWERED = "the proxy of KLING_EGRESS_PROXY answered"
CUT = "the host closed the connection before the response was complete"
FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ConnectionTimeoutError, "the host cannot be reached: Connection timed out"),
    (TimeoutError, "the host sent nothing for {:g} s"),
    (aiohttp.ServerDisconnectedError, CUT),
    (aiohttp.ClientPayloadError, CUT),
    (aiohttp.ClientResponseError, "the response is not valid HTTP"),
)
"""The message of a `RequestFailed`, by the first class that the error is an instance of."""


def request_failed(error: Exception, read_timeout: float) -> RequestFailed:
    """The error as our own, with the system's text (Connection refused) where it has one."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return RequestFailed(f"{PROXY_ANSWERED} {error.status}")
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return RequestFailed(f"the proxy of KLING_EGRESS_PROXY cannot be reached: {_system_text(error.os_error)}")
    for kind, message in FAILURES:
        if isinstance(error, kind):
            return RequestFailed(message.format(read_timeout))
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and (reason := _system_text(cause)):
        return RequestFailed(f"the host cannot be reached: {reason}")
    return RequestFailed(f"{type(error).__name__}: {error}".rstrip(": "))


def _system_text(error: OSError) -> str | None:
    if isinstance(error, ssl.SSLError):  # its number is OpenSSL's, not the system's
        return getattr(error, "verify_message", None) or getattr(error, "reason", None) or error.strerror
    return os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror


class Response:
    """A response whose body is read in chunks, as it was sent; the caller closes it."""

    def __init__(self, response: aiohttp.ClientResponse, read_timeout: float) -> None:
        self._response, self._read_timeout = response, read_timeout
        self.status = response.status

    @functools.cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers, found by name in any case; the values of a repeated one are joined by a comma."""
        return httpx.Headers(list(self._response.raw_headers))

    @property
    def is_redirect(self) -> bool:
        """Whether the status is 3xx."""
        return 300 <= self.status < 400

    @property
    def location(self) -> bytes | None:
        """Where a redirect leads, as its host wrote it."""
        if self.status not in (301, 302, 303, 307, 308):
            return None
        return next((value for name, value in self._response.raw_headers if name.lower() == b"location"), None)

    async def read(self) -> bytes:
        """The next piece of the body, not decompressed; b"" at its end. Raises RequestFailed.

        May be cancelled: the next call continues where this one was.
        """
        try:
            # aiohttp's own limit does not hold once a malformed chunk has ended its parser.
            async with asyncio.timeout(self._read_timeout):
                return await self._response.content.read(CHUNK_BYTES)
        except (aiohttp.ClientError, OSError) as error:
            raise request_failed(error, self._read_timeout) from error

    async def iter_bytes(self) -> AsyncIterator[bytes]:
        """The body, not decompressed. Raises RequestFailed."""
        while chunk := await self.read():
            yield chunk

    async def close(self) -> None:
        """Give the connection back; one whose body was not read to its end is closed."""
        self._response.release()
        with suppress(aiohttp.ClientError, OSError):  # of the request's body, which no longer matters
            await self._response.wait_for_close()


class GuardedClient:
    """An HTTP client that connects only to public addresses and to those in `allowed`. The caller checks redirects.

    Public addresses are reached through `allowed.proxy`, if there is one. `connections`: how many at once.
    """

    def __init__(
        self,
        allowed: Allowlist,
        *,
        resolver: Callable[[], AbstractResolver] = ThreadedResolver,
        connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.allowed, self._connections = allowed, connections
        self._lookups = resolver()
        self._resolver = GuardedResolver(allowed, self._lookups)
        self._ssl = tls_context()  # here: loading the certificates blocks
        self._opened: dict[bool, aiohttp.ClientSession] = {}

    def _session(self, *, by_proxy: bool) -> aiohttp.ClientSession:
        if by_proxy not in self._opened:  # it belongs to the event loop in which it is first used
            connector = aiohttp.TCPConnector(
                resolver=self._lookups if by_proxy else self._resolver,  # the proxy itself is usually private
                use_dns_cache=False,
                limit=self._connections,
                ssl=self._ssl,
            )
            self._opened[by_proxy] = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False
            )
        return self._opened[by_proxy]

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        content: bytes | None = None,
        read_timeout: float = READ_SECONDS,
        redirected_by: Sequence[str] = (),
    ) -> Response:
        """Send one request to a checked address; the caller reads and closes. Raises Refused, RequestFailed.

        `read_timeout`: seconds for which the host may send nothing. `redirected_by`: the addresses whose redirects
        led here, for a client that trusts some hosts more than others.
        No compression is requested: the size of a compressed body is known only after it was read.
        """
        scheme, authority, target = split_url(check_url(url, self.allowed))
        try:
            address = URL.build(scheme=scheme, authority=authority, path=target, encoded=True)  # byte for byte
            by_proxy = self.allowed.needs_proxy(address.host or "", address.port or 0)
            response = await self._session(by_proxy=by_proxy).request(
                method,
                address,
                proxy=self.allowed.proxy if by_proxy else None,
                headers={**DEFAULT_HEADERS, **headers},
                data=content or None,
                allow_redirects=False,
                timeout=_timeout(read_timeout),
            )
        except aiohttp.InvalidURL as error:
            raise Refused(f"not a valid URL ({error})") from error
        except (aiohttp.ClientError, OSError) as error:
            raise request_failed(error, read_timeout) from error
        except ValueError as error:  # no resolver and no socket takes it
            raise Refused(f"not a valid URL ({error})") from error
        if by_proxy and response.status == PROXY_AUTHENTICATION_REQUIRED:
            response.close()
            raise RequestFailed(f"{PROXY_ANSWERED} {response.status}")
        return Response(response, read_timeout)

    async def close(self) -> None:
        """Close every connection."""
        for session in self._opened.values():
            await session.close()
        await self._resolver.close()


@functools.lru_cache(64)
def _timeout(read_timeout: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(connect=READ_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=read_timeout)

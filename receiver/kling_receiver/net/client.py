"""The one HTTP client for addresses that we did not choose: it connects to public addresses only.

Every address a name resolves to is checked, and the checked address is the one connected to. Nothing is
sent to a private network, to this machine, or to a proxy of the environment, unless the operator allows it.
"""

import functools
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver
from httpx_aiohttp.transport import AiohttpResponseStream, AiohttpTransport, map_aiohttp_exceptions

from kling_receiver import __version__
from kling_receiver.net.guard import Allowlist, Refused, check_url
from kling_receiver.net.resolver import GuardedResolver, ThreadedResolver

AGENT = {"User-Agent": f"kling-callback/{__version__}"}

CONNECT_SECONDS = 15
READ_SECONDS = 60
MAX_CONNECTIONS = 64
DEFAULT_HEADERS = {**AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
NO_HEADERS: Mapping[str, str] = {}


class Transport(AiohttpTransport):
    """aiohttp under httpx, with every error of the one as an error of the other."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with _errors_of_httpx():
            return await super().handle_async_request(request)


@contextmanager
def _errors_of_httpx() -> Iterator[None]:
    try:
        with map_aiohttp_exceptions():
            yield
    except aiohttp.ClientError as error:  # an answer that is no HTTP, say
        raise httpx.RemoteProtocolError(f"{type(error).__name__}: no HTTP came") from error


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Whose certificates are believed."""
    return httpx.create_ssl_context()


class GuardedClient:
    """A client for one purpose; `allowed` is that purpose's setting. Redirects are the caller's to check.

    Answers and errors are httpx's, requests are not: its client would read a redirect's address before we can
    refuse it, and building a request for it takes as long as sending one.
    """

    def __init__(
        self,
        allowed: Allowlist,
        *,
        resolver: Callable[[], AbstractResolver] = ThreadedResolver,
        connections: int = MAX_CONNECTIONS,
    ) -> None:
        """`connections`: at once."""
        self.allowed, self._connections = allowed, connections
        self._resolver = GuardedResolver(allowed, resolver())
        self._ssl = _ssl_context()  # now: it takes the event loop a while
        self._opened: aiohttp.ClientSession | None = None

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:  # it belongs to the event loop in which it is first used
            connector = aiohttp.TCPConnector(
                resolver=self._resolver,
                use_dns_cache=False,
                limit=self._connections,
                ssl=self._ssl,
            )
            self._opened = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False
            )
        return self._opened

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        content: bytes | None = None,
        read_timeout: float = READ_SECONDS,
    ) -> httpx.Response:
        """One request to a checked address; the caller reads and closes. Raises Refused, or httpx.HTTPError.

        `silence`: seconds for which nothing need come.
        The answer is asked for as it is: what is compressed would be read in whole before its size is known.
        """
        address = check_url(url, self.allowed)
        try:
            with _errors_of_httpx():
                answer = await self._session().request(
                    method,
                    address,
                    headers={**DEFAULT_HEADERS, **headers},
                    data=content or None,
                    allow_redirects=False,
                    timeout=_timeout(read_timeout),
                )
        except (httpx.HTTPError, OSError, ValueError) as error:
            if refused := _find_refusal(error):
                raise refused from error
            if isinstance(error, (ValueError, httpx.UnsupportedProtocol)):  # no resolver, no socket takes it
                raise Refused(f"not a web address ({error})") from error
            if isinstance(error, OSError):
                raise httpx.ConnectError(str(error)) from error
            raise
        return httpx.Response(answer.status, headers=answer.raw_headers, stream=AiohttpResponseStream(answer))

    async def close(self) -> None:
        """Close every connection."""
        if self._opened:
            await self._opened.close()
        await self._resolver.close()


@functools.lru_cache(64)
def _timeout(read_timeout: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(connect=READ_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=read_timeout)


def _find_refusal(error: BaseException | None) -> Refused | None:
    """The guard's own word inside whatever the layers between made of it."""
    while error is not None:
        if isinstance(error, Refused):
            return error
        error = error.__cause__ or error.__context__
    return None

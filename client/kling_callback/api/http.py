"""The HTTP client of this package."""

from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Callable, Mapping
from email.utils import parsedate_to_datetime
from importlib.metadata import version

import httpx
from anyio.lowlevel import current_token

from kling_callback.environment import EnvironmentProblem, Proxy, proxy_for, tls_context

AGENT = f"kling-callback/{version('kling-callback')}"


LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""No limit of connections: each waiting task holds one."""


class RoutedTransport(httpx.AsyncBaseTransport):
    """Sends each request directly, or through the proxy that the environment names for its address.

    May be used in several event loops, and after a fork: a connection belongs to the loop that opened it.
    """

    def __init__(self, direct: Callable[[], httpx.AsyncBaseTransport] | None = None) -> None:
        """`direct`: makes what sends the requests that need no proxy."""
        self._direct = direct
        self._by_loop: dict[object, _Connections] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. A variable that cannot be used is an httpx.ProxyError: nothing was sent."""
        try:
            proxy = proxy_for(str(request.url))
            transport = await self._transport(proxy)
        except EnvironmentProblem as problem:
            raise httpx.ProxyError(str(problem), request=request) from problem
        try:
            return await transport.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            if proxy is None:
                raise
            reason = str(error).rstrip(".") or type(error).__name__
            raise httpx.ProxyError(f"{reason} (through the proxy that {proxy.variable} names)") from error

    async def _transport(self, proxy: Proxy | None) -> httpx.AsyncBaseTransport:
        loop = current_token().native_token
        if loop not in self._by_loop:
            for other in [each for each in list(self._by_loop) if _is_closed(each)]:
                self._by_loop.pop(other, None)  # only its own loop could have closed them in order
            self._by_loop[loop] = connections = _Connections()
            await connections.open()
        transports = self._by_loop[loop].transports
        if proxy not in transports:
            transports[proxy] = self._create(proxy)
        return transports[proxy]

    def _create(self, proxy: Proxy | None) -> httpx.AsyncBaseTransport:
        if proxy is None and self._direct:
            return self._direct()
        tls, route = tls_context(), None
        if proxy:
            route = httpx.Proxy(proxy.address, ssl_context=tls if proxy.address.startswith("https:") else None)
        return httpx.AsyncHTTPTransport(verify=tls, limits=LIMITS, proxy=route)

    async def aclose(self) -> None:
        """Close all connections of this event loop."""
        if connections := self._by_loop.pop(current_token().native_token, None):
            await connections.close()


class _Connections:
    """What one event loop uses, closed by `close`, else when that loop ends."""

    def __init__(self) -> None:
        self.transports: dict[Proxy | None, httpx.AsyncBaseTransport] = {}
        self._end = _closing_at_end(self.transports)

    async def open(self) -> None:
        await anext(self._end)

    async def close(self) -> None:
        await self._end.aclose()


async def _closing_at_end(transports: Mapping[Proxy | None, httpx.AsyncBaseTransport]) -> AsyncGenerator[None, None]:
    """Close the transports when this generator is closed: `asyncio.run` closes each generator before its loop."""
    try:
        yield
    finally:
        for transport in transports.values():
            await transport.aclose()


def _is_closed(loop: object) -> bool:
    return isinstance(loop, AbstractEventLoop) and loop.is_closed()


def create_client() -> httpx.AsyncClient:
    """A client for Kling and the receiver. Redirects are not followed."""
    return httpx.AsyncClient(transport=RoutedTransport(), trust_env=False, headers={"User-Agent": AGENT})


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from a `Retry-After` of either form. `headers`: found by name in any case."""
    value = headers.get("Retry-After", "")
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        at, date = parsedate_to_datetime(value), parsedate_to_datetime(headers.get("Date", value))
        return max((at - date).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None

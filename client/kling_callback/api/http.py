"""The HTTP client of this package."""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from importlib.metadata import version

import httpx

from kling_callback.environment import EnvironmentProblem, Proxy, proxy_for, tls_context

AGENT = f"kling-callback/{version('kling-callback')}"


LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""No limit of connections: each waiting task holds one."""


class RoutedTransport(httpx.AsyncBaseTransport):
    """Sends each request directly, or through the proxy that the environment names for its address."""

    def __init__(self, direct: httpx.AsyncBaseTransport | None = None) -> None:
        """`direct`: sends the requests that need no proxy."""
        self._transports: dict[Proxy | None, httpx.AsyncBaseTransport] = {None: direct} if direct else {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. A variable that cannot be used is an httpx.ProxyError: nothing was sent."""
        try:
            proxy = proxy_for(str(request.url))
            transport = self._transport(proxy)
        except EnvironmentProblem as problem:
            raise httpx.ProxyError(str(problem), request=request) from problem
        try:
            return await transport.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            if proxy is None:
                raise
            reason = str(error).rstrip(".") or type(error).__name__
            raise httpx.ProxyError(f"{reason} (through the proxy that {proxy.variable} names)") from error

    def _transport(self, proxy: Proxy | None) -> httpx.AsyncBaseTransport:
        if proxy not in self._transports:
            tls, route = tls_context(), None
            if proxy:
                route = httpx.Proxy(proxy.address, ssl_context=tls if proxy.address.startswith("https:") else None)
            self._transports[proxy] = httpx.AsyncHTTPTransport(verify=tls, limits=LIMITS, proxy=route)
        return self._transports[proxy]

    async def aclose(self) -> None:
        """Close all connections."""
        for transport in self._transports.values():
            await transport.aclose()


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

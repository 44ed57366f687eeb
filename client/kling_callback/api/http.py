"""The HTTP client of this package."""

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from importlib.metadata import version

import httpx

from kling_callback.environment import EnvironmentProblem, proxy_for, tls_context

AGENT = f"kling-callback/{version('kling-callback')}"


LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
"""No limit of connections: each waiting task holds one."""


class RoutedTransport(httpx.AsyncBaseTransport):
    """Sends each request directly, or through the proxy that the environment names for its address."""

    def __init__(self, direct: httpx.AsyncBaseTransport | None = None) -> None:
        """`direct`: sends the requests that need no proxy."""
        self._transports: dict[str | None, httpx.AsyncBaseTransport] = {None: direct} if direct else {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. A variable that cannot be used is an httpx.ProxyError: nothing was sent."""
        try:
            transport = self._transport(proxy_for(str(request.url)))
        except EnvironmentProblem as problem:
            raise httpx.ProxyError(str(problem), request=request) from problem
        return await transport.handle_async_request(request)

    def _transport(self, proxy: str | None) -> httpx.AsyncBaseTransport:
        if proxy not in self._transports:
            tls = tls_context()
            route = httpx.Proxy(proxy, ssl_context=tls if proxy.startswith("https:") else None) if proxy else None
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

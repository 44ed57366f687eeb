"""The HTTP client for Kling's API, an address of the operator's own: httpx over aiohttp, which is faster."""

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from kling_callback.api.http import RoutedTransport
from kling_callback.environment import tls_context
from kling_receiver.net.client import AGENT

NOT_CONNECTED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""aiohttp's errors before a request is sent."""


class KlingTransport(AiohttpTransport):
    """aiohttp under httpx; every error of aiohttp is raised as one of httpx."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request. An httpx.ConnectError or ConnectTimeout proves that nothing was sent."""
        try:
            return await super().handle_async_request(request)
        except httpx.ConnectTimeout as error:
            # httpx-aiohttp translates every error of a connection so, also that of one which ended after the request.
            if isinstance(error.__cause__, NOT_CONNECTED):
                raise
            raise httpx.ReadError(str(error) or "the connection ended without an answer") from error
        except aiohttp.ClientError as error:  # those that httpx-aiohttp does not translate
            raise httpx.RemoteProtocolError(f"{type(error).__name__}: the response is not HTTP") from error


def create_kling_client() -> httpx.AsyncClient:
    """A client that uses the proxy which the environment names for Kling; httpx itself speaks to proxies."""
    tls = tls_context()  # here: loading the certificates blocks
    transport = RoutedTransport(lambda: KlingTransport(verify=tls))
    return httpx.AsyncClient(transport=transport, trust_env=False, headers=AGENT)

"""The HTTP client for Kling's API, an address of the operator's own: httpx over aiohttp, which is faster."""

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from kling_callback.api.http import RoutedTransport
from kling_callback.environment import tls_context
from kling_receiver.net.client import AGENT


class KlingTransport(AiohttpTransport):
    """aiohttp under httpx; every error of aiohttp is raised as one of httpx."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except aiohttp.ClientError as error:  # those that httpx-aiohttp does not translate
            raise httpx.RemoteProtocolError(f"{type(error).__name__}: the response is not HTTP") from error


def create_kling_client() -> httpx.AsyncClient:
    """A client that uses the proxy which the environment names for Kling; httpx itself speaks to proxies."""
    tls = tls_context()  # here: loading the certificates blocks
    transport = RoutedTransport(lambda: KlingTransport(verify=tls))
    return httpx.AsyncClient(transport=transport, trust_env=False, headers=AGENT)

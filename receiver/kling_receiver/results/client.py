"""The HTTP client for result files, some of which a relay serves itself: only to those who have the account's key.

The key is sent to the API base's own origin and to no other, whatever an answer names and wherever a redirect leads:
only to an address that Kling's answer named, or to which the base's own origin redirected.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from kling_callback.protocol.relays import CONTENT_PATH, base_origin
from kling_callback.protocol.urls import is_public
from kling_receiver.net.client import NO_HEADERS, GuardedClient, Response
from kling_receiver.net.guard import Allowlist

UNAUTHORIZED = (401, 403)
NOT_HERE = (404, 405)


class ResultClient(GuardedClient):
    """A GuardedClient that has the key for files of the API base.

    `base`: KLING_API_BASE. `authorization`: makes the header of a call to it. A video's content there is requested with
    the key, and may be private, as the base itself may be: its path is no other than that of a query. Any other address
    of the base's origin must be public or allowed, and gets the key once it has refused a request without one. An
    address to which another host redirected is an address like any other: no host chooses what is requested here.
    """

    def __init__(self, allowed: Allowlist, base: str, authorization: Callable[[], str]) -> None:
        super().__init__(allowed)
        self._base, self._origin, self._authorization = base, base_origin(base), authorization
        parts = urlsplit(base)
        host, port = (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)
        by_proxy = is_public(host) and allowed.needs_proxy(host, port)
        self._own = GuardedClient(allowed if by_proxy else replace(allowed, hosts=allowed.hosts | {(host, port)}))

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = NO_HEADERS,
        redirected_by: Sequence[str] = (),
        **options: Any,
    ) -> Response:
        """Send one request, with the key if it needs one and may have it. Raises Refused, RequestFailed."""
        path = self._own_path(url)
        if path is None or any(self._own_path(each) is None for each in redirected_by):
            return await super().send(method, url, headers=headers, **options)
        if CONTENT_PATH.fullmatch(path.removeprefix(urlsplit(self._base).path)):
            return await self._content(method, url, path, headers, options)
        response = await super().send(method, url, headers=headers, **options)
        if response.status not in UNAUTHORIZED:
            return response
        await response.close()
        return await super().send(method, url, headers=self._with_key(headers), **options)

    async def _content(
        self, method: str, url: str, path: str, headers: Mapping[str, str], options: Mapping[str, Any]
    ) -> Response:
        """Request a video's content from the relay's host, or else under the path of the base."""
        response = await self._own.send(method, url, headers=self._with_key(headers), **options)
        under_base = f"{self._base}{path}"
        is_page = response.headers.get("Content-Type", "").startswith("text/html")
        if (response.status not in NOT_HERE and not is_page) or under_base == url or not CONTENT_PATH.fullmatch(path):
            return response
        await response.close()
        return await self._own.send(method, under_base, headers=self._with_key(headers), **options)

    def _own_path(self, url: str) -> str | None:
        """The path and query of an address of the base's origin; None for any other.

        The origin must be there letter by letter: whatever a parser makes of the rest, it leads to no other host.
        """
        size = len(self._origin)
        return url[size:] if url[: size + 1].lower() == f"{self._origin}/" else None

    def _with_key(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {**headers, "Authorization": self._authorization()}

    async def close(self) -> None:
        """Close every connection."""
        await super().close()
        await self._own.close()

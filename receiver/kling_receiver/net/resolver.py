"""DNS lookups in threads of their own, so that a silent name server never delays other work."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from kling_receiver.net.guard import Allowlist, check_address

THREADS = 8
"""Lookups at once: so many names may have a silent name server before another name has to wait."""

AddrInfo = Sequence[tuple[Any, ...]]
"""What `socket.getaddrinfo` returns."""
Lookup = Callable[[str, socket.AddressFamily], AddrInfo]


def getaddrinfo(host: str, family: socket.AddressFamily) -> AddrInfo:
    """Look a name up by the system. Raises OSError, or UnicodeError for text that cannot be a name."""
    return socket.getaddrinfo(host, None, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)


class ThreadedResolver(AbstractResolver):
    """Looks up each name once at a time: concurrent requests for one name share one lookup.

    Otherwise a few hooks with one silent name server would occupy all threads.
    """

    def __init__(self, lookup: Lookup = getaddrinfo) -> None:
        self._lookup = lookup
        self._threads = ThreadPoolExecutor(THREADS, "names")
        self._pending: dict[tuple[str, socket.AddressFamily], asyncio.Future[AddrInfo]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolve a name. Raises what the lookup raises."""
        addresses = await asyncio.shield(self._shared_lookup(host, family))  # cancelled for one caller alone
        return [_result(host, port, address) for address in addresses]

    def _shared_lookup(self, host: str, family: socket.AddressFamily) -> "asyncio.Future[AddrInfo]":
        key = host, family
        if key not in self._pending:
            lookup = asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, host, family)
            self._pending[key] = lookup
            lookup.add_done_callback(lambda _: self._pending.pop(key))
            lookup.add_done_callback(_consume)
        return self._pending[key]

    async def close(self) -> None:
        """Start no more lookups; pending ones are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _consume(lookup: "asyncio.Future[AddrInfo]") -> None:
    """Retrieve the error of a lookup whose callers are all cancelled: asyncio would log it as never retrieved."""
    if not lookup.cancelled():
        lookup.exception()


def _result(host: str, port: int, address: tuple[Any, ...]) -> ResolveResult:
    family, _, proto, _, socket_address = address
    return ResolveResult(
        hostname=host,
        host=socket_address[0],
        port=port,
        family=family,
        proto=proto,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )


class GuardedResolver(AbstractResolver):
    """Resolves a name, and refuses it if any of its addresses is forbidden."""

    def __init__(self, allowed: Allowlist, resolver: AbstractResolver) -> None:
        self._allowed, self._resolver = allowed, resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Resolve a name. Raises Refused, or what the resolver raises."""
        results = await self._resolver.resolve(host, port, family)
        for result in results:
            check_address(host, port, ipaddress.ip_address(result["host"].partition("%")[0]), self._allowed)
        return results

    async def close(self) -> None:
        """Close the resolver."""
        await self._resolver.close()

"""Names to addresses, in threads of its own: a name server that is silent must never hold up other work."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from kling_receiver.net.guard import Allowlist, check_address

THREADS = 8
"""Names that are looked up at once: so many may have a silent name server before another has to wait."""

AddrInfo = Sequence[tuple[Any, ...]]
"""As `socket.getaddrinfo` has it."""
Lookup = Callable[[str, socket.AddressFamily], AddrInfo]


def getaddrinfo(host: str, family: socket.AddressFamily) -> AddrInfo:
    """Ask the machine. Raises OSError, or UnicodeError for what cannot be a name."""
    return socket.getaddrinfo(host, None, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)


class ThreadedResolver(AbstractResolver):
    """Looks up each name once at a time: who asks for it meanwhile waits for the same answer."""

    def __init__(self, lookup: Lookup = getaddrinfo) -> None:
        self._getaddrinfo = lookup
        self._threads = ThreadPoolExecutor(THREADS, "names")
        self._under_way: dict[tuple[str, socket.AddressFamily], asyncio.Future[AddrInfo]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a name. Raises as `look` does."""
        found = await asyncio.shield(self._lookup(host, family))  # who gives up leaves it to the others
        return [_result(host, port, each) for each in found]

    def _lookup(self, host: str, family: socket.AddressFamily) -> "asyncio.Future[AddrInfo]":
        key = host, family
        if key not in self._under_way:
            asked = asyncio.get_running_loop().run_in_executor(self._threads, self._getaddrinfo, host, family)
            self._under_way[key] = asked
            asked.add_done_callback(lambda _: self._under_way.pop(key))
            asked.add_done_callback(_consume)
        return self._under_way[key]

    async def close(self) -> None:
        """Look up nothing more; what is under way is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _consume(asked: "asyncio.Future[AddrInfo]") -> None:
    """What failed when nobody waited any more is no trouble."""
    if not asked.cancelled():
        asked.exception()


def _result(host: str, port: int, found: tuple[Any, ...]) -> ResolveResult:
    family, _, proto, _, place = found
    return ResolveResult(
        hostname=host,
        host=place[0],
        port=port,
        family=family,
        proto=proto,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )


class GuardedResolver(AbstractResolver):
    """Resolves a name, and refuses it when any of its addresses is forbidden."""

    def __init__(self, allowed: Allowlist, resolver: AbstractResolver) -> None:
        self._allowed, self._resolver = allowed, resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for each in found:
            check_address(host, port, ipaddress.ip_address(each["host"].partition("%")[0]), self._allowed)
        return found

    async def close(self) -> None:
        await self._resolver.close()

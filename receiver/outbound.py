"""The one HTTP client for addresses that we did not choose: it connects to public addresses only.

Every address a name resolves to is checked, and the checked address is the one connected to. Nothing is
sent to a private network, to this machine, or to a proxy of the environment, unless the operator allows it.
"""

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CONNECT_SECONDS = 15
READ_SECONDS = 60
CONNECTIONS = 64

CARRIERS: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::ffff:0:0/96", "::/96")
)
"""IPv6 networks that carry IPv4 inside (NAT64, 6to4, Teredo, mapped, compatible): refused whole."""


class Refused(Exception):
    """The address must not be reached; final, however often it is tried."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What one purpose may reach although it is private: hosts, networks, `host:port`."""

    hosts: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, entries: Iterable[str]) -> "Allowed":
        """Read a setting's entries. Raises ValueError naming the one that is none of the three."""
        hosts, networks = set(), []
        for entry in entries:
            if network := _network(entry):
                networks.append(network)
            else:
                hosts.add(_host_and_port(entry))
        return cls(frozenset(hosts), tuple(networks))

    def permits(self, host: str, port: int, address: Address | None = None) -> bool:
        """Whether `host` (as written in the address) or what it resolved to may be reached on `port`."""
        name = host.lower().strip("[]")
        return (
            (name, None) in self.hosts
            or (name, port) in self.hosts
            or (address is not None and any(address in network for network in self.networks))
        )


def _network(entry: str) -> Network | None:
    try:
        return ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return None


def _host_and_port(entry: str) -> tuple[str, int | None]:
    host, _, port = entry.rpartition(":") if entry.count(":") == 1 or "]:" in entry else (entry, "", "")
    host = host.strip("[]").lower()
    if not host or set(host) & set("/@ *?#") or (port and not port.isdigit()):
        raise ValueError(f"{entry!r} is neither a host, nor a network, nor host:port.")
    return host, int(port) if port else None


def is_public(address: Address) -> bool:
    """Whether an address is one of the open Internet, reached directly."""
    if any(address in network for network in CARRIERS if network.version == address.version):
        return False
    return address.is_global and not address.is_multicast


def check_url(url: str, allowed: Allowed) -> httpx.URL:
    """Refuse an address by how it is written: before a name is resolved, before anything is sent."""
    try:
        parsed = httpx.URL(url)
        port = parsed.port or {"http": 80, "https": 443}.get(parsed.scheme, 0)
    except (httpx.InvalidURL, ValueError) as error:
        raise Refused(f"not a web address ({error})") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise Refused("only http and https addresses are fetched")
    if parsed.userinfo:
        raise Refused("the address has a user or password in it")
    if (address := _literal(parsed.host)) is not None:
        _check_address(parsed.host, port, address, allowed)
    return parsed


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


def _check_address(host: str, port: int, address: Address, allowed: Allowed) -> None:
    if not is_public(address) and not allowed.permits(host, port, address):
        raise Refused(f"{host} is not a public address ({address})")


class GuardedResolver(AbstractResolver):
    """Resolves a name, and refuses it when any of its addresses is forbidden."""

    def __init__(self, allowed: Allowed) -> None:
        self._allowed = allowed
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for each in found:
            _check_address(host, port, ipaddress.ip_address(each["host"].partition("%")[0]), self._allowed)
        return found

    async def close(self) -> None:
        await self._resolver.close()


class Outbound:
    """A client for one purpose; `allowed` is that purpose's setting. Redirects are the caller's to check."""

    def __init__(self, allowed: Allowed) -> None:
        self.allowed = allowed
        self._http = httpx.AsyncClient(
            transport=AiohttpTransport(client=self._session),
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            trust_env=False,
            follow_redirects=False,
        )

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=GuardedResolver(self.allowed),
            use_dns_cache=False,
            limit=CONNECTIONS,
            ssl=httpx.create_ssl_context(),
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)

    async def send(self, method: str, url: str, *, stream: bool = False, **request: Any) -> httpx.Response:
        """One request to a checked address. Raises Refused, or httpx.HTTPError."""
        built = self._http.build_request(method, check_url(url, self.allowed), **request)
        try:
            return await self._http.send(built, stream=stream)
        except (httpx.HTTPError, OSError) as error:
            if refused := _refusal(error):
                raise refused from error
            if isinstance(error, OSError):
                raise httpx.ConnectError(str(error)) from error
            raise

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()


def _refusal(error: BaseException | None) -> Refused | None:
    """The guard's own word inside whatever the layers between made of it."""
    while error is not None:
        if isinstance(error, Refused):
            return error
        error = error.__cause__ or error.__context__
    return None

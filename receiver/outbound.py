"""The one HTTP client for addresses that we did not choose: it connects to public addresses only.

Every address a name resolves to is checked, and the checked address is the one connected to. Nothing is
sent to a private network, to this machine, or to a proxy of the environment, unless the operator allows it.
"""

import functools
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp.transport import AiohttpResponseStream, AiohttpTransport, map_aiohttp_exceptions

from client.addresses import is_loopback
from receiver import __version__
from receiver.names import Names

AGENT = {"User-Agent": f"kling-callback/{__version__}"}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CONNECT_SECONDS = 15
READ_SECONDS = 60
CONNECTIONS = 64
USUAL = {**AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
NO_HEADERS: Mapping[str, str] = {}

GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is given out; NAT64, mapped and compatible IPv4, site and link local lie outside."""
CLOSED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in ("2001::/32", "2002::/16", "192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)
"""Teredo, 6to4 and its relays carry IPv4 inside; the others have the insides of two clouds in them."""
HOST = re.compile(rb"[A-Za-z0-9._:-]+")


class Refused(Exception):
    """The address must not be reached; final, however often it is tried."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """What one purpose may reach although it is private: hosts, networks, `host:port`; by which `setting`."""

    hosts: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[Network, ...] = ()
    setting: str = ""

    @classmethod
    def parse(cls, entries: Iterable[str], setting: str = "") -> "Allowed":
        """Read a setting's entries. Raises ValueError naming all that are none of the three."""
        hosts, networks, wrong = set(), [], []
        for entry in entries:
            if network := _network(entry):
                networks.append(network)
            elif host := _host_and_port(entry):
                hosts.add(host)
            else:
                wrong.append(repr(entry))
        if wrong:
            raise ValueError(f"neither a host, nor a network, nor host:port: {', '.join(wrong)}.")
        return cls(frozenset(hosts), tuple(networks), setting)

    @property
    def remedy(self) -> str:
        """What its owner can do, as the end of a sentence."""
        return f"; if it is yours, allow it with {self.setting}" if self.setting else ""

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


def _host_and_port(entry: str) -> tuple[str, int | None] | None:
    host, _, port = entry.rpartition(":") if entry.count(":") == 1 or "]:" in entry else (entry, "", "")
    host = host.strip("[]").lower()
    if not host or set(host) & set("/@ *?#") or (port and not port.isdigit()):
        return None
    return host, int(port) if port else None


def is_public(address: Address) -> bool:
    """Whether an address is one of the open Internet, reached directly."""
    if any(address in network for network in CLOSED):
        return False
    if address.version == 6 and address not in GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast


def is_private(host: str) -> bool:
    """Whether a host, as it is written, is this machine or one of a private network."""
    address = _literal(host)
    return is_loopback(host) if address is None else not is_public(address)


@functools.lru_cache(1024)
def check_url(url: str, allowed: Allowed) -> str:
    """The address as it is asked for. Refuses one by how it is written: before a name is resolved, before
    anything is sent.
    """
    try:
        parsed = httpx.URL(url)
        host, raw_host = parsed.host, parsed.raw_host
        port = {"http": 80, "https": 443}.get(parsed.scheme, 0) if parsed.port is None else parsed.port
    except (httpx.InvalidURL, ValueError) as error:
        raise Refused(f"not a web address ({error})") from error
    if parsed.scheme not in ("http", "https"):
        raise Refused("only http and https addresses are reached")
    if not HOST.fullmatch(raw_host) or not 0 < port < 1 << 16 or not all(host.rstrip(".").split(".")):
        raise Refused("its host is no name, or its port none")
    if parsed.userinfo:
        raise Refused("the address has a user or password in it")
    if (address := _literal(host)) is not None:
        _check_address(host, port, address, allowed)
    elif is_loopback(host.rstrip(".")) and not (allowed.permits(host, port) or allowed.networks):
        raise Refused(f"{host} is this machine{allowed.remedy}")
    return str(parsed)


def _literal(host: str) -> Address | None:
    """The address that `host` is, however it is spelled: `127.1`, `0x7f000001` and `2130706433` are one too."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host.rstrip(".")))
    except (OSError, UnicodeError):
        return None


def _check_address(host: str, port: int, address: Address, allowed: Allowed) -> None:
    if not is_public(address) and not allowed.permits(host, port, address):
        which = "" if host.strip("[]") == str(address) else f" ({address})"
        own = "" if address.is_link_local else allowed.remedy
        raise Refused(f"{host} is not a public address{which}{own}")


class GuardedResolver(AbstractResolver):
    """Resolves a name, and refuses it when any of its addresses is forbidden."""

    def __init__(self, allowed: Allowed, resolver: AbstractResolver) -> None:
        self._allowed, self._resolver = allowed, resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for each in found:
            _check_address(host, port, ipaddress.ip_address(each["host"].partition("%")[0]), self._allowed)
        return found

    async def close(self) -> None:
        await self._resolver.close()


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
def _trusted() -> ssl.SSLContext:
    """Whose certificates are believed."""
    return httpx.create_ssl_context()


class Outbound:
    """A client for one purpose; `allowed` is that purpose's setting. Redirects are the caller's to check.

    Answers and errors are httpx's, requests are not: its client would read a redirect's address before we can
    refuse it, and building a request for it takes as long as sending one.
    """

    def __init__(
        self,
        allowed: Allowed,
        *,
        resolver: Callable[[], AbstractResolver] = Names,
        connections: int = CONNECTIONS,
    ) -> None:
        """`connections`: at once."""
        self.allowed, self._connections = allowed, connections
        self._resolver = GuardedResolver(allowed, resolver())
        self._trusted = _trusted()  # now: it takes the event loop a while
        self._opened: aiohttp.ClientSession | None = None

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:  # it belongs to the event loop in which it is first used
            connector = aiohttp.TCPConnector(
                resolver=self._resolver,
                use_dns_cache=False,
                limit=self._connections,
                ssl=self._trusted,
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
        silence: float = READ_SECONDS,
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
                    headers={**USUAL, **headers},
                    data=content or None,
                    allow_redirects=False,
                    timeout=_timeout(silence),
                )
        except (httpx.HTTPError, OSError, ValueError) as error:
            if refused := _refusal(error):
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
def _timeout(silence: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(connect=READ_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=silence)


def _refusal(error: BaseException | None) -> Refused | None:
    """The guard's own word inside whatever the layers between made of it."""
    while error is not None:
        if isinstance(error, Refused):
            return error
        error = error.__cause__ or error.__context__
    return None

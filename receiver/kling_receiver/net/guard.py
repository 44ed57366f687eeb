"""Which addresses may be reached: public ones, and those that a setting allows."""

import functools
import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from urllib.parse import quote, quote_from_bytes
from urllib.request import getproxies_environment

import httpx

from kling_callback.environment import is_excluded
from kling_callback.protocol.urls import is_public as is_public_name
from kling_callback.protocol.urls import may_be_loopback

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All of IPv6 that is allocated; NAT64, mapped and compatible IPv4, site-local and link-local lie outside."""
BLOCKED_NETWORKS: tuple[Network, ...] = tuple(
    ipaddress.ip_network(network)
    for network in ("2001::/32", "2002::/16", "192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)
"""Teredo, 6to4 and its relays carry IPv4 inside; the others contain metadata services of two clouds."""
HOST = re.compile(rb"[A-Za-z0-9._:-]+")
WEB_URL = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<target>[^#]*)", re.IGNORECASE)
"""A URL up to its fragment. The target is what a request line names: path and query."""
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
GRAPHIC = "".join(map(chr, range(0x21, 0x7F)))
"""The characters of ASCII that a request line may hold inside its target."""


class Refused(Exception):
    """The address must not be reached. Final: a retry is refused too."""


@dataclass(frozen=True, slots=True)
class Allowlist:
    """Private hosts, networks and `host:port` that one purpose may reach. `setting`: its name, for messages.

    `proxy`: address of the proxy through which all other hosts are reached; "": directly.
    """

    hosts: frozenset[tuple[str, int | None]] = frozenset()
    networks: tuple[Network, ...] = ()
    setting: str = ""
    proxy: str = field(default="", repr=False)

    @classmethod
    def parse(cls, entries: Iterable[str], setting: str = "", proxy: str = "") -> "Allowlist":
        """Parse the entries of a setting. Raises ValueError, naming every entry that is not valid."""
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
        return cls(frozenset(hosts), tuple(networks), setting, proxy)

    @property
    def hint(self) -> str:
        """What the operator can do, as the end of a sentence."""
        return f"; if it is yours, allow it with {self.setting}" if self.setting else ""

    def permits(self, host: str, port: int, address: Address | None = None) -> bool:
        """Whether `host` (as written in the URL) or the address that it resolved to may be reached on `port`."""
        name = host.lower().strip("[]")
        return (
            (name, None) in self.hosts
            or (name, port) in self.hosts
            or (address is not None and any(address in network for network in self.networks))
        )

    def needs_proxy(self, host: str, port: int) -> bool:
        """Whether a host, as written, is reached through the proxy: neither a private one, nor listed, nor excluded."""
        if not self.proxy or is_private(host) or self.permits(host, port, _ip_literal(host)):
            return False
        return not is_excluded(host.strip("[]"), port, getproxies_environment().get("no", ""))


def _network(entry: str) -> Network | None:
    try:
        return ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return None


def _host_and_port(entry: str) -> tuple[str, int | None] | None:
    host, _, port = entry.rpartition(":") if entry.count(":") == 1 or "]:" in entry else (entry, "", "")
    host = host.strip("[]").lower()
    if not host or set(host) & set("/@ *?#") or (port and not (port.isascii() and port.isdigit())):
        return None
    return host, int(port) if port else None


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public Internet and is reached directly."""
    if any(address in network for network in BLOCKED_NETWORKS):
        return False
    if address.version == 6 and address not in GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast


def is_private(host: str) -> bool:
    """Whether a host, as written, is this machine or one of a private network."""
    address = _ip_literal(host)
    return may_be_loopback(host) if address is None else not is_public(address)


@functools.lru_cache(1024)
def check_url(url: str, allowlist: Allowlist) -> str:
    """Check a URL as written, before a name is resolved or a connection opened. Raises Refused.

    Returns the URL in the form in which it is requested: without blanks around it and without a fragment; path and
    query byte for byte, because a host may have signed them. Only what no request line may hold is encoded.
    """
    scheme, authority, target = split_url(url)
    try:
        parsed = httpx.URL(f"{scheme}://{authority}/")
        host, raw_host = parsed.host, parsed.raw_host
        port = {"http": 80, "https": 443}[scheme] if parsed.port is None else parsed.port
        target = quote(target if target.startswith("/") else f"/{target}", safe=GRAPHIC)
    except (httpx.InvalidURL, ValueError) as error:
        raise Refused(f"not a valid URL ({error})") from error
    if not HOST.fullmatch(raw_host) or not 0 < port < 1 << 16 or not all(host.rstrip(".").split(".")):
        raise Refused("its host or port is not valid")
    if parsed.userinfo:
        raise Refused("the address contains a user or password")
    if (address := _ip_literal(host)) is not None:
        check_address(host, port, address, allowlist)
    elif allowlist.needs_proxy(host, port) and not is_public_name(host):  # the proxy resolves it, out of our sight
        raise Refused(f"{host} is no public name{allowlist.hint}")
    elif may_be_loopback(host.rstrip(".")) and not (allowlist.permits(host, port) or allowlist.networks):
        raise Refused(f"{host} is this machine{allowlist.hint}")
    return f"{scheme}://{parsed.netloc.decode('ascii')}{target}"


def split_url(url: str) -> tuple[str, str, str]:
    """The scheme in small letters, the authority and the target of a web URL, as written. Raises Refused."""
    match = WEB_URL.match(url.strip())
    if not match:
        raise Refused("only http and https addresses are allowed")
    return match["scheme"].lower(), match["authority"], match["target"]


def join_url(url: str, location: bytes) -> str:
    """The URL to which a redirect from `url` leads, with path and query of `location` as written. Raises Refused."""
    scheme, authority, target = split_url(url)
    try:
        text = location.decode().strip()
    except UnicodeDecodeError:
        text = quote_from_bytes(location, safe=GRAPHIC)
    if SCHEME.match(text):
        return text
    if text.startswith("//"):
        return f"{scheme}:{text}"
    if not text.startswith("/"):
        base = target.partition("?")[0]
        path = re.split("[?#]", text, maxsplit=1)[0]
        text = (_without_dots(f"{base[: base.rfind('/') + 1] or '/'}{path}") if path else base) + text[len(path) :]
    return f"{scheme}://{authority}{text}"


def _without_dots(path: str) -> str:
    """An absolute path without its segments `.` and `..` (RFC 3986, 5.2.4)."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[max(len(kept) - 1, 1) :]
        elif segment != ".":
            kept.append(segment)
    return "/".join(kept) + ("/" if path.endswith(("/.", "/..")) else "")


def _ip_literal(host: str) -> Address | None:
    """The IP address that `host` spells, if it does: `127.1`, `0x7f000001` and `2130706433` are addresses too."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host.rstrip(".")))
    except (OSError, UnicodeError):
        return None


def check_address(host: str, port: int, address: Address, allowlist: Allowlist) -> None:
    """Check an address that `host` resolved to. Raises Refused."""
    if not is_public(address) and not allowlist.permits(host, port, address):
        resolved = "" if host.strip("[]") == str(address) else f" ({address})"
        hint = "" if address.is_link_local else allowlist.hint  # among them the metadata services of clouds
        raise Refused(f"{host} is not a public address{resolved}{hint}")

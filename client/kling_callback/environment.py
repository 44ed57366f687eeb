"""What the programs take from the environment besides their settings: proxies and CA certificates.

The variables are those of other programs: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE, SSL_CERT_DIR.
"""

import functools
import ipaddress
import os
import re
import ssl
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, getproxies_environment, proxy_bypass

import httpx

from kling_callback.protocol.urls import PORTS, may_be_loopback

TLS_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
SOCKS_EXTRA = "pip install '.[socks]'"


class EnvironmentProblem(ValueError):
    """A variable that is not ours cannot be used. The message begins with its name, and never repeats its value."""


class Proxy(NamedTuple):
    """A proxy's address, as httpx takes it, and the variable that names it."""

    address: str
    variable: str


def proxy_for(url: str) -> Proxy | None:
    """The proxy through which the environment says to reach an http(s) address; None to reach it directly.

    This machine is always reached directly: a proxy has a loopback of its own. Raises EnvironmentProblem.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)
    if _is_this_machine(host.rstrip(".")):
        return None
    proxies = getproxies()  # the system's own settings where the environment has none
    if is_excluded(host, port, proxies.get("no", "")) or (proxies and _is_excluded_by_system(host)):
        return None
    for scheme in (parts.scheme, "all"):
        if value := proxies.get(scheme, "").strip():
            variable = _variable(scheme)
            return Proxy(_checked_address(variable, value), variable)
    return None


def is_excluded(host: str, port: int, no_proxy: str) -> bool:
    """Whether NO_PROXY lists a host: itself or a domain above it, a network, each with or without a port, or `*`."""
    return any(_matches(host.lower().rstrip("."), port, entry) for entry in re.split(r"[,;\s]+", no_proxy.lower()))


def _matches(host: str, port: int, entry: str) -> bool:
    entry = entry.rpartition("://")[2].rstrip("/")
    name, _, number = entry.rpartition(":") if entry.count(":") == 1 or "]:" in entry else (entry, "", "")
    if number not in ("", "*", str(port)):
        return False
    if name == "*":
        return True
    try:
        network = ipaddress.ip_network(name.replace("[", "").replace("]", ""), strict=False)
        return _address(host) in network
    except ValueError:  # one of them is a name
        domain = name.strip("[]").removeprefix("*").strip(".")
        return domain != "" and (host == domain or host.endswith(f".{domain}"))


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address that a host is; IPv4 inside IPv6 as IPv4. Raises ValueError for a name."""
    address = ipaddress.ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address


def _is_this_machine(host: str) -> bool:
    try:
        address = _address(host)
    except ValueError:
        return may_be_loopback(host)
    return address.is_loopback or address.is_unspecified


@functools.lru_cache(1024)
def _is_excluded_by_system(host: str) -> bool:
    """Whether Windows or macOS excludes a host, where no variable names a proxy. Looks names up, hence the cache."""
    return sys.platform in ("win32", "darwin") and not getproxies_environment() and bool(proxy_bypass(host))


def http_proxy_address(name: str, value: str) -> str:
    """The address of an HTTP proxy from the variable `name`. Raises EnvironmentProblem, for a SOCKS proxy too.

    A word alone is none: without a scheme a port is needed.
    """
    if "://" not in value and not re.search(r":\d+/?$", value):
        raise _unusable_proxy(name, ("http", "https"))
    address = _checked_address(name, value, schemes=("http", "https"))
    return address.rstrip("/")


def _checked_address(name: str, value: str, schemes: Sequence[str] = PROXY_SCHEMES) -> str:
    """The address of a proxy, as httpx takes it. Raises EnvironmentProblem."""
    scheme, _, rest = (value if "://" in value else f"http://{value}").partition("://")
    scheme = {"socks": "socks5"}.get(scheme.lower(), scheme.lower())
    address = f"{scheme}://{rest}"
    try:
        usable = bool(value.isprintable() and " " not in value and urlsplit(address).port != 0)
        usable = usable and scheme in schemes and bool(httpx.Proxy(address).url.host)
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable:
        raise _unusable_proxy(name, schemes)
    if scheme.startswith("socks") and not _is_installed("socksio"):
        raise EnvironmentProblem(
            f"{name} is a SOCKS proxy, which needs the extra `socks`. Run: {SOCKS_EXTRA}, or set it to the address of "
            "an HTTP proxy, or remove it."
        )
    return address


def _unusable_proxy(name: str, schemes: Sequence[str]) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{name} is not the address of a proxy that can be used. Set it to one like http://host:3128"
        f"{' or socks5://host:1080' if 'socks5' in schemes else ''}, or remove it."
    )


@functools.cache
def _context(*variables: str) -> ssl.SSLContext:
    """The TLS context for the variables' values, which httpx reads itself: they are only the key of the cache."""
    return httpx.create_ssl_context()


def tls_context() -> ssl.SSLContext:
    """The TLS context, with the CA certificates of SSL_CERT_FILE or SSL_CERT_DIR, else the usual ones.

    Raises EnvironmentProblem.
    """
    file, folder, key_log = (os.environ.get(name, "") for name in TLS_VARIABLES)
    try:
        if folder and not file and not any(Path(each).is_dir() for each in folder.split(os.pathsep)):
            raise EnvironmentProblem("SSL_CERT_DIR is not a folder. Set it to one with CA certificates, or remove it.")
        return _context(file, folder, key_log)
    except OSError as error:
        reason = "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        if error.filename:  # Python opens this file to write to it
            raise EnvironmentProblem(f"SSLKEYLOGFILE cannot be written: {reason}. Remove it.") from None
        raise EnvironmentProblem(
            f"SSL_CERT_FILE cannot be used: {reason}. Set it to a file with CA certificates, or remove it."
        ) from None


def certificate_problems() -> list[str]:
    """The problems of the variables that name CA certificates. Fast where none is set."""
    if not any(os.environ.get(name) for name in TLS_VARIABLES):
        return []
    try:
        tls_context()
    except EnvironmentProblem as problem:
        return [str(problem)]
    return []


def _variable(scheme: str) -> str:
    """The name of the variable that names the proxy for a scheme, as it is spelt in the environment."""
    name = f"{scheme}_proxy"
    spellings = [each for each in os.environ if each.lower() == name]
    return name if name in spellings else (spellings or [f"{name.upper()} (of the system's settings)"])[0]


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False

"""Limit the failed attempts to authenticate, by the address of the client."""

import hashlib
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

MAX_FAILURES = 20
"""Failed attempts of one address in a window: a program may try a wrong key, a guess never succeeds."""
WINDOW_SECONDS = 60.0
MAX_ADDRESSES = 10_000
"""Addresses that are remembered, of some 200 bytes each."""
MAX_ACCEPTED = 1_000
"""Credentials that are remembered as accepted."""
IPV6_SITE_BITS = 64
"""Bits of an IPv6 address that name a network: one machine has all addresses in it."""


class FailedAttempts:
    """Counts failed attempts. `clock`: seconds that never go back.

    A credential that was accepted before is never refused for the failures of others: behind a proxy, all clients have
    its address, and one with a wrong key would lock out the rest.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, max_failures: int = MAX_FAILURES) -> None:
        self._clock, self._max_failures = clock, max_failures
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._accepted: OrderedDict[bytes, None] = OrderedDict()

    def seconds_blocked(self, address: str, credential: str) -> float:
        """Seconds for which this address may not try this credential; 0 if it may."""
        started, count = self._failures.get(_network(address), (0.0, 0))
        left = started + WINDOW_SECONDS - self._clock()
        return left if count >= self._max_failures and left > 0 and not self.was_accepted(credential) else 0.0

    def was_accepted(self, credential: str) -> bool:
        """Whether a credential was accepted before."""
        return _digest(credential) in self._accepted

    def record_failure(self, address: str) -> None:
        """Count one failed attempt."""
        network, now = _network(address), self._clock()
        started, count = self._failures.pop(network, (now, 0))
        if now - started >= WINDOW_SECONDS:
            started, count = now, 0
        _remember(self._failures, network, (started, count + 1), MAX_ADDRESSES)

    def record_success(self, credential: str) -> None:
        """Remember that a credential was accepted."""
        _remember(self._accepted, _digest(credential), None, MAX_ACCEPTED)


def _remember(entries: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    entries[key] = value
    entries.move_to_end(key)
    while len(entries) > most:
        entries.popitem(last=False)


def _digest(credential: str) -> bytes:
    return hashlib.sha256(credential.encode("utf-8", "replace")).digest()


def _network(address: str) -> str:
    try:
        if ipaddress.ip_address(address).version == 6:
            return str(ipaddress.ip_network((address.partition("%")[0], IPV6_SITE_BITS), strict=False))
    except ValueError:  # no address: a Unix socket's client has none
        pass
    return address

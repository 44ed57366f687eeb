"""A forbidden address is refused in every spelling and by every way to it, and no connection is opened."""

import asyncio
import gzip
import ipaddress
import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from aiohttp.abc import ResolveResult
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kling_receiver.net.client import GuardedClient
from kling_receiver.net.guard import Allowlist, Refused, is_public
from tests.receiver.net.test_client import NOBODY, Names
from tests.support.web import host

NETWORKS = [
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
    *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
    *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32", "169.254.169.254/32", "127.0.0.1/32"),
]
"""Loopback, private and shared networks, services inside clouds, multicast, documentation, reserved."""
IPV4 = st.sampled_from(NETWORKS).flatmap(lambda network: st.ip_addresses(network=network))
PUBLIC = st.sampled_from(["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111"])


class Trap:
    """One port of every address of this machine, which must receive no connection."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self.sockets, self.port = sockets, sockets[0].getsockname()[1]

    def check(self) -> None:
        """Fail if a connection was received."""
        for each in self.sockets:
            with pytest.raises(BlockingIOError):
                each.accept()


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    """A trap for all tests of this module."""
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("0.0.0.0", 0)))
        sockets = [first]
        if socket.has_ipv6:
            port = first.getsockname()[1]
            sockets.append(stack.enter_context(socket.create_server(("::", port), family=socket.AF_INET6)))
        for each in sockets:
            each.setblocking(False)
        yield Trap(sockets)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for the examples of a property."""
    with asyncio.Runner() as runner:
        yield runner


def refused(runner: asyncio.Runner, url: str, answers: dict[str, list[str]] | None = None) -> list[str]:
    """Send to a URL that must be refused. Returns the names that were resolved before the refusal."""
    names = Names(answers or {})

    async def send() -> None:
        client = GuardedClient(NOBODY, resolver=lambda: names)
        try:
            with pytest.raises(Refused):
                await client.send("GET", url)
        finally:
            await client.close()

    runner.run(send())
    return names.asked


def test_the_trap_catches(trap: Trap) -> None:
    """A connection to either kind of address is noticed."""
    families = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
    for each in trap.sockets:
        with socket.create_connection((families[each.family], trap.port)):
            each.setblocking(True)
            each.accept()[0].close()
            each.setblocking(False)


def number(value: int, base: str, zeros: int) -> str:
    """A number in a form that inet_aton reads."""
    return {
        "decimal": str(value),
        "octal": f"0{'0' * zeros}{value:o}",
        "hex": f"0x{'0' * zeros}{value:x}",
        "HEX": f"0X{'0' * zeros}{value:X}",
    }[base]


@st.composite
def spelled_ipv4(draw: st.DrawFn) -> str:
    """An IPv4 address in one to four numbers of any base, in digits of any script, with or without dots after it."""
    packed = draw(IPV4).packed
    parts = draw(st.integers(1, 4))
    values = [*packed[: parts - 1], int.from_bytes(packed[parts - 1 :])]
    bases = st.sampled_from(["decimal", "octal", "hex", "HEX"])
    text = ".".join(number(value, draw(bases), draw(st.integers(0, 3))) for value in values)
    if draw(st.booleans()):
        first = draw(st.sampled_from("\uff10\U0001d7ce\u2080"))
        text = text.translate({ord("0") + n: chr(ord(first) + n) for n in range(10)})
    text = text.replace(".", draw(st.sampled_from([".", ".", "\u3002", "\uff0e", "\uff61", "%2e"])))
    return text + draw(st.sampled_from(["", "", ".", "..", "%00", "%20"]))


@st.composite
def spelled_ipv6(draw: st.DrawFn) -> str:
    """An IPv4 address inside each kind of IPv6 address that carries one, or a local one, with or without a zone."""
    inside = int(draw(IPV4 | st.ip_addresses(v=4)))
    whole = draw(
        st.sampled_from(
            [
                0xFFFF << 32 | inside,  # mapped
                inside,  # compatible
                0xFFFF << 48 | inside,  # translated
                0x64FF9B << 96 | inside,  # NAT64
                0x64FF9B0001 << 80 | inside,  # NAT64 of one's own
                0x2002 << 112 | inside << 80 | 1,  # 6to4
                0x20010000 << 96 | inside << 64 | 0xFFFFFFFF ^ inside,  # Teredo
                0xFE80 << 112 | 0x5EFE << 32 | inside,  # ISATAP
                *(1, 0xFC00 << 112 | 1, 0xFD00_0EC2 << 96 | 0x254, 0xFEC0 << 112 | 1, 0xFF02 << 112 | 1),
            ]
        )
    )
    address = ipaddress.IPv6Address(whole)
    tail = ipaddress.IPv4Address(whole & 0xFFFFFFFF)
    text = draw(st.sampled_from([address.compressed, address.exploded, f"{address.exploded[:29]}:{tail}"]))
    text += draw(st.sampled_from(["", "", "%25eth0", "%eth0", "%251"]))
    return f"[{text.upper() if draw(st.booleans()) else text}]"


@settings(deadline=None)
@given(
    st.sampled_from(["http", "https", "HTTP"]),
    st.sampled_from(["", "", "", "user@", "8.8.8.8@", "a:b@"]),
    spelled_ipv4() | spelled_ipv6(),
)
@example("http", "", "\u2460\u2461\u2466.0.0.1")
@example("http", "", "%31%32%37.0.0.1")
@example("http", "", "127.0.0.1%2f@8.8.8.8")
@example("http", "", "127.0.0.1#@8.8.8.8")
@example("http", "", "[::ffff:127.0.0.1]")
@example("http", "", "[::FFFF:127.1]")
@example("http", "", "::1")
def test_no_spelling_opens_a_connection(
    trap: Trap, runner: asyncio.Runner, scheme: str, user: str, spelled: str
) -> None:
    """Numbers of any base and count, IPv4 inside IPv6, zones, users, other scripts: nothing is resolved."""
    assert refused(runner, f"{scheme}://{user}{spelled}:{trap.port}/") == []
    trap.check()


@settings(deadline=None)
@given(st.data())
def test_one_forbidden_answer_among_good_ones_is_enough(
    trap: Trap, runner: asyncio.Runner, data: st.DataObject
) -> None:
    """At any place in the resolver's answer: no connection to the public ones either."""
    mapped = IPV4.map(lambda address: f"::ffff:{address}")
    local = st.sampled_from(["::1", "fe80::1%lo", "fd00:ec2::254"])
    forbidden = data.draw(IPV4.map(str) | mapped | local)
    answer = data.draw(st.permutations([*data.draw(st.lists(PUBLIC, max_size=3)), forbidden]))
    assert refused(runner, f"http://files.example:{trap.port}/", {"files.example": answer}) == ["files.example"]
    trap.check()


def test_dns_rebinding_gains_nothing(trap: Trap, runner: asyncio.Runner) -> None:
    """The checked address is the one connected to, and each new connection is checked anew."""
    turns = itertools.cycle([["127.0.0.1"], ["127.0.0.2"]])

    class Rebinding(Names):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            self.answers[host] = next(turns)
            return await super().resolve(host, port, family)

    async def send(port: int) -> list[int | str]:
        client = GuardedClient(Allowlist.parse(["127.0.0.1/32"]), resolver=lambda: Rebinding({}))
        outcomes: list[int | str] = []
        for _ in range(4):
            try:
                response = await client.send("GET", f"http://files.example:{port}/")
                await response.close()
                outcomes.append(response.status)
            except Refused as error:
                outcomes.append(str(error))
        await client.close()
        return outcomes

    with host(lambda visit: visit.answer(200)) as there:
        outcomes = runner.run(send(int(there.url.rpartition(":")[2])))
        assert outcomes == [200, "files.example is not a public address (127.0.0.2)"] * 2
        assert len(there.visits) == 2
    trap.check()


@pytest.mark.anyio
@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, gzip", "br", "zstd"])
async def test_no_body_is_decompressed(coding: str) -> None:
    """A compressed body is returned as received: a decompression bomb stays as small as it was sent."""
    bomb = gzip.compress(bytes(50_000_000))
    with host(lambda visit: visit.answer(200, bomb, Content_Encoding=coding)) as there:
        client = GuardedClient(Allowlist.parse(["127.0.0.1"]))
        response = await client.send("GET", there.url)
        assert b"".join([chunk async for chunk in response.iter_bytes()]) == bomb
        await response.close()
        await client.close()


@given(st.ip_addresses(v=4))
def test_every_other_network_is_public(address: ipaddress.IPv4Address) -> None:
    """An IPv4 address outside of `NETWORKS` is public: these tests leave no kind out."""
    closed = any(address in ipaddress.ip_network(network) for network in NETWORKS)
    assert is_public(address) != closed

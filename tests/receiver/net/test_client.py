"""The guarded client: public addresses only, refused before one connection is opened."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from typing import NoReturn

import httpx
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from kling_receiver.net.client import GuardedClient, RequestFailed, Response, request_failed
from kling_receiver.net.guard import Allowlist, Refused, check_url, is_public, join_url, split_url
from tests.support.web import Host, Visit, host
from tests.support.wire import Wire

NOBODY = Allowlist()

FORBIDDEN = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "168.63.129.16",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "fe80::1",
    "fe80::1%25eth0",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "100::1",
    "4000::1",
    "5f00::1",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00::1"]

SPELLINGS = [
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0x7f.0x0.0x0.0x1",
    "017700000001",
    "0177.1",
    "127.0.0.1.",
    "2852039166",
    "0xA9FEA9FE",
    "169.254.43518",
    "0",
    "0x0",
    "10.1",
    "3232235777",
]
"""Loopback, metadata and private addresses in forms that only a resolver reads."""


def written(address: str) -> str:
    """An address as written in a URL."""
    return f"[{address}]" if ":" in address else address


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/x",
        "https://a.localhost:1/",
        "http://LOCALHOST./",
        "http://example.com:0/",
        "http://.../",
        "http://a..b/",
        "http://xn--/",
    ],
)
def test_invalid_hosts_are_refused_as_written(url: str) -> None:
    """This machine by name, a port that is not valid, a name with an empty label."""
    with pytest.raises(Refused):
        check_url(url, NOBODY)
    with pytest.raises(Refused):
        check_url(url, Allowlist.parse(["files.example"]))


def test_this_machine_by_name_may_be_allowed() -> None:
    """By its name, with or without the port; or by a network, against which its address is checked."""
    for entry in ("localhost", "localhost:8080", "127.0.0.0/8"):
        check_url("http://localhost:8080/x", Allowlist.parse([entry]))


@pytest.mark.parametrize("address", FORBIDDEN)
def test_forbidden_addresses_are_refused_as_written(address: str) -> None:
    """Private, loopback, link-local, shared, metadata and multicast addresses, and IPv4 inside IPv6."""
    assert not is_public(ipaddress.ip_address(address.partition("%")[0]))
    for url in (f"http://{written(address)}/x", f"https://{written(address)}:8443/"):
        with pytest.raises(Refused):
            check_url(url, NOBODY)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    """Addresses of the public Internet are allowed."""
    assert is_public(ipaddress.ip_address(address))
    assert httpx.URL(check_url(f"https://{written(address)}/x?y=1", NOBODY)).host == address


@pytest.mark.parametrize("host_name", SPELLINGS)
def test_other_spellings_of_an_address_are_that_address(host_name: str) -> None:
    """Decimal, octal, hexadecimal and shortened IPv4 is refused like the address that it means."""
    with pytest.raises(Refused):
        check_url(f"http://{host_name}/", NOBODY)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "data:text/plain,x",
        "javascript:alert(1)",
        "//example.com/",
        "example.com",
        "",
        "http://",
        "http:///path",
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://:password@example.com/",
        "http://example.com@127.0.0.1/",
        "http://example.com:99999/",
        "http://example.com:-1/",
        "http://[::1",
        "http://[fe80::1%eth0]/",
        "http://exa mple.com/",
        "http://example.com\\@127.0.0.1/",
        "http://\x00/",
        "http://" + "a" * 70_000,
        "HTTP://127.0.0.1/",
        "http://\u2460\u2461\u2466.0.0.1/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://127\u30020\u30020\u30021/",
    ],
)
def test_a_text_that_is_not_a_web_url_is_refused(url: str) -> None:
    """Other schemes, users, ports and characters never reach a resolver."""
    with pytest.raises(Refused):
        check_url(url, NOBODY)


@given(st.ip_addresses(v=4))
def test_every_ipv4_address_in_every_spelling(address: ipaddress.IPv4Address) -> None:
    """An address that is not public is refused, also mapped, translated, in 6to4, as a number, in hex."""
    number = int(address)
    inside = [
        f"[::ffff:{address}]",
        f"[64:ff9b::{address}]",
        f"[{ipaddress.IPv6Address(0x2002 << 112 | number << 80)}]",
        f"[::{address}]",
    ]
    for spelled in inside:
        with pytest.raises(Refused):
            check_url(f"http://{spelled}/", NOBODY)
    for spelled in (str(address), str(number), hex(number), oct(number).replace("o", "")):
        if is_public(address):
            check_url(f"http://{spelled}/", NOBODY)
        else:
            with pytest.raises(Refused):
                check_url(f"http://{spelled}/", NOBODY)


@given(st.ip_addresses(v=6))
def test_every_ipv6_address(address: ipaddress.IPv6Address) -> None:
    """Only addresses that are global by the standard library, in the allocated range, are public."""
    if is_public(address):
        assert address.is_global
        assert str(address)[0] in "23"
        assert (address.teredo, address.sixtofour, address.ipv4_mapped) == (None, None, None)


@given(st.text(max_size=40))
def test_no_text_breaks_the_check(text: str) -> None:
    """Any text in place of a URL is accepted or refused."""
    for url in (text, f"http://{text}", f"http://{text}/x", f"https://a:{text}/", f"http://[{text}]/"):
        with contextlib.suppress(Refused):
            assert check_url(url, NOBODY)


# --- names, and real connections ---------------------------------------------------------------------------


class Names(AbstractResolver):
    """A resolver with answers by the test; `asked` are the names that were resolved."""

    def __init__(self, answers: dict[str, list[str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        self.asked.append(host)
        if host not in self.answers:
            raise OSError(f"no such name: {host}")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self.answers[host]
        ]

    async def close(self) -> None:
        pass


@pytest.fixture
def trap() -> Iterator[socket.socket]:
    """A listening socket on loopback that must receive no connection."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening
        with pytest.raises(BlockingIOError):
            listening.accept()


async def body(response: Response) -> bytes:
    """Read a response to its end, and close it."""
    try:
        return b"".join([chunk async for chunk in response.iter_bytes()])
    finally:
        await response.close()


def guarded(allowed: Allowlist = NOBODY, **answers: list[str]) -> GuardedClient:
    """A client for which names resolve to `answers`."""
    return GuardedClient(
        allowed, resolver=lambda: Names({name.replace("_", "."): each for name, each in answers.items()})
    )


@pytest.mark.anyio
@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["127.0.0.1", "8.8.8.8"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["fe80::1%eth0"],
        ["169.254.169.254"],
        ["2606:4700:4700::1111", "10.0.0.1"],
    ],
)
async def test_a_name_with_one_forbidden_address_is_refused(trap: socket.socket, addresses: list[str]) -> None:
    """Among any number of public ones: no connection is opened to any of them."""
    client = guarded(rebound_example=addresses)
    with pytest.raises(Refused, match="not a public address"):
        await client.send("GET", f"http://rebound.example:{trap.getsockname()[1]}/")
    await client.close()


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "localhost.", "ip6-localhost", "127.1", "2130706433", "0"])
async def test_names_of_this_machine_are_refused(trap: socket.socket, name: str) -> None:
    """By the machine's own resolver, in every spelling."""
    client = GuardedClient(NOBODY)
    with pytest.raises((Refused, RequestFailed)):
        await client.send("GET", f"http://{name}:{trap.getsockname()[1]}/")
    await client.close()


@pytest.mark.anyio
@pytest.mark.parametrize("address", ["127.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]"])
async def test_literal_addresses_are_refused_without_a_connection(trap: socket.socket, address: str) -> None:
    """An address needs no resolver, and is refused as well."""
    client = GuardedClient(NOBODY)
    with pytest.raises(Refused):
        await client.send("GET", f"http://{address}:{trap.getsockname()[1]}/")
    await client.close()


@pytest.mark.anyio
async def test_the_checked_address_is_the_one_connected_to() -> None:
    """A name is resolved once for each connection: a later answer of the resolver has no effect on it."""

    class Rebinding(Names):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            found = await super().resolve(host, port, family)
            self.answers[host] = ["10.0.0.1"]
            return found

    names = Rebinding({"files.example": ["127.0.0.1"]})
    client = GuardedClient(Allowlist.parse(["127.0.0.1"]), resolver=lambda: names)
    with host(lambda visit: visit.answer(200, b"here")) as there:
        port = there.url.rpartition(":")[2]
        response = await client.send("GET", f"http://files.example:{port}/")
        assert await body(response) == b"here"
        assert names.asked == ["files.example"]
        assert there.visits[0].headers["Host"] == f"files.example:{port}"
        with pytest.raises(Refused):
            await client.send("GET", f"http://files.example:{port}/")
    await client.close()


@pytest.fixture
def there() -> Iterator[Host]:
    """A host on loopback that responds, or redirects."""

    def respond(visit: Visit) -> None:
        visit.answer(302 if visit.path == "/away" else 200, b"here", Location="http://10.0.0.1/", Set_Cookie="a=b")

    with host(respond) as there:
        yield there


@pytest.fixture
async def reached() -> AsyncIterator[asyncio.Queue[GuardedClient]]:
    """The clients of a test, closed at its end."""
    clients: asyncio.Queue[GuardedClient] = asyncio.Queue()
    yield clients
    while not clients.empty():
        await clients.get_nowait().close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("entry", "opens"),
    [
        ("127.0.0.1", True),
        ("127.0.0.0/8", True),
        ("127.0.0.1:{port}", True),
        ("127.0.0.1:1", False),
        ("10.0.0.0/8", False),
        ("localhost", False),
        ("::/0", False),
        ("files.example", False),
    ],
)
async def test_an_allowed_address_is_reached(there: Host, entry: str, opens: bool) -> None:
    """A host, a network or one port of a host, by the setting of the purpose."""
    port = there.url.rpartition(":")[2]
    client = GuardedClient(Allowlist.parse([entry.format(port=port)]))
    if opens:
        response = await client.send("GET", there.url)
        assert await body(response) == b"here"
    else:
        with pytest.raises(Refused):
            await client.send("GET", there.url)
        assert there.visits == []
    await client.close()


@pytest.mark.anyio
@pytest.mark.parametrize("entry", ["files.example", "FILES.example:{port}", "127.0.0.0/8"])
async def test_an_allowed_name_may_be_private(there: Host, entry: str) -> None:
    """By its name with any address, or by the network that contains its address."""
    port = there.url.rpartition(":")[2]
    client = guarded(Allowlist.parse([entry.format(port=port)]), files_example=["127.0.0.1"])
    response = await client.send("GET", f"http://files.example:{port}/")
    assert response.status == 200
    await response.close()
    await client.close()


@pytest.mark.anyio
async def test_redirects_are_not_followed_and_cookies_not_kept(there: Host) -> None:
    """A redirect is returned for the caller to check; a cookie is dropped."""
    client = GuardedClient(Allowlist.parse(["127.0.0.1"]))
    for path in ("/away", "/"):
        response = await client.send("GET", there.url + path)
        await response.close()
    assert [visit.path for visit in there.visits] == ["/away", "/"]
    assert "Cookie" not in there.visits[1].headers
    await client.close()


@pytest.mark.anyio
async def test_proxies_of_the_environment_are_ignored(there: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect to addresses that were not checked."""
    with host(lambda visit: visit.answer(500)) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        client = GuardedClient(Allowlist.parse(["127.0.0.1"]))
        response = await client.send("GET", there.url)
        assert response.status == 200
        await response.close()
        await client.close()
        assert proxy.visits == []


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["unknown.example", "a..example", "a" * 64 + ".example", ".", "-"])
async def test_names_that_do_not_resolve(name: str) -> None:
    """An unknown name may exist later; a text that cannot be a name is refused."""
    client = GuardedClient(NOBODY, resolver=lambda: Names({}))
    with pytest.raises((RequestFailed, Refused)):
        await client.send("GET", f"http://{name}/")
    await client.close()
    client = GuardedClient(NOBODY)
    if name != "unknown.example":
        with pytest.raises((RequestFailed, Refused)):
            await client.send("GET", f"http://{name}/")
    await client.close()


# --- errors and responses ----------------------------------------------------------------------------------


@pytest.fixture
async def client() -> AsyncIterator[GuardedClient]:
    """A client that may reach loopback."""
    client = GuardedClient(Allowlist.parse(["127.0.0.1"]))
    yield client
    await client.close()


@pytest.mark.anyio
async def test_a_closed_port_is_an_ordinary_error(client: GuardedClient) -> None:
    """An allowed address that refuses connections is for the caller to retry; the system's text says why."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(RequestFailed, match=r"^the host cannot be reached: Connection refused$"):
        await client.send("GET", f"http://127.0.0.1:{port}/")


@pytest.mark.anyio
async def test_an_unknown_name_is_told_in_the_system_s_words() -> None:
    """The resolver's own text, without the number of its error."""

    class Unknown(Names):
        async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> NoReturn:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    client = GuardedClient(NOBODY, resolver=lambda: Unknown({}))
    with pytest.raises(RequestFailed, match=r"^the host cannot be reached: Name or service not known$"):
        await client.send("GET", "http://files.example/")
    await client.close()


@pytest.mark.anyio
async def test_tls_errors_say_what_is_wrong(client: GuardedClient) -> None:
    """A host without TLS, and a certificate that no CA has signed."""
    with host(lambda visit: visit.answer(200)) as plain, pytest.raises(RequestFailed, match="WRONG_VERSION_NUMBER"):
        await client.send("GET", plain.url.replace("http:", "https:"))
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed (_ssl.c:1000)")
    error.verify_message = "self-signed certificate"
    assert str(request_failed(error, 1)) == "the host cannot be reached: self-signed certificate"


HALF_A_BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
DISCONNECTED = "the host closed the connection before the response was complete"
NO_HTTP = "the response is not valid HTTP"
BROKEN = {
    "nothing": (b"", DISCONNECTED),
    "half a head": (b"HTTP/1.1 200 OK\r\nX-Half: ", DISCONNECTED),
    "half a body": (HALF_A_BODY, DISCONNECTED),
    "garbage": (b"\0\1\2\r\n\r\n", NO_HTTP),
    "garbage for a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", NO_HTTP),
    "a huge header": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", NO_HTTP),
}


@pytest.mark.anyio
@pytest.mark.parametrize(("sent", "message"), BROKEN.values(), ids=BROKEN.keys())
async def test_a_broken_response_is_one_kind_of_error(client: GuardedClient, sent: bytes, message: str) -> None:
    """Whether the head or the body is broken, the caller sees `RequestFailed`."""
    with Wire(sent) as wire, pytest.raises(RequestFailed, match=f"^{message}$"):
        await body(await client.send("GET", wire.url))


@pytest.mark.anyio
@pytest.mark.parametrize("sent", [b"", HALF_A_BODY], ids=["no head", "half a body"])
async def test_a_silent_host_is_given_up_after_the_read_timeout(client: GuardedClient, sent: bytes) -> None:
    """Before the head of the response, and amid its body."""
    with Wire(sent, hold=1) as wire, pytest.raises(RequestFailed, match=r"^the host sent nothing for 0\.1 s$"):
        await body(await client.send("GET", wire.url, read_timeout=0.1))


@pytest.mark.anyio
async def test_a_malformed_chunk_amid_a_body_ends_in_the_read_timeout_at_the_latest(client: GuardedClient) -> None:
    """The first chunk is good, the second, which arrives later, is not: the body has an end all the same."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        await reading.wait()
        writer.write(b"zz\r\n")
        await writer.drain()
        writer.close()

    reading = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        response = await client.send("GET", address, read_timeout=0.3)
        chunks = response.iter_bytes()
        assert await anext(chunks) == b"hello"
        reading.set()
        with pytest.raises(RequestFailed):
            await anext(chunks)
        await response.close()


@pytest.mark.anyio
async def test_headers_are_found_in_any_case_and_encoding(client: GuardedClient) -> None:
    """Bytes that are not UTF-8 are Latin-1; the values of a repeated header are joined."""
    with Wire(b"HTTP/1.1 302 Found\r\netag: \xe9\r\nX-A: 1\r\nx-a: 2\r\nLOCATION: /x\r\n\r\n") as wire:
        response = await client.send("GET", wire.url)
        await response.close()
    assert [response.headers.get(name) for name in ("ETag", "x-A", "None")] == ["\xe9", "1, 2", None]
    assert (response.status, response.is_redirect, response.location) == (302, True, b"/x")


@pytest.mark.anyio
@pytest.mark.parametrize(("status", "is_redirect"), [(200, False), (300, True), (304, True), (404, False)])
async def test_only_redirects_have_a_location(client: GuardedClient, status: int, is_redirect: bool) -> None:
    """The header means something else, or nothing, with another status."""
    with host(lambda visit: visit.answer(status, Location="http://10.0.0.1/")) as there:
        response = await client.send("GET", there.url)
        await response.close()
    assert (response.is_redirect, response.location) == (is_redirect, None)


# --- the setting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    ["", "http://host", "host/path", "user@host", "*", "host:port", "a b", ":80", "host?x", "[::1]:x", "h:-1"],
)
def test_entries_that_are_none_of_the_three(entry: str) -> None:
    """An invalid entry of the setting is an error at start."""
    with pytest.raises(ValueError, match="neither a host, nor a network, nor host:port"):
        Allowlist.parse([entry])


@pytest.mark.parametrize(
    ("entry", "name", "port"),
    [
        ("Host.Example", "host.example", 1),
        ("host.example:80", "HOST.example", 80),
        ("[::1]:8080", "::1", 8080),
    ],
)
def test_entries_name_hosts(entry: str, name: str, port: int) -> None:
    """In any letters, with or without a port; another port is another entry."""
    assert Allowlist.parse([entry]).permits(name, port)
    assert Allowlist.parse([entry]).permits(name, port + 1) == (entry == "Host.Example")


def test_entries_name_networks() -> None:
    """Both kinds of address, with or without brackets."""
    allowed = Allowlist.parse(["10.0.0.0/8", "fd00::/8", "[::1]"])
    for address in ("10.1.2.3", "fd00::5", "::1"):
        assert allowed.permits("name", 80, ipaddress.ip_address(address))
    assert not allowed.permits("name", 80, ipaddress.ip_address("11.0.0.1"))
    assert not allowed.permits("name", 80)


# --- the request line ----------------------------------------------------------------------------------------


AS_WRITTEN = [
    "/f/kangaroo%20%281%29.mp4?response-content-type=video%2Fmp4&sig=x",
    "/f/a%40b%3Ac.png?e=%7E%2D%2E&s=%e8%af%95",
    "/f/it%27s%21.png?a=b%2Cc+d;e",
    "/a//b/../c/./d;p=1?x=%zz%&y=1?z",
    "/f/plain.png?",
    "/f/plain.png??",
    """/f/(it's)!*~$,:@[1]{2}|^`"<>\\?q=["']{}|\\^`<>""",
    "?only=a-query",
    "",
]


@pytest.mark.anyio
@pytest.mark.parametrize("target", AS_WRITTEN)
@pytest.mark.parametrize("around", ["{}", "  {}\t", "{}\n", "{}#fragment"])
async def test_an_address_is_requested_byte_for_byte(target: str, around: str) -> None:
    """A host may have signed the raw target: nothing is decoded, encoded, or normalized."""
    async with local_client() as client:
        with host(lambda visit: visit.answer(204)) as there:
            response = await client.send("GET", around.format(there.url + target))
            await response.close()
    assert [visit.path for visit in there.visits] == [target if target.startswith("/") else f"/{target}"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("/a b.png?c=d e", "/a%20b.png?c=d%20e"),
        ("/\u888b\u9f20.png?n=\u00e9", "/%E8%A2%8B%E9%BC%A0.png?n=%C3%A9"),
        ("/a\r\nX-Other: 1", "/a%0D%0AX-Other:%201"),
        ("/a\x00\x7f\tb", "/a%00%7F%09b"),
    ],
)
async def test_only_what_no_request_line_holds_is_encoded(target: str, sent: str) -> None:
    """Blanks, control characters, and letters beyond ASCII, which become UTF-8."""
    async with local_client() as client:
        with host(lambda visit: visit.answer(204)) as there:
            await (await client.send("GET", there.url + target)).close()
    assert [visit.path for visit in there.visits] == [sent]


@contextlib.asynccontextmanager
async def local_client() -> AsyncIterator[GuardedClient]:
    """A client that may reach this machine."""
    client = GuardedClient(Allowlist.parse(["127.0.0.1"]))
    yield client
    await client.close()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_what_is_checked_is_what_is_sent(text: str) -> None:
    """Whatever follows the authority, host and port of the request are those that were checked."""
    for suffix in (f"/{text}", f"?{text}", f"#{text}"):
        scheme, authority, target = split_url(check_url(f"HTTPS://files.Example:8443{suffix}", NOBODY))
        assert (scheme, authority) == ("https", "files.example:8443")
        assert target.startswith("/")
        assert all(0x21 <= ord(letter) < 0x7F for letter in target)


@pytest.mark.parametrize(
    ("location", "url"),
    [
        (b"https://cdn.example/f/a%40b.png?s=%e8%af%95&t=%7E", "https://cdn.example/f/a%40b.png?s=%e8%af%95&t=%7E"),
        (b"HTTP://cdn.example/x?", "HTTP://cdn.example/x?"),
        (b"//cdn.example/a%20b;c?", "https://cdn.example/a%20b;c?"),
        (b" /a%2Fb/../c?x=%41 ", "https://one.example:1/a%2Fb/../c?x=%41"),
        (b"?d=%2c", "https://one.example:1/p/q%20r?d=%2c"),
        (b"s%3At?d#e", "https://one.example:1/p/s%3At?d#e"),
        (b"../s", "https://one.example:1/s"),
        (b"../../../s/./t/..", "https://one.example:1/s/"),
        (b"", "https://one.example:1/p/q%20r"),
        (b"/\xe9", "https://one.example:1/%E9"),
        ("/\u00e9".encode(), "https://one.example:1/\u00e9"),
        (b"ftp://x", "ftp://x"),
    ],
)
def test_a_redirect_keeps_its_bytes(location: bytes, url: str) -> None:
    """Only where a relative location needs the base is one put before it."""
    assert join_url("https://one.example:1/p/q%20r?a=b", location) == url

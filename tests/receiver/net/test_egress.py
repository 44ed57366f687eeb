"""Downloads and hooks through the proxy of KLING_EGRESS_PROXY: what it gets, and what is refused before it is asked."""

import socket
from pathlib import Path
from typing import Any

import pytest

from kling_callback import AsyncKling
from kling_callback.errors import SettingsError
from kling_receiver.doctor.checks import Check, run_checks
from kling_receiver.net.client import GuardedClient, RequestFailed, Response
from kling_receiver.net.guard import Allowlist, Refused, check_url
from kling_sandbox import Sandbox
from tests.client.test_environment import plain
from tests.support.proxies import connect_proxy, http_proxy, make_certificate
from tests.support.receiver import KEY, Start, make_settings
from tests.support.receiver import SECRET as SIGNING_SECRET
from tests.support.web import host

__all__ = ["plain"]

pytestmark = pytest.mark.anyio

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


async def get(url: str, proxy: str, *private: str) -> bytes:
    """The body at an address, reached by way of the proxy unless it is one of the private hosts."""
    client = GuardedClient(Allowlist.parse(private, "KLING_PRIVATE_RESULT_HOSTS", proxy))
    try:
        return await body_of(await client.send("GET", url, read_timeout=10))
    finally:
        await client.close()


async def body_of(response: Response) -> bytes:
    return b"".join([chunk async for chunk in response.iter_bytes()])


async def test_https_by_connect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The proxy resolves the name and sees nothing else; the certificate is checked against the name."""
    certificate = make_certificate(tmp_path, "files.example.com")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with (
        host(lambda visit: visit.answer(200, visit.path.encode()), certificate=certificate) as server,
        connect_proxy(server.url) as (proxy, heads),
    ):
        assert await get("https://files.example.com/a?b=%2f", f"http://user:p%40ss@{proxy}") == b"/a?b=%2f"
        with pytest.raises(RequestFailed, match="certificate"):
            await get("https://other.example.com/a", f"http://{proxy}")
    assert heads[0].startswith("CONNECT files.example.com:443 HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic dXNlcjpwQHNz\r\n" in heads[0]
    assert [visit.path for visit in server.visits] == ["/a?b=%2f"]
    assert "Proxy-Authorization" not in server.visits[0].headers


async def test_http_by_the_whole_address() -> None:
    """Byte for byte."""
    with host(lambda visit: visit.answer(200, b"x")) as proxy:
        assert await get("http://files.example.com/a%20b?c=%2c", proxy.url) == b"x"
    assert [visit.path for visit in proxy.visits] == ["http://files.example.com/a%20b?c=%2c"]


@pytest.mark.parametrize(
    "name",
    [
        *("127.0.0.1", "10.0.0.1", "169.254.169.254", "[::1]", "[fd00::1]", "[::ffff:10.0.0.1]", "2130706433", "127.1"),
        *(
            "localhost",
            "a.localhost",
            "intranet",
            "printer.local",
            "metadata.google.internal",
            "nas.lan.",
            "x.home.arpa",
        ),
        *("METADATA.Google.Internal", "user@files.example.com", "0x7f.1"),
    ],
)
async def test_what_the_proxy_is_not_asked_for(name: str) -> None:
    """Private addresses and names that lead into a network."""
    with host(lambda visit: visit.answer(200)) as proxy, connect_proxy(proxy.url) as (tunnel, heads):
        for scheme, address in (("http", proxy.url), ("https", f"http://{tunnel}")):
            with pytest.raises(Refused):
                await get(f"{scheme}://{name}/", address)
    assert (proxy.visits, heads) == ([], [])


async def test_what_is_reached_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Private hosts that the operator lists, by name, address, port and network; and those in NO_PROXY."""
    with host(lambda visit: visit.answer(200, b"direct")) as server, host(lambda visit: visit.answer(200)) as proxy:
        port = server.url.rpartition(":")[2]
        for private in ("127.0.0.1", f"127.0.0.1:{port}", "127.0.0.0/8"):
            assert await get(server.url, proxy.url, private) == b"direct"
        assert await get(f"http://localhost:{port}", proxy.url, "localhost") == b"direct"
        assert await get("http://files.example.com/", proxy.url, "127.0.0.1") == b""
        monkeypatch.setenv("NO_PROXY", "example.com")
        with pytest.raises(RequestFailed, match="cannot be reached"):
            await get("http://no-such-host.example.com:1/", proxy.url)
        monkeypatch.setenv("NO_PROXY", "*")
        with pytest.raises(Refused, match="KLING_PRIVATE_RESULT_HOSTS"):
            await get(server.url, proxy.url)
    assert [visit.path for visit in proxy.visits] == ["http://files.example.com/"]


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_fails_is_named(scheme: str) -> None:
    """By its setting, without its password; a later attempt may succeed."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    with pytest.raises(RequestFailed, match="KLING_EGRESS_PROXY cannot be reached: Connection refused") as raised:
        await get(f"{scheme}://files.example.com/", f"http://user:secret@127.0.0.1:{closed}")
    assert "secret" not in str(raised.value)
    with (
        host(lambda visit: visit.answer(407)) as proxy,
        connect_proxy(proxy.url, status=407) as (tunnel, _),
        pytest.raises(RequestFailed, match="the proxy of KLING_EGRESS_PROXY answered 407"),
    ):
        await get(f"{scheme}://files.example.com/", proxy.url if scheme == "http" else f"http://{tunnel}")


@pytest.mark.parametrize("value", ["socks5://user:secret@h:1", "http://user:secret@h:0", "ftp://secret", "http://"])
def test_a_setting_that_is_no_http_proxy(tmp_path: Path, value: str) -> None:
    """One line that says what to set, without the password."""
    with pytest.raises(SettingsError) as raised:
        make_settings(tmp_path, egress_proxy=value)
    (problem,) = raised.value.problems
    assert problem.startswith("KLING_EGRESS_PROXY is not the address of a proxy that can be used. Set it to one like")
    assert "secret" not in problem
    assert "socks5:" not in problem


def test_the_setting_shows_no_password(tmp_path: Path) -> None:
    """A proxy may be named without its scheme, as in the variables of other programs."""
    settings = make_settings(tmp_path, egress_proxy="user:hidden@proxy:3128/")
    assert settings.result_hosts.proxy == settings.hook_hosts.proxy == "http://user:hidden@proxy:3128"
    assert "hidden" not in repr(settings) + repr(settings.hook_hosts)


def test_hooks_by_names_that_lead_inside_are_refused_at_once(tmp_path: Path) -> None:
    """With the setting; reached directly, the name's address is checked."""
    hook = {"hook_url": "https://shop.internal/x", "hook_secret": SECRET}
    with pytest.raises(SettingsError, match=r"shop\.internal is no public name; .*KLING_PRIVATE_HOOK_HOSTS"):
        make_settings(tmp_path, **hook, egress_proxy="http://proxy:3128")
    make_settings(tmp_path, **hook, egress_proxy="http://proxy:3128", private_hook_hosts=("shop.internal",))
    make_settings(tmp_path, **hook)


@pytest.mark.parametrize("host", ["localhost.localdomain", "kubernetes.default.svc", "wiki.corp.", "NAS.home"])
def test_no_name_that_leads_inside_is_given_to_the_proxy(host: str) -> None:
    """The proxy would resolve it, to its own machine or in its own network."""
    with pytest.raises(Refused, match="is no public name"):
        check_url(f"http://{host}/", Allowlist.parse([], proxy="http://proxy:3128"))


async def test_a_network_whose_only_way_out_is_a_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: Start, gateway: Sandbox
) -> None:
    """Questions by HTTPS_PROXY and CONNECT; files and hooks by KLING_EGRESS_PROXY. No name is resolved here."""
    certificate = make_certificate(tmp_path, "api.example.com")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with (
        http_proxy(gateway.url, certificate=certificate) as kling,
        connect_proxy(kling.url) as (tunnel, heads),
        http_proxy(gateway.url) as out,
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{tunnel}")
        running = start(
            api_base="https://api.example.com",
            egress_proxy=out.url,
            private_result_hosts=(),
            private_hook_hosts=(),
            hook_url="http://shop.example.com/x",
            hook_secret=SECRET,
        )
        async with AsyncKling(
            api_base="https://api.example.com", api_key=KEY, signing_secrets=SIGNING_SECRET, receiver_url=running.url
        ) as client:
            result = await (await client.text_to_image("x")).wait(20)
            assert (await result.images[0].read()).startswith(b"\x89PNG")
        out.wait_for(3)
    assert all(head.startswith("CONNECT api.example.com:443 ") for head in heads)
    assert {visit.method for visit in kling.visits} == {"POST", "GET"}  # the create and the receiver's question
    paths = {visit.path.partition("/files/")[0] for visit in out.visits}
    assert paths == {"http://api.example.com", "http://shop.example.com/x"}
    assert all("Webhook-Signature" in visit.headers for visit in out.visits if visit.method == "POST")


async def test_doctor_tries_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: Start, gateway: Sandbox
) -> None:
    """As `serve` would: questions by one proxy, downloads and hooks by the other."""
    certificate = make_certificate(tmp_path, "api.example.com")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    running = start(api_base=gateway.url)

    async def last_check(**settings: Any) -> Check:
        checks = [check async for check in run_checks(make_settings(tmp_path, receiver_url=running.url, **settings))]
        expected = ["database", "name", "connection", "callback", "links", "key", "egress"]
        assert [check.name for check in checks] == expected
        assert [check.ok for check in checks[:6]] == [True] * 6, checks
        return checks[-1]

    with (
        http_proxy(gateway.url, certificate=certificate) as kling,
        connect_proxy(kling.url) as (questions, asked),
        connect_proxy(kling.url) as (egress, left),
        connect_proxy(kling.url, status=403) as (closed, _),
    ):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{questions}")
        base = "https://api.example.com"
        assert (await last_check(api_base=base, egress_proxy=f"http://{egress}")).ok
        assert len(asked) == len(left) == 1
        refused = await last_check(api_base=base, egress_proxy=f"http://{closed}")
        assert not refused.ok
        assert "the proxy of KLING_EGRESS_PROXY answered 403" in refused.message
        assert (await last_check(api_base=gateway.url, egress_proxy=f"http://{closed}")).ok


async def test_doctor_asks_no_name_server_for_a_name_that_the_proxy_resolves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, start: Start
) -> None:
    """The receiver's public address, from a network without any other way out."""
    certificate = make_certificate(tmp_path, "kling.example.com")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    running = start()
    with http_proxy(running.url, certificate=certificate) as front, connect_proxy(front.url) as (proxy, _):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy}")
        settings = make_settings(tmp_path, receiver_url="https://kling.example.com", api_key="", webhook_secrets=())
        checks = [check async for check in run_checks(settings)]
    assert [check.ok for check in checks] == [True] * 5, checks
    assert checks[1].message == "kling.example.com is reached through the proxy that HTTPS_PROXY names"

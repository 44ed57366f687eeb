"""The way of a request: directly, or through the proxy that the environment names."""

import json
import os
from collections.abc import AsyncIterator

import httpx
import pytest

from kling_callback import AsyncKling, ClientSettings
from kling_callback.api.http import create_client
from kling_callback.api.retry import RetryPolicy
from kling_callback.errors import NotCreated
from kling_sandbox import Sandbox
from tests.support.proxies import http_proxy, socks_proxy
from tests.support.receiver import KEY, SECRET, Running, Start
from tests.support.web import host

pytestmark = pytest.mark.anyio

FAR = "http://kling.test/gateway"
"""An address that only a proxy can reach: no resolver knows it."""


@pytest.fixture
async def http(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """A client, in an environment without proxies."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    async with create_client() as client:
        yield client


async def test_a_socks_proxy_resolves_the_name(monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient) -> None:
    """`socks://` is SOCKS5, as other programs take it."""
    with (
        host(lambda visit: visit.answer(200, visit.path.encode())) as server,
        socks_proxy(server.url) as (proxy, names),
    ):
        for scheme in ("socks5", "socks5h", "socks"):
            monkeypatch.setenv("all_proxy", f"{scheme}://{proxy}")
            assert (await http.get(f"{FAR}/x")).text == "/gateway/x"
    assert names == [b"kling.test"] * 3


async def test_credentials_of_a_proxy_are_sent_to_it(monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient) -> None:
    """As Basic, percent-decoded; the host behind it does not get them."""
    with host(lambda visit: visit.answer(200)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//user:p%40ss@"))
        await http.get(FAR)
        assert (await http.get(f"{proxy.url}/direct")).status_code == 200
    assert [visit.path for visit in proxy.visits] == [FAR, "/direct"]
    assert proxy.visits[0].headers["Proxy-Authorization"] == "Basic dXNlcjpwQHNz"
    assert "Proxy-Authorization" not in proxy.visits[1].headers


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_a_proxy_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient, scheme: str
) -> None:
    """By its variable, without its password."""
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://user:secret@127.0.0.1:1")
    with pytest.raises(httpx.ProxyError, match="through the proxy that ALL_PROXY names") as raised:
        await http.get(FAR)
    assert "secret" not in str(raised.value)


async def test_a_proxy_that_refuses_a_tunnel_is_named(monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient) -> None:
    """Its answer and the variable are in the message."""
    with host(lambda visit: visit.answer(407)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(httpx.ProxyError, match=r"through the proxy that HTTPS_PROXY names"):
            await http.get("https://kling.test")


async def test_a_variable_that_became_unusable_is_an_error_of_the_request(
    monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient
) -> None:
    """Nothing was sent."""
    monkeypatch.setenv("ALL_PROXY", "nonsense://")
    with pytest.raises(httpx.ProxyError, match="ALL_PROXY is not the address of a proxy"):
        await http.get(FAR)


def settings(running: Running) -> ClientSettings:
    """The settings of a client whose Kling is behind a proxy."""
    return ClientSettings.load(
        api_base="http://kling.test", allow_http_api=True, api_key=KEY, signing_secrets=SECRET, receiver_url=running.url
    )


async def test_a_job_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient, gateway: Sandbox, start: Start
) -> None:
    """The client's create and the receiver's question go through the proxy; the receiver itself is called directly."""
    with http_proxy(gateway.url) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        running = start(api_base="http://kling.test", allow_http_api="on")
        async with AsyncKling(settings=settings(running)) as kling:
            task = await kling.text_to_image("x")
            assert len((await task.wait(20)).images) == 1
    assert [(visit.method, visit.path) for visit in proxy.visits] == [
        ("POST", "http://kling.test/v1/images/generations"),
        ("GET", f"http://kling.test/v1/images/generations/{task.task_id}"),
    ]
    assert json.loads(proxy.visits[0].body)["prompt"] == "x"


async def test_a_proxy_that_is_down_stops_a_create(
    monkeypatch: pytest.MonkeyPatch, http: httpx.AsyncClient, start: Start
) -> None:
    """Nothing was sent to Kling; the message names the variable."""
    running = start(api_base="http://kling.test", allow_http_api="on")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with AsyncKling(settings=settings(running), retry=RetryPolicy(max_attempts=1)) as kling:
        with pytest.raises(NotCreated, match="through the proxy that ALL_PROXY names"):
            await kling.text_to_image("x")

"""Proxies and CA certificates of the environment: which is used for what, and what is said of one that cannot be."""

import os
import sys
from pathlib import Path
from typing import Any

import certifi
import pytest

from kling_callback import environment
from kling_callback.environment import (
    TLS_VARIABLES,
    EnvironmentProblem,
    certificate_problems,
    is_excluded,
    proxy_for,
    tls_context,
)
from kling_callback.errors import SettingsError
from kling_callback.settings import TO_CREATE, TO_WAIT, ClientSettings
from tests.client.test_settings import GOOD

KLING = "https://api.example.com/v1"


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no certificate of the developer's own."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name in TLS_VARIABLES]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "url", "proxy"),
    [
        ({}, KLING, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, KLING, ("http://proxy:3128", "HTTPS_PROXY")),
        (
            {"https_proxy": "http://proxy:3128", "HTTPS_PROXY": "http://x:1"},
            KLING,
            ("http://proxy:3128", "https_proxy"),
        ),
        ({"https_proxy": "", "HTTPS_PROXY": "http://x:1"}, KLING, None),
        ({"HTTP_PROXY": "http://proxy:3128"}, KLING, None),
        ({"HTTP_PROXY": "http://proxy:3128"}, "http://a.example", ("http://proxy:3128", "HTTP_PROXY")),
        ({"HTTPS_PROXY": "proxy:3128"}, KLING, ("http://proxy:3128", "HTTPS_PROXY")),
        ({"HTTPS_PROXY": "user:secret@proxy"}, KLING, ("http://user:secret@proxy", "HTTPS_PROXY")),
        ({"HTTPS_PROXY": " HTTP://proxy:3128/ "}, KLING, ("http://proxy:3128/", "HTTPS_PROXY")),
        ({"HTTPS_PROXY": "https://proxy"}, KLING, ("https://proxy", "HTTPS_PROXY")),
        ({"ALL_PROXY": "socks5://127.0.0.1:7890"}, KLING, ("socks5://127.0.0.1:7890", "ALL_PROXY")),
        ({"ALL_PROXY": "socks5h://[::1]:7890"}, KLING, ("socks5h://[::1]:7890", "ALL_PROXY")),
        ({"all_proxy": "socks://127.0.0.1:7891/"}, KLING, ("socks5://127.0.0.1:7891/", "all_proxy")),
        ({"ALL_PROXY": "socks5://x:1", "HTTPS_PROXY": "http://y:2"}, KLING, ("http://y:2", "HTTPS_PROXY")),
        ({"ALL_PROXY": "http://x:1", "NO_PROXY": "example.com"}, KLING, None),
        ({"ALL_PROXY": "http://x:1", "no_proxy": "*"}, KLING, None),
        ({"ALL_PROXY": "nonsense://"}, "http://127.0.0.1:8000", None),
        ({"ALL_PROXY": "nonsense://"}, "http://[::1]:8000", None),
        ({"ALL_PROXY": "nonsense://"}, "http://localhost", None),
        ({"ALL_PROXY": "nonsense://"}, "http://LOCALHOST.:8000", None),
        ({"ALL_PROXY": "nonsense://"}, "http://0.0.0.0:8000", None),
        ({"ALL_PROXY": "nonsense://"}, "http://[::ffff:127.0.0.1]:8000", None),
    ],
)
def test_the_proxy_for_an_address(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, proxy: tuple[str, str] | None
) -> None:
    """The variable for the scheme, then ALL_PROXY; small letters first; loopback needs none, whatever they contain."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == proxy


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"])
@pytest.mark.parametrize(
    "value",
    [
        "socks4://user:secret@127.0.0.1:1080",
        "ftp://user:secret@proxy",
        "http://",
        "://secret",
        "http://user:secret@proxy:0",
        "http://user:secret@proxy:99999",
        "http://user:secret@proxy:port",
        "http://user:secret@[::1",
        "http://user:secret@pro xy:1",
        "socks5://",
        "secret\x1b[0m:1",
        "http://\u0661\u0662:secret@\u200b",
    ],
)
def test_a_proxy_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The message begins with the variable as it is spelt, says what to do, and shows no password."""
    monkeypatch.setenv(name, value)
    with pytest.raises(EnvironmentProblem) as raised:
        proxy_for(KLING)
    message = str(raised.value)
    assert message.startswith(f"{name} is not the address of a proxy")
    assert "Set it to" in message
    assert "secret" not in message


def test_a_socks_proxy_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, the message names the variable and what to install."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:7890")
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(EnvironmentProblem, match=r"ALL_PROXY is a SOCKS proxy.* Run: pip install '.\[socks\]'"):
        proxy_for(KLING)


@pytest.mark.parametrize(
    ("no_proxy", "excluded"),
    [
        ("", False),
        ("*", True),
        ("other.com, *", True),
        ("example.com", True),
        ("EXAMPLE.com.", True),
        (".example.com", True),
        ("*.example.com", True),
        ("api.example.com:443", True),
        ("api.example.com:8443", False),
        ("https://api.example.com/", True),
        ("localhost,other.com example.com", True),
        ("ample.com", False),
        ("com.example", False),
        (".", False),
        (":", False),
        ("[", False),
        ("[::1]:x,::1,10.0.0.0/8", False),
        ("other.com;example.com", True),
        ("other.com,\texample.com ,", True),
        ("example.com:*", True),
        ("*:443", True),
        ("*:80", False),
    ],
)
def test_hosts_without_a_proxy(no_proxy: str, excluded: bool) -> None:
    """A host, a domain, a port, in any usual form; what is malformed matches nothing."""
    assert is_excluded("api.example.com", 443, no_proxy) is excluded


@pytest.mark.parametrize(
    ("host", "no_proxy", "excluded"),
    [
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("10.1.2.3", "10.1.2.3:443", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.0.0.0/8:443", True),
        ("10.1.2.3", "10.0.0.0/255.0.0.0", True),
        ("10.1.2.3", "10.1", False),
        ("::ffff:10.1.2.3", "10.0.0.0/8", True),
        ("fd00::1", "[fd00::]/8", True),
        ("fd00::1", "fd00::/8", True),
        ("fd00::1", "[fd00::1]", True),
        ("fd00::1", "[fd00::1]:443", True),
        ("fd00::1", "[fd00::1]:80", False),
        ("fd00::1", "10.0.0.0/8", False),
    ],
)
def test_networks_without_a_proxy(host: str, no_proxy: str, excluded: bool) -> None:
    """Addresses of both kinds, and networks."""
    assert is_excluded(host, 443, no_proxy) is excluded


def problems(**settings: Any) -> list[str]:
    """The problems of these settings."""
    with pytest.raises(SettingsError) as raised:
        ClientSettings.load(**settings)
    return raised.value.problems


def test_a_proxy_is_a_problem_of_the_settings_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the addresses that are called: Kling for creates, the receiver for all; with the other problems, and once."""
    monkeypatch.setenv("ALL_PROXY", "nonsense://")
    assert [each.split()[0] for each in problems(**GOOD)] == ["ALL_PROXY"]
    assert [each.split()[0] for each in problems(**{**GOOD, "api_key": "a b"})] == ["ALL_PROXY", "KLING_API_KEY:"]
    local = {**GOOD, "receiver_url": "http://127.0.0.1:8000"}
    ClientSettings.load(require=TO_WAIT, **local)
    ClientSettings.load(require=TO_WAIT, **GOOD, receiver_internal_url="http://localhost:8000")
    ClientSettings.load(require=TO_CREATE, **local, api_base="http://127.0.0.1:1")
    assert problems(**local)
    assert problems(**GOOD, require=TO_WAIT)
    ClientSettings.load(require=(), **GOOD)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SSL_CERT_FILE", "/nonexistent.pem", "SSL_CERT_FILE cannot be used: No such file or directory. Set it to"),
        ("SSL_CERT_FILE", "/", "SSL_CERT_FILE cannot be used: "),
        ("SSL_CERT_FILE", "/dev/null", "SSL_CERT_FILE cannot be used: it holds no certificate in PEM. Set it to"),
        ("SSL_CERT_DIR", "/nonexistent", "SSL_CERT_DIR is not a folder. Set it to"),
        ("SSLKEYLOGFILE", "/nonexistent/x", "SSLKEYLOGFILE cannot be written: No such file or directory. Remove it."),
    ],
)
def test_certificates_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    """A problem of the settings of every command, beside the others."""
    monkeypatch.setenv(name, value)
    (first, second) = problems(require=(), api_base="nonsense")
    assert first.startswith(message)
    assert second.startswith("KLING_API_BASE")


def test_certificates_that_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file goes before the folder; empty variables are not set; a change is noticed."""
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    assert certificate_problems() == []
    assert tls_context().get_ca_certs()
    monkeypatch.setenv("SSL_CERT_FILE", "")
    assert certificate_problems() == ["SSL_CERT_DIR is not a folder. Set it to one with CA certificates, or remove it."]
    monkeypatch.setenv("SSL_CERT_DIR", f"/nonexistent{os.pathsep}{tmp_path}")
    assert certificate_problems() == []
    assert tls_context().get_ca_certs() == []


def test_proxies_of_the_system_with_their_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and macOS have both; simulated, as they exclude what NO_PROXY would."""
    monkeypatch.setattr(environment, "getproxies", lambda: {"https": "http://proxy:3128"})
    monkeypatch.setattr(environment, "proxy_bypass", lambda host: host == "a.corp.example")
    assert proxy_for("https://a.corp.example") == ("http://proxy:3128", "HTTPS_PROXY (of the system's settings)")
    environment._is_excluded_by_system.cache_clear()
    monkeypatch.setattr(sys, "platform", "win32")
    assert proxy_for("https://a.corp.example") is None
    assert proxy_for(KLING) == ("http://proxy:3128", "HTTPS_PROXY (of the system's settings)")
    environment._is_excluded_by_system.cache_clear()
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert proxy_for("https://a.corp.example") == ("http://proxy:3128", "HTTPS_PROXY")
    environment._is_excluded_by_system.cache_clear()


def test_without_a_variable_no_certificate_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that need no TLS start fast."""
    before = environment._context.cache_info().misses
    assert certificate_problems() == []
    assert environment._context.cache_info().misses == before

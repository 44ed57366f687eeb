"""The client's settings: their sources, and the messages about their problems."""

import os
from pathlib import Path
from typing import Any

import pytest

from kling_callback.errors import SettingsError
from kling_callback.protocol.signing import key_fingerprint
from kling_callback.protocol.urls import is_loopback, may_be_loopback, normalize_public_url, normalize_url
from kling_callback.settings import TO_CALL, TO_CREATE, TO_WAIT, ClientSettings, split

SECRET = "a-signing-secret-for-tests-0123456789"
GOOD = {"api_key": "key", "signing_secrets": SECRET, "receiver_url": "https://receiver.example"}


def problems(require: tuple[str, ...] = TO_CREATE, /, **values: Any) -> list[str]:
    """The problems of some settings."""
    with pytest.raises(SettingsError) as error:
        ClientSettings.load(require=require, **values)
    return error.value.problems


def test_good_settings_need_three_things() -> None:
    """A key, a secret and the receiver's address are enough; Kling's own address is the default."""
    settings = ClientSettings.load(**GOOD)
    assert settings.api_base == "https://api-singapore.klingai.com"
    assert settings.signing_secrets == (SECRET,)
    assert settings.receiver_base == "https://receiver.example"


def test_each_setting_comes_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """KLING_ and the name, in the environment; several secrets are separated by commas."""
    monkeypatch.setenv("KLING_ACCESS_KEY", "access")
    monkeypatch.setenv("KLING_SECRET_KEY", " secret ")
    monkeypatch.setenv("KLING_SIGNING_SECRETS", f"{SECRET}, {SECRET}2,")
    monkeypatch.setenv("KLING_RECEIVER_URL", "http://localhost:8000/")
    monkeypatch.setenv("KLING_RECEIVER_INTERNAL_URL", "http://receiver:8000/in/")
    monkeypatch.setenv("KLING_API_BASE", "https://gateway.example/kling/v1/")
    settings = ClientSettings.load()
    assert (settings.access_key, settings.secret_key) == ("access", "secret")
    assert settings.signing_secrets == (SECRET, f"{SECRET}2")
    assert settings.receiver_url == "http://localhost:8000"
    assert settings.receiver_base == "http://receiver:8000/in"
    assert settings.api_base == "https://gateway.example/kling"


def test_a_dot_env_file_works_and_the_environment_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments before the environment before `.env`; an empty variable is none."""
    (tmp_path / ".env").write_text(f"KLING_API_KEY=file\nKLING_RECEIVER_TOKEN=file\nKLING_SIGNING_SECRETS={SECRET}\n")
    monkeypatch.setenv("KLING_RECEIVER_TOKEN", "environment")
    monkeypatch.setenv("KLING_API_KEY", "")
    settings = ClientSettings.load(require=())
    assert (settings.api_key, settings.receiver_token) == ("file", "environment")
    assert ClientSettings.load(require=(), receiver_token="argument").receiver_token == "argument"


def test_a_dot_env_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    """A `.env` of another encoding is reported as such, not as a traceback."""
    (tmp_path / ".env").write_bytes(b"KLING_API_KEY=\xff\xfe")
    assert problems() == [".env cannot be read: it is not UTF-8 text. Fix it, or remove it."]


def test_a_line_of_dot_env_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    """Its setting would be ignored. The lines of other programs do not matter."""
    (tmp_path / ".env").write_text(f"other program\nKLING_API_KEY=key\nexport KLING_RECEIVER_TOKEN='{SECRET}\n")
    assert "KLING_RECEIVER_TOKEN: line 3 of .env cannot be read." in problems()[0]
    (tmp_path / ".env").write_text("other program\nKLING_API_KEY=key\n")
    assert ClientSettings.load(require=()).api_key == "key"


def test_a_dot_env_file_of_windows(tmp_path: Path) -> None:
    """A byte order mark, Windows' line ends, quotes and blanks."""
    lines = [
        "\ufeffKLING_API_KEY = file",
        'KLING_RECEIVER_URL="https://file.example " # ours',
        f"KLING_SIGNING_SECRETS='{SECRET}'",
    ]
    (tmp_path / ".env").write_bytes("\r\n".join(lines).encode())
    settings = ClientSettings.load()
    assert (settings.api_key, settings.receiver_url) == ("file", "https://file.example")


@pytest.mark.parametrize("value", ["", "  ", "\t"])
def test_blanks_are_no_value(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A variable of blanks only is not set: the default holds."""
    monkeypatch.setenv("KLING_API_BASE", value)
    monkeypatch.setenv("KLING_API_KEY", value)
    assert ClientSettings.load(require=()).api_base == "https://api-singapore.klingai.com"
    assert problems()[0].startswith("KLING_API_KEY is missing")


def test_a_dot_env_that_is_no_file(tmp_path: Path) -> None:
    """A folder (of a virtual environment, for instance) holds no settings; a pipe may never end."""
    (tmp_path / ".env").mkdir()
    assert ClientSettings.load(**GOOD).api_key == "key"
    (tmp_path / ".env").rmdir()
    os.mkfifo(tmp_path / ".env")
    assert problems() == [".env cannot be read: it is a pipe. Fix it, or remove it."]


def test_all_missing_settings_are_reported_at_once_each_with_what_to_do() -> None:
    """Without any setting, each missing variable is named, and what to set it to."""
    messages = problems()
    assert [each.split()[0] for each in messages] == ["KLING_API_KEY", "KLING_RECEIVER_URL", "KLING_RECEIVER_TOKEN"]
    assert all(" Set " in each for each in messages)


def test_a_misspelt_setting_is_named_beside_the_missing_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With what is meant, in the environment and in .env: it is why the other is missing."""
    monkeypatch.setenv("KLING_RECIEVER_URL", "https://receiver.example")
    (tmp_path / ".env").write_text("KLING_API_KYE=key\n")
    assert problems()[3:] == [
        "KLING_API_KYE is not a setting. Did you mean KLING_API_KEY?",
        "KLING_RECIEVER_URL is not a setting. Did you mean KLING_RECEIVER_URL?",
    ]


def test_missing_and_malformed_settings_are_reported_together() -> None:
    """A wrong value does not hide that others are missing."""
    messages = problems(api_base="nonsense", receiver_token="with blanks")
    assert [each.split()[0].rstrip(":") for each in messages] == [
        "KLING_API_BASE",
        "KLING_RECEIVER_URL",
        "KLING_RECEIVER_TOKEN",
    ]


@pytest.mark.parametrize("access", ["receiver_token", "signing_secrets"])
def test_access_to_the_receiver_stands_in_for_a_kling_key(
    access: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As an argument, in the environment and in .env; a blank one does not. For calls of Kling itself it never does."""
    url = "https://receiver.example"
    assert ClientSettings.load(receiver_url=url, **{access: SECRET}).key_fingerprint == ""
    monkeypatch.setenv(f"KLING_{access.upper()}", " ")
    assert problems(receiver_url=url)[0].startswith("KLING_API_KEY is missing")
    assert "the receiver sends the creates" in problems(receiver_url=url)[0]
    monkeypatch.setenv(f"KLING_{access.upper()}", SECRET)
    assert ClientSettings.load(receiver_url=url).key_fingerprint == ""
    assert problems(TO_CALL, receiver_url=url)[0].startswith("KLING_API_KEY is missing")
    assert "the receiver sends the creates" not in problems(TO_CALL, receiver_url=url)[0]
    monkeypatch.delenv(f"KLING_{access.upper()}")
    (tmp_path / ".env").write_text(f"KLING_RECEIVER_URL={url}\nKLING_{access.upper()}={SECRET}\n")
    assert ClientSettings.load().key_fingerprint == ""


def test_waiting_needs_no_key() -> None:
    """Calls to the receiver alone need its address, and a token or the secrets."""
    settings = ClientSettings.load(require=TO_WAIT, receiver_url="https://receiver.example", receiver_token="token")
    assert settings.key_fingerprint == ""
    assert len(problems(TO_WAIT)) == 2


def test_nothing_is_required_unless_it_is_named() -> None:
    """The requirements of one load do not reach the next; a misspelt requirement is an error of the program."""
    problems()
    assert ClientSettings.load(require=()).receiver_url == ""
    assert ClientSettings.load(require=["receiver_url"], receiver_url="https://receiver.example").api_key == ""
    with pytest.raises(ValueError, match="ClientSettings has no setting reciever_url"):
        ClientSettings.load(require=["reciever_url"])


def test_half_a_key_pair_is_a_problem() -> None:
    """Access key and secret key work only together."""
    for half in ({"access_key": "a"}, {"secret_key": "s"}):
        (message,) = problems((), **half)
        assert message.startswith("KLING_ACCESS_KEY and KLING_SECRET_KEY")


def test_a_short_secret_is_a_problem_that_does_not_show_it() -> None:
    """The message has its position and a command to make a valid one, but not the secret itself."""
    (message,) = problems((), signing_secrets=f"{SECRET},hunter2")
    assert message.startswith("KLING_SIGNING_SECRETS: secret 2 has fewer than 32")
    assert "hunter2" not in message
    assert "token_urlsafe" in message


@pytest.mark.parametrize("key", ["ключ", "a b", "a\nb"])
def test_a_key_that_no_header_can_carry_is_a_problem(key: str) -> None:
    """A key with blanks or non-ASCII letters was copied wrongly; it is not shown."""
    (message,) = problems((), api_key=key)
    assert message.startswith("KLING_API_KEY: contains blanks")
    assert key not in message


def test_no_secret_is_in_the_repr() -> None:
    """Printed settings contain no keys, secrets or tokens."""
    shown = repr(ClientSettings.load(**{**GOOD, "receiver_token": "the-token", "api_key": "the-key"}))
    assert not any(secret in shown for secret in ("the-token", "the-key", SECRET))


def test_the_account_is_a_fingerprint_of_the_key() -> None:
    """Access key before key; the same key has the same fingerprint, no key has none."""

    def load(**keys: str) -> ClientSettings:
        return ClientSettings.load(require=(), **keys)

    one = load(api_key="k").key_fingerprint
    assert one == load(api_key="k").key_fingerprint != load(api_key="l").key_fingerprint
    both = load(api_key="k", access_key="a", secret_key="s")
    assert both.key_fingerprint != one
    assert both.key_fingerprints == (both.key_fingerprint, one)


def test_two_keys_of_one_account() -> None:
    """Newest first; blanks around them and empty parts are dropped; each access key has its secret key."""
    settings = ClientSettings.load(require=(), api_key=" new, old,", access_key="a,b", secret_key="s,t")
    assert settings.api_keys == ("new", "old")
    assert settings.access_keys == (("a", "s"), ("b", "t"))
    assert settings.key_fingerprints == tuple(map(key_fingerprint, ("a", "b", "new", "old")))
    (message,) = problems((), access_key="a,b", secret_key="s")
    assert message.startswith("KLING_SECRET_KEY has 1 keys for 2 in KLING_ACCESS_KEY. Set one for each")
    (message,) = problems((), api_key="new,with blanks")
    assert message.startswith("KLING_API_KEY: contains blanks")
    assert problems(api_key=",")[0].startswith("KLING_API_KEY is missing")


def test_a_plain_http_base_needs_loopback_or_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key would be readable on the way; a relay in a private network is allowed by KLING_ALLOW_HTTP_API."""
    for base in (
        "http://10.0.0.1/kling",
        "http://relay.example",
        "HTTP://relay",
        "http://localhost.example",
        "http://x.localhost",
    ):
        (message,) = problems((), api_base=base)
        assert message.startswith("KLING_API_BASE: is plain http://")
        assert "KLING_ALLOW_HTTP_API=on" in message
        assert ClientSettings.load(require=(), api_base=base, allow_http_api=True).api_base.startswith("http://")
    for base in ("http://127.0.0.1:1", "http://[::1]:1", "http://localhost", "https://relay"):
        ClientSettings.load(require=(), api_base=base)
    monkeypatch.setenv("KLING_ALLOW_HTTP_API", "maybe")
    assert problems(()) == ["KLING_ALLOW_HTTP_API: must be `on` or `off`."]
    monkeypatch.setenv("KLING_ALLOW_HTTP_API", "on")
    assert ClientSettings.load(require=(), api_base="http://relay").api_base == "http://relay"


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("https://Host.Example:443/a/", "https://host.example/a"),
        ("http://host:80", "http://host"),
        ("http://host:8000", "http://host:8000"),
        ("HTTP://[::1]:80/x", "http://[::1]/x"),
        ("https://host:80", "https://host:80"),
    ],
)
def test_an_address_is_normalized(value: str, address: str) -> None:
    """Capital letters of the host, default ports and slashes at the end make no difference."""
    assert normalize_url(value) == address


@pytest.mark.parametrize(
    "value",
    [
        "",
        "host",
        "ftp://host",
        "https://",
        "https://host?x=1",
        "https://host#x",
        "https://user:pass@host",
        "https://host/a b",
        "https://host\\x",
        "https://host:0",
        "https://host:99999",
        "https://[::1",
        "https://host/\n",
    ],
)
def test_an_invalid_address_is_refused(value: str) -> None:
    """No scheme, no host, a query, a user, blanks, an impossible port."""
    with pytest.raises(ValueError, match="is not an address"):
        normalize_url(value)


def test_plain_http_is_for_loopback_only() -> None:
    """The public address is https, unless it is loopback."""
    assert normalize_public_url("http://127.0.0.2:8000") == "http://127.0.0.2:8000"
    for address in ("http://10.0.0.1", "http://a.localhost"):
        with pytest.raises(ValueError, match="https://"):
            normalize_public_url(address)


def test_loopback_is_detected_by_address_or_name() -> None:
    """localhost, 127/8 and ::1 are loopback; similar names and addresses are not.

    A name below localhost may be: a resolver may send it to a name server, whose answer decides.
    """
    assert all(map(is_loopback, ("localhost", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("x.localhost", "localhost.example", "128.0.0.1", "::2", "")))
    assert all(map(may_be_loopback, ("localhost", "x.localhost", "127.1.2.3", "::1")))
    assert not any(map(may_be_loopback, ("localhost.example", "128.0.0.1", "::2", "")))


def test_split_leaves_other_values_alone() -> None:
    """A tuple given in Python stays one."""
    assert split(("a", "b")) == ("a", "b")

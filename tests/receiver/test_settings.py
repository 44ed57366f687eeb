"""The receiver's settings: every problem told at once, each with what to do, none with a secret in it."""

import base64
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pytest

from kling_callback.errors import SettingsError
from kling_callback.settings import MIN_SIMILARITY, ClientSettings, Expected
from kling_receiver.settings import ReceiverSettings, ServeSettings
from tests.support.receiver import SECRET, make_settings

WHSEC = "whsec_" + base64.b64encode(b"0123456789abcdef").decode()


def problems(settings: type[ReceiverSettings] = ReceiverSettings, /, **given: Any) -> list[str]:
    """What is wrong with some settings."""
    with pytest.raises(SettingsError) as raised:
        settings.load(**given)
    return raised.value.problems


def test_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the few that are needed everything else is as the contract says."""
    for name, value in {"API_KEY": "k", "SIGNING_SECRETS": SECRET, "RECEIVER_URL": "https://x.example"}.items():
        monkeypatch.setenv(f"KLING_{name}", value)
    settings = ServeSettings.load()
    assert settings.callback_max_age == 30 * 86_400
    assert settings.database == f"sqlite:///{tmp_path}/data/kling.db"
    assert settings.results == tmp_path / "data" / "results"
    assert (settings.webhook_signature, settings.overdue_seconds, settings.hook_url) == (
        "when-present",
        None,
        "",
    )
    assert settings.result_hosts.hosts == frozenset()


def test_all_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lists are separated by commas, blanks do not matter."""
    given = {
        "WEBHOOK_SECRETS": f" {WHSEC} , {WHSEC},",
        "WEBHOOK_SIGNATURE": "required",
        "PRIVATE_RESULT_HOSTS": "127.0.0.1, 10.0.0.0/8",
        "PRIVATE_HOOK_HOSTS": "localhost:8080,127.0.0.1",
        "HOOK_URL": "http://127.0.0.1/in?x=1",
        "HOOK_SECRET": WHSEC,
        "STORAGE_URL": f"file://{tmp_path}/files",
        "DATABASE_URL": "postgresql://a:b@c/d",
        "OVERDUE_SECONDS": "1.5",
    }
    for name, value in given.items():
        monkeypatch.setenv(f"KLING_{name}", value)
    settings = ReceiverSettings.load()
    assert settings.webhook_secrets == (WHSEC, WHSEC)
    assert len(settings.result_hosts.networks) == 2
    assert settings.hook_hosts.permits("localhost", 8080)
    assert settings.results == tmp_path / "files"
    assert settings.database == "postgresql://a:b@c/d"


def test_all_problems_are_told_at_once() -> None:
    """Fields that are wrong, and fields that contradict each other, in one look; no secret among them."""
    given = {
        "receiver_url": "http://public.example",
        "signing_secrets": "short-hidden-1",
        "webhook_secrets": "",
        "webhook_signature": "required",
        "database_url": "mysql://user:hidden-2@host/x",
        "storage_url": "ftp://hidden",
        "hook_url": "http://10.0.0.1/?hidden-3",
        "overdue_seconds": -1,
        "callback_max_age": 0,
        "result_max_bytes": "many",
        "private_result_hosts": "http://x",
    }
    found = problems(**given)
    for name in given.keys() - {"webhook_secrets", "hook_url"} | {"hook_secret"}:
        assert any(each.startswith(f"KLING_{name.upper()}") or f"KLING_{name.upper()} " in each for each in found), name
    assert any("is not a public address" in each for each in found)
    assert "hidden" not in " ".join(found)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"webhook_signature": "required"}, "needs KLING_WEBHOOK_SECRETS"),
        ({"webhook_secrets": "not-a-hidden-secret!"}, "whsec_<base64>"),
        ({"webhook_secrets": f"{WHSEC},whsec_aGlkZGVu"}, "too short"),
        ({"hook_secret": "not-a-hidden-secret!"}, "whsec_<base64>"),
        ({"hook_url": "https://x.example"}, "is needed with KLING_HOOK_URL"),
        ({"hook_url": "no address", "hook_secret": WHSEC}, "https://host/path"),
        ({"hook_url": "https://u:hidden@x.example", "hook_secret": WHSEC}, "https://host/path"),
        ({"hook_url": "http://192.168.0.9/", "hook_secret": WHSEC}, "KLING_PRIVATE_HOOK_HOSTS"),
        ({"database_url": "kling.db"}, "sqlite:///path"),
        ({"database_url": "sqlite://"}, "must name a file"),
        ({"database_url": "sqlite:///:memory:"}, "must name a file"),
        ({"database_url": "mysql://x"}, "not mysql"),
        ({"storage_url": "/var/x"}, "file:///"),
        ({"storage_url": "s3://bucket"}, "file:///"),
        ({"private_hook_hosts": "a/b"}, "neither a host"),
        ({"private_result_hosts": "a/b, 10.0.0.0/8, c d, x:y"}, "host:port: 'a/b', 'c d', 'x:y'."),
    ],
)
def test_each_problem_says_what_to_do(given: dict[str, Any], said: str) -> None:
    """In one sentence that begins with the setting's name."""
    [found] = problems(**given)
    assert found.startswith("KLING_")
    assert said in found
    assert "hidden" not in found


def test_what_is_missing_to_serve() -> None:
    """Three things, all named at once; a webhook secret may stand for the key."""
    assert [each.partition(":")[0] for each in problems(ServeSettings)] == [
        *("KLING_SIGNING_SECRETS", "KLING_RECEIVER_URL"),
        "KLING_API_KEY",
    ]
    assert len(problems(ServeSettings, webhook_secrets=WHSEC)) == 2
    assert len(problems(ServeSettings, access_key="a", secret_key="s")) == 2


def test_what_is_missing_and_what_is_wrong_are_told_together() -> None:
    """A key that is wrong is not missing as well."""
    told = problems(ServeSettings, api_key="a b", signing_secrets="short", overdue_seconds="soon")
    assert [each.partition(":")[0] for each in told] == [
        *("KLING_API_KEY", "KLING_SIGNING_SECRETS"),
        *("KLING_RECEIVER_URL", "KLING_OVERDUE_SECONDS"),
    ]


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("overdue_seconds", ["inf", "nan", "-inf", "0", "31536001", "1e300", "soon"], "at most 31536000"),
        ("callback_max_age", ["0", "315360001", "1.5", "9" * 30, "soon"], "whole seconds from 1 to 315360000"),
        ("result_max_bytes", ["0", "9" * 15, "2 GiB"], "whole bytes from 1 to"),
        ("webhook_signature", ["always"], "`when-present` or `required`"),
    ],
)
def test_a_number_has_its_bounds(name: str, values: list[str], said: str) -> None:
    """Whatever is wrong with it, the problem says what it must be."""
    for value in values:
        (told,) = problems(**{name: value})
        assert told.startswith(f"KLING_{name.upper()}: must be ")
        assert said in told


def test_the_largest_numbers_are_taken() -> None:
    """A year, ten years, a tebibyte."""
    ReceiverSettings.load(overdue_seconds=31_536_000, callback_max_age=315_360_000, result_max_bytes=1 << 40)


def test_no_problem_is_told_in_pydantic_s_words() -> None:
    """What is not simply text has a remedy of its own."""
    texts = (str, tuple[str, ...], Path)
    for name, field in ReceiverSettings.model_fields.items():
        assert field.annotation in texts or any(isinstance(each, Expected) for each in field.metadata), name


@pytest.mark.parametrize(
    ("receiver_url", "api_base", "out_of_reach"),
    [
        ("http://127.0.0.1:8000", "https://kling.example", True),
        ("http://localhost:8000", "https://kling.example", True),
        ("https://192.168.1.5", "https://kling.example", True),
        ("https://receiver.example", "https://kling.example", False),
        ("https://8.8.8.8", "https://kling.example", False),
        ("http://127.0.0.1:8000", "http://127.0.0.1:9000", False),
        ("https://10.0.0.5", "https://10.0.0.6", False),
    ],
)
def test_an_address_that_kling_cannot_reach_is_seen(receiver_url: str, api_base: str, out_of_reach: bool) -> None:
    """A private receiver of a public Kling would wait for callbacks in vain."""
    settings = ReceiverSettings.load(receiver_url=receiver_url, api_base=api_base)
    assert ("KLING_RECEIVER_URL" in settings.unreachable_reason) == out_of_reach


def test_no_setting_looks_like_another_misspelt() -> None:
    """What one program does not read, the other's settings for instance, raises no doubt."""
    for mine, others in ((ServeSettings, ClientSettings), (ClientSettings, ServeSettings)):
        known = [f"kling_{name}" for name in mine.model_fields]
        foreign = {f"kling_{name}" for name in others.model_fields} - set(known)
        assert not [name for name in foreign if get_close_matches(name, known, 1, MIN_SIMILARITY)]


def test_a_misspelt_name_raises_a_doubt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the environment or in .env, with the name that is probably meant; other programs' names do not."""
    monkeypatch.setenv("KLING_RECIEVER_URL", "https://example.com")
    monkeypatch.setenv("KLING_SOMETHING_ELSE", "x")
    (tmp_path / ".env").write_text("KLING_STORAGE_ULR=file:///x\nKLING_DATA_DIR=y\nOTHER=1\n")
    assert ServeSettings.unknown_variables() == [
        "KLING_RECIEVER_URL is no setting: nobody reads it. Is KLING_RECEIVER_URL meant?",
        "KLING_STORAGE_ULR is no setting: nobody reads it. Is KLING_STORAGE_URL meant?",
    ]


def test_no_secret_is_shown(tmp_path: Path) -> None:
    """Neither by repr nor by str."""
    settings = make_settings(
        tmp_path,
        api_key="hidden-1",
        signing_secrets="hidden-signing-secret-of-32-letters",
        webhook_secrets=WHSEC,
        hook_url="https://x.example/",
        hook_secret=WHSEC,
        database_url="postgresql://user:hidden@host/x",
    )
    assert "hidden" not in repr(settings) + str(settings)
    assert WHSEC not in repr(settings) + str(settings)

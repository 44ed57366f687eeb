"""The receiver's settings: all problems reported at once, each with what to do, none with a secret in it."""

import base64
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from sqlalchemy import make_url

from kling_callback.errors import SettingsError
from kling_callback.settings import ClientSettings, Expected
from kling_receiver.policy import SlotLimits
from kling_receiver.results.storage import LocalStorage
from kling_receiver.settings import TO_ADMINISTER, TO_SERVE, ReceiverSettings
from kling_receiver.store.database import Database
from tests.support.receiver import SECRET, make_settings

WHSEC = "whsec_" + base64.b64encode(b"0123456789abcdef").decode()


def problems(require: tuple[str, ...] = (), /, **values: Any) -> list[str]:
    """The problems of some settings."""
    with pytest.raises(SettingsError) as raised:
        ReceiverSettings.load(require=require, **values)
    return raised.value.problems


def test_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the few that are required, all others have their documented defaults."""
    for name, value in {"API_KEY": "k", "SIGNING_SECRETS": SECRET, "RECEIVER_URL": "https://x.example"}.items():
        monkeypatch.setenv(f"KLING_{name}", value)
    settings = ReceiverSettings.load(require=TO_SERVE)
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
    """Lists are separated by commas, blanks are ignored."""
    values = {
        "WEBHOOK_SECRETS": f" {WHSEC} , {WHSEC},",
        "WEBHOOK_SIGNATURE": "required",
        "PRIVATE_RESULT_HOSTS": "127.0.0.1, 10.0.0.0/8",
        "PRIVATE_HOOK_HOSTS": "localhost:8080,127.0.0.1",
        "HOOK_URL": "http://127.0.0.1/in?x=1",
        "HOOK_SECRET": WHSEC,
        "STORAGE_URL": f"file://{tmp_path}/files",
        "DATABASE_URL": "postgresql://a:b@c/d",
        "OVERDUE_SECONDS": "1.5",
        "LINKS_URL": " http://Files.example:80/x/ ",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"KLING_{name}", value)
    settings = ReceiverSettings.load()
    assert settings.webhook_secrets == (WHSEC, WHSEC)
    assert len(settings.result_hosts.networks) == 2
    assert settings.hook_hosts.permits("localhost", 8080)
    assert settings.results == tmp_path / "files"
    assert settings.database == "postgresql://a:b@c/d"
    assert settings.links_base == "http://files.example/x"


def test_all_problems_are_reported_at_once() -> None:
    """Invalid fields, and fields that contradict each other, are in one error; no message contains a secret."""
    values = {
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
    messages = problems(**values)
    for name in values.keys() - {"webhook_secrets", "hook_url"} | {"hook_secret"}:
        variable = f"KLING_{name.upper()}"
        assert any(each.startswith(variable) or f"{variable} " in each for each in messages), name
    assert any("is not a public address" in each for each in messages)
    assert "hidden" not in " ".join(messages)


@pytest.mark.parametrize(
    ("values", "part"),
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
        ({"database_url": "sqlite://data/x.db"}, "sqlite:///data/x.db"),
        ({"database_url": "sqlite://data"}, "sqlite:///data "),
        ({"database_url": "sqlite://u:hidden@data/x.db"}, "sqlite:///data/x.db"),
        ({"database_url": "sqlite:///data/a?b.db"}, "%3F"),
        ({"database_url": "sqlite:////"}, "must name a file"),
        ({"database_url": "sqlite:///data/"}, "must name a file"),
        ({"database_url": "sqlite:///a%00b.db"}, "must name a file"),
        ({"database_url": "sqlite:///a%FFb.db"}, "must name a file"),
        ({"data_dir": "~no-such-user/data"}, "absolute path"),
        ({"data_dir": "a\udcff/data"}, "not UTF-8"),
        ({"storage_url": "/var/x"}, "file:///"),
        ({"storage_url": "s3://bucket"}, "file:///"),
        ({"storage_url": "../results"}, "/../results."),
        ({"storage_url": "data/results"}, "/data/results."),
        ({"storage_url": "file:data/results"}, "/data/results."),
        ({"storage_url": "file://data/results"}, "file:///var/lib/kling/results."),
        ({"storage_url": "./a?b"}, "/a%3Fb."),
        ({"storage_url": "~no-such-user/data"}, "file:///var/lib/kling/results."),
        ({"private_hook_hosts": "a/b"}, "neither a host"),
        ({"private_result_hosts": "a/b, 10.0.0.0/8, c d, x:y, z:²"}, "host:port: 'a/b', 'c d', 'x:y', 'z:²'."),
    ],
)
def test_each_problem_says_what_to_do(values: dict[str, Any], part: str) -> None:
    """The message begins with the setting's name, and does not contain a secret."""
    [message] = problems(**values)
    assert message.startswith("KLING_")
    assert part in message
    assert "hidden" not in message


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("", SlotLimits()),
        ("5", SlotLimits(5)),
        ("kling-v3=3", SlotLimits(None, {"kling-v3": 3})),
        (" kling-v3 = 3, 5 ,kling-v2-1=1", SlotLimits(5, {"kling-v3": 3, "kling-v2-1": 1})),
    ],
)
def test_slots_in_total_and_by_model(text: str, limits: SlotLimits) -> None:
    """A number, numbers by model, or both in any order."""
    assert ReceiverSettings.load(concurrency=text).slot_limits == limits


@pytest.mark.parametrize("text", ["0", "-1", "five", "5,6", "=5", "a=b=3", "kling-v3=", "a=1,a=2", "1" * 5000, "٣"])
def test_slots_that_are_none_are_refused(text: str) -> None:
    """The problem names the setting, and shows how it is written."""
    [problem] = problems(concurrency=text)
    assert problem.startswith("KLING_CONCURRENCY")
    assert "kling-v3=3,5" in problem


@pytest.mark.parametrize(
    "value", ["notaproxy", "proxy.example", "ftp://proxy:1", "socks5://proxy:1080", "http://", ":1"]
)
def test_what_is_no_proxy_is_refused(value: str) -> None:
    """A word alone as well: it may be anything."""
    (message,) = problems(egress_proxy=value)
    assert message.startswith("KLING_EGRESS_PROXY is not the address of a proxy that can be used. Set it to one like")


@pytest.mark.parametrize("value", ["proxy:3128", "http://proxy", "https://user:secret@proxy:3128/", "[::1]:3128"])
def test_what_is_a_proxy_is_accepted(value: str) -> None:
    """With a scheme, a port, or both."""
    assert ReceiverSettings.load(egress_proxy=value).egress_proxy.endswith(value.rstrip("/"))


def test_a_hooks_file_is_read_whatever_else_is_wrong() -> None:
    """Its hosts can be checked only with valid private hosts; that it is there, and is TOML, is checked anyway."""
    found = problems(hooks_file="/no", private_hook_hosts="a b", egress_proxy="x", hook_url="ftp://x")
    names = ("KLING_HOOKS_FILE: /no cannot be read", "KLING_PRIVATE_HOOK_HOSTS", "KLING_EGRESS_PROXY", "KLING_HOOK_URL")
    for name in names:
        assert [each for each in found if each.startswith(name)], (name, found)


def test_serving_requires_secrets_an_address_and_a_key() -> None:
    """All missing settings are reported at once; webhook secrets are an alternative to the key."""
    assert [each.partition(":")[0] for each in problems(TO_SERVE)] == [
        *("KLING_SIGNING_SECRETS", "KLING_RECEIVER_URL"),
        "KLING_API_KEY",
    ]
    assert len(problems(TO_SERVE, webhook_secrets=WHSEC)) == 2
    assert len(problems(TO_SERVE, access_key="a", secret_key="s")) == 2


@pytest.mark.parametrize(
    "url", ["postgresql://user:hidden/db", "postgresql://user:hidden:5432/db", "sqlite+aiosqlite:///x.db"]
)
def test_a_malformed_database_url_is_refused_without_its_password(url: str) -> None:
    """Also when the host is forgotten, or the driver is one that the receiver does not use."""
    with pytest.raises(SettingsError) as raised:
        ReceiverSettings.load(database_url=url)
    assert "KLING_DATABASE_URL: " in str(raised.value)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("name", ["./a%20b?c", "d#e", "f g/", "ключ 🦘", "%", ":memory:", "file:x", "sqlite:"])
def test_data_lie_in_that_very_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whatever a URL would make of its name: database, lock and results."""
    monkeypatch.setenv("KLING_DATA_DIR", name)
    settings = ReceiverSettings.load()
    database = Database(settings.database)
    database.acquire_lock()
    database.migrate()
    database.close()
    LocalStorage(settings.results).prepare()
    assert [path.name for path in tmp_path.iterdir()] == [Path(name).name]
    assert {path.name for path in (tmp_path / name).iterdir()} == {"kling.db", "kling.db.lock", "results"}
    assert settings.database_file == tmp_path / name / "kling.db"


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell expands it, which does not read `.env`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ReceiverSettings.load(data_dir="~/kling").results == tmp_path / "home" / "kling" / "results"


def test_a_tilde_in_an_address_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address has none; a folder with that name would be made. The message has the address to write."""
    monkeypatch.setenv("HOME", "/home/me")
    shell = "has a ~, which only a shell replaces. Write"
    assert problems(database_url="sqlite:///~/x.db") == [f"KLING_DATABASE_URL: {shell} sqlite:////home/me/x.db."]
    assert problems(storage_url="file:///~/x") == [f"KLING_STORAGE_URL: {shell} file:///home/me/x."]
    for url in ("~/x", "file://~/x", "file:~/x"):
        assert problems(storage_url=url) == ["KLING_STORAGE_URL: must be a folder's address like file:///home/me/x."]


def test_a_relative_folder_needs_a_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was removed is named as the cause; absolute addresses work."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    messages = problems(database_url="sqlite:///x.db")
    assert [message.partition(":")[0] for message in messages] == ["KLING_DATA_DIR", "KLING_DATABASE_URL"]
    assert all("no longer exists" in message for message in messages)
    assert ReceiverSettings.load(data_dir="/x").results == Path("/x/results")


@pytest.mark.parametrize("url", ["results", "./results", "file:results", "file://results", "file://./results/"])
def test_the_address_of_a_relative_folder_is_named(tmp_path: Path, url: str) -> None:
    """In the error: a file address is absolute."""
    assert problems(storage_url=url) == [
        f"KLING_STORAGE_URL: must be a folder's address like {(tmp_path / 'results').as_uri()}."
    ]


@pytest.mark.parametrize("part", ["a b", "a#b", "a%zz", "100%", "a%20b", "a%3Fb", "a%23b%25"])
def test_addresses_mean_that_very_path(tmp_path: Path, part: str) -> None:
    """Of a database and of a storage alike: `%20` is a blank, and a `%` without digits is itself."""
    name = unquote(part)
    settings = ReceiverSettings.load(
        database_url=f"sqlite:///{tmp_path}/{part}/x.db", storage_url=f"file://{tmp_path}/{part}"
    )
    Database(settings.database).close()
    LocalStorage(settings.results).prepare()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in (tmp_path / name).iterdir()} == {"x.db", ".parts"}


def test_a_relative_path_is_that_of_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the working folder is later."""
    with closing(Database(ReceiverSettings.load(database_url="sqlite:///a/x.db").database)) as database:
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        database.acquire_lock()
        database.migrate()
        with database.write():
            pass
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"x.db", "x.db.lock"}
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgres+psycopg", "POSTGRES", "PostgreSQL"])
def test_postgres_is_postgresql(scheme: str) -> None:
    """As hosts of databases write it; the password stays as it is."""
    settings = ReceiverSettings.load(database_url=f"{scheme}://user:postgres:%40@host/postgres")
    assert make_url(settings.database).get_backend_name() == "postgresql"
    assert make_url(settings.database).password == "postgres:@"


def test_administering_requires_secrets_and_an_address() -> None:
    """A command that signs for a receiver says that the secrets must be the receiver's, or how to make some."""
    secrets, address = problems(TO_ADMINISTER)
    assert secrets.startswith("KLING_SIGNING_SECRETS: is missing")
    assert "Client and receiver need the same secrets." in secrets
    assert "token_urlsafe" in secrets
    assert address.startswith("KLING_RECEIVER_URL: is missing")
    assert problems(("signing_secrets",)) == [secrets]


def test_missing_and_invalid_settings_are_reported_together() -> None:
    """An invalid key is not reported as missing, too."""
    messages = problems(TO_SERVE, api_key="a b", signing_secrets="short", overdue_seconds="soon")
    assert [each.partition(":")[0] for each in messages] == [
        *("KLING_API_KEY", "KLING_SIGNING_SECRETS"),
        *("KLING_RECEIVER_URL", "KLING_OVERDUE_SECONDS"),
    ]


@pytest.mark.parametrize(
    ("name", "values", "part"),
    [
        ("overdue_seconds", ["inf", "nan", "-inf", "0", "31536001", "1e300", "soon"], "at most 31536000"),
        ("callback_max_age", ["0", "315360001", "1.5", "9" * 30, "soon"], "whole seconds from 1 to 315360000"),
        ("result_max_bytes", ["0", "9" * 15, "2 GiB"], "whole bytes from 1 to"),
        ("webhook_signature", ["always"], "`when-present` or `required`"),
    ],
)
def test_a_value_out_of_bounds_is_reported_with_the_bounds(name: str, values: list[str], part: str) -> None:
    """Whatever is wrong with the value, the message says what it must be."""
    for value in values:
        (message,) = problems(**{name: value})
        assert message.startswith(f"KLING_{name.upper()}: must be ")
        assert part in message


def test_the_largest_numbers_are_accepted() -> None:
    """A year, ten years, a tebibyte."""
    ReceiverSettings.load(overdue_seconds=31_536_000, callback_max_age=315_360_000, result_max_bytes=1 << 40)


def test_no_message_is_pydantic_s() -> None:
    """Each field that is not text has an Expected message."""
    texts = (str, tuple[str, ...], Path)
    for name, field in ReceiverSettings.model_fields.items():
        assert field.annotation in texts or any(isinstance(each, Expected) for each in field.metadata), name


@pytest.mark.parametrize(
    ("receiver_url", "api_base", "unreachable"),
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
def test_an_address_that_kling_cannot_reach_is_detected(receiver_url: str, api_base: str, unreachable: bool) -> None:
    """Callbacks from a public Kling cannot reach a private receiver."""
    settings = ReceiverSettings.load(receiver_url=receiver_url, api_base=api_base)
    assert ("KLING_RECEIVER_URL" in settings.unreachable_reason) == unreachable


def test_settings_of_the_other_program_cause_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client and receiver may share a .env file, although a setting of one resembles a setting of the other."""
    for own, others in ((ReceiverSettings, ClientSettings), (ClientSettings, ReceiverSettings)):
        with monkeypatch.context() as environment:
            for name in others.model_fields:
                environment.setenv(f"KLING_{name.upper()}", "x")
            assert own.unknown_variables() == []


def test_a_misspelt_variable_causes_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the environment or in .env, with the closest setting; variables of other programs cause none."""
    monkeypatch.setenv("KLING_RECIEVER_URL", "https://example.com")
    monkeypatch.setenv("KLING_SOMETHING_ELSE", "x")
    (tmp_path / ".env").write_text("KLING_STORAGE_ULR=file:///x\nKLING_DATA_DIR=y\nOTHER=1\n")
    assert ReceiverSettings.unknown_variables() == [
        "KLING_RECIEVER_URL is not a setting. Did you mean KLING_RECEIVER_URL?",
        "KLING_STORAGE_ULR is not a setting. Did you mean KLING_STORAGE_URL?",
    ]


def test_no_secret_is_shown(tmp_path: Path) -> None:
    """Neither repr nor str contains a secret, and the log hides each."""
    settings = make_settings(
        tmp_path,
        api_key="hidden-1",
        signing_secrets="hidden-signing-secret-of-32-letters",
        webhook_secrets=WHSEC,
        hook_url="https://hooks.example.com/",
        hook_secret=WHSEC,
        database_url="postgresql://user:hidden@host/x",
        egress_proxy="http://user:hidden-3@proxy:3128",
    )
    assert "hidden" not in repr(settings) + str(settings)
    assert WHSEC not in repr(settings) + str(settings)
    hidden = {"hidden-1", "hidden-signing-secret-of-32-letters", WHSEC, "hidden", "hidden-3"}
    assert hidden <= settings.secrets

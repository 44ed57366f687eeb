"""A `.env` in the current folder never decides where a secret is sent, and never exposes one silently."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from kling_callback import AsyncKling, Kling
from kling_callback.errors import SettingsError
from kling_callback.settings import ClientSettings, CommonSettings, _warn_once
from kling_receiver.settings import ReceiverSettings
from tests.support.commands import run_here
from tools.harness.process import CLIENT, run

SECRET = "a-signing-secret-for-tests-0123456789"
HOOK_SECRET = "whsec_" + "YS1ob29rLXNlY3JldC1mb3ItdGhlc2UtdGVzdHM="
HERE, EVIL = "https://here.example", "https://evil.example"

PAIRS: list[tuple[type[CommonSettings], str, str, dict[str, str]]] = [
    (ClientSettings, "API_BASE", EVIL, {"API_KEY": "k"}),
    (ClientSettings, "API_BASE", EVIL, {"ACCESS_KEY": "a", "SECRET_KEY": "s"}),
    (ClientSettings, "RECEIVER_URL", EVIL, {"SIGNING_SECRETS": SECRET}),
    (ClientSettings, "RECEIVER_URL", EVIL, {"RECEIVER_TOKEN": "t"}),
    (ClientSettings, "RECEIVER_INTERNAL_URL", EVIL, {"RECEIVER_TOKEN": "t"}),
    (ClientSettings, "RECEIVER_INTERNAL_URL", EVIL, {"SIGNING_SECRETS": SECRET}),
    (ReceiverSettings, "API_BASE", EVIL, {"API_KEY": "k"}),
    (ReceiverSettings, "RECEIVER_URL", EVIL, {"SIGNING_SECRETS": SECRET}),
    (ReceiverSettings, "RECEIVER_INTERNAL_URL", EVIL, {"SIGNING_SECRETS": SECRET}),
    (ReceiverSettings, "HOOK_URL", EVIL, {"HOOK_SECRET": HOOK_SECRET}),
    (ReceiverSettings, "HOOKS_FILE", "/dev/null", {"SIGNING_SECRETS": SECRET}),
]


class Place:
    """Sets variables in the environment or in `.env`."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.file, self._patch = folder / ".env", patch

    def environment(self, **variables: str) -> None:
        for name, value in variables.items():
            self._patch.setenv(f"KLING_{name}", value)

    def dotenv(self, **variables: str) -> None:
        self.file.write_text("".join(f"KLING_{name}={value}\n" for name, value in variables.items()))
        self.file.chmod(0o600)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, monkeypatch)


def problems(kind: type[CommonSettings], **arguments: Any) -> list[str]:
    """The problems of the settings; none if they are valid."""
    try:
        kind.load(require=(), **arguments)
    except SettingsError as error:
        return error.problems
    return []


@pytest.mark.parametrize(("kind", "address", "value", "secrets"), PAIRS)
def test_an_address_and_its_secret_have_one_source(
    place: Place, kind: type[CommonSettings], address: str, value: str, secrets: dict[str, str]
) -> None:
    """In either direction the program stops, says which comes from where, and shows no value."""
    place.environment(**secrets)
    place.dotenv(**{address: value})
    (message,) = problems(kind)
    names = " and ".join(f"KLING_{name}" for name in secrets)
    assert message.startswith(f"KLING_{address} comes from {place.file}, but {names} from the environment. ")
    assert f"Set both in the environment, or both in {place.file}." in message
    assert not any(each in message for each in (value, *secrets.values()) if len(each) > 2)
    place.dotenv(**{address: value}, **secrets)
    assert problems(kind) == []  # both are in both places, with equal secrets
    place.dotenv(**{address: value}, **{name: f"{each}x" for name, each in secrets.items()})
    assert len(problems(kind)) == 1  # those of the environment take precedence


@pytest.mark.parametrize(("kind", "address", "value", "secrets"), PAIRS)
def test_a_secret_of_the_file_goes_to_no_address_of_the_environment(
    place: Place, kind: type[CommonSettings], address: str, value: str, secrets: dict[str, str]
) -> None:
    """The reverse: the secret in `.env`, the address in the environment."""
    place.dotenv(**secrets)
    place.environment(**{address: value})
    (message,) = problems(kind)
    assert message.startswith(f"KLING_{address} comes from the environment, but KLING_")
    assert f"from {place.file}" in message
    place.dotenv(**{address: value}, **secrets)
    assert problems(kind) == []


def test_a_default_address_goes_with_any_secret(place: Place) -> None:
    """Only an address that is set can lead elsewhere."""
    place.environment(API_KEY="k")
    place.dotenv(RECEIVER_TOKEN="t", API_BASE=" ")
    assert problems(ClientSettings) == []


def test_all_conflicts_are_reported_at_once_with_other_problems(place: Place) -> None:
    """One message for each address."""
    place.environment(API_KEY="k", ACCESS_KEY="a", SECRET_KEY="s", SIGNING_SECRETS=SECRET, RECEIVER_TOKEN="a b")
    place.dotenv(API_BASE=EVIL, RECEIVER_URL=EVIL, RECEIVER_INTERNAL_URL=EVIL)
    assert [each.split()[0] for each in problems(ClientSettings)] == [
        "KLING_API_BASE",
        "KLING_RECEIVER_URL",
        "KLING_RECEIVER_INTERNAL_URL",
        "KLING_RECEIVER_TOKEN:",
    ]


def test_an_argument_is_the_program_s_own(place: Place) -> None:
    """A key that the program passes does not go where `.env` says; an address that it passes is its decision."""
    place.dotenv(API_BASE=EVIL)
    (message,) = problems(ClientSettings, api_key="k")
    assert "KLING_API_KEY from an argument of the program" in message
    for kind in (Kling, AsyncKling):
        with pytest.raises(SettingsError, match="KLING_API_BASE comes from"):
            kind(api_key="k")
    place.dotenv(API_KEY="k")
    assert problems(ClientSettings, api_base=HERE) == []
    place.environment(API_BASE=HERE)
    place.dotenv()
    assert problems(ClientSettings, api_key="k") == []


def test_the_password_of_libpq_is_a_secret_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """PGPASSWORD goes wherever the database's address leads, unless that has a password."""
    monkeypatch.setenv("PGPASSWORD", "hidden")
    place.dotenv(DATABASE_URL="postgresql://user@evil.example/x")
    (message,) = problems(ReceiverSettings)
    assert message.startswith(f"KLING_DATABASE_URL comes from {place.file}, but PGPASSWORD from the environment.")
    assert "hidden" not in message
    place.dotenv(DATABASE_URL="postgresql://user:own@evil.example/x")
    assert problems(ReceiverSettings) == []


def test_a_dotenv_cannot_insert_a_variable_of_the_environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """`${NAME}` in an address would send any variable of the environment away."""
    monkeypatch.setenv("OTHER_TOKEN", "hidden")
    for line in ("KLING_API_BASE=https://evil.example/${OTHER_TOKEN}", 'export kling_api_base = "https://x/${A:-b}"'):
        place.file.write_text(f"PATH=${{PATH}}:x\n{line}\n")
        found = problems(ClientSettings)
        assert any("inserts another variable by ${...}. Write the value itself." in each for each in found)
        assert "hidden" not in " ".join(found)
    place.file.write_text("PATH=${PATH}:x\nKLING_API_KEY=a$b{c}\n")
    assert problems(ClientSettings) == []


@pytest.mark.parametrize(
    "lines",
    [
        'KLING_API_BASE="\nhttps://evil.example/${OTHER_TOKEN}"',  # a value of several lines
        'KLING_API_BASE="https://evil.example/${OTHER_TOKEN:-\n}"',
        "'KLING_API_BASE'=https://evil.example/${OTHER_TOKEN}",
        "KLING_API_BASE=\x0bhttps://evil.example/${OTHER_TOKEN}",  # ends a line for Python, but not in this file
        "KLING_API_BASE=\x0chttps://evil.example/${OTHER_TOKEN}",
        "\u212aling_api_base=https://evil.example/${OTHER_TOKEN}",  # the Kelvin sign is a k in small letters
    ],
)
def test_no_way_to_write_a_variable_evades_that(place: Place, monkeypatch: pytest.MonkeyPatch, lines: str) -> None:
    """The file is parsed as the settings are."""
    monkeypatch.setenv("OTHER_TOKEN", "hidden")
    place.file.write_text(f"{lines}\n", encoding="utf-8")
    found = problems(ClientSettings)
    assert any("inserts another variable by ${...}." in each for each in found)
    assert "hidden" not in " ".join(found)


@pytest.mark.parametrize(
    "arguments",
    [("serve", "--port", "0"), ("migrate",), ("doctor",), ("token",), ("tasks", "list"), ("hooks", "list")],
)
def test_every_command_of_the_receiver_stops(place: Place, arguments: tuple[str, ...]) -> None:
    """Exit code 2 with the explanation, before anything is opened or sent."""
    place.dotenv(RECEIVER_URL=EVIL)
    done = run_here(*arguments, env={"KLING_SIGNING_SECRETS": SECRET, "KLING_API_KEY": "k", "KLING_RECEIVER_TOKEN": ""})
    assert done.returncode == 2
    assert "KLING_RECEIVER_URL comes from" in done.stderr
    assert not (place.file.parent / "data").exists()


@pytest.mark.usefixtures("processes_are_forked")
@pytest.mark.parametrize(
    "arguments",
    [("list",), ("show", "x"), ("wait", "x"), ("text-to-image", "a cat"), ("call", "account/costs"), ("listen",)],
)
def test_every_command_of_the_client_stops(place: Place, arguments: tuple[str, ...]) -> None:
    """The same, in a process of its own."""
    place.dotenv(API_BASE=EVIL)
    env = {"PATH": os.environ["PATH"], "KLING_API_KEY": "k", "KLING_RECEIVER_TOKEN": "t", "KLING_RECEIVER_URL": HERE}
    done = run(*arguments, env=env, command=CLIENT)
    assert done.returncode == 2
    assert "KLING_API_BASE comes from" in done.stderr


READABLE = "contains secrets, and other users can read or change it. Run: chmod 600 .env"


@pytest.mark.parametrize(
    ("mode", "exposed"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True), (0o602, True)]
)
def test_a_dotenv_that_others_can_read_causes_a_warning(place: Place, mode: int, exposed: bool) -> None:
    """If it has a secret; a file without one may be public."""
    place.dotenv(API_KEY="k")
    place.file.chmod(mode)
    expected = [f"{place.file} {READABLE}"] if exposed else []
    assert ClientSettings.warnings() == ReceiverSettings.warnings() == expected
    place.file.chmod(0o600)
    place.dotenv(API_BASE=HERE)
    place.file.chmod(mode)
    assert ClientSettings.warnings() == []


def test_a_dotenv_of_another_user_causes_a_warning(place: Place) -> None:
    """Its owner may change it at any time; root's file is the machine's own, and a group may read it."""
    place.dotenv(API_KEY="k")
    os.chown(place.file, 12345, -1)
    (warning,) = ClientSettings.warnings()
    assert "belongs to another user (uid 12345)" in warning


def test_the_client_logs_an_exposed_dotenv_once(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Blocking and asynchronous, however many clients a program opens."""
    _warn_once.cache_clear()
    place.dotenv(API_KEY="k", RECEIVER_URL=HERE, SIGNING_SECRETS=SECRET)
    place.file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        for kind in (Kling, AsyncKling, Kling):
            kind()
    assert [(each.name, each.getMessage()) for each in caplog.records] == [
        ("kling_callback.settings", f"{place.file} {READABLE}")
    ]


@pytest.mark.usefixtures("processes_are_forked")
def test_commands_print_an_exposed_dotenv_once(place: Place) -> None:
    """On stderr; stdout has the data only."""
    place.dotenv(SIGNING_SECRETS=SECRET, RECEIVER_URL="http://127.0.0.1:1")
    place.file.chmod(0o644)
    done = run_here("token", env={})
    assert (done.returncode, done.stderr.count(READABLE), done.stdout.count("\n")) == (0, 1, 1)
    env = {"PATH": os.environ["PATH"]}
    ran = run("list", env=env, command=CLIENT)
    assert ran.stderr.count(READABLE) == 1

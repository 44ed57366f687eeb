"""`kling config`: every setting, its value in effect and its origin; no secret; all problems at once."""

from pathlib import Path

import pytest

from kling_callback.protocol.signing import key_fingerprint
from kling_callback.settings import ClientSettings
from tests.client.cli.test_main import Run
from tests.client.cli.test_main import bare as bare  # a fixture

KEY, OLD_KEY = "a-key-of-kling-0123456789", "an-older-key-0123456789"
SIGNING = "a-signing-secret-of-at-least-32-characters"


def write_env(*lines: str, mode: int = 0o600) -> Path:
    path = Path(".env").absolute()
    path.write_text("\n".join(lines))
    path.chmod(mode)
    return path


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key and the receiver's address in a file, the secret in both, another address in the environment."""
    path = write_env(
        f"KLING_API_KEY={KEY},{OLD_KEY}",
        "KLING_RECEIVER_URL=https://kling.example.com/",
        f"KLING_SIGNING_SECRETS={SIGNING}",
        "KLING_RECEIVER_INTERNAL_URL=http://10.0.0.1",
    )
    monkeypatch.setenv("KLING_SIGNING_SECRETS", SIGNING)
    monkeypatch.setenv("KLING_RECEIVER_INTERNAL_URL", "http://127.0.0.1:8000")
    monkeypatch.setenv("KLING_API_BASE", "")
    return path


def test_each_setting_has_its_origin(bare: Run, set_up: Path) -> None:
    """The environment before the file, the file before the default; an empty variable decides nothing."""
    ran = bare("config", "--json")
    assert ran.code == 0, ran.err
    shown = {each["name"]: (each["value"], each["origin"]) for each in ran.json["settings"]}
    assert list(shown) == [f"KLING_{name.upper()}" for name in ClientSettings.model_fields]
    assert shown["KLING_API_BASE"] == ("https://api-singapore.klingai.com", "default")
    assert shown["KLING_RECEIVER_URL"] == ("https://kling.example.com", str(set_up))
    assert shown["KLING_RECEIVER_INTERNAL_URL"] == ("http://127.0.0.1:8000", "environment")
    fingerprints = f"{key_fingerprint(KEY)}, {key_fingerprint(OLD_KEY)}"
    assert shown["KLING_API_KEY"] == (f"*** (fingerprint {fingerprints})", str(set_up))
    assert shown["KLING_SIGNING_SECRETS"] == ("***", "environment")
    assert shown["KLING_HOOK_SECRET"] == (None, "")
    assert (ran.json["problems"], ran.json["warnings"]) == ([], [])


def test_in_a_pipe_it_is_lines_of_fields(bare: Run, set_up: Path) -> None:
    """The same as in the JSON."""
    ran = bare("config")
    rows = [line.split("\t") for line in ran.out.splitlines()]
    assert rows[0] == ["SETTING", "VALUE", "FROM"]
    assert ["KLING_RECEIVER_URL", "https://kling.example.com", str(set_up)] in rows
    assert ["KLING_HOOK_SECRET", "not set", ""] in rows


def test_all_problems_and_warnings_are_listed(bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its fix; the valid settings are shown all the same, and the code is 2."""
    secret = "https://user:hidden-password@gateway.example.com"
    path = write_env(f"KLING_API_BASE={secret}", f"KLING_API_KEY={KEY}", mode=0o644)
    monkeypatch.setenv("KLING_RECEIVER_URL", "https://kling.example.com")
    monkeypatch.setenv("KLING_SIGNING_SECRETS", "short,shorter")
    monkeypatch.setenv("KLING_API_BAES", "x")
    ran = bare("config", "--json")
    assert ran.code == 2
    starts = [problem.split()[0].rstrip(":") for problem in ran.json["problems"]]
    assert starts == ["KLING_API_BASE", "KLING_SIGNING_SECRETS", "KLING_API_BAES"]
    assert [warning for warning in ran.json["warnings"] if "chmod 600" in warning]
    shown = {each["name"]: each["value"] for each in ran.json["settings"]}
    assert (shown["KLING_API_BASE"], shown["KLING_RECEIVER_URL"]) == ("invalid", "https://kling.example.com")
    assert all(problem in ran.err for problem in ran.json["problems"])
    assert str(path) in ran.err


def test_missing_settings_are_problems(bare: Run) -> None:
    """Those that creating a task needs."""
    ran = bare("config")
    assert ran.code == 2
    assert all(name in ran.err for name in ("KLING_API_KEY", "KLING_RECEIVER_URL", "KLING_RECEIVER_TOKEN"))


def test_a_file_that_cannot_be_read_is_a_problem(bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the environment sets is shown."""
    Path(".env").write_bytes("KLING_API_KEY=ÿ".encode("utf-16"))
    monkeypatch.setenv("KLING_RECEIVER_URL", "https://kling.example.com")
    ran = bare("config")
    assert (ran.code, "Save it as UTF-8" in ran.err) == (2, True)
    assert "KLING_RECEIVER_URL\thttps://kling.example.com\tenvironment" in ran.out


@pytest.mark.parametrize("is_valid", [True, False])
def test_no_secret_is_shown(bare: Run, monkeypatch: pytest.MonkeyPatch, is_valid: bool) -> None:
    """Of no setting that has one, valid or not."""
    secrets = {
        "API_KEY": KEY,
        "ACCESS_KEY": "access-key-012345",
        "SECRET_KEY": "secret-key-012345",
        "SIGNING_SECRETS": SIGNING if is_valid else "short-secret",
        "RECEIVER_TOKEN": "a-token-0123456",
        "HOOK_SECRET": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=" if is_valid else "no-whsec-secret",
    }
    for name, value in {**secrets, "RECEIVER_URL": "https://kling.example.com"}.items():
        monkeypatch.setenv(f"KLING_{name}", value)
    for ran in (bare("config"), bare("config", "--json")):
        assert ran.code == (0 if is_valid else 2)
        assert [name for name, value in secrets.items() if value in ran.out + ran.err] == []

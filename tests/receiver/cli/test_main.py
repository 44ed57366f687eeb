"""The `kling-receiver` command: exit codes, what goes to which stream, and no traceback."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kling_callback.protocol.signing import verify_api_token
from kling_receiver import __version__
from kling_receiver.cli.main import main
from tests.support.receiver import KEY, SECRET
from tools.harness.process import environment, run


def invoke(*arguments: str, **settings: str) -> Result:
    """The command inside this process."""
    return CliRunner().invoke(main, arguments, env={f"KLING_{name}": value for name, value in settings.items()})


def test_help_and_version() -> None:
    """Every command says what it does."""
    assert invoke("--version").output == f"kling-receiver, version {__version__}\n"
    shown = invoke("-h").output
    assert "..." not in shown.replace("[ARGS]...", "")
    for command in ("serve", "migrate", "doctor", "token"):
        assert command in shown
        assert invoke(command, "--help").exit_code == 0


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["serve", "--port", "x"], ["serve", "--port", "99999"], ["token", "--role", "x"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    """Exit code 2."""
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize("role", ["admin", "client", "read"])
def test_a_token_is_printed(role: str) -> None:
    """To stdout, alone, good for its role."""
    result = invoke("token", "--role", role, SIGNING_SECRETS=SECRET)
    assert result.exit_code == 0
    assert verify_api_token([SECRET], result.stdout.strip()) == role
    assert result.stderr == ""


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    """All at once, exit code 2; a command asks only for what it needs."""
    result = invoke("serve")
    assert result.exit_code == 2
    assert result.stderr.count("kling-receiver: KLING_") == 3
    result = invoke("token")
    assert (result.exit_code, result.stderr.count("KLING_")) == (2, 1)
    assert invoke("doctor", SIGNING_SECRETS=SECRET).stderr.startswith("kling-receiver: KLING_RECEIVER_URL")


def test_what_is_wrong_is_told() -> None:
    """All at once, exit code 2, without the values."""
    result = invoke("serve", SIGNING_SECRETS="hidden", DATABASE_URL="mysql://hidden@x/y", HOOK_URL="hidden")
    assert result.exit_code == 2
    assert result.stderr.count("kling-receiver: KLING_") >= 3
    assert "hidden" not in result.stderr


def test_what_is_missing_and_what_is_wrong_are_told_in_one_go() -> None:
    """Nobody mends one only to hear of the other."""
    result = invoke("serve", CALLBACK_MAX_AGE="soon", API_BASE="nonsense")
    told = [line.split()[1].rstrip(":") for line in result.stderr.splitlines()]
    assert result.exit_code == 2
    assert sorted(told) == [
        "KLING_API_BASE",
        "KLING_API_KEY",
        "KLING_CALLBACK_MAX_AGE",
        "KLING_RECEIVER_URL",
        "KLING_SIGNING_SECRETS",
    ]


def test_migrate_makes_the_tables(tmp_path: Path) -> None:
    """Needs nothing but the data folder, and may be run again."""
    for _ in range(2):
        result = invoke("migrate", DATA_DIR=str(tmp_path / "data"))
        assert result.exit_code == 0
        assert f"{tmp_path}/data/kling.db is up to date" in result.stderr
        assert result.stdout == ""


def test_a_database_that_cannot_be_reached(tmp_path: Path) -> None:
    """Exit code 1, one line, no password."""
    env = environment(tmp_path, KLING_DATABASE_URL="postgresql://user:hidden@127.0.0.1:1/x")
    result = run("migrate", env=env)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "hidden" not in result.stderr


def test_the_package_is_a_command_too(tmp_path: Path) -> None:
    """The installed command reads a `.env` file in the folder it runs in; the environment goes first."""
    env = {name: value for name, value in environment(tmp_path).items() if not name.startswith("KLING_")}
    (tmp_path / ".env").write_text(f"KLING_SIGNING_SECRETS={SECRET}\nKLING_API_KEY={KEY}\n")
    assert verify_api_token([SECRET], run("token", env=env).stdout.strip()) == "client"
    assert run("token", env={**env, "KLING_SIGNING_SECRETS": "x"}).returncode == 2


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("DATA_DIR", "{}"),
        ("DATABASE_URL", "sqlite:///{}/x.db"),
        ("STORAGE_URL", "file://{}/x"),
    ],
)
def test_a_folder_that_cannot_be_used(tmp_path: Path, name: str, form: str) -> None:
    """Exit code 1, one line that names the setting and the folder."""
    taken = tmp_path / "taken"
    taken.touch()
    given = {"KLING_RECEIVER_URL": "http://127.0.0.1:1", f"KLING_{name}": form.format(taken)}
    result = run("serve", "--port", "0", env=environment(tmp_path, **given))
    assert result.returncode == 1
    assert result.stderr.startswith(f"kling-receiver: KLING_{name} cannot be used ({taken}")
    assert result.stderr.count("\n") == 1

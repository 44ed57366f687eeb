"""The command `kling-receiver`: exit codes, stdout and stderr, what it imports, and no traceback."""

import re
import subprocess
import sys
import tomllib
from contextlib import closing
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from kling_callback.protocol.signing import verify_api_token
from kling_receiver import __version__
from kling_receiver.cli import deliveries
from kling_receiver.cli.lazy import INSTALL_HINT, PACKAGES
from kling_receiver.cli.main import COMMANDS, main
from kling_receiver.hooks import delivery_list
from kling_receiver.store.database import Database
from kling_sandbox import Sandbox
from tests.support.commands import leaves_no_trace, run_here
from tests.support.receiver import ABSENT, KEY, SECRET, Start
from tools.harness.process import environment, run

HEAVY = {
    "aiohttp",
    "alembic",
    "httpx",
    "prometheus_client",
    "pydantic",
    "rich",
    "sqlalchemy",
    "sqlmodel",
    "starlette",
    "uvicorn",
}


def invoke(*arguments: str, **settings: str) -> Result:
    """Run the command in this process."""
    with leaves_no_trace():
        return CliRunner().invoke(main, arguments, env={f"KLING_{name}": value for name, value in settings.items()})


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_help_and_version() -> None:
    """The help lists every command with its line; each command has help of its own."""
    assert invoke("--version").output == f"kling-receiver, version {__version__}\n"
    listed = invoke("-h").output
    assert "..." not in listed.replace("[ARGS]...", "")
    for command in ("serve", "migrate", "doctor", "token", "tasks", "hooks", "deliveries", "replay"):
        assert command in listed
        assert COMMANDS[command].summary in listed
        assert invoke(command, "--help").exit_code == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_the_one_that_the_help_lists(name: str) -> None:
    """The table of commands agrees with the modules that it names without importing them."""
    lazy = COMMANDS[name]
    command: click.Command = getattr(import_module(lazy.module), lazy.attribute)
    assert (command.name, command.get_short_help_str(200)) == (name, lazy.summary)


def test_the_states_of_deliveries_are_those_of_the_list() -> None:
    """The command repeats them, because their module takes long to import."""
    assert deliveries.STATES == delivery_list.STATES


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_import_no_heavy_module(option: str) -> None:
    """They need click alone."""
    ran = python(
        "import sys; from kling_receiver.cli.main import main\n"
        f"try: main(['{option}'])\n"
        "finally: print(*{name.partition('.')[0] for name in sys.modules})"
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    imported = set(ran.stdout.splitlines()[-1].split())
    assert "click" in imported
    assert imported & HEAVY == set()


def test_the_packages_of_the_extra_are_declared() -> None:
    """The commands check for packages that `pip install '.[receiver]'` installs."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w-]", requirement)[0] for requirement in project["optional-dependencies"]["receiver"]}
    assert {package.replace("_", "-") for package in PACKAGES} <= declared


def without(packages: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in an interpreter that cannot import `packages`."""
    return python(f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
from kling_receiver.cli.main import main
main({list(arguments)!r}, prog_name="kling-receiver")
""")


def test_without_the_extra_version_and_help_work() -> None:
    """They need the base dependencies alone."""
    version = without(PACKAGES, "--version")
    assert (version.returncode, version.stdout) == (0, f"kling-receiver, version {__version__}\n")
    shown = without(PACKAGES, "--help")
    assert shown.returncode == 0
    assert all(lazy.summary in shown.stdout for lazy in COMMANDS.values())


@pytest.mark.parametrize("packages", [PACKAGES, ("starlette",)], ids=["none", "without starlette"])
def test_without_the_extra_a_command_prints_what_to_install(packages: tuple[str, ...]) -> None:
    """One line, exit code 2: also where the command itself needs none of the missing packages."""
    ran = without(packages, "token")
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", f"{INSTALL_HINT}\n")
    assert INSTALL_HINT == ("kling-receiver needs the extra \"receiver\". Install it with: pip install '.[receiver]'")


@pytest.mark.parametrize("name", COMMANDS)
def test_without_the_extra_no_command_starts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is the group's, for each of its commands."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = invoke(name)
    assert (result.exit_code, result.stderr) == (2, f"{INSTALL_HINT}\n")


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["serve", "--port", "x"], ["serve", "--port", "99999"], ["token", "--role", "x"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    """Exit code 2."""
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize("role", ["admin", "client", "read"])
def test_a_token_is_printed(role: str) -> None:
    """To stdout, alone, valid for its role."""
    result = invoke("token", "--role", role, SIGNING_SECRETS=SECRET)
    assert result.exit_code == 0
    assert verify_api_token([SECRET], result.stdout.strip()).role == role
    assert result.stderr == ""


def test_all_missing_settings_are_reported() -> None:
    """At once, with exit code 2; a command requires only the settings that it needs."""
    result = invoke("serve")
    assert result.exit_code == 2
    assert result.stderr.count("kling-receiver: KLING_") == 3
    result = invoke("token")
    assert (result.exit_code, result.stderr.count("KLING_")) == (2, 1)
    assert invoke("doctor", SIGNING_SECRETS=SECRET).stderr.startswith("kling-receiver: KLING_RECEIVER_URL")


def test_all_invalid_settings_are_reported() -> None:
    """At once, with exit code 2, without the values."""
    result = invoke("serve", SIGNING_SECRETS="hidden", DATABASE_URL="mysql://hidden@x/y", HOOK_URL="hidden")
    assert result.exit_code == 2
    assert result.stderr.count("kling-receiver: KLING_") >= 3
    assert "hidden" not in result.stderr


def test_missing_and_invalid_settings_are_reported_together() -> None:
    """So that all can be fixed before the next try."""
    result = invoke("serve", CALLBACK_MAX_AGE="soon", API_BASE="nonsense")
    names = [line.split()[1].rstrip(":") for line in result.stderr.splitlines()]
    assert result.exit_code == 2
    assert sorted(names) == [
        "KLING_API_BASE",
        "KLING_API_KEY",
        "KLING_CALLBACK_MAX_AGE",
        "KLING_RECEIVER_URL",
        "KLING_SIGNING_SECRETS",
    ]


def test_migrate_creates_the_tables(tmp_path: Path) -> None:
    """It requires only the data folder, and may run again."""
    for _ in range(2):
        result = invoke("migrate", DATA_DIR=str(tmp_path / "data"))
        assert result.exit_code == 0
        assert f"{tmp_path}/data/kling.db is up to date" in result.stderr
        assert result.stdout == ""


def test_a_database_that_cannot_be_reached(tmp_path: Path) -> None:
    """Exit code 1, one line, no password."""
    env = environment(tmp_path, KLING_DATABASE_URL="postgresql://user:hidden@127.0.0.1:1/x")
    done = run_here("migrate", env=env)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Traceback" not in done.stderr
    assert "hidden" not in done.stderr


def test_a_dotenv_file_is_read(tmp_path: Path) -> None:
    """The installed command reads `.env` in its working folder; the environment takes precedence."""
    env = {name: value for name, value in environment(tmp_path).items() if not name.startswith("KLING_")}
    (tmp_path / ".env").write_text(f"KLING_SIGNING_SECRETS={SECRET}\nKLING_API_KEY={KEY}\n")
    assert verify_api_token([SECRET], run("token", env=env).stdout.strip()).role == "client"
    assert run_here("token", env={**env, "KLING_SIGNING_SECRETS": "x"}).returncode == 2


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
    file = tmp_path / "file"
    file.touch()
    settings = {"KLING_RECEIVER_URL": "http://127.0.0.1:1", f"KLING_{name}": form.format(file)}
    done = run_here("serve", "--port", "0", env=environment(tmp_path, **settings))
    assert done.returncode == 1
    assert done.stderr.startswith(f"kling-receiver: KLING_{name} cannot be used ({file}")
    assert done.stderr.count("\n") == 1


def test_a_link_to_a_volume_that_is_not_mounted_is_explained(tmp_path: Path) -> None:
    """No folder is made in its place: it would be hidden later."""
    (tmp_path / "data").symlink_to(tmp_path / "volume" / "data")
    done = run_here("serve", "--port", "0", env=environment(tmp_path / "data", KLING_RECEIVER_URL="http://127.0.0.1:1"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"a symbolic link to {tmp_path}/volume/data, which is no folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_read_only_folder_is_explained(tmp_path: Path, command: str) -> None:
    """Also one with a database, whose volume became read-only."""
    data = tmp_path / "data"
    with closing(Database(f"sqlite:///{data}/kling.db")) as database:
        database.migrate()
    made = subprocess.run(["mount", "--bind", data, data], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"{ABSENT}the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", data], check=True)
        done = run_here(command, env=environment(data, KLING_RECEIVER_URL="http://127.0.0.1:1"))
    finally:
        subprocess.run(["umount", data], check=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "Read-only file system" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "stdout", "stderr"),
    [
        (["doctor"], 0, "ok   callback", ""),
        (["migrate"], 1, "", "Stop it first"),
        (["tasks", "list"], 0, "ID\tSTATUS\t", ""),
        (["hooks", "show", "missing"], 1, "", "There is no such hook"),
        (["deliveries", "retry"], 2, "", "Name deliveries"),
        (["replay", "--from", "1"], 0, "", "There is no hook."),
    ],
)
def test_a_process_of_each_command(
    start: Start, gateway: Sandbox, tmp_path: Path, arguments: list[str], code: int, stdout: str, stderr: str
) -> None:
    """The exit code of the process, data on stdout, messages on stderr."""
    running = start(api_base=gateway.url)
    env = environment(tmp_path / "data", KLING_RECEIVER_URL=running.url, KLING_API_BASE=gateway.url)
    done = run(*arguments, env=env)
    assert done.returncode == code, done.stderr
    assert (stdout in done.stdout) if stdout else (done.stdout == "")
    assert (stderr in done.stderr) if stderr else (done.stderr == "")


def test_tables_are_made_ahead_of_time(tmp_path: Path) -> None:
    """While no receiver runs, by a process of its own."""
    done = run("migrate", env=environment(tmp_path / "data"))
    assert (done.returncode, done.stderr) == (0, f"{tmp_path}/data/kling.db is up to date\n")


def test_python_m_is_the_same_command() -> None:
    """`python -m kling_receiver`, by the name of the command."""
    command = [sys.executable, "-m", "kling_receiver"]
    ran = subprocess.run([*command, "dance"], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr.splitlines()[0]) == (2, "Usage: kling-receiver [OPTIONS] COMMAND [ARGS]...")

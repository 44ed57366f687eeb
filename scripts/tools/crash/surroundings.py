"""Surroundings of a receiver: engines, encodings, poolers, rights, and what hangs. In each, a real process must work,
be refused at its start, or not be ready.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import httpx
from sqlalchemy import create_engine, make_url, text

from kling_callback.protocol.ids import new_id
from kling_receiver.store.database import Database
from kling_sandbox import Sandbox
from tools.harness import engines, hung, pooler
from tools.harness.loopback import answers, free_port, web
from tools.harness.process import Ended, Process
from tools.harness.submitting import events, finished, poll_until, post, register, show, submit

Must = Literal["works", "refused", "not ready"]
TEXT = "余额不足 🦘"
"""Text that many encodings lack."""
PROBE_SECONDS = 15
"""Seconds in which a probe must have its answer."""


@dataclass
class Given:
    """What a receiver is started with, and the fault that comes while it runs."""

    settings: Mapping[str, str] = field(default_factory=dict)
    fault: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True)
class Surrounding:
    """`reason`: part of the message with which it is refused, or not ready. `make`: in a new folder, with `data`.

    `downloads`: whether it needs engines that are not in the development environment.
    """

    name: str
    must: Must
    reason: str
    make: Callable[[Path], AbstractContextManager[Given]]
    downloads: bool = False


def check(surrounding: Surrounding) -> list[str]:
    """Run a receiver in a surrounding. Returns what was not as it must be."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kling-surroundings-")))
        folder.chmod(0o711)
        gateway = stack.enter_context(Sandbox())
        given = stack.enter_context(surrounding.make(folder))
        receiver = Process(folder / "data", **{"KLING_API_BASE": gateway.url, **given.settings})
        stack.callback(_kill, receiver)
        try:
            if surrounding.must == "refused":
                _check_refused(receiver, surrounding.reason)
            else:
                receiver.start()
                _check_works(receiver, gateway)
                if surrounding.must == "works":
                    _check_lock(receiver, folder)
                else:
                    _check_not_ready(receiver, given, surrounding.reason)
                receiver.signal(signal.SIGTERM)
                assert receiver.wait(60)[0] == 0, "SIGTERM does not end it in order"
        except (AssertionError, Ended, httpx.HTTPError, subprocess.TimeoutExpired) as error:
            line = traceback.extract_tb(error.__traceback__)[-1].line
            return [f"{line}: {error}" if str(error) else str(line)]
    return []


def _kill(receiver: Process) -> None:
    if not receiver.ended:
        receiver.kill()


def _check_refused(receiver: Process, reason: str) -> None:
    receiver.launch()
    code, _ = receiver.wait(60)
    log = receiver.log_text()
    assert code == 1, f"exit code {code}: {log}"
    assert reason in log.splitlines()[-1], log
    assert "Traceback" not in log, log


def _check_works(receiver: Process, gateway: Sandbox) -> None:
    """A task is created, called back, queried, downloaded; any text is stored as it is."""
    task_id, _ = submit(receiver, gateway)
    assert finished(receiver, task_id)["results"][0]["status"] == "stored"
    other = new_id()
    registered = register(receiver, other, tags=[TEXT])
    assert registered.is_success, registered.text
    assert show(receiver, other)["tags"] == [TEXT]
    assert post(receiver, other, {"task_status": "failed", "task_status_msg": TEXT}).status_code == 200
    assert events(receiver, other, "callback.received")


def _check_lock(receiver: Process, folder: Path) -> None:
    """A second receiver on the same database is refused."""
    second = Process(folder / "second", **{**receiver.env, "KLING_RECEIVER_URL": "http://127.0.0.1:9"})
    second.env["KLING_DATABASE_URL"] = receiver.env.get("KLING_DATABASE_URL", f"sqlite:///{folder}/data/kling.db")
    second.launch()
    code, _ = second.wait(60)
    assert code == 1, "two receivers serve one database"
    assert "is served by" in second.log_text(), second.log_text()


def _check_not_ready(receiver: Process, given: Given, reason: str) -> None:
    """During the fault the probe says why; a callback is not answered 200, or it is processed later."""
    with given.fault():
        answer = web.get(f"{receiver.url}/readyz", timeout=PROBE_SECONDS)
        assert answer.status_code == 503, f"/readyz answers {answer.status_code}"
        assert reason in answer.json()["error"]["message"], answer.text
        assert web.get(f"{receiver.url}/healthz", timeout=PROBE_SECONDS).status_code == 200
        refused = post(receiver, new_id(), {"task_status": "processing"}, timeout=60)
        assert refused.status_code in ((200,) if "folder" in reason else (503,)), refused.text
        assert refused.status_code == 200 or refused.headers["Retry-After"]
    assert answers(f"{receiver.url}/readyz", 30), "it does not recover"
    assert post(receiver, new_id(), {"task_status": "processing"}).status_code == 200


# --- SQLite ------------------------------------------------------------------------------------------------------


def _migrated(folder: Path) -> Path:
    """A database file with its tables."""
    path = folder / "data" / "kling.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@contextmanager
def _default(folder: Path) -> Iterator[Given]:
    yield Given()


@contextmanager
def _sqlite_version(folder: Path, version: str) -> Iterator[Given]:
    (folder / "library").mkdir()
    yield Given(engines.sqlite_library(version, folder / "library"))


@contextmanager
def _emptied_file(folder: Path) -> Iterator[Given]:
    (folder / "data" / "results" / "a-task").mkdir(parents=True)
    (folder / "data" / "kling.db").touch()
    yield Given()


@contextmanager
def _another_program(folder: Path) -> Iterator[Given]:
    (folder / "data").mkdir()
    (folder / "data" / "kling.db").write_text("these are my notes\n" * 100)
    yield Given()


@contextmanager
def _newer_tables(folder: Path) -> Iterator[Given]:
    _execute(f"sqlite:///{_migrated(folder)}", "UPDATE alembic_version SET version_num = '9999'")
    yield Given()


@contextmanager
def _sqlite_fault(folder: Path, fault: str, repair: str) -> Iterator[Given]:
    yield Given(fault=partial(_statements, f"sqlite:///{folder}/data/kling.db", fault, repair))


@contextmanager
def _hung_storage(folder: Path) -> Iterator[Given]:
    yield Given(fault=partial(hung.hung_folder, folder / "data" / "results" / ".parts"))


# --- PostgreSQL --------------------------------------------------------------------------------------------------


@contextmanager
def _server(
    folder: Path,
    *statements: str,
    options: str = "",
    version: str = "",
    wheel: str = engines.NEWEST,
    environment: Mapping[str, str] | None = None,
    **settings: str,
) -> Iterator[Given]:
    """A server with these settings, on which a database with these options was made and these statements ran."""
    programs = engines.postgresql_of_the_wheel(wheel)
    if version:
        (folder / "server").mkdir()
        programs = engines.postgresql_version(version, folder / "server")
    with engines.postgresql_server(programs, **settings) as server:
        _execute(server, f"CREATE DATABASE kling TEMPLATE template0 {options}")
        url = make_url(server).set(database="kling").render_as_string(hide_password=False)
        _execute(url, *statements)
        yield Given({"KLING_DATABASE_URL": url, **(environment or {})})


@contextmanager
def _tables(folder: Path, *statements: str) -> Iterator[Given]:
    """A database with its tables, on which these statements ran."""
    with _server(folder) as given:
        database = Database(given.settings["KLING_DATABASE_URL"])
        database.migrate()
        database.close()
        _execute(given.settings["KLING_DATABASE_URL"], *statements)
        yield given


@contextmanager
def _role(folder: Path, fault: str, repair: str) -> Iterator[Given]:
    """A receiver whose role may use the tables and owns none, and a fault of its rights."""
    rights = (f"GRANT ALL ON ALL {kind} IN SCHEMA public TO receiver" for kind in ("TABLES", "SEQUENCES"))
    with _tables(folder, "CREATE ROLE receiver LOGIN", *rights) as given:
        url = given.settings["KLING_DATABASE_URL"]
        own = make_url(url).set(username="receiver").render_as_string(hide_password=False)
        yield Given({"KLING_DATABASE_URL": own}, partial(_statements, url, fault, repair))


@contextmanager
def _standby(folder: Path) -> Iterator[Given]:
    programs = engines.postgresql_of_the_wheel()
    with engines.postgresql_server(programs) as primary:
        host = str(make_url(primary).query["host"])
        with engines.postgresql_server(programs, standby_of=host) as url:
            yield Given({"KLING_DATABASE_URL": url})


@contextmanager
def _hung_server(folder: Path) -> Iterator[Given]:
    with _server(folder) as given:
        yield Given(given.settings, partial(hung.hung_server, given.settings["KLING_DATABASE_URL"]))


@contextmanager
def _pooler(folder: Path, mode: pooler.Mode) -> Iterator[Given]:
    """The pooler of `tools.harness`."""
    with _server(folder) as given, pooler.pooler(given.settings["KLING_DATABASE_URL"], mode=mode) as url:
        yield Given({"KLING_DATABASE_URL": url})


@contextmanager
def _pgbouncer(folder: Path, mode: pooler.Mode) -> Iterator[Given]:
    with _server(folder) as given:
        host, port = make_url(given.settings["KLING_DATABASE_URL"]).query["host"], free_port()
        (folder / "users").write_text('"postgres" ""\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\nkling = host={host} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nunix_socket_dir =\nauth_type = any\nauth_file = {folder}/users\n"
            f"pool_mode = {mode}\n"
        )
        user = {} if os.geteuid() else {"user": engines.USER}
        bouncer = subprocess.Popen(["pgbouncer", "--quiet", folder / "pgbouncer.ini"], **user)  # type: ignore[call-overload]
        try:
            url = f"postgresql://postgres@127.0.0.1:{port}/kling"
            poll_until(lambda: _connects(url))
            yield Given({"KLING_DATABASE_URL": url})
        finally:
            bouncer.terminate()
            bouncer.wait(20)


def _connects(url: str) -> bool:
    engine = create_engine(url)
    try:
        engine.connect().close()
    except Exception:
        return False
    finally:
        engine.dispose()
    return True


def _execute(url: str, *statements: str) -> None:
    if not statements:  # an encoding may permit no connection of this process
        return
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@contextmanager
def _statements(url: str, fault: str, repair: str) -> Iterator[None]:
    _execute(url, fault)
    yield
    _execute(url, repair)


DEFAULTS = {
    "synchronous_commit": "off",
    "client_encoding": "LATIN1",
    "statement_timeout": "100",
    "lock_timeout": "100",
    "idle_in_transaction_session_timeout": "100",
    "idle_session_timeout": "300",
    "default_transaction_isolation": "serializable",
    "standard_conforming_strings": "off",
    "bytea_output": "escape",
    "timezone": "Asia/Kathmandu",
    "datestyle": "German",
}
"""Defaults of a role that a receiver must not depend on."""
ALTERED = [f"ALTER ROLE postgres SET {name} = '{value}'" for name, value in DEFAULTS.items()]
VARIABLES = {"PGCLIENTENCODING": "GBK", "PGOPTIONS": "-c synchronous_commit=off -c statement_timeout=100"}
TRIGGER = "CREATE TRIGGER fault BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'no more events'); END"
CHECK = "ALTER TABLE event ADD CONSTRAINT fault CHECK (type <> 'callback.received') NOT VALID"
POOLER = "A pooler in transaction mode"


def _pooled(name: str, make: Callable[..., AbstractContextManager[Given]]) -> list[Surrounding]:
    return [
        Surrounding(f"{name}, transaction mode", "refused", POOLER, partial(make, mode="transaction")),
        Surrounding(f"{name}, session mode", "works", "", partial(make, mode="session")),
    ]


def _row(
    name: str, must: Must, reason: str, make: Callable[..., AbstractContextManager[Given]], *given: str, **more: object
) -> Surrounding:
    def apply(folder: Path) -> AbstractContextManager[Given]:
        return make(folder, *given, **more)

    return Surrounding(name, must, reason, apply, downloads="version" in more)


SURROUNDINGS = [
    _row("SQLite, the installed version", "works", "", _default),
    _row("SQLite 3.32", "refused", "SQLite 3.32.0 is too old; 3.33.0 or newer", _sqlite_version, version="3.32.0"),
    _row("SQLite 3.33", "works", "", _sqlite_version, version="3.33.0"),
    _row("SQLite, an empty file beside files of tasks", "refused", "it was emptied", _emptied_file),
    _row("SQLite, a file of another program", "refused", "file is not a database", _another_program),
    _row("SQLite, tables of a newer receiver", "refused", "Its tables have version 9999", _newer_tables),
    _row(
        "SQLite, no rows of `event`",
        "not ready",
        "SQLITE_CONSTRAINT_TRIGGER",
        _sqlite_fault,
        TRIGGER,
        "DROP TRIGGER fault",
    ),
    _row("storage that hangs", "not ready", "The folder for result files did not answer", _hung_storage),
    _row("PostgreSQL 11", "refused", "PostgreSQL 11.22 is too old; PostgreSQL 12 or newer", _server, version="11"),
    _row("PostgreSQL 12", "works", "", _server, version="12"),
    _row("PostgreSQL 13", "works", "", _server, version="13"),
    _row("PostgreSQL 16", "works", "", _server, wheel="pginstall"),
    _row("PostgreSQL 18", "works", "", _server),
    _row("PostgreSQL, other defaults of the role", "works", "", _server, *ALTERED),
    _row("PostgreSQL, other settings by libpq's variables", "works", "", _server, environment=VARIABLES),
    _row("PostgreSQL, SQL_ASCII", "refused", "Its encoding is SQL_ASCII", _server, options="ENCODING 'SQL_ASCII'"),
    _row("PostgreSQL, LATIN1", "refused", "Its encoding is LATIN1", _server, options="ENCODING 'LATIN1'"),
    _row("PostgreSQL, `fsync = off`", "refused", "Set `fsync = on`", _server, fsync="off"),
    _row("PostgreSQL, `full_page_writes = off`", "refused", "`full_page_writes = on`", _server, full_page_writes="off"),
    _row("PostgreSQL, a standby", "refused", "is a standby, which is read-only", _standby),
    _row(
        "PostgreSQL, `default_transaction_read_only`",
        "refused",
        "Its transactions are read-only",
        _server,
        "ALTER DATABASE kling SET default_transaction_read_only = on",
    ),
    _row(
        "PostgreSQL, a search path without a schema",
        "refused",
        "There is no schema for tables",
        _server,
        "ALTER DATABASE kling SET search_path = nowhere",
    ),
    _row("PostgreSQL, an unlogged table", "refused", "(event)", _tables, "ALTER TABLE event SET UNLOGGED"),
    _row(
        "PostgreSQL, tables of a newer receiver",
        "refused",
        "Its tables have version 9999",
        _tables,
        "UPDATE alembic_version SET version_num = '9999'",
    ),
    _row(
        "PostgreSQL, a revoked right",
        "not ready",
        "InsufficientPrivilege",
        _role,
        "REVOKE INSERT ON event FROM receiver",
        "GRANT INSERT ON event TO receiver",
    ),
    _row(
        "PostgreSQL, a CHECK that callbacks fail",
        "not ready",
        "CheckViolation",
        _role,
        CHECK,
        "ALTER TABLE event DROP CONSTRAINT fault",
    ),
    _row("PostgreSQL that hangs", "not ready", "The database did not answer", _hung_server),
    *_pooled("a pooler", _pooler),
    *(_pooled("PgBouncer", _pgbouncer) if shutil.which("pgbouncer") else []),
]

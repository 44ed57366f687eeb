"""Migrations by several processes at once, and by processes that are killed meanwhile."""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event, inspect, make_url, text

from kling_receiver.store.database import Database
from tests.receiver.store.test_tables import assert_complete
from tests.support.database import NOW
from tests.support.old_databases import OldDatabase, dump, in_order

ROOT = Path(__file__).parents[2]
REVISIONS = ("0001", "0003", "0010")
"""Without hooks, with hooks, and the newest before 0011. The statements from 0002 on are a part of those from 0001."""


def run_alone(function: Callable[[], None], *arguments: str) -> None:
    """Run a function of this module in a process without threads, which may fork. Fails if it does."""
    program = [sys.executable, "-c", f"from {__name__} import {function.__name__} as f; f()", *arguments]
    path = os.pathsep.join([str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])
    pid = os.posix_spawn(sys.executable, program, {**os.environ, "PYTHONPATH": path})
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_two_processes_may_migrate_at_once(bare_database_url: str) -> None:
    """The same between processes, as two starts of a receiver would."""
    run_alone(migrate_at_once, bare_database_url)
    assert_complete(bare_database_url)


def migrate_at_once() -> None:
    """Migrate in two forks."""
    pids = [_fork(partial(_migrate, sys.argv[1])) for _ in range(2)]
    assert [_exit_code(pid) for pid in pids] == [0, 0]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("revision", REVISIONS)
def test_a_migration_killed_at_any_statement_changes_nothing(
    bare_database_url: str, revision: str, pytestconfig: pytest.Config
) -> None:
    """Killed before a statement, or before the commit: rows and tables are as before. At last it succeeds.

    Before the first and the last statement of each kind. `scripts/test tests/deep/test_migration_processes.py
    --every-statement` kills before each statement in turn.
    """
    every = str(pytestconfig.getoption("--every-statement"))
    run_alone(kill_and_check, bare_database_url, revision, every)


def kill_and_check() -> None:
    """Kill one migration after another, each a fork of this process."""
    url, revision, every = sys.argv[1:]
    old = OldDatabase(revision, NOW)
    old.fill(url)
    with _kept(url) as restore, tempfile.TemporaryFile(buffering=0) as kinds:
        assert _exit_code(_fork(partial(_migrate, url, write=kinds.write))) == 0
        kinds.seek(0)
        steps = kinds.read().decode().splitlines()
        restore()
    schema = _schema(url)
    chosen = range(len(steps)) if every == "True" else _first_and_last(steps)
    for step in chosen:
        where = f"killed before step {step} of {len(steps)}, {steps[step]}"
        assert _exit_code(_fork(partial(_migrate, url, kill_at=step))) == -signal.SIGKILL, where
        assert _exit_code(_fork(partial(_check, url, old.old))) == 0, where
        assert _schema(url) == schema, where
    assert len(steps) > 25, steps
    assert steps[-1] == COMMIT, steps
    assert len(chosen) > 10, chosen
    _migrate(url)
    _check(url, old.new)


COMMIT = "commit"


def _kind(statement: str) -> str:
    """What a statement does: its verb, and for a change of the schema what it changes."""
    verb, what = statement.upper().split()[:2]
    return f"{verb} {what}" if verb in ("ALTER", "CREATE", "DROP") else verb


def _first_and_last(steps: list[str]) -> list[int]:
    """The numbers of the first and the last step of each kind."""
    first = {kind: number for number, kind in reversed([*enumerate(steps)])}
    last = {kind: number for number, kind in enumerate(steps)}
    return sorted({*first.values(), *last.values()})


@contextmanager
def _kept(url: str) -> Iterator[Callable[[], None]]:
    """A function that makes the database again what it is now."""
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        path = Path(address.database or "")
        content = path.read_bytes()

        def restore() -> None:
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            path.write_bytes(content)

        yield restore
        return
    name, copy = address.database, f"{address.database}_copy"
    server = create_engine(address.set(database="postgres"), isolation_level="AUTOCOMMIT")

    def execute(*statements: str) -> None:
        with server.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))
        server.dispose()  # a fork must not share a connection

    execute(f"CREATE DATABASE {copy} TEMPLATE {name}")
    yield lambda: execute(f"DROP DATABASE {name} WITH (FORCE)", f"CREATE DATABASE {name} TEMPLATE {copy}")
    execute(f"DROP DATABASE {copy} WITH (FORCE)")


def _fork(action: Callable[[], None]) -> int:
    """Run an action in a fork of this process. Returns its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
        finally:
            os._exit(code)
    return pid


def _exit_code(pid: int) -> int:
    """Wait for a fork. Returns its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _migrate(url: str, *, kill_at: int | None = None, write: Callable[[bytes], object] = lambda line: None) -> None:
    """Migrate; die by SIGKILL before the step of this number. A step is a statement or the commit, counted from 0.

    `write` is called with a line for each step: its kind.
    """
    count = 0

    def step(kind: str) -> None:
        nonlocal count
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        write(f"{kind}\n".encode())
        count += 1

    def execute(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        step(_kind(statement))

    event.listen(Engine, "before_cursor_execute", execute)
    event.listen(Engine, "commit", lambda _connection: step(COMMIT))
    database = Database(url)
    database.migrate()
    database.close()


def _schema(url: str) -> object:
    """All tables with their columns, keys, constraints and indexes."""
    engine = create_engine(url)
    inspector = inspect(engine)
    found = [
        json.dumps(sorted(getattr(inspector, f"get_multi_{each}")().items()), default=str)
        for each in ("columns", "pk_constraint", "foreign_keys", "unique_constraints", "check_constraints", "indexes")
    ]
    engine.dispose()  # a fork must not share a connection
    return found


def _check(url: str, rows: dict[str, list[dict[str, object]]]) -> None:
    database = Database(url)
    with database.read() as connection:
        assert dump(connection) == in_order(rows)
    database.close()

"""Migrations by several processes at once, and by processes that are killed meanwhile."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event, make_url, text

from kling_receiver.store.database import Database
from tests.receiver.store.test_tables import assert_complete
from tests.support.database import NOW
from tests.support.old_databases import OldDatabase, dump, in_order

ROOT = Path(__file__).parents[2]
REVISIONS = ("0001", "0003")
"""Before and after there were hooks. From 0002 on, the statements are a part of those from 0001 on."""


def test_two_processes_may_migrate_at_once(bare_database_url: str) -> None:
    """The same between processes, as two starts of a receiver would."""
    program = "import sys; from kling_receiver.store.database import Database; Database(sys.argv[1]).migrate()"
    processes = [subprocess.Popen([sys.executable, "-c", program, bare_database_url]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert_complete(bare_database_url)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("revision", REVISIONS)
def test_a_migration_killed_at_any_statement_changes_nothing(bare_database_url: str, revision: str) -> None:
    """Killed before each statement in turn, and before the commit: every row is as before, and nothing is lost."""
    program = [sys.executable, "-c", f"from {__name__} import main; main()", bare_database_url, revision]
    path = os.pathsep.join([str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    pid = os.posix_spawn(sys.executable, program, environment)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def main() -> None:
    """Kill one migration after another, each a fork of this process, which has no threads."""
    url, revision = sys.argv[1:]
    old = OldDatabase(revision, NOW)
    old.fill(url)
    kills = 0
    with _kept(url) as restore:
        while _exit_code(partial(_migrate, url, kill_at=kills)) == -signal.SIGKILL:
            assert _exit_code(partial(_check_and_migrate, url, old)) == 0, f"after the kill at statement {kills}"
            restore()
            kills += 1
    _check(url, old.new)
    assert kills > 30, kills


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


def _exit_code(action: Callable[[], None]) -> int:
    """Run an action in a fork of this process. Returns its exit code, or minus the signal that ended it."""
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
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _migrate(url: str, *, kill_at: int | None = None) -> None:
    """Migrate; die by SIGKILL before the statement of this number, counted from 0, the commit included."""
    count = 0

    def step(*arguments: object) -> None:
        nonlocal count
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    event.listen(Engine, "before_cursor_execute", step)
    event.listen(Engine, "commit", step)
    database = Database(url)
    database.migrate()
    database.close()


def _check_and_migrate(url: str, old: OldDatabase) -> None:
    """What the next start finds, and what it makes of that."""
    _check(url, old.old)
    _migrate(url)
    _check(url, old.new)


def _check(url: str, rows: dict[str, list[dict[str, object]]]) -> None:
    database = Database(url)
    with database.read() as connection:
        assert dump(connection) == in_order(rows)
    database.close()

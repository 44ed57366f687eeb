"""The database on both engines: durability, locks, snapshots and errors."""

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError, InternalError, OperationalError

from kling_receiver.store.database import OUTAGE_LOG_INTERVAL_SECONDS, Database
from kling_receiver.store.errors import DatabaseError, Unavailable
from kling_receiver.store.tables import TASK
from tests.receiver.store.test_tables import TASK_ROW
from tests.support.database import Ledger


@pytest.fixture
def sqlite(tmp_path: Path) -> Database:
    """A new SQLite database with its tables; each test closes it."""
    database = Database(f"sqlite:///{tmp_path / 'data' / 'kling.db'}")
    database.migrate()
    return database


def test_current_tables_need_no_alembic(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import takes a quarter of a second at each start."""
    monkeypatch.setitem(sys.modules, "alembic.command", None)
    with closing(Database(database_url)) as database:
        database.migrate()
        assert Ledger(database).rows(TASK) == []


def pragma(database: Database, name: str, *, write: bool) -> object:
    """A pragma of the writer's or of a reader's connection."""
    with database.write() if write else database.read() as connection:
        return connection.execute(text(f"PRAGMA {name}")).scalar()


def test_a_commit_is_synced_to_disk(sqlite: Database) -> None:
    """The writer syncs each commit to a write-ahead log, and checks foreign keys."""
    assert pragma(sqlite, "journal_mode", write=True) == "wal"
    assert pragma(sqlite, "synchronous", write=True) == 2
    assert pragma(sqlite, "foreign_keys", write=True) == 1
    sqlite.close()


@pytest.fixture(params=[0, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each umask that a service manager or a shell may set."""
    before = os.umask(request.param)
    yield
    os.umask(before)


@pytest.mark.parametrize("linked", [False, True])
def test_no_file_beside_the_database_can_be_read_by_others(tmp_path: Path, umask: None, linked: bool) -> None:
    """Whoever created the database: an operator's tool has left it, its WAL and a lock readable by all."""
    path = real = tmp_path / "kling.db"
    if linked:
        real = tmp_path / "elsewhere" / "real.db"
        real.parent.mkdir()
        path.symlink_to(real)
    with closing(sqlite3.connect(real)) as tool:
        tool.execute("PRAGMA journal_mode = WAL")
        tool.execute("CREATE TABLE x (y)")
        path.with_name("kling.db.lock").touch()
        for each in [*real.parent.iterdir(), path.with_name("kling.db.lock")]:
            each.chmod(0o666)
        database = Database(f"sqlite:///{path}")
        database.acquire_lock()
        for step in ("opened", "migrated"):
            if step == "migrated":
                database.migrate()
            files = [each for each in tmp_path.rglob("*") if each.is_file()]
            assert {each.name: stat.S_IMODE(each.stat().st_mode) & 0o077 for each in files} == dict.fromkeys(
                (each.name for each in files), 0
            )
        assert {f"{real.name}-wal", f"{real.name}-shm"} <= {each.name for each in files}
    database.close()


def test_a_readable_database_of_another_user_is_refused(tmp_path: Path) -> None:
    """Its mode cannot be changed, and its WAL would be as readable: the message names the setting and the file."""
    program = (
        "import os, sys\n"
        "from kling_receiver.store.database import Database\n"
        "os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "try: Database(f'sqlite:///{sys.argv[1]}')\n"
        "except OSError as error: print(error.filename, error.strerror)"
    )
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o777)
        file = Path(folder, "kling.db")
        file.touch()
        file.chmod(0o666)
        ran = subprocess.run([sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=False)
    assert ran.stdout == f"{file} Operation not permitted\n", ran.stderr


def test_a_commit_that_need_not_be_durable_is_not_synced(sqlite: Database) -> None:
    """The durable commits after it are."""
    seen = []
    for durable in (True, False, False, True):
        with sqlite.write(durable=durable) as connection:
            seen.append(connection.execute(text("PRAGMA synchronous")).scalar())
    assert seen == [2, 1, 1, 2]
    sqlite.close()


def test_the_disk_s_own_cache_is_flushed_where_fsync_does_not(sqlite: Database) -> None:
    """On macOS, that is: SQLite's settings for it are on. Elsewhere they change nothing."""
    with sqlite.write() as connection:
        for pragma in ("fullfsync", "checkpoint_fullfsync"):
            assert connection.execute(text(f"PRAGMA {pragma}")).scalar() == 1
    sqlite.close()


def test_the_identity_of_a_database_differs_from_others(database: Database, database_url: str, tmp_path: Path) -> None:
    """It is that of the database, not of its address, and the same in every process."""
    other = Database(f"sqlite:///{tmp_path}/other/kling.db")
    other.migrate()
    again = Database(database_url)
    found = []
    for each in (database, again, other):
        with each.read() as connection:
            found.append(each.identity(connection))
    again.close()
    other.close()
    assert found[0] == found[1] != found[2]


def test_a_reading_connection_cannot_write(sqlite: Database) -> None:
    """Only the writer's connection can."""
    with pytest.raises(OperationalError, match="readonly"), sqlite.read() as connection:
        connection.execute(insert(TASK), TASK_ROW)
    sqlite.close()


def test_the_file_is_private(sqlite: Database) -> None:
    """Other users can read neither the database, nor its log, nor its folder."""
    assert sqlite.path is not None
    with sqlite.write() as connection:
        connection.execute(insert(TASK), TASK_ROW)
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in sqlite.path.parent.iterdir()}
    assert modes == {"kling.db": 0o600, "kling.db-wal": 0o600, "kling.db-shm": 0o600}
    assert stat.S_IMODE(sqlite.path.parent.stat().st_mode) == 0o700
    sqlite.close()


def test_an_existing_file_becomes_private(tmp_path: Path) -> None:
    """Whatever its mode was."""
    path = tmp_path / "kling.db"
    path.touch(0o644)
    database = Database(f"sqlite:///{path}")
    database.migrate()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    database.close()


def test_a_second_receiver_is_refused(database: Database, database_url: str) -> None:
    """The error names the first one; after its end, the second takes the lock."""
    database.acquire_lock()
    second = Database(database_url)
    with pytest.raises(DatabaseError, match=rf"is served by process {os.getpid()} on .+ Stop it first"):
        second.acquire_lock()
    database.close()
    second.acquire_lock()
    second.close()


def test_the_lock_file_of_a_killed_process_locks_nothing(tmp_path: Path) -> None:
    """It is left behind with the name of the process."""
    (tmp_path / "kling.db.lock").write_text("process 1 on a machine that is gone, and some more text")
    first = Database(f"sqlite:///{tmp_path / 'kling.db'}")
    first.acquire_lock()
    assert (tmp_path / "kling.db.lock").read_text().startswith(f"process {os.getpid()} on ")
    first.close()


def test_an_unknown_lock_holder_is_reported_as_such(tmp_path: Path) -> None:
    """Its lock file is empty."""
    url = f"sqlite:///{tmp_path / 'kling.db'}"
    first, second = Database(url), Database(url)
    first.acquire_lock()
    (tmp_path / "kling.db.lock").write_text("")
    with pytest.raises(DatabaseError, match="an unknown process"):
        second.acquire_lock()
    first.close()
    second.close()


def test_two_databases_of_one_server_have_separate_locks(postgresql: str, database: Database) -> None:
    """A lock is of one database, not of the server."""
    other = Database(postgresql)
    other.acquire_lock()
    database.acquire_lock()
    other.close()


def test_readers_do_not_wait_and_see_committed_rows_only(database: Database) -> None:
    """During a write, they read the rows from before it."""
    ledger = Ledger(database)
    with database.write() as connection:
        connection.execute(insert(TASK), TASK_ROW)
        assert ledger.rows(TASK) == []
    assert len(ledger.rows(TASK)) == 1


def test_a_reading_transaction_is_a_snapshot(database: Database) -> None:
    """All its statements see the same moment."""
    count = text("SELECT count(*) FROM task")
    with database.read() as reading:
        assert reading.execute(count).scalar() == 0
        with database.write() as connection:
            connection.execute(insert(TASK), TASK_ROW)
        assert reading.execute(count).scalar() == 0


def test_a_transaction_that_raises_is_rolled_back(database: Database) -> None:
    """Nothing of it is kept."""

    def fail() -> None:
        with database.write() as connection:
            connection.execute(insert(TASK), TASK_ROW)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert Ledger(database).rows(TASK) == []


def test_a_folder_that_may_not_be_entered_is_named_as_such(tmp_path: Path) -> None:
    """After `chmod 000`: nothing was moved, and nothing is to be put back. It is used again afterwards."""
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from kling_receiver.store.database import Database\n"
        "from kling_receiver.store.errors import Unavailable\n"
        "os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "database = Database(f'sqlite:///{sys.argv[1]}/data/kling.db')\n"
        "with database.write(): pass\n"
        "database._files.expect_database()\n"
        "for mode in (0, 0o700):\n"
        "    Path(sys.argv[1], 'data').chmod(mode)\n"
        "    try:\n"
        "        with database.write(): print('written')\n"
        "    except Unavailable as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o777)
        ran = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=False)
    message = "The database's kling.db cannot be reached: Permission denied. Check the permissions of its folder."
    assert ran.stdout.splitlines() == [message, "written"], ran.stderr


@pytest.mark.parametrize("in_its_place", [False, True])
def test_a_moved_file_is_not_written(sqlite: Database, in_its_place: bool) -> None:
    """The next start would not find the change; once the file is back, it is written again."""
    assert sqlite.path is not None
    away = sqlite.path.with_name("away")
    sqlite.path.rename(away)
    if in_its_place:
        sqlite.path.write_bytes(away.read_bytes())
    with pytest.raises(Unavailable, match="moved or replaced"), sqlite.write():
        pass
    away.replace(sqlite.path)
    with sqlite.write() as connection:
        connection.execute(insert(TASK), TASK_ROW)
    assert len(Ledger(sqlite).rows(TASK)) == 1
    sqlite.close()


def test_new_folders_are_private(tmp_path: Path) -> None:
    """Each folder above the database is made for its owner only; existing ones keep their mode."""
    tmp_path.chmod(0o755)
    Database(f"sqlite:///{tmp_path}/a/b/kling.db").close()
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")]
    assert modes == [0o755, 0o700, 0o700]


def test_writers_of_sqlite_wait_for_each_other(sqlite: Database) -> None:
    """A second writer is not refused: it begins when the first has ended."""
    other = Database(str(sqlite.url))
    order: list[str] = []

    def write() -> None:
        with other.write():
            order.append("second")

    thread = threading.Thread(target=write)
    with sqlite.write():
        thread.start()
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    sqlite.close()
    other.close()


@pytest.mark.parametrize("driver", ["postgresql+psycopg2", "postgresql+nothing"])
def test_a_missing_driver_is_explained(driver: str) -> None:
    """The message says what to install."""
    with pytest.raises(DatabaseError, match=r"No driver for .+ pip install '\.\[postgres\]'"):
        Database(f"{driver}://localhost/kling")


@pytest.mark.parametrize("use", ["acquire_lock", "migrate"])
def test_a_server_that_is_not_there_is_explained(use: str) -> None:
    """In one line, with what to do, and without the password."""
    database = Database("postgresql://kling:opensesame@127.0.0.1:9/kling?connect_timeout=5")
    with pytest.raises(DatabaseError, match=r"127\.0\.0\.1.+cannot be used: .+ Check KLING_DATABASE_URL") as info:
        getattr(database, use)()
    assert "opensesame" not in str(info.value)
    assert len(str(info.value).splitlines()) == 1
    database.close()


def test_a_file_that_is_no_database_is_explained(tmp_path: Path) -> None:
    """And is left as it is."""
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes\n" * 100)
    database = Database(f"sqlite:///{path}")
    with pytest.raises(
        DatabaseError, match=r"notes\.txt cannot be used: file is not a database.+Restore it from a backup"
    ):
        database.migrate()
    assert path.read_text().startswith("these are my notes")
    database.close()


def test_operator_errors_are_one_line(tmp_path: Path) -> None:
    """Also when the file is gone."""
    database = Database(f"sqlite:///{tmp_path / 'kling.db'}")
    database.migrate()
    (tmp_path / "kling.db").rename(tmp_path / "moved.db")
    with pytest.raises(DatabaseError, match="moved or replaced"), database.operator_errors(), database.write():
        pass
    database.close()


def test_a_database_is_named_without_user_password_and_options() -> None:
    """As an operator may read it, in a log or at start."""
    for url in ("postgresql://kling:opensesame@db/kling", "postgresql://kling@db/kling?password=opensesame&sslkey=/x"):
        database = Database(url)
        assert str(database) == "postgresql://db/kling"
        database.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_lost_lock_is_taken_again(database: Database, database_url: str) -> None:
    """With the writer's next connection; if another receiver has it, that is an outage until that one ends."""
    database.acquire_lock()
    second = Database(database_url)
    _cut(database)
    with database.write() as connection:
        connection.execute(text("SELECT 1"))
    with pytest.raises(DatabaseError, match="is served by"):
        second.acquire_lock()
    _cut(database)
    second.acquire_lock()
    with pytest.raises(Unavailable, match="is served by"), database.write():
        pass
    second.close()
    with database.write():
        pass


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_acquiring_the_lock_waits_for_a_holder_that_ends(database: Database, database_url: str) -> None:
    """A killed process holds the lock until its server notices."""
    database.acquire_lock()
    second = Database(database_url)
    leaving = threading.Timer(0.5, database.close)
    leaving.start()
    second.acquire_lock()
    leaving.join()
    second.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_probe_of_a_read_only_server_fails(database: Database) -> None:
    """It writes as any change does."""
    with database.write() as connection:
        connection.execute(text("SET TRANSACTION READ ONLY"))
        with pytest.raises(InternalError, match="read-only"):
            database.probe(connection, 1)


def _cut(database: Database) -> None:
    with database.write() as connection:
        own = connection.execute(text("SELECT pg_backend_pid()")).scalar()
    with database.read() as other:
        other.execute(text("SELECT pg_terminate_backend(:own, 20000)"), {"own": own})


def test_a_moved_file_is_logged_once_a_second(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However often it is met."""
    database = Database(f"sqlite:///{tmp_path / 'kling.db'}", clock=lambda: 0.0)
    database.migrate()
    caplog.clear()
    (tmp_path / "kling.db").rename(tmp_path / "moved.db")
    for _ in range(5):
        with pytest.raises(Unavailable, match="moved or replaced"), database.write():
            pass
    database.close()
    assert len(caplog.messages) == 1


def test_an_outage_is_logged_once_a_second(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However often it is met; each caller gets the error."""
    now = 0.0
    database = Database(f"sqlite:///{tmp_path / 'kling.db'}", clock=lambda: now)
    error = DBAPIError("SELECT 1", None, Exception("disk full"))
    for _ in range(5):
        assert str(database.to_unavailable(error)) == "The database cannot be used: disk full."
    now += OUTAGE_LOG_INTERVAL_SECONDS
    database.to_unavailable(error)
    database.close()
    assert caplog.messages == ["the database cannot be used: disk full"] * 2

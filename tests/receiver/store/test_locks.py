"""One receiver serves one database, whatever name it has, and whatever is done to the files beside it."""

import fcntl
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import insert, make_url, text

from kling_callback.protocol.ids import new_id
from kling_receiver.store import locks
from kling_receiver.store.database import Database
from kling_receiver.store.errors import AlreadyRunning, DatabaseError, Unavailable
from kling_receiver.store.tables import TASK
from tests.receiver.store.test_tables import TASK_ROW
from tests.support.database import Ledger
from tests.support.receiver import ABSENT
from tools.harness.process import COMMAND, Process, environment, run
from tools.harness.submitting import post, show

pytestmark = pytest.mark.usefixtures("processes_are_forked")

HOLDER = rf"is served by process {os.getpid()} on .+ Stop it first"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Database]:
    """A database in use, in the folder `data`."""
    database = Database(f"sqlite:///{tmp_path}/data/kling.db")
    database.acquire_lock()
    database.migrate()
    yield database
    database.close()


def refused(path: Path, why: str) -> None:
    """A second receiver may not use the database by this name."""
    with closing(Database(f"sqlite:///{path}")) as second, pytest.raises(AlreadyRunning, match=why):
        second.acquire_lock()


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal", ".lock"])
def test_no_symbolic_link_beside_the_database_is_followed(tmp_path: Path, suffix: str) -> None:
    """Whoever may write in the folder would let the receiver empty a file elsewhere, or change its mode."""
    other, link = tmp_path / "other.txt", tmp_path / f"kling.db{suffix}"
    other.write_text("precious")
    other.chmod(0o644)
    link.symlink_to(other)
    with pytest.raises(DatabaseError, match=f"kling.db{suffix} is a symbolic link to .*other.txt. Remove it."):
        Database(f"sqlite:///{tmp_path}/kling.db").acquire_lock()
    link.unlink()
    with closing(Database(f"sqlite:///{tmp_path}/kling.db")) as database:
        link.unlink(missing_ok=True)
        link.symlink_to(other)  # in the moment before the lock
        if suffix == ".lock":
            with pytest.raises(OSError, match="symbolic link"):
                database.acquire_lock()
    assert (other.read_text(), other.stat().st_mode & 0o777) == ("precious", 0o644)


@pytest.mark.usefixtures("served")
def test_the_name_of_a_holder_is_one_line(tmp_path: Path) -> None:
    """Somebody else may have written the file that names it."""
    (tmp_path / "data/kling.db.lock").write_text("x\n\x1b[2Jkling-receiver: all is well")
    refused(tmp_path / "data/kling.db", r"is served by x \\x1b\[2Jkling-receiver: all is well. Stop it first")


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("link", ["link", "data/link.db", "folder/link.db"])
def test_a_symbolic_link_is_the_same_database(tmp_path: Path, link: str) -> None:
    """To its folder, or to the file itself; the holder is named, and no second log is made."""
    path = tmp_path / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / ("data" if link == "link" else "data/kling.db"))
    before = {each.name for each in (tmp_path / "data").iterdir()}
    refused(path / "kling.db" if link == "link" else path, HOLDER)
    assert {each.name for each in (tmp_path / "data").iterdir()} == before
    assert [each.name for each in path.parent.iterdir() if each.name.startswith("link.db-")] == []


@pytest.mark.parametrize("content", [None, "", "process 1 on another machine"])
def test_a_lock_file_that_is_removed_frees_nothing(served: Database, tmp_path: Path, content: str | None) -> None:
    """Or one that is replaced: the database itself is locked."""
    lock_file = tmp_path / "data" / "kling.db.lock"
    lock_file.unlink()
    if content is not None:
        lock_file.write_text(content)
    refused(tmp_path / "data" / "kling.db", f"is served by {content or 'an unknown process'}")
    with served.write() as connection:
        connection.execute(insert(TASK), TASK_ROW)


def test_the_lock_outlasts_the_connections(served: Database, tmp_path: Path) -> None:
    """A process loses its POSIX locks on a file when it closes any descriptor of it; this lock stays."""
    (tmp_path / "data" / "kling.db.lock").unlink()
    (tmp_path / "data" / "kling.db").read_bytes()
    served._writer.dispose()
    served._readers.dispose()
    refused(tmp_path / "data" / "kling.db", "unknown process")


def test_sqlite_itself_is_not_locked_out(served: Database, tmp_path: Path) -> None:
    """A backup in another process reads, and a command may write."""
    program = f"""
import sqlite3
connection = sqlite3.connect({str(tmp_path / "data" / "kling.db")!r}, timeout=0)
connection.execute("PRAGMA user_version = 7")
connection.backup(sqlite3.connect({str(tmp_path / "copy.db")!r}))
"""
    subprocess.run(["python3", "-c", program], check=True, timeout=60)
    with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
        assert copy.execute("PRAGMA user_version").fetchone() == (7,)
    assert Ledger(served).rows(TASK) == []


@pytest.mark.parametrize("operation", [None, -1])
def test_without_locks_of_files_a_removed_lock_file_is_an_outage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: int | None
) -> None:
    """Where the system, or the file system, cannot lock the database itself: a second receiver could take the lock."""
    monkeypatch.setattr(locks, "OFD_SETLK", operation)
    with closing(Database(f"sqlite:///{tmp_path}/data/kling.db")) as database:
        database.acquire_lock()
        database.migrate()
        with database.write():
            pass
        lock_file = tmp_path / "data" / "kling.db.lock"
        lock_file.rename(tmp_path / "away")
        for _ in range(2):
            with pytest.raises(Unavailable, match="lock file was removed"), database.write():
                pass
            lock_file.touch()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no second receiver."""

    def fail(file: object, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with (
        closing(Database(f"sqlite:///{tmp_path}/kling.db")) as database,
        pytest.raises(DatabaseError, match=r"kling\.db\.lock cannot be locked: No locks available\. Put the database"),
    ):
        database.acquire_lock()


@pytest.mark.usefixtures("served")
def test_a_hard_link_is_refused(tmp_path: Path) -> None:
    """By each name, running or not: SQLite has a log for each, and one does not know what is in the other."""
    path, other = tmp_path / "data" / "kling.db", tmp_path / "other.db"
    os.link(path, other)
    for name in (path, other):
        with pytest.raises(DatabaseError, match=rf"{name} has more than one name \(hard links\).+ cp -p {name} copy"):
            Database(f"sqlite:///{name}")
    assert not other.with_name("other.db-wal").exists()
    other.unlink()
    Database(f"sqlite:///{path}").close()


OPEN = """
import sys
from kling_receiver.store.database import Database
from kling_receiver.store.errors import DatabaseError
try:
    Database(f"sqlite:///{sys.argv[1]}").acquire_lock()
except DatabaseError as error:
    print(error)
"""


def open_mounted(source: Path, target: Path, database: Path) -> str:
    """Why a process may not use a database while `source` is bound to `target`. The mount ends with the process."""
    bind = 'mount --bind "$1" "$2" && exec "$3" -c "$4" "$5"'
    arguments = (str(source), str(target), sys.executable, OPEN, str(database))
    command = ["unshare", "--mount", "sh", "-c", bind, "sh", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if "permission denied" in ran.stderr.lower() or "not permitted" in ran.stderr.lower():
        pytest.skip(f"{ABSENT}the right to mount")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.usefixtures("served")
def test_a_folder_that_is_mounted_twice_is_the_same_database(tmp_path: Path) -> None:
    """A container may know it by another path."""
    (tmp_path / "mounted").mkdir()
    why = open_mounted(tmp_path / "data", tmp_path / "mounted", tmp_path / "mounted" / "kling.db")
    assert re.search(HOLDER, why)


@pytest.mark.usefixtures("served")
def test_a_file_that_is_mounted_alone_is_refused(tmp_path: Path) -> None:
    """Its log would lie in the folder around it, and be lost with the container."""
    path = tmp_path / "mounted.db"
    path.touch()
    why = open_mounted(tmp_path / "data" / "kling.db", path, path)
    assert re.search(r"mounted\.db is mounted as a single file.+Mount its folder", why)


@pytest.mark.parametrize("name", ["kling.db-wal", "kling.db-shm"])
@pytest.mark.parametrize("in_its_place", [False, True])
def test_a_removed_log_is_an_outage(served: Database, tmp_path: Path, name: str, in_its_place: bool) -> None:
    """Or its index, or another file in its place: what is written would be lost. Put back, it is used again."""
    with served.write() as connection:
        connection.execute(insert(TASK), TASK_ROW)
    path, away = tmp_path / "data" / name, tmp_path / "away"
    path.rename(away)
    if in_its_place:
        shutil.copyfile(away, path)
    with pytest.raises(Unavailable, match=f"{name} was removed or replaced. Restart"), served.write():
        pass
    away.replace(path)
    with served.write() as connection:
        connection.execute(insert(TASK), {**TASK_ROW, "id": "another"})
    assert len(Ledger(served).rows(TASK)) == 2


def test_what_a_removed_log_held_is_saved_once(served: Database, tmp_path: Path) -> None:
    """Not again at each request of the outage; again after the log was put back and removed a second time."""
    saved: list[object] = []
    original = served._save_log

    def count(*arguments: Any) -> None:
        saved.append(arguments)
        original(*arguments)

    with served.write() as connection:
        connection.execute(insert(TASK), TASK_ROW)
    path, away = tmp_path / "data" / "kling.db-wal", tmp_path / "away"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served, "_save_log", count)
        for total in (1, 2):
            path.rename(away)
            for _ in range(3):
                with pytest.raises(Unavailable), served.write():
                    pass
            assert len(saved) == total
            away.replace(path)
            with served.write():
                pass


@pytest.mark.parametrize("size", [0, 32, 5_000])
def test_a_log_that_is_truncated_is_an_outage(served: Database, tmp_path: Path, size: int) -> None:
    """As by a program that rotates logs: the next start would not find what is written behind the gap."""
    with served.write() as connection:
        connection.execute(insert(TASK), TASK_ROW)
    os.truncate(tmp_path / "data" / "kling.db-wal", size)
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"was truncated\. Restart"), served.write():
            pass


def test_a_log_that_a_checkpoint_truncates_is_no_outage(served: Database, tmp_path: Path) -> None:
    """Of another process, as programs for backups do; before the first write, between two, and during many."""
    program = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=20)
print([connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] for _ in range(int(sys.argv[2]))])
"""
    command = [sys.executable, "-c", program, str(tmp_path / "data" / "kling.db")]
    for n in range(3):
        subprocess.run([*command, "1"], check=True, timeout=60)
        assert (tmp_path / "data" / "kling.db-wal").stat().st_size == 0
        with served.write() as connection:
            connection.execute(insert(TASK), {**TASK_ROW, "id": f"t{n}"})
    with subprocess.Popen([*command, "50"]) as other:
        while other.poll() is None:
            with served.write() as connection:
                connection.execute(text("UPDATE task SET updated_at = updated_at + 1"))
    assert other.returncode == 0
    assert len(Ledger(served).rows(TASK)) == 3


def test_a_new_log_after_the_last_connection_is_no_outage(served: Database, tmp_path: Path) -> None:
    """SQLite removes the log with its last connection, and makes another with the next one."""
    log = tmp_path / "data" / "kling.db-wal"
    with served.write():
        pass
    served._writer.dispose()
    log.with_name("other").touch()  # takes the inode: the next log has another
    with served.write():
        assert log.exists()
    with served.write():
        pass


@pytest.mark.parametrize("removed", [["-wal"], ["-wal", "-shm", ".lock"]])
def test_nothing_is_lost_with_a_removed_log(tmp_path: Path, removed: list[str]) -> None:
    """Callbacks are refused, and what was answered 200 before is there after a kill."""
    data, before, after = tmp_path / "data", new_id(), new_id()
    with Process(data) as receiver:
        assert post(receiver, before, {"task_status": "processing"}).status_code == 200
        for suffix in removed:
            (data / f"kling.db{suffix}").unlink()
        answer = post(receiver, after, {"task_status": "processing"})
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
        ready = httpx.get(f"{receiver.url}/readyz")
        assert (ready.status_code, "kling.db-wal was removed or replaced" in ready.text) == (503, True)
        receiver.kill()
        receiver.start()
        assert show(receiver, before)["status"] == "processing"
        assert "error" in show(receiver, after)
        assert post(receiver, after, {"task_status": "processing"}).status_code == 200


def test_an_older_log_in_its_place_undoes_nothing(tmp_path: Path) -> None:
    """As a program leaves it that synchronizes folders: it is set aside, for the next start would apply it."""
    data, ids = tmp_path / "data", [new_id() for _ in range(5)]
    with Process(data) as receiver:
        for task in ids:
            assert post(receiver, task, {"task_status": "processing"}).status_code == 200
            if task == ids[1]:
                shutil.copyfile(data / "kling.db-wal", data / "older")
        (data / "older").replace(data / "kling.db-wal")
        assert post(receiver, new_id(), {"task_status": "processing"}).status_code == 503
        receiver.kill()
        receiver.start()
        assert [show(receiver, task).get("status") for task in ids] == ["processing"] * 5
        assert (data / "kling.db-wal.replaced").stat().st_size > 0
        with closing(sqlite3.connect(data / "kling.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("line", [["serve", "--port", "0"], ["migrate"], ["tasks", "list"]])
def test_a_command_is_refused_while_another_process_has_the_database(tmp_path: Path, line: list[str]) -> None:
    """By any name: an older version, for instance, could not use the tables of `migrate`."""
    (tmp_path / "link").symlink_to("data")
    (tmp_path / "data" / "kling.db.lock").unlink()
    ran = run(*line, env=environment(tmp_path / "link", KLING_RECEIVER_URL="http://127.0.0.1:9"), command=COMMAND)
    assert (ran.returncode, "an unknown process" in ran.stderr, "Traceback" in ran.stderr) == (1, True, False)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_tables_of_a_served_server_are_not_changed(database: Database, database_url: str, tmp_path: Path) -> None:
    """By `migrate`, which names the holder."""
    database.acquire_lock()
    ran = run("migrate", env=environment(tmp_path, KLING_DATABASE_URL=database_url), command=COMMAND)
    assert (ran.returncode, f"is served by process {os.getpid()} " in ran.stderr) == (1, True)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_another_address_is_the_same_database(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another schema, user or option: the lock is the database's."""
    monkeypatch.setattr(locks, "LOCK_ATTEMPTS", 2)
    database.acquire_lock()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS somebody")
        connection.execute("CREATE ROLE somebody LOGIN")
        connection.execute("CREATE SCHEMA elsewhere")
        connection.execute("GRANT SELECT ON alembic_version TO somebody")
    url = make_url(database_url)
    others = [
        url.update_query_dict({"options": "-csearch_path=elsewhere"}),
        url.update_query_dict({"application_name": "another"}),
        url.set(username="somebody"),
    ]
    for other in others:
        with (
            closing(Database(other.render_as_string(hide_password=False))) as second,
            pytest.raises(AlreadyRunning, match=HOLDER),
        ):
            second.acquire_lock()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP OWNED BY somebody")
        connection.execute("DROP ROLE somebody")
        connection.execute("DROP SCHEMA elsewhere")

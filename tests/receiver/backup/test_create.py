"""`kling-receiver backup`: complete and consistent, or absent; `kling-receiver restored` checks the files."""

import errno
import hashlib
import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from kling_receiver.backup import create
from kling_receiver.backup.create import create_backup
from kling_receiver.backup.restored import continue_from_restored
from kling_receiver.events import log as event_log
from kling_receiver.results.owner import RECORD
from kling_receiver.results.storage import LocalStorage
from kling_receiver.store.database import Database
from kling_receiver.store.engine.checks import REVISIONS
from kling_receiver.store.errors import AlreadyRunning, DatabaseError
from kling_receiver.store.tables import AUDIT, EVENT_LOG, RESULT
from tests.support.backups import POSTGRESQL, restore_database
from tests.support.commands import run_here
from tests.support.database import Ledger, callback
from tools.harness.process import environment, run

CONTENT = b"a picture"


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    """A results folder."""
    storage = LocalStorage(tmp_path / "results")
    storage.prepare()
    return storage


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_dump of the tests' server is found."""
    monkeypatch.setenv("PATH", f"{POSTGRESQL}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def ledger(database: Database, storage: LocalStorage) -> Ledger:
    """A database with three stored files of one task."""
    ledger = Ledger(database)
    ledger.record(callback(task_id="k1"))
    for position in range(3):
        name = f"t/{position}.png"
        part = storage.part(f"t/{position}", "https://files.example/x.png")
        part.write(CONTENT * (position + 1))
        sha256, size = part.sha256, part.size
        storage.commit(part, name)
        row = {"task_id": "t", "position": position, "kind": "image", "status": "stored", "source_url": "", "error": ""}
        with database.write() as connection:
            connection.execute(RESULT.insert(), {**row, "path": name, "size": size, "sha256": sha256, "warning": ""})
    return ledger


def files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


def test_a_backup_is_described_by_its_manifest(ledger: Ledger, storage: LocalStorage, tmp_path: Path) -> None:
    """Each file with size and checksum, the log and its end; nothing else is there, and only the owner may read it."""
    target = tmp_path / "deep" / "backup"
    create_backup(ledger.database, storage.root, target)
    described = manifest(target)
    with ledger.database.read() as connection:
        state = event_log.read(connection)
    assert (described["version"], described["revision"], described["lost"]) == (1, max(REVISIONS), [])
    assert (described["log_id"], described["database_id"]) == (state.log_id, state.database_id)
    assert described["last_event"] == state.newest.event_id > 0
    found = {
        path: {"path": path, "size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for path, file in files(target).items()
        if path != "manifest.json"
    }
    assert {each["path"]: each for each in described["files"]} == found
    assert found.keys() == {described["database"], *(f"results/t/{n}.png" for n in range(3))}
    for path in (target, *target.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert [path.name for path in target.parent.iterdir()] == ["backup"]


def test_a_backup_is_restored(ledger: Ledger, storage: LocalStorage, tmp_path: Path) -> None:
    """Every row, and the next ids; only the log's id is to be chosen."""
    before = {table: ledger.rows(table) for table in (RESULT, EVENT_LOG)}
    events, url = ledger.events(), ledger.database.url.render_as_string(hide_password=False)
    create_backup(ledger.database, storage.root, tmp_path / "backup")
    ledger.log("lost")
    ledger.database.close()
    restore_database(url, tmp_path / "backup")
    with closing(Database(url)) as database:
        database.migrate()
        restored = Ledger(database)
        assert restored.rows(RESULT) == before[RESULT]
        assert restored.events() == events
        assert restored.rows(EVENT_LOG) == [{**before[EVENT_LOG][0], "id": ""}]
        restored.log("next")
        assert restored.events()[-1]["id"] == events[-1]["id"] + 1


def test_a_backup_is_one_snapshot(ledger: Ledger, storage: LocalStorage, tmp_path: Path) -> None:
    """What is committed while it is made, is in it whole or not at all, and files that it refers to are there."""
    target, database = tmp_path / "backup", ledger.database
    original = create._copy

    def commit_meanwhile(source: Path, copy: Path) -> Any:
        with database.write() as connection:
            connection.execute(RESULT.insert(), {**ledger.rows(RESULT)[0], "position": 10, "path": "t/late.png"})
            connection.execute(RESULT.delete().where(RESULT.c.position == 10))
        ledger.log("late")
        return original(source, copy)

    last = ledger.events()[-1]["id"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(create, "_copy", commit_meanwhile)
        create_backup(database, storage.root, target)
    assert manifest(target)["last_event"] == last
    assert ledger.events()[-1]["id"] == last + 3
    url = database.url.render_as_string(hide_password=False)
    database.close()
    restore_database(url, target)
    with closing(Database(url)) as restored:
        assert Ledger(restored).events()[-1]["id"] == last


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_files_are_copied_where_they_cannot_be_linked(
    ledger: Ledger, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A backup is mostly on another disk."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    create_backup(ledger.database, storage.root, tmp_path / "backup")
    copied = tmp_path / "backup" / "results" / "t" / "2.png"
    assert (copied.read_bytes(), copied.stat().st_nlink) == (CONTENT * 3, 1)
    assert len(manifest(tmp_path / "backup")["files"]) == 4


def test_a_file_that_was_moved_is_copied_itself(ledger: Ledger, storage: LocalStorage, tmp_path: Path) -> None:
    """An operator left a symbolic link in its place: the backup may be taken to another machine."""
    path, elsewhere = storage.path("t/0.png"), tmp_path / "large disk.png"
    path.replace(elsewhere)
    path.symlink_to(elsewhere)
    target = tmp_path / "backup"
    create_backup(ledger.database, storage.root, target)
    elsewhere.unlink()
    copied = target / "results/t/0.png"
    assert (copied.is_symlink(), copied.read_bytes(), manifest(target)["lost"]) == (False, CONTENT, [])


def test_lost_files_are_not_in_the_backup(ledger: Ledger, storage: LocalStorage, tmp_path: Path) -> None:
    """Missing or changed: in the copied database they have failed, in the running one nothing changes."""
    storage.path("t/0.png").unlink()
    storage.path("t/1.png").write_bytes(b"another")
    made = create_backup(ledger.database, storage.root, tmp_path / "backup")
    assert made.lost == ["t/0.png", "t/1.png"]
    assert {row["status"] for row in ledger.rows(RESULT)} == {"stored"}
    assert [path for path in files(tmp_path / "backup") if path.startswith("results")] == ["results/t/2.png"]
    url = ledger.database.url.render_as_string(hide_password=False)
    ledger.database.close()
    restore_database(url, tmp_path / "backup")
    with closing(Database(url)) as restored:
        rows = Ledger(restored).rows(RESULT)
    assert [(row["status"], row["sha256"] is None) for row in rows] == [
        ("failed", True),
        ("failed", True),
        ("stored", False),
    ]


def test_a_folder_that_is_not_empty_is_refused(ledger: Ledger, storage: LocalStorage, tmp_path: Path) -> None:
    """Also a file, a link, a mount point, and a folder among the results. An empty folder is used."""
    (tmp_path / "full" / "x").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name, reason in (("full", "is not empty"), ("file", "is not a folder"), ("link", "is not a folder")):
        with pytest.raises(DatabaseError, match=reason):
            create_backup(ledger.database, storage.root, tmp_path / name)
    with pytest.raises(DatabaseError, match="mount point"):
        create_backup(ledger.database, storage.root, Path("/proc"))
    for target in (storage.root, storage.root / "backup"):
        with pytest.raises(DatabaseError, match="folder for result files"):
            create_backup(ledger.database, storage.root, target)
    create_backup(ledger.database, storage.root, tmp_path / "empty")
    with pytest.raises(DatabaseError, match="is not empty"):
        create_backup(ledger.database, storage.root, tmp_path / "empty")


def test_an_interrupted_backup_leaves_nothing(
    ledger: Ledger, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, for instance: neither the folder nor a part of it stays."""

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(create, "_copy", fail)
    with pytest.raises(OSError, match="no space"):
        create_backup(ledger.database, storage.root, tmp_path / "backups" / "one")
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_database_of_an_older_version_is_refused(bare_database_url: str, tmp_path: Path) -> None:
    """One that has no identity yet."""
    database = Database(bare_database_url)
    with pytest.raises(DatabaseError, match="kling-receiver migrate"):
        create_backup(database, tmp_path / "results", tmp_path / "backup")
    database.close()
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_damaged_database_is_refused(ledger: Ledger, storage: LocalStorage, tmp_path: Path) -> None:
    """Its copy would replace a good one."""
    ledger.log(*["x" * 100] * 500)
    assert ledger.database.path
    with closing(sqlite3.connect(ledger.database.path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'event_of_task'").fetchone()
    ledger.database.close()
    with ledger.database.path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(DatabaseError, match=r"is damaged|malformed"):
        create_backup(ledger.database, storage.root, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
class TestPostgresql:
    """pg_dump is another program, which may be missing or too old."""

    def test_without_pg_dump(
        self, ledger: Ledger, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The message says what to install."""
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(DatabaseError, match="pg_dump is not installed"):
            create_backup(ledger.database, storage.root, tmp_path / "backup")
        assert not (tmp_path / "backup").exists()

    def test_with_a_pg_dump_that_fails(
        self, ledger: Ledger, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The message is its own; what it wrote is removed."""
        (tmp_path / "bin").mkdir()
        program = tmp_path / "bin" / "pg_dump"
        program.write_text("#!/bin/sh\necho 'aborting because of\n server version mismatch' >&2\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        with pytest.raises(DatabaseError, match="aborting because of server version mismatch"):
            create_backup(ledger.database, storage.root, tmp_path / "backup")
        assert not (tmp_path / "backup").exists()

    def test_no_secret_is_visible(
        self, ledger: Ledger, storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither a password nor our settings are in the arguments or variables of pg_dump, or in the backup."""
        (tmp_path / "bin").mkdir()
        program = tmp_path / "bin" / "pg_dump"
        program.write_text(
            f'#!/bin/sh\n(env; echo "$@"; cat "$PGSERVICEFILE" >&2) > {tmp_path}/seen 2> {tmp_path}/private\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("KLING_API_KEY", "an-api-key")
        url = ledger.database.url.set(password="pass-word").update_query_dict({"application_name": "in-the-query"})
        with closing(Database(url.render_as_string(hide_password=False))) as database:
            create_backup(database, storage.root, tmp_path / "backup")
        seen, private = (tmp_path / "seen").read_text(), (tmp_path / "private").read_text()
        assert "--snapshot=" in seen
        for secret in ("pass-word", "in-the-query", "an-api-key"):
            assert secret not in seen
            assert not any(secret in path.read_text(errors="replace") for path in files(tmp_path / "backup").values())
        assert "password=pass-word" in private
        assert "application_name=in-the-query" in private


def test_restored_renews_the_log_and_marks_lost_files(ledger: Ledger, storage: LocalStorage, tmp_path: Path) -> None:
    """Each lost file has failed, with an event; the folder is this database's."""
    with ledger.database.read() as connection:
        before = event_log.read(connection)
    storage.path("t/0.png").unlink()
    storage.path("t/1.png").write_bytes(b"another")
    result = continue_from_restored(ledger.database, storage)
    assert (result.checked, result.lost) == (3, 2)
    assert "kling-receiver tasks fetch t" in "".join(result.messages)
    assert [row["status"] for row in ledger.rows(RESULT)] == ["failed", "failed", "stored"]
    assert ledger.types().count("result.failed") == 2
    with ledger.database.read() as connection:
        after = event_log.read(connection)
    assert (after.database_id, after.log_id) == (before.database_id, result.log_id)
    assert before.log_id != after.log_id
    assert json.loads((storage.root / RECORD).read_text())["log_id"] == after.log_id


def test_restored_waits_for_no_receiver(database: Database, storage: LocalStorage) -> None:
    """While one runs, its cursors and messages would keep the old id: the command is refused, and names it."""
    database.acquire_lock()
    other = Database(database.url.render_as_string(hide_password=False))
    with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"):
        continue_from_restored(other, storage)
    other.close()


def test_the_commands(ledger: Ledger, storage: LocalStorage, tmp_path: Path) -> None:
    """Messages go to stderr; 1 when a file is lost, which both commands name."""
    url = ledger.database.url.render_as_string(hide_password=False)
    env = environment(
        tmp_path, KLING_DATABASE_URL=url, KLING_STORAGE_URL=storage.root.as_uri(), PATH=os.environ["PATH"]
    )
    made = run_here("backup", str(tmp_path / "one"), env=env)
    assert (made.returncode, made.stdout) == (0, "")
    assert "3 files" in made.stderr
    storage.path("t/0.png").unlink()
    made = run_here("backup", str(tmp_path / "two"), env=env)
    assert made.returncode == 1
    assert "t/0.png is missing" in made.stderr
    assert manifest(tmp_path / "two")["lost"] == ["t/0.png"]
    again = run_here("backup", str(tmp_path / "two"), env=env)
    assert (again.returncode, "is not empty" in again.stderr) == (1, True)
    ledger.database.close()
    restored = run_here("restored", env=env)
    assert restored.returncode == 1
    assert "1 of 3 files" in restored.stderr
    restored = run_here("restored", env=env)
    assert (restored.returncode, restored.stdout) == (0, "")
    assert "has the new id" in restored.stderr
    entries = [(row["action"], row["target"]) for row in ledger.rows(AUDIT)]
    assert entries == [("backup", str(tmp_path / "one")), ("backup", str(tmp_path / "two")), *[("restored", "")] * 2]


def test_a_backup_without_an_entry_is_one(ledger: Ledger, storage: LocalStorage, tmp_path: Path) -> None:
    """An older version has no audit log, and a database may be read-only: the message says so."""
    with ledger.database.write() as connection:
        connection.execute(text("ALTER TABLE audit_entry RENAME TO elsewhere"))
    url = ledger.database.url.render_as_string(hide_password=False)
    env = environment(
        tmp_path, KLING_DATABASE_URL=url, KLING_STORAGE_URL=storage.root.as_uri(), PATH=os.environ["PATH"]
    )
    try:
        made = run_here("backup", str(tmp_path / "backup"), env=env)
        assert (made.returncode, "The audit log has no entry of this backup" in made.stderr) == (0, True)
        assert manifest(tmp_path / "backup")
    finally:
        with ledger.database.write() as connection:
            connection.execute(text("ALTER TABLE elsewhere RENAME TO audit_entry"))


@pytest.mark.parametrize("arguments", [["backup", "there"], ["restored"], ["migrate"]])
def test_a_volume_that_hangs_is_an_error(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the results: as at the start of the receiver, it is named, with its setting."""

    def hang(storage: LocalStorage) -> None:
        raise OSError(errno.ETIMEDOUT, "does not answer within 5 s", str(storage.root))

    assert run_here("migrate", env=environment(tmp_path / "data")).returncode == 0
    monkeypatch.setattr(LocalStorage, "check_answers", hang)
    ran = run_here(*arguments, env=environment(tmp_path / "data"))
    assert ran.returncode == 1
    assert ran.stderr.startswith("kling-receiver: KLING_DATA_DIR cannot be used (")


def test_a_command_without_a_database(tmp_path: Path) -> None:
    """No new, empty database is made or backed up, and none passes for a restored one."""
    for arguments in (["backup", str(tmp_path / "backup")], ["restored"]):
        ran = run_here(*arguments, env=environment(tmp_path / "data"))
        assert ran.returncode == 1
        assert "There is no database" in ran.stderr
    assert not (tmp_path / "data").exists()
    (tmp_path / "data" / "results").mkdir(parents=True)
    (tmp_path / "data" / "kling.db").touch()
    restored = run_here("restored", env=environment(tmp_path / "data"))
    assert restored.returncode == 1
    assert "kling.db is empty. Restore it from a backup first" in restored.stderr
    assert list((tmp_path / "data" / "results").iterdir()) == []


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_wal_that_stayed_beside_a_restored_database_is_refused(
    ledger: Ledger, storage: LocalStorage, tmp_path: Path
) -> None:
    """Of a receiver that was killed: SQLite would write its pages into the other file."""
    path = ledger.database.path
    assert path
    create_backup(ledger.database, storage.root, tmp_path / "backup")
    ledger.log("a")
    killed = path.with_name(f"{path.name}-wal").read_bytes()
    ledger.database.close()
    shutil.copyfile(tmp_path / "backup" / "kling.db", path)
    path.with_name(f"{path.name}-wal").write_bytes(killed)
    content = path.read_bytes()
    env = environment(
        tmp_path,
        KLING_DATABASE_URL=f"sqlite:///{path}",
        KLING_STORAGE_URL=storage.root.as_uri(),
        KLING_RECEIVER_URL="http://localhost",
    )
    for execute, command in ((run_here, "restored"), (run_here, "migrate"), (run, "serve")):
        ran = execute(command, env=env)
        assert ran.returncode == 1
        assert f"Remove {path.name}-wal and {path.name}-shm" in ran.stderr
    assert path.read_bytes() == content
    path.with_name(f"{path.name}-wal").unlink()
    ran = run_here("restored", env=env)
    assert ran.returncode == 0, ran.stderr

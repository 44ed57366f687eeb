"""The owner of a results folder: one receiver at a time, one database, and a memory of how far its log went."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from kling_callback.protocol.ids import new_id
from kling_receiver.events import log as event_log
from kling_receiver.events.log import LogState
from kling_receiver.results.owner import RECORD, FolderOwner, OwnerRecord, claim
from kling_receiver.results.owner_recorder import OwnerRecorder
from kling_receiver.results.storage import LocalStorage
from kling_receiver.store.database import Database
from kling_receiver.store.errors import AlreadyRunning, DatabaseError
from kling_sandbox import Sandbox
from tests.support.database import Ledger
from tests.support.receiver import Start
from tools.harness.submitting import finished, poll_until, register, submit


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[FolderOwner]:
    """The owner of an empty folder."""
    storage = LocalStorage(tmp_path / "results")
    storage.prepare()
    yield storage.owner
    storage.owner.release()


def state(database: Database) -> LogState:
    with database.read() as connection:
        return event_log.read(connection)


def renewed(database: Database, owner: FolderOwner, *, restored: bool = False) -> bool:
    """Whether claiming the folder renews the log."""
    before = state(database).log_id
    claimed = claim(database, owner, restored=restored)
    assert claimed.log_id == state(database).log_id
    assert owner.read() == claimed
    return before != claimed.log_id


def set_log(database: Database, log_id: str) -> None:
    with database.write() as connection:
        event_log.SET_LOG_ID.execute(connection, id=log_id)


@pytest.mark.parametrize("kind", ["pipe", "link", "endless"])
def test_what_somebody_else_put_in_place_of_the_record(owner: FolderOwner, tmp_path: Path, kind: str) -> None:
    """A pipe without a writer is not waited for, no link is followed, and memory is bounded."""
    path, elsewhere = owner.root / RECORD, tmp_path / "elsewhere.json"
    record = OwnerRecord("a", "b", "c", 1)
    elsewhere.write_text(json.dumps(asdict(record)))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(elsewhere)
    else:
        path.write_bytes(elsewhere.read_bytes() + b" " * (1 << 20) + b"x")
    if kind == "endless":
        assert owner.read() == record  # what is behind the record is not read
    else:
        with pytest.raises(DatabaseError, match="cannot be read: it names the database"):
            owner.read()
    owner.write(record)
    assert owner.read() == record
    assert json.loads(elsewhere.read_text()) == asdict(record)


def test_the_name_of_another_database_is_one_line(database: Database, owner: FolderOwner) -> None:
    """Somebody else may have written the record."""
    (owner.root / RECORD).write_text(json.dumps(asdict(OwnerRecord("x\n\x1b[2JDone.", "other", "c", 1))))
    with pytest.raises(DatabaseError, match=r"of another database, x \\x1b\[2JDone\.\. Set"):
        claim(database, owner)


def test_the_folder_is_recorded_for_the_database(database: Database, owner: FolderOwner) -> None:
    """With its address, for people, and its newest event; the next start changes nothing."""
    Ledger(database).log("a", "b")
    assert not renewed(database, owner)
    known = state(database)
    assert owner.read() == OwnerRecord(str(database), known.database_id, known.log_id, known.newest.event_id)
    assert (owner.root / RECORD).stat().st_mode & 0o777 == 0o600
    assert not renewed(database, owner)


def test_an_older_database_gets_a_new_log(database: Database, owner: FolderOwner) -> None:
    """Once: the folder remembers an event that the database does not have."""
    Ledger(database).log("a", "b")
    claimed = claim(database, owner)
    owner.write(OwnerRecord(claimed.database, claimed.database_id, claimed.log_id, claimed.last_event + 1))
    assert renewed(database, owner)
    assert not renewed(database, owner)


def test_a_database_from_before_a_renewal_gets_a_new_log(database: Database, owner: FolderOwner) -> None:
    """Restored twice from one backup: the ids after the first restore are used again, too."""
    first = claim(database, owner).log_id
    assert renewed(database, owner, restored=True)
    set_log(database, first)
    assert renewed(database, owner)
    assert state(database).log_id != first


def test_a_backup_gets_a_new_log(database: Database, owner: FolderOwner) -> None:
    """Whatever the folder remembers: each start from it is another log."""
    for _ in range(2):
        set_log(database, "")
        assert renewed(database, owner)


def test_a_killed_renewal_is_repeated(database: Database, owner: FolderOwner) -> None:
    """After the commit and before the record was written."""
    before = owner
    claim(database, before)
    set_log(database, "renewed")
    assert renewed(database, owner)
    assert not renewed(database, owner)


def test_the_folder_of_another_database_is_refused(database: Database, owner: FolderOwner, tmp_path: Path) -> None:
    """The message names it and both remedies; the record and the log stay. `restored` takes the folder over."""
    with closing(Database(f"sqlite:///{tmp_path / 'other.db'}")) as other:
        other.migrate()
        claimed, log_id = claim(other, owner), state(database).log_id
        with pytest.raises(DatabaseError, match=r"other\.db.*KLING_STORAGE_URL.*kling-receiver restored"):
            claim(database, owner)
        assert (owner.read(), state(database).log_id) == (claimed, log_id)
        assert renewed(database, owner, restored=True)
        assert not renewed(database, owner)
        with pytest.raises(DatabaseError, match="another database"):
            claim(other, owner)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"database": "x", "database_id": 1, "log_id": "", "last_event": 1}'],
)
def test_a_record_that_cannot_be_read_is_refused(any_database: Database, owner: FolderOwner, content: bytes) -> None:
    """It may be of another database; `restored` replaces it."""
    (owner.root / RECORD).write_bytes(content)
    with pytest.raises(DatabaseError, match="kling-receiver restored"):
        claim(any_database, owner)
    assert renewed(any_database, owner, restored=True)


def test_a_folder_has_one_receiver(owner: FolderOwner, any_database: Database, tmp_path: Path) -> None:
    """By whatever name it is reached, and also when every file in it was removed."""
    owner.acquire()
    claim(any_database, owner)
    (tmp_path / "link").symlink_to(owner.root)
    for path in (owner.root, tmp_path / "link", owner.root / ".parts" / ".."):
        with pytest.raises(AlreadyRunning, match=str(any_database)):
            FolderOwner(path).acquire()
    for each in owner.root.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    with pytest.raises(AlreadyRunning, match="another receiver"):
        FolderOwner(owner.root).acquire()
    owner.release()
    other = FolderOwner(owner.root)
    other.acquire()
    other.release()


def test_a_folder_that_was_replaced_by_another_database_s_is_not_used(tmp_path: Path, any_database: Database) -> None:
    """While its receiver runs, nor afterwards. The old folder is used again once it is back: a volume, for instance."""
    storage = LocalStorage(tmp_path / "results")
    storage.prepare()
    storage.owner.acquire()
    claim(any_database, storage.owner)
    moved = storage.root.rename(tmp_path / "moved")
    with closing(Database(f"sqlite:///{tmp_path / 'other.db'}")) as other:
        other.migrate()
        replacing = LocalStorage(storage.root)
        replacing.prepare()
        replacing.owner.acquire()
        claim(other, replacing.owner)
    for _ in range(2):
        for use in (storage.probe, lambda: storage.part("t/0", "https://x/y").close()):
            with pytest.raises(OSError, match=r"another database, .*other\.db"):
                use()
        replacing.owner.release()
    shutil.rmtree(storage.root)
    shutil.copytree(moved, storage.root)
    storage.probe()
    with pytest.raises(AlreadyRunning):
        FolderOwner(storage.root).acquire()
    storage.owner.release()


def test_a_folder_that_an_operator_made_anew_is_used(tmp_path: Path, any_database: Database) -> None:
    """It is locked and recorded; an empty mount point is not used."""
    storage = LocalStorage(tmp_path / "results")
    storage.prepare()
    storage.owner.acquire()
    claimed = claim(any_database, storage.owner)
    shutil.rmtree(storage.root)
    storage.root.mkdir()
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="folder is gone"):
            storage.probe()
    (storage.root / ".parts").mkdir()
    storage.probe()
    with pytest.raises(AlreadyRunning):
        FolderOwner(storage.root).acquire()
    assert storage.owner.read() == claimed
    storage.owner.release()


def test_the_record_follows_the_log(database: Database, owner: FolderOwner) -> None:
    """After commits, and a last time at the end, not in between."""
    ledger = Ledger(database)
    recorder = OwnerRecorder(owner, database, interval=60)
    recorder.start(claim(database, owner))
    ledger.log("a")
    recorder.events_committed()
    poll_until(lambda: remembered(owner) == 1)
    ledger.log("b", "c")
    recorder.events_committed()
    assert remembered(owner) == 1
    recorder.close()
    assert remembered(owner) == 3


def test_a_record_that_cannot_be_written_is_written_later(
    any_database: Database, owner: FolderOwner, caplog: pytest.LogCaptureFixture
) -> None:
    """With one line in the log; nothing else stops."""
    ledger = Ledger(any_database)
    recorder = OwnerRecorder(owner, any_database, interval=0)
    recorder.start(claim(any_database, owner))
    hidden = owner.root.rename(owner.root.with_name("hidden"))
    for _ in range(2):
        ledger.log("a")
        recorder.events_committed()
        poll_until(lambda: "cannot be updated" in caplog.text)
    hidden.rename(owner.root)
    recorder.close()
    assert remembered(owner) == 2
    assert caplog.text.count("cannot be updated") == 1


def test_a_released_folder_s_record_is_not_written(any_database: Database, owner: FolderOwner) -> None:
    """It may be another receiver's by then: a thread that hung storage held up comes too late."""
    owner.acquire()
    claimed = claim(any_database, owner)
    owner.release()
    with pytest.raises(OSError, match="released"):
        owner.write(OwnerRecord("x", "another", "log", 9))
    assert owner.read() == claimed
    assert [path.name for path in owner.root.iterdir() if path.name.endswith(".part")] == []
    owner.acquire()
    owner.write(claimed)


def remembered(owner: FolderOwner) -> int:
    record = owner.read()
    assert record
    return record.last_event


def test_two_receivers_with_two_databases_cannot_share_a_folder(start: Start, gateway: Sandbox, tmp_path: Path) -> None:
    """Neither at the same time nor one after the other: they would overwrite each other's files."""
    results = (tmp_path / "shared").as_uri()
    first = start(api_base=gateway.url, storage_url=results)
    task, _ = submit(first, gateway)
    finished(first, task)
    with pytest.raises(DatabaseError, match=r"other/kling\.db cannot be used\. It is empty, but .+shared has files"):
        start(api_base=gateway.url, storage_url=results, data_dir=tmp_path / "other")
    with closing(Database(f"sqlite:///{tmp_path}/other/kling.db")) as other:
        other.migrate()
    with pytest.raises(AlreadyRunning, match=r"shared.*kling\.db.*KLING_STORAGE_URL"):
        start(api_base=gateway.url, storage_url=results, data_dir=tmp_path / "other")
    first.stop()
    with pytest.raises(DatabaseError, match="another database"):
        start(api_base=gateway.url, storage_url=results, data_dir=tmp_path / "other")
    again = start(api_base=gateway.url, storage_url=results)
    assert register(again, new_id()).status_code == 201
    again.stop()
    newest = event_log.read
    with closing(Database(again.settings.database)) as database, database.read() as connection:
        last_event = newest(connection).newest.event_id
    assert json.loads((tmp_path / "shared" / RECORD).read_text())["last_event"] == last_event

"""AtomicFile: complete under its final name, or absent."""

import errno
import fcntl
import hashlib
import os
import stat
from pathlib import Path

import pytest

import kling_callback
import kling_receiver
from kling_callback import atomic_file
from kling_callback.atomic_file import AtomicFile, fsync_file, fsync_folder, temporary_path


def test_a_file_appears_only_when_it_is_committed(tmp_path: Path) -> None:
    """The name appears with the whole content; a discard afterwards removes nothing."""
    target = tmp_path / "x"
    file = AtomicFile(temporary_path(target))
    file.write(b"ab")
    assert not target.exists()
    file.write(b"c")
    file.commit(target)
    file.discard()
    assert target.read_bytes() == b"abc"
    assert (file.size, file.sha256) == (3, hashlib.sha256(b"abc").hexdigest())
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_can_be_checked_between_flush_and_commit(tmp_path: Path) -> None:
    """After `flush` the temporary file is complete on disk, and no other name has appeared."""
    file = AtomicFile(tmp_path / "part", mode=0o600)
    file.write(b"abc")
    file.flush()
    assert file.path.read_bytes() == b"abc"
    assert file.path.stat().st_mode & 0o777 == 0o600
    file.commit(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_system_s_own_call_is_used_where_fsync_stops_at_the_disk_s_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS has such a call; a file system may lack it. Here another call, whose effect shows, takes its place."""
    with (tmp_path / "x").open("wb") as file:
        monkeypatch.setattr(atomic_file, "FULL_FSYNC", fcntl.F_SETFD)  # clears FD_CLOEXEC
        assert not os.get_inheritable(file.fileno())
        fsync_file(file.fileno())
        assert os.get_inheritable(file.fileno())
        monkeypatch.setattr(atomic_file, "FULL_FSYNC", -1)
        fsync_file(file.fileno())
        fsync_folder(tmp_path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        fsync_file(999_999)


def test_no_other_sync_of_a_file_is_used() -> None:
    """By either package."""
    roots = [Path(package.__file__ or "").parent for package in (kling_callback, kling_receiver)]
    found = [path.name for root in roots for path in root.rglob("*.py") if "os.fsync(" in path.read_text()]
    assert found == ["atomic_file.py"]


def test_a_discarded_file_leaves_nothing(tmp_path: Path) -> None:
    """`discard` removes the temporary file, and may be called twice."""
    file = AtomicFile(temporary_path(tmp_path / "x"))
    file.write(b"abc")
    file.discard()
    file.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`commit` raises, the final name does not appear, and `discard` removes the temporary file."""

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    file = AtomicFile(temporary_path(tmp_path / "x"))
    file.write(b"abc")
    with pytest.raises(OSError, match="No space"):
        file.commit(tmp_path / "x")
    file.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_rename_is_between_the_syncs_of_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the content is on disk, then the name, then the folder's entry."""
    target, synced = tmp_path / "x", []
    fsync = os.fsync

    def record(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink().name, target.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    file = AtomicFile(tmp_path / "part")
    file.commit(target)
    assert synced == [("part", False), (tmp_path.name, True)]


def fail_to_sync(monkeypatch: pytest.MonkeyPatch, number: int, *, folders: bool) -> None:
    """Let the system call fail, for folders or for files."""
    fsync = os.fsync

    def fail(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == folders:
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr("kling_callback.atomic_file._warned", set())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
def test_a_file_system_that_cannot_sync_folders_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """As CIFS and others: the file is complete, and is not written again for ever."""
    fail_to_sync(monkeypatch, number, folders=True)
    for name in ("x", "y"):
        file = AtomicFile(temporary_path(tmp_path / name))
        file.write(b"abc")
        file.commit(tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"abc"
    [message] = caplog.messages
    assert message.startswith(f"the file system of {tmp_path} cannot sync folders ({os.strerror(number)}): ")


@pytest.mark.parametrize(
    ("number", "folders"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False), (errno.EIO, False)]
)
def test_a_failure_of_the_disk_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, folders: bool
) -> None:
    """Of a folder, and any failure of the file itself."""
    fail_to_sync(monkeypatch, number, folders=folders)
    file = AtomicFile(temporary_path(tmp_path / "x"))
    with pytest.raises(OSError, match=os.strerror(number).split("/")[0]):
        file.commit(tmp_path / "x")
    file.discard()

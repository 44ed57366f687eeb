"""Storage of result files: complete or absent, and readable by the receiver only."""

import hashlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kling_receiver.results.storage import LocalStorage, folder_of


@pytest.fixture
def folder(tmp_path: Path) -> LocalStorage:
    """A prepared storage."""
    folder = LocalStorage(tmp_path / "deep" / "results")
    folder.prepare()
    return folder


def everything(folder: LocalStorage) -> dict[str, bytes]:
    """Every file in the folder, finished or not."""
    return {str(path.relative_to(folder.root)): path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}


def test_a_committed_file_is_complete(folder: LocalStorage) -> None:
    """Under its name, with its checksum, and no other file is left."""
    part = folder.create()
    part.write(b"abc")
    part.write(b"def")
    assert part.size == 6
    part.flush()
    assert part.sha256 == hashlib.sha256(b"abcdef").hexdigest()
    folder.commit(part, "task/0.png")
    part.discard()
    assert everything(folder) == {"task/0.png": b"abcdef"}
    assert folder.path("task/0.png").read_bytes() == b"abcdef"


def test_an_unfinished_file_has_no_name(folder: LocalStorage) -> None:
    """Until it is committed it is in `.parts`; discarded, it is removed."""
    part = folder.create()
    part.write(b"abc")
    part.flush()
    assert [name.split("/")[0] for name in everything(folder)] == [".parts"]
    part.discard()
    part.discard()
    assert everything(folder) == {}


def test_a_second_file_replaces_the_first(folder: LocalStorage) -> None:
    """After a crash between file and database the same file is downloaded and committed again."""
    for content in (b"first", b"second"):
        part = folder.create()
        part.write(content)
        part.flush()
        folder.commit(part, "task/0.png")
        part.discard()
    assert everything(folder) == {"task/0.png": b"second"}


def test_unfinished_files_of_an_earlier_process_are_removed(folder: LocalStorage) -> None:
    """At the start; finished files stay."""
    part = folder.create()
    part.flush()
    folder.commit(part, "task/0.png")
    part.discard()
    left = folder.create()
    left.write(b"half")
    left.flush()
    LocalStorage(folder.root).prepare()
    assert everything(folder) == {"task/0.png": b""}
    left.discard()


def test_a_changed_file_has_another_checksum(folder: LocalStorage) -> None:
    """Even with the same size; a removed file has none; a new process computes it again."""
    part = folder.create()
    part.write(b"content")
    part.flush()
    sha256 = part.sha256
    folder.commit(part, "task/0.png")
    part.discard()
    path = folder.path("task/0.png")
    assert folder.sha256("task/0.png") == LocalStorage(folder.root).sha256("task/0.png") == sha256
    path.write_bytes(b"altered")
    assert folder.sha256("task/0.png") == hashlib.sha256(b"altered").hexdigest()
    path.write_bytes(b"content")
    assert folder.sha256("task/0.png") == sha256
    path.unlink()
    assert folder.sha256("task/0.png") is None
    assert folder.sha256("task") is None


def test_the_cache_of_checksums_is_limited(folder: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files there are."""
    monkeypatch.setattr("kling_receiver.results.storage.MAX_CACHED", 3)
    (folder.root / "task").mkdir()
    for n in range(10):
        folder.path(f"task/{n}").write_bytes(bytes([n]))
        assert folder.sha256(f"task/{n}") == hashlib.sha256(bytes([n])).hexdigest()
    assert len(folder._checksums) == 3


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    """Threads are switched as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-7)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("frequent_switches")
def test_threads_may_share_the_cache_of_checksums(folder: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each insertion removes one entry, and the limit holds."""
    monkeypatch.setattr("kling_receiver.results.storage.MAX_CACHED", 1)

    def insert(thread: int) -> None:
        for n in range(5_000):
            folder._cache_checksum((thread, n, 0, 0, 0), "checksum")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(insert, range(8)))
    assert len(folder._checksums) == 1


def test_files_are_readable_by_the_receiver_only(folder: LocalStorage) -> None:
    """Files have mode 0600, and their folders 0700."""
    part = folder.create()
    part.flush()
    folder.commit(part, "task/0.png")
    part.discard()
    assert folder.path("task/0.png").stat().st_mode & 0o077 == 0
    assert folder.path("task").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:///a/b", "/a/b"),
        ("file://localhost/a", "/a"),
        ("file:///a%20b", "/a b"),
        ("FILE:///a", "/a"),
        ("file:/a", "/a"),
        ("file:///a?b#c", "/a?b#c"),
        ("file:///a%3Fb%25/", "/a?b%"),
    ],
)
def test_a_file_address_names_a_folder(url: str, path: str) -> None:
    """As in the storage setting."""
    assert folder_of(url) == Path(path)


@pytest.mark.parametrize(
    "url", ["", "/a/b", "file:a", "file://host/a", "s3://bucket", "http://x/y", "file://", "file:///a%00"]
)
def test_any_other_address_is_refused(url: str) -> None:
    """The message has an example."""
    with pytest.raises(ValueError, match="file:///var/lib/kling/results"):
        folder_of(url)


def test_a_probe_leaves_nothing(folder: LocalStorage) -> None:
    """It writes and removes a file, and raises if that fails."""
    folder.probe()
    assert everything(folder) == {}
    (folder.root / ".parts").rmdir()
    (folder.root / ".parts").write_text("in the way")
    with pytest.raises(OSError, match="directory"):
        folder.probe()


def test_a_folder_that_vanished_is_not_made_again(folder: LocalStorage) -> None:
    """Its volume may be mounted again, and would hide files written meanwhile."""
    away = folder.root.with_name("away")
    folder.root.rename(away)
    folder.root.mkdir()  # as an empty mount point
    for use in (folder.create, folder.probe):
        with pytest.raises(FileNotFoundError, match="Mount its volume again"):
            use()
    assert list(folder.root.iterdir()) == []
    folder.root.rmdir()
    away.rename(folder.root)
    folder.probe()

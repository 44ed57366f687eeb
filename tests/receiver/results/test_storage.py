"""Where result files lie: whole or not at all, and readable by nobody else."""

import hashlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kling_receiver.results.storage import LocalStorage, folder_of


@pytest.fixture
def folder(tmp_path: Path) -> LocalStorage:
    """An opened folder."""
    folder = LocalStorage(tmp_path / "deep" / "results")
    folder.prepare()
    return folder


def everything(folder: LocalStorage) -> dict[str, bytes]:
    """Every file in the folder, finished or not."""
    return {str(path.relative_to(folder.root)): path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}


def test_a_kept_file_is_there_whole(folder: LocalStorage) -> None:
    """Under its name, with its checksum, and nothing else is left."""
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


def test_an_unfinished_file_is_seen_by_nobody(folder: LocalStorage) -> None:
    """Before it is kept it lies apart, and dropped it is gone."""
    part = folder.create()
    part.write(b"abc")
    part.flush()
    assert [name.split("/")[0] for name in everything(folder)] == [".parts"]
    part.discard()
    part.discard()
    assert everything(folder) == {}


def test_a_second_file_takes_the_place_of_the_first(folder: LocalStorage) -> None:
    """After a crash between file and database the same file is fetched and kept once more."""
    for content in (b"first", b"second"):
        part = folder.create()
        part.write(content)
        part.flush()
        folder.commit(part, "task/0.png")
        part.discard()
    assert everything(folder) == {"task/0.png": b"second"}


def test_what_an_earlier_process_left_unfinished_is_cleared(folder: LocalStorage) -> None:
    """At start; finished files stay."""
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


def test_a_file_is_known_by_its_checksum(folder: LocalStorage) -> None:
    """Altered, it has another, though its size be the same; gone, it has none; a new process reads it again."""
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


def test_few_checksums_are_remembered(folder: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files there are."""
    monkeypatch.setattr("kling_receiver.results.storage.MAX_CACHED", 3)
    (folder.root / "task").mkdir()
    for n in range(10):
        folder.path(f"task/{n}").write_bytes(bytes([n]))
        assert folder.sha256(f"task/{n}") == hashlib.sha256(bytes([n])).hexdigest()
    assert len(folder._checksums) == 3


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-7)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_a_thread_that_remembers_second_forgets_nothing_twice(
    folder: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many threads remember at once: each time one is forgotten, and never more are kept than may be."""
    monkeypatch.setattr("kling_receiver.results.storage.MAX_CACHED", 1)

    def remember(thread: int) -> None:
        for n in range(5_000):
            folder._cache_checksum((thread, n, 0, 0, 0), "checksum")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(remember, range(8)))
    assert len(folder._checksums) == 1


def test_nobody_else_may_read(folder: LocalStorage) -> None:
    """Files and the folders around them are the receiver's own."""
    part = folder.create()
    part.flush()
    folder.commit(part, "task/0.png")
    part.discard()
    assert folder.path("task/0.png").stat().st_mode & 0o077 == 0
    assert folder.path("task").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("url", "path"),
    [("file:///a/b", "/a/b"), ("file://localhost/a", "/a"), ("file:///a%20b", "/a b"), ("FILE:///a", "/a")],
)
def test_folders_are_named_by_address(url: str, path: str) -> None:
    """As the storage setting is written."""
    assert folder_of(url) == Path(path)


@pytest.mark.parametrize("url", ["", "/a/b", "file:a", "file://host/a", "s3://bucket", "http://x/y", "file://"])
def test_what_is_no_folder(url: str) -> None:
    """Is told with what to write instead."""
    with pytest.raises(ValueError, match="file:///var/lib/kling/results"):
        folder_of(url)


def test_a_probe_leaves_nothing(folder: LocalStorage) -> None:
    """It writes a file of no meaning, and says when that cannot be."""
    folder.probe()
    assert everything(folder) == {}
    (folder.root / ".parts").rmdir()
    (folder.root / ".parts").write_text("in the way")
    with pytest.raises(OSError, match="directory"):
        folder.probe()


def test_a_folder_that_vanished_is_not_made_again(folder: LocalStorage) -> None:
    """It was on a volume, which may come back; what is written meanwhile would lie beneath it."""
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

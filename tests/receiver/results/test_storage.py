"""Storage of result files: complete or absent, and readable by the receiver only."""

import fcntl
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path

import pytest

from kling_receiver.results.storage import LocalStorage, folder_of

URL = "https://files.example/0.png"


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
    part = folder.part("task/0", URL)
    part.write(b"abc")
    part.write(b"def")
    assert part.size == 6
    assert part.sha256 == hashlib.sha256(b"abcdef").hexdigest()
    folder.commit(part, "task/0.png")
    part.discard()
    assert everything(folder) == {"task/0.png": b"abcdef"}
    assert folder.path("task/0.png").read_bytes() == b"abcdef"


def test_an_unfinished_file_has_no_name(folder: LocalStorage) -> None:
    """Until it is committed it is in `.parts`; discarded, it is removed."""
    part = folder.part("task/0", URL)
    part.write(b"abc")
    assert [name.split("/")[0] for name in everything(folder)] == [".parts"]
    part.discard()
    part.discard()
    assert everything(folder) == {}


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "task/../../../secret", "..", "//secret", "./../x"])
def test_no_name_leads_out_of_the_folder(folder: LocalStorage, name: str) -> None:
    """A restored database may be somebody else's."""
    assert folder.path(name).resolve().is_relative_to(folder.root.resolve())
    assert folder.path("task/0.png") == folder.root / "task/0.png"


def store(folder: LocalStorage, content: bytes, replaced: str | None = None, name: str = "task/0.png") -> str:
    """Store a file. Returns its name."""
    part = folder.part("task/0", URL)
    part.write(content)
    stored = folder.commit(part, name, replaced)
    part.discard()
    return stored


def test_an_earlier_version_of_a_file_is_replaced(folder: LocalStorage) -> None:
    """The same file, downloaded again: after a crash between file and database, or because it was damaged."""
    assert store(folder, b"first") == store(folder, b"first") == "task/0.png"
    assert store(folder, b"second", replaced="task/0.png") == "task/0.png"
    assert everything(folder) == {"task/0.png": b"second"}


@pytest.mark.parametrize("replaced", [None, "task/0.jpg", "other/0.png"])
def test_another_file_is_never_replaced(folder: LocalStorage, replaced: str | None) -> None:
    """It may be that of another task, whose name is the same where case is ignored; or a link."""
    assert store(folder, b"first") == "task/0.png"
    other = f"task/0-{hashlib.sha256(b'second').hexdigest()}.png"
    assert store(folder, b"second", replaced) == store(folder, b"second", replaced) == other
    folder.path("task/1.png").symlink_to("nowhere")
    assert store(folder, b"third", replaced, "task/1.png") == f"task/1-{hashlib.sha256(b'third').hexdigest()}.png"
    assert everything(folder) | {"task/0.png": b"first", other: b"second"} == everything(folder)
    assert folder.sha256(other) == hashlib.sha256(b"second").hexdigest()


def begun(folder: LocalStorage, *chunks: bytes, name: str = "task/0", validator: str | None = '"one"') -> None:
    """A part that a process began, and did not end."""
    part = folder.part(name, URL)
    part.validator, part.length = validator, 9
    for chunk in chunks:
        part.write(chunk)
    part._file.close()  # as a kill does


def test_a_part_is_continued_by_another_process(folder: LocalStorage) -> None:
    """After a kill: its bytes, its validator, the length of the file; the checksum is that of the whole file."""
    begun(folder, b"abc", b"def")
    part = LocalStorage(folder.root).part("task/0", f"{URL}?another=signature")
    assert (part.size, part.validator, part.length, part.head(4), part.is_whole) == (6, '"one"', 9, b"abcd", False)
    part.write(b"ghi")
    assert (part.is_whole, part.sha256) == (True, hashlib.sha256(b"abcdefghi").hexdigest())
    folder.commit(part, "task/0.png")
    part.discard()
    assert everything(folder) == {"task/0.png": b"abcdefghi"}


def test_a_part_that_is_closed_is_kept_for_later(folder: LocalStorage) -> None:
    """If its host names a validator; else nothing would tell whether the rest belongs to it."""
    for validator, size in (('"one"', 3), (None, 0)):
        part = folder.part("task/0", URL)
        part.restart()
        part.validator = validator
        part.write(b"abc")
        part.close()
        again = folder.part("task/0", URL)
        assert (again.size, again.validator) == (size, validator)
        again.discard()
    assert everything(folder) == {}


def spoil(folder: LocalStorage, change: str) -> None:
    """What a crash or an operator may make of a part and its note."""
    (note,) = folder.root.rglob("*.json")
    part = note.with_suffix("")
    if change == "lost bytes":
        part.write_bytes(b"abc")
    elif change == "zeros":
        part.write_bytes(bytes(6))
    elif change == "no note":
        note.unlink()
    elif change == "empty note":
        note.write_bytes(b"")
    elif change == "cut note":
        note.write_text(note.read_text()[:-9])
    else:
        note.write_text(change)


@pytest.mark.parametrize(
    "change", ["lost bytes", "zeros", "no note", "empty note", "cut note", "[]", "{}", "null", '{"source": 1}']
)
def test_a_part_that_is_not_as_its_note_says_begins_anew(folder: LocalStorage, change: str) -> None:
    """A power failure may have left zeros, or nothing: its bytes are not continued."""
    begun(folder, b"abcdef")
    spoil(folder, change)
    part = folder.part("task/0", URL)
    assert (part.size, part.validator, part.length) == (0, None, None)
    part.write(b"ab")
    assert part.head(9) == b"ab"
    part.discard()
    assert everything(folder) == {}


def test_bytes_after_a_note_are_dropped(folder: LocalStorage) -> None:
    """A kill may come between the bytes and their note."""
    begun(folder, b"abc")
    (note,) = folder.root.rglob("*.json")
    with note.with_suffix("").open("ab") as file:
        file.write(b"xyz")
    part = folder.part("task/0", URL)
    part.write(b"def")
    assert part.head(9) == b"abcdef"
    part.discard()


def test_another_file_does_not_continue_a_part(folder: LocalStorage) -> None:
    """Neither of another task, nor from another path."""
    begun(folder, b"abc")
    for name, url in (("task/1", URL), ("task/0", f"{URL}/other")):
        part = folder.part(name, url)
        assert part.size == 0
        part.discard()


def test_a_part_has_one_writer(folder: LocalStorage) -> None:
    """A second one is refused while the first is open."""
    first = folder.part("task/0", URL)
    with pytest.raises(BlockingIOError):
        folder.part("task/0", URL)
    first.discard()
    folder.part("task/0", URL).discard()


def test_a_part_that_vanishes_while_it_is_opened_is_opened_anew(
    folder: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another attempt may end between opening and locking it."""
    flock, ended = fcntl.flock, iter([True])

    def lock(file: FileIO, operation: int) -> None:
        if next(ended, False):
            folder.discard_part("task/0")
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock)
    part = folder.part("task/0", URL)
    with pytest.raises(BlockingIOError):
        folder.part("task/0", URL)
    part.write(b"abc")
    folder.commit(part, "task/0.png")
    assert everything(folder) == {"task/0.png": b"abc"}


def test_the_end_of_one_attempt_does_not_touch_another_s_part(folder: LocalStorage) -> None:
    """Its own part was removed meanwhile."""
    first = folder.part("task/0", URL)
    first.write(b"first")
    folder.discard_part("task/0")
    second = folder.part("task/0", URL)
    second.write(b"second")
    with pytest.raises(FileNotFoundError, match="removed meanwhile"):
        folder.commit(first, "task/0.png")
    first.discard()
    folder.commit(second, "task/0.png")
    assert everything(folder) == {"task/0.png": b"second"}


def test_orphans_are_removed(folder: LocalStorage) -> None:
    """What is left of files that are not downloaded any more; finished files and the other parts stay."""
    begun(folder, b"abc", name="task/0")
    begun(folder, b"abc", name="task/1")
    begun(folder, b"abc", name="task/2", validator=None)
    (folder.root / ".parts" / "part-of-an-earlier-version").touch()
    (folder.root / "task").mkdir()
    folder.path("task/3.png").touch()
    LocalStorage(folder.root).remove_orphans(["task/0", "task/4"])
    assert len(everything(folder)) == 3
    part = folder.part("task/0", URL)
    assert part.size == 3
    part.discard()
    begun(folder, b"abc", name="task/1")
    folder.discard_part("task/1")
    folder.discard_part("task/1")
    assert list(everything(folder)) == ["task/3.png"]


def test_a_changed_file_has_another_checksum(folder: LocalStorage) -> None:
    """Even with the same size; a removed file has none; a new process computes it again."""
    part = folder.part("task/0", URL)
    part.write(b"content")
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
    part = folder.part("task/0", URL)
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


@pytest.mark.parametrize("url", ["", "/a/b", "file://host/a", "s3://bucket", "http://x/y", "file://", "file:///a%00"])
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


def test_a_probe_finds_a_folder_that_takes_no_new_task() -> None:
    """Unfinished files could still be written, in their own folder."""
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from kling_receiver.results.storage import LocalStorage\n"
        "if not os.geteuid(): os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "storage = LocalStorage(Path(sys.argv[1], 'results'))\n"
        "storage.prepare()\n"
        "storage.probe()\n"
        "storage.root.chmod(0o500)\n"
        "try: storage.probe()\n"
        "except OSError as error: print(error.filename, error.strerror)\n"
        "finally: storage.root.chmod(0o700)"
    )
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o777)
        ran = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=False)
    assert ran.stdout == f"{folder}/results Permission denied\n", ran.stderr


def test_a_folder_that_vanished_is_not_made_again(folder: LocalStorage) -> None:
    """Its volume may be mounted again, and would hide files written meanwhile."""
    away = folder.root.with_name("away")
    folder.root.rename(away)
    folder.root.mkdir()  # as an empty mount point
    for use in (lambda: folder.part("task/0", URL), folder.probe):
        with pytest.raises(FileNotFoundError, match="Mount its volume again"):
            use()
    assert list(folder.root.iterdir()) == []
    folder.root.rmdir()
    away.rename(folder.root)
    folder.probe()

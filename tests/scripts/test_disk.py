"""The model of a disk under a page cache: what a power cut may leave of files that were written and not synced."""

import random
from pathlib import Path

import pytest

from tools.crash.disk import SECTOR, Disk
from tools.crash.strace import parse_calls

OPEN = '1 openat(AT_FDCWD, "/r/{0}", O_RDWR|O_CREAT, 0600) = {1}</r/{0}>'
OPEN_FOLDER = '1 openat(AT_FDCWD, "/r", O_RDONLY) = 9</r>'
SYNC_FOLDER = "1 fsync(9</r>) = 0"
SYNC = "1 fsync(3</r/a>) = 0"
WRITE = '1 pwrite64(3</r/a>, "{}", {}, {}) = {}'


def outcomes(*lines: str, cut: int | None = None) -> set[tuple[tuple[str, bytes | None], ...]]:
    """Every content that the cuts before a line may leave, by 400 seeds."""
    disk = Disk(Path("/r"))
    calls = parse_calls("\n".join(lines))
    disk.replay(calls)
    cut = len(lines) if cut is None else cut
    images = (disk.after_cut(cut, random.Random(seed)) for seed in range(400))
    return {tuple(sorted((str(path), data) for path, data in image.files(disk.root))) for image in images}


def write(text: str, offset: int) -> str:
    """A line of a trace."""
    return WRITE.format(text, len(text), offset, len(text))


def test_what_was_synced_is_there() -> None:
    """Content with its file, the name with its folder."""
    lines = [OPEN.format("a", 3), write("one", 0), SYNC, OPEN_FOLDER, SYNC_FOLDER]
    assert outcomes(*lines) == {(("a", b"one"),)}


def test_a_name_that_was_not_synced_may_be_missing() -> None:
    """The content does not help."""
    assert outcomes(OPEN.format("a", 3), write("one", 0), SYNC) == {(), (("a", b"one"),)}


def test_a_content_that_was_not_synced_may_be_missing_or_torn() -> None:
    """Each sector by itself; a sector is whole, and zeros fill what was skipped."""
    text = "x" * SECTOR + "y" * 3
    lines = [OPEN.format("a", 3), OPEN_FOLDER, SYNC_FOLDER, write(text, 0)]
    x, zeros = b"x" * SECTOR, bytes(SECTOR)
    assert {dict(each)["a"] for each in outcomes(*lines)} == {b"", x, zeros + b"yyy", x + b"yyy"}


def test_a_later_change_of_synced_content_may_be_there_or_not() -> None:
    """And it never removes what was synced elsewhere in the file."""
    lines = [OPEN.format("a", 3), OPEN_FOLDER, SYNC_FOLDER, write("one", 0), SYNC, write("t", 2)]
    assert {dict(each)["a"] for each in outcomes(*lines)} == {b"one", b"ont"}
    assert {dict(each)["a"] for each in outcomes(*lines, "1 ftruncate(3</r/a>, 1) = 0")} == {b"one", b"ont", b"o"}


def test_a_rename_is_whole() -> None:
    """Before its folder is synced, the file has the old name or the new one; afterwards only the new one."""
    lines = [OPEN.format("a", 3), OPEN_FOLDER, SYNC_FOLDER, '1 rename("/r/a", "/r/b") = 0']
    assert outcomes(*lines) == {(("a", b""),), (("b", b""),)}
    assert outcomes(*lines, SYNC_FOLDER) == {(("b", b""),)}


def test_a_file_in_a_folder_without_a_name_is_lost() -> None:
    """However well the file itself was synced."""
    made = ['1 mkdir("/r/f", 0700) = 0', OPEN.format("f/a", 3), '1 openat(AT_FDCWD, "/r/f", O_RDONLY) = 4</r/f>']
    synced = "1 fsync(4</r/f>) = 0"
    assert outcomes(*made, synced) == {(), (("f", None), ("f/a", b""))}
    assert outcomes(*made, synced, OPEN_FOLDER, SYNC_FOLDER) == {(("f", None), ("f/a", b""))}


def test_a_removed_file_may_come_back() -> None:
    """Until the folder is synced."""
    lines = [OPEN.format("a", 3), OPEN_FOLDER, SYNC_FOLDER, '1 unlink("/r/a") = 0']
    assert outcomes(*lines) == {(), (("a", b""),)}
    assert outcomes(*lines, SYNC_FOLDER) == {()}


def test_a_sync_covers_what_was_written_before_it_began() -> None:
    """Not what another thread wrote meanwhile; and a sync that has not ended guarantees nothing."""
    lines = [
        OPEN.format("a", 3),
        OPEN_FOLDER,
        SYNC_FOLDER,
        write("one", 0),
        "1 fsync(3</r/a> <unfinished ...>",
        WRITE.replace("1 ", "2 ", 1).format("two", 3, 3, 3),
        "1 <... fsync resumed>) = 0",
    ]
    assert {dict(each)["a"] for each in outcomes(*lines)} == {b"one", b"onetwo"}
    assert {dict(each)["a"] for each in outcomes(*lines, cut=6)} == {b"", b"one", b"\0\0\0two", b"onetwo"}


def test_writes_without_an_offset_follow_one_another() -> None:
    """`write` continues where the descriptor is; `lseek`, `O_APPEND` and `O_TRUNC` are known."""
    lines = [
        OPEN.format("a", 3),
        OPEN_FOLDER,
        SYNC_FOLDER,
        '1 write(3</r/a>, "one", 3) = 3',
        '1 write(3</r/a>, "two", 3) = 3',
        "1 lseek(3</r/a>, 1, SEEK_SET) = 1",
        '1 write(3</r/a>, "N\\0", 2) = 2',
        SYNC,
        '1 openat(AT_FDCWD, "/r/a", O_WRONLY|O_APPEND) = 3</r/a>',
        '1 write(3</r/a>, "!", 1) = 1',
        SYNC,
    ]
    assert outcomes(*lines) == {(("a", b"oN\0two!"),)}
    assert outcomes(*lines, '1 openat(AT_FDCWD, "/r/a", O_WRONLY|O_TRUNC) = 3</r/a>', SYNC) == {(("a", b""),)}


def test_a_call_that_the_model_does_not_know_is_refused() -> None:
    """A model that ignored it would be wrong; outside the folder, any call may be made."""
    with pytest.raises(NotImplementedError, match="fallocate"):
        outcomes("1 fallocate(3</r/a>, 0, 0, 10) = 0")
    assert outcomes("1 fallocate(3</elsewhere>, 0, 0, 10) = 0") == {()}


def test_a_descriptor_is_that_of_the_open_that_ended_last() -> None:
    """While one thread's open runs, another opens, syncs and closes the same descriptor."""
    lines = [
        OPEN.format("a", 3),
        write("one", 0),
        '2 openat(AT_FDCWD, "/r/b", O_RDWR|O_CREAT, 0600 <unfinished ...>',
        SYNC,
        OPEN_FOLDER,
        SYNC_FOLDER,
        "2 <... openat resumed>) = 3</r/b>",
    ]
    assert {dict(each)["a"] for each in outcomes(*lines)} == {b"one"}

"""The files of an SQLite database: they have one name, and stay the ones that its connections have open.

SQLite finds its log, `<database>-wal`, by name. A commit in a log without a name, or in that of another name, is lost.
"""

import os
import re
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from kling_receiver.filesystem import make_durable_folder, make_private
from kling_receiver.store.errors import DatabaseError

INDEX_HEADER = struct.Struct("=14xHI28x")
"""The beginning of the log's index: the size of a page (1 for 65536), and the number of frames in the log."""
LOG_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24

BESIDE = ("-wal", "-shm", "-journal", ".lock")
"""The ends of the names of the files beside the database."""

FileId = tuple[int, int]
"""The device and inode of a file."""


class SqliteFiles:
    """The files of one database. `path`: as it was named; `real_path`: where symbolic links led at the start."""

    def __init__(self, path: Path) -> None:
        """Make the database's file and folder if they are missing.

        Raises DatabaseError for a second name or the log of another file, OSError.
        """
        self.path, self.real_path = path, Path(os.path.realpath(path))
        self.log, self._index = (self.real_path.with_name(f"{self.real_path.name}-{each}") for each in ("wal", "shm"))
        self._expected: dict[Path, FileId | None] = {}
        self._expected_log: dict[Path, FileId | None] = {}
        self._connections: set[int] = set()
        self._open_indexes: list[int] = []
        make_durable_folder(path.parent)  # not the one that a link leads to: its volume may not be mounted
        _refuse_links(self.real_path)
        self.real_path.touch(mode=0o600)
        for file in {path, self.real_path}:
            for suffix in ("", *BESIDE):  # before SQLite opens them: it gives new ones the mode of the database
                if not (each := file.with_name(file.name + suffix)).is_symlink():
                    make_private(each)
        _check_names(self.real_path)
        _check_log(self.real_path)

    def file_id(self) -> FileId | None:
        """The id of the database file."""
        return _file_id(self.real_path)

    def expect_database(self) -> None:
        """From now on, the database file is expected to be the one that is there."""
        self._expected = {self.path: _file_id(self.path)}

    def expect_log(self) -> None:
        """The same for the log and its index, unless they are expected already. Call it in a transaction."""
        if not self._expected_log:
            with suppress(FileNotFoundError):  # somebody removes it just now: the next transaction notices
                self._open_indexes.append(os.open(self._index, os.O_RDONLY))
                self._expected_log = {file: _file_id(file) for file in (self.log, self._index)}

    def replaced(self) -> Path | None:
        """A file that is no longer the expected one: it was moved, removed or replaced. Raises OSError."""
        expected = {**self._expected, **self._expected_log}
        return next((file for file, id_ in expected.items() if _file_id(file) != id_), None)

    def is_log_cut(self) -> bool:
        """Whether the log is shorter than its index says: what is written behind the gap would not be found.

        A checkpoint may cut it too, and then says so in the index. Raises OSError.
        """
        if not self._expected_log:
            return False
        header = self._index_header()
        page_size, frames = INDEX_HEADER.unpack(header)
        page_bytes = 1 << 16 if page_size == 1 else page_size
        expected = LOG_HEADER_BYTES + frames * (FRAME_HEADER_BYTES + page_bytes) if frames else 0
        try:
            is_short: bool = self.log.stat().st_size < expected
        except FileNotFoundError:
            return False
        return is_short and self._index_header() == header  # else a checkpoint came between

    def _index_header(self) -> bytes:
        return os.pread(self._open_indexes[-1], INDEX_HEADER.size, 0)

    def close(self) -> None:
        """Close the index, after every connection: closing it ends SQLite's own locks in this process."""
        while self._open_indexes:
            os.close(self._open_indexes.pop())

    def set_log_aside(self) -> None:
        """Rename a log that is not the expected one, once the database has all of that: the next start would apply it.

        It may be an older copy. An empty one is that of a connection opened since. Raises OSError.
        """
        if self.log.exists() and self.log.stat().st_size:
            self.log.replace(self.log.with_name(f"{self.log.name}.replaced"))

    def opened(self, connection: Any, record: Any) -> None:
        """Count a connection. (SQLAlchemy calls this, and the next.)"""
        self._connections.add(id(connection))

    def closed(self, connection: Any, record: Any) -> None:
        """Expect another log after the last connection: SQLite removes the log with it."""
        self._connections.discard(id(connection))
        if not self._connections:
            self._expected_log = {}


def _file_id(path: Path) -> FileId | None:
    """None when there is no file. Raises OSError if that cannot be seen: a folder's permissions were changed."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def _refuse_links(database: Path) -> None:
    """Refuse symbolic links beside the database: a file that they lead to would be changed. SQLite follows none.

    Raises DatabaseError.
    """
    if links := [file for suffix in BESIDE if (file := database.with_name(database.name + suffix)).is_symlink()]:
        raise DatabaseError(f"{links[0]} is a symbolic link to {links[0].readlink()}. Remove it.")


def _check_log(database: Path) -> None:
    """Check that no WAL stayed beside a restored file: SQLite would write its pages into it. Raises DatabaseError.

    A backup is in no WAL mode: bytes 18 and 19 of a file are its versions for writing and reading.
    """
    wal = database.with_name(f"{database.name}-wal")
    with database.open("rb") as file:
        versions = file.read(20)[18:]
    if versions == b"\1\1" and wal.exists() and wal.stat().st_size:
        raise DatabaseError(
            f"{wal} is not of {database.name}, which was restored from a backup: it would damage it. "
            f"Remove {wal.name} and {database.name}-shm."
        )


def _check_names(database: Path) -> None:
    """Check that an SQLite file has one name: SQLite finds its log by that. Raises DatabaseError, OSError."""
    if database.stat().st_nlink > 1:
        raise DatabaseError(
            f"{database} has more than one name (hard links), and each name would have a log of its own. Remove the "
            f"other names. Or stop all that uses the file, and run: cp -p {database} copy.db && mv copy.db {database}"
        )
    if _mount_id(database) != _mount_id(database.parent):
        raise DatabaseError(
            f"{database} is mounted as a single file, so that its log would lie elsewhere. Mount its folder instead."
        )


def _mount_id(path: Path) -> str | None:
    """The id of the mount that a path is on; None where the system does not tell.

    O_PATH: closing any other descriptor of the database would end SQLite's locks in this process.
    """
    if not hasattr(os, "O_PATH"):
        return None
    handle = os.open(path, os.O_PATH)
    try:
        found = re.search(r"^mnt_id:\s*(\d+)", Path(f"/proc/self/fdinfo/{handle}").read_text(), re.MULTILINE)
    except OSError:
        return None
    finally:
        os.close(handle)
    return found[1] if found else None

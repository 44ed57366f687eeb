"""Write a file atomically and durably: a temporary file, fsync, rename, fsync of the folder."""

import errno
import hashlib
import logging
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path

if sys.platform == "win32":
    FULL_FSYNC: int | None = None
else:
    import fcntl

    FULL_FSYNC = getattr(fcntl, "F_FULLFSYNC", None)

log = logging.getLogger("kling_callback.atomic_file")


class AtomicFile:
    """A file that appears under its final name complete and durable, or not at all.

    `commit` or `discard` ends it; `discard` after `commit` does nothing. All methods block.
    """

    def __init__(self, temp: Path, *, mode: int = 0o666) -> None:
        """Create the temporary file `temp`, on the file system of the final one.

        `mode`: its permissions, before the umask. Raises OSError.
        """
        self.path = temp
        self._file = os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")
        self._hash = hashlib.sha256()
        self.size = 0
        """Bytes written so far."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes written so far, in hex."""
        return self._hash.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append bytes. Raises OSError, when the disk is full for instance."""
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def flush(self) -> None:
        """Put all bytes on disk and close the file: no `write` may follow. Raises OSError."""
        with self._file:
            self._file.flush()
            fsync_file(self._file.fileno())

    def commit(self, target: Path) -> None:
        """Rename the file to `target`, replacing it; a power failure afterwards loses nothing. Raises OSError."""
        if not self._file.closed:
            self.flush()
        self.path.replace(target)
        fsync_folder(target.parent)

    def discard(self) -> None:
        """Remove the temporary file, if it was not committed."""
        with suppress(OSError):  # on a full disk the buffered bytes cannot be written either
            self._file.close()
        with suppress(OSError):
            self.path.unlink()


class MemoryFile:
    """The counterpart of AtomicFile in memory."""

    def __init__(self) -> None:
        self.content = bytearray()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return len(self.content)

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes written so far, in hex."""
        return hashlib.sha256(self.content).hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append bytes."""
        self.content += chunk

    def discard(self) -> None:
        """Do nothing: the content is freed with this object."""


def temporary_path(target: Path) -> Path:
    """A hidden, unused name beside `target`."""
    return target.with_name(f".{secrets.token_hex(8)}.part")


def fsync_file(handle: int) -> None:
    """Put a file on disk. macOS needs a call of its own: its fsync stops at the disk's cache. Raises OSError."""
    if FULL_FSYNC is not None:
        with suppress(OSError):  # some network folders have only fsync
            fcntl.fcntl(handle, FULL_FSYNC)
            return
    os.fsync(handle)


def fsync_folder(folder: Path) -> None:
    """Put the entries of a folder on disk: the names of new, renamed and removed files. Raises OSError.

    Some file systems cannot do that, such as CIFS: each of them is warned of once. A power failure may then undo a
    rename whose file is complete; a failure of the disk is still raised.
    """
    if sys.platform == "win32":  # it opens no folder, and keeps names in its own journal
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            fsync_file(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
        _warn_of(folder, error)


CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EISDIR})
"""Errors of a file system that has no sync of folders, or cannot open them."""

_warned: set[int] = set()
"""The devices that were warned of."""


def _warn_of(folder: Path, error: OSError) -> None:
    device = folder.stat().st_dev
    if device not in _warned:
        _warned.add(device)
        log.warning(
            "the file system of %s cannot sync folders (%s): after a power failure, the newest files may be missing",
            folder,
            error.strerror,
        )

"""Where result files lie: a local folder. A file is there whole or not at all.

The folder is made at the start only: one that vanished later was on a volume that is no longer mounted, and
what went into a folder made in its place would not be where it is looked for.
"""

import errno
import hashlib
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from kling_receiver.filesystem import fsync_folder, make_durable_folder

MAX_CACHED = 10_000
"""Files whose checksum is known while they do not change."""

Fingerprint = tuple[int, ...]

FOLDER_GONE = "it is gone. Mount its volume again, or start the receiver anew to make it"


class PartialFile:
    """A file being written; nobody sees it before `keep`. Its methods block: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        handle, name = tempfile.mkstemp(dir=folder, prefix="part-")
        self.path = Path(name)
        self._file = os.fdopen(handle, "wb")
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Add bytes at the end. Raises OSError (a full disk, say)."""
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """Of what was written, in hex."""
        return self._hash.hexdigest()

    def flush(self) -> None:
        """Put every byte on disk; nothing comes after it. Raises OSError."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def discard(self) -> None:
        """Forget it."""
        with suppress(OSError):  # what is still buffered may not fit either
            self._file.close()
        with suppress(OSError):
            self.path.unlink()


class LocalStorage:
    """Result files in a folder: `<task>/<n>.<type>`, and unfinished ones under `.parts`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._parts = root / ".parts"
        self._checksums: dict[Fingerprint, str] = {}
        self._checksums_lock = threading.Lock()

    def prepare(self) -> None:
        """Make the folder, and clear what an earlier process left unfinished. Raises OSError."""
        make_durable_folder(self._parts)
        for left in self._parts.iterdir():
            left.unlink(missing_ok=True)

    def create(self) -> PartialFile:
        """A new file to write. Raises OSError."""
        try:
            return PartialFile(self._parts)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, FOLDER_GONE) from error

    def probe(self) -> None:
        """Show that a file can be written, by one of no meaning. Raises OSError."""
        part = self.create()
        try:
            part.write(b"probe")
            part.flush()
        finally:
            part.discard()

    def commit(self, part: PartialFile, name: str) -> None:
        """Make a flushed part the file `name`, durably: rename, then the folder's own entry."""
        target = self.root / name
        target.parent.mkdir(mode=0o700, exist_ok=True)
        part.path.replace(target)
        fsync_folder(target.parent)
        fsync_folder(self.root)  # each time: whoever made the task's folder may have been killed before this
        self._cache_checksum(_fingerprint(target), part.sha256)

    def path(self, name: str) -> Path:
        """Where the file `name` lies."""
        return self.root / name

    def sha256(self, name: str) -> str | None:
        """Of the file `name`, in hex; None when it cannot be read. Made anew after a change or a start only."""
        path = self.path(name)
        try:
            state = _fingerprint(path)
            if known := self._checksums.get(state):
                return known
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None
        self._cache_checksum(state, found)
        return found

    def _cache_checksum(self, state: Fingerprint, sha256: str) -> None:
        with self._checksums_lock:
            self._checksums[state] = sha256
            if len(self._checksums) > MAX_CACHED:
                del self._checksums[next(iter(self._checksums))]


def _fingerprint(path: Path) -> Fingerprint:
    """What changes whenever a file does."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def folder_of(url: str) -> Path:
    """The folder that a `file:///...` address names. Raises ValueError for any other."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise ValueError("must be a folder's address like file:///var/lib/kling/results.")
    return Path(unquote(parts.path))

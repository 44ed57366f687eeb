"""Storage for result files in a local folder. Each file is complete and durable, or absent.

The folder is made only at the start: if it vanishes later, its volume was unmounted, and files written into a new
folder in its place would be hidden once the volume is mounted again.
"""

import errno
import hashlib
import re
import secrets
import threading
from pathlib import Path
from urllib.parse import unquote

from kling_callback.atomic_file import AtomicFile, fsync_folder
from kling_receiver.filesystem import make_durable_folder

MAX_CACHED = 10_000
"""Files whose checksum is cached until they change."""

Fingerprint = tuple[int, ...]

FOLDER_GONE = "the folder is gone. Mount its volume again, or restart the receiver to make a new one"


class LocalStorage:
    """Result files in a folder: `<task_id>/<index>.<extension>`, and unfinished ones in `.parts`. Methods block."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._parts = root / ".parts"
        self._checksums: dict[Fingerprint, str] = {}
        self._checksums_lock = threading.Lock()

    def prepare(self) -> None:
        """Make the folder, and remove the unfinished files of an earlier process. Raises OSError."""
        make_durable_folder(self._parts)
        for path in self._parts.iterdir():
            path.unlink(missing_ok=True)

    def create(self) -> AtomicFile:
        """A new file to write, to be ended by `commit` or by its own `discard`. Raises OSError."""
        try:
            return AtomicFile(self._parts / f"part-{secrets.token_hex(8)}", mode=0o600)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, FOLDER_GONE) from error

    def probe(self) -> None:
        """Check that files can be written, by writing and removing one. Raises OSError."""
        part = self.create()
        try:
            part.write(b"probe")
            part.flush()
        finally:
            part.discard()

    def commit(self, part: AtomicFile, name: str) -> None:
        """Store a written file durably as `name`: fsync, rename, fsync of the folder and its parent. Raises OSError."""
        target = self.path(name)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        part.commit(target)
        fsync_folder(self.root)  # each time: a process that made the task's folder may have been killed before this
        self._cache_checksum(_fingerprint(target), part.sha256)

    def path(self, name: str) -> Path:
        """The path of the file `name`."""
        return self.root / name

    def sha256(self, name: str) -> str | None:
        """SHA-256 of the file `name`, in hex; None if it cannot be read. Cached until the file changes."""
        path = self.path(name)
        try:
            fingerprint = _fingerprint(path)
            if cached := self._checksums.get(fingerprint):
                return cached
            with path.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None
        self._cache_checksum(fingerprint, checksum)
        return checksum

    def _cache_checksum(self, fingerprint: Fingerprint, sha256: str) -> None:
        with self._checksums_lock:
            self._checksums[fingerprint] = sha256
            if len(self._checksums) > MAX_CACHED:
                del self._checksums[next(iter(self._checksums))]


def _fingerprint(path: Path) -> Fingerprint:
    """Numbers of which one changes whenever the file does."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def folder_of(url: str) -> Path:
    """The folder that a `file:///...` address names. Raises ValueError for any other address.

    `?` and `#` are part of the path, for no file has a query; `%20` is a blank, as in every URL.
    """
    match = re.fullmatch(r"file:(?://(?:localhost)?(/.*)|(/(?!/).*))", url, re.IGNORECASE | re.DOTALL)
    path = unquote(match[1] or match[2], errors="surrogateescape") if match else ""
    if not path or "\0" in path:
        raise ValueError("must be a folder's address like file:///var/lib/kling/results.")
    return Path(path)

"""Storage for result files in a local folder. Each file is complete and durable, or absent.

An unfinished file is a part in `.parts`, with a note that says what of it is certain, so that another attempt or
another process can continue it.

The folder is made only at the start: if it vanishes later, its volume was unmounted, and files written into a new
folder in its place would be hidden once the volume is mounted again.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path
from urllib.parse import unquote

from kling_callback.atomic_file import AtomicFile, fsync_file, fsync_folder
from kling_receiver.filesystem import make_durable_folder, path_inside
from kling_receiver.results.owner import FolderOwner
from kling_receiver.threads import start_daemon

MAX_CACHED = 10_000
"""Files whose checksum is cached until they change."""

ANSWER_SECONDS = 5.0
"""Seconds in which a volume must answer at the start."""

Fingerprint = tuple[int, ...]

FOLDER_GONE = "the folder is gone. Mount its volume again, or restart the receiver to make a new one"


class PartialFile:
    """A file that is being downloaded. `size`: bytes so far. `length`: bytes of the whole file, if known.

    `validator`: what the host calls this version of the file (`If-Range`), if it does so reliably. Only a part with a
    validator is kept for later. Its note has the checksum of its bytes: what a crash left unwritten is not continued.
    `commit`, `close` or `discard` ends it. All methods block.
    """

    def __init__(self, path: Path, source: str) -> None:
        """Open a new part, or continue the one at `path` if it is of the same file `source`. Raises OSError."""
        self.path, self._note, self._source = path, path.with_suffix(".json"), source
        self._file = _open_locked(path)
        try:
            self._reset()
            self._continue()
        except BaseException:
            self._file.close()
            raise

    def _reset(self) -> None:
        self.size = 0
        self.length: int | None = None
        self.validator: str | None = None
        self._hash = hashlib.sha256()

    def _continue(self) -> None:
        """Take over what an earlier attempt wrote, as far as its note is true."""
        try:
            note = json.loads(self._note.read_bytes())
            source, validator, size, length, sha256 = (note[name] for name in NOTE)
        except (OSError, ValueError, LookupError, TypeError):
            self.restart()
            return
        digest = hashlib.sha256()
        while chunk := self._file.read(min(READ_BYTES, size - self._file.tell())):
            digest.update(chunk)
        if (source, sha256) != (self._source, digest.hexdigest()) or self._file.tell() != size:
            self.restart()
            return
        self._file.truncate(size)
        self.size, self.validator, self.length, self._hash = size, validator, length, digest

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes so far, in hex."""
        return self._hash.hexdigest()

    @property
    def is_whole(self) -> bool:
        """Whether all bytes of the file are here."""
        return self.size > 0 and self.size == self.length

    def head(self, size: int) -> bytes:
        """The first bytes of the file."""
        return os.pread(self._file.fileno(), size, 0)

    def restart(self) -> None:
        """Drop all bytes. Raises OSError."""
        self._note.unlink(missing_ok=True)
        self._file.seek(0)
        self._file.truncate()
        self._reset()

    def write(self, chunk: bytes) -> None:
        """Append bytes, and note that they are here. Raises OSError, when the disk is full for instance."""
        written = 0
        while written < len(chunk):
            written += self._file.write(chunk[written:]) or 0
        self._hash.update(chunk)
        self.size += len(chunk)
        if self.validator:
            values = (self._source, self.validator, self.size, self.length, self.sha256)
            temporary = self.path.with_suffix(".new")
            note = json.dumps(dict(zip(NOTE, values, strict=True)))
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(note)
            temporary.replace(self._note)

    def commit(self, target: Path) -> None:
        """Rename the file to `target`, replacing it; a power failure afterwards loses nothing. Raises OSError."""
        fsync_file(self._file.fileno())
        if not _is_at(self.path, self._file):
            raise FileNotFoundError(errno.ENOENT, "the part was removed meanwhile")
        self.path.replace(target)
        fsync_folder(target.parent)
        self._note.unlink(missing_ok=True)
        self._file.close()

    def close(self) -> None:
        """Keep the part for a later attempt, if it can be continued."""
        if self.size and self.validator:
            self._file.close()
        else:
            self.discard()

    def discard(self) -> None:
        """Remove the part, if it was not committed."""
        if not self._file.closed:
            if _is_at(self.path, self._file):
                _remove_part(self.path)
            self._file.close()


def _open_locked(path: Path) -> FileIO:
    """Open a file for one writer, also if a job runs twice. Raises OSError.

    Between opening and locking it the other writer may have removed or renamed it: the lock would be of no use.
    """
    while True:
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, file):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _is_at(path: Path, file: FileIO) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _remove_part(path: Path) -> None:
    """Remove a part with its note, as far as they are there."""
    for suffix in ("", ".json", ".new"):
        with suppress(OSError):
            path.with_suffix(suffix).unlink()


NOTE = ("source", "validator", "size", "length", "sha256")
"""What a part's note holds. The source is a checksum: an address may grant access to the file."""
READ_BYTES = 1 << 20


class LocalStorage:
    """Result files in a folder, by names such as `task/0.png`, and unfinished ones in `.parts`. Methods block."""

    def __init__(self, root: Path) -> None:
        self.root, self.owner = root, FolderOwner(root)
        self._parts = root / ".parts"
        self._checksums: dict[Fingerprint, str] = {}
        self._checksums_lock = threading.Lock()

    def check_answers(self) -> None:
        """Check that the folder's volume answers, whether there is a folder or not. Raises OSError if it hangs."""
        try:
            start_daemon(self._parts.exists).result(ANSWER_SECONDS)
        except TimeoutError:
            why = f"does not answer within {ANSWER_SECONDS:g} s"
            raise OSError(errno.ETIMEDOUT, why, str(self.root)) from None

    def prepare(self) -> None:
        """Make the folder. Raises OSError."""
        make_durable_folder(self._parts)

    def part(self, name: str, url: str) -> PartialFile:
        """The part of the file `name`, begun before or new. `url`: where the file is; its query may change.

        To be ended by `commit`, or by its own `close` or `discard`. Raises OSError.
        """
        source = hashlib.sha256(url.partition("?")[0].encode()).hexdigest()
        try:
            self.owner.verify()
            return PartialFile(self._part_path(name), source)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, FOLDER_GONE) from error

    def _part_path(self, name: str) -> Path:
        return self._parts / f"part-{hashlib.sha256(name.encode()).hexdigest()[:32]}"

    def discard_part(self, name: str) -> None:
        """Remove the part of the file `name`, if there is one."""
        _remove_part(self._part_path(name))

    def remove_orphans(self, names: Iterable[str]) -> None:
        """Remove all parts but those of the files `names`. Raises OSError."""
        kept = {path.with_suffix(suffix) for path in map(self._part_path, names) for suffix in ("", ".json")}
        for path in self._parts.iterdir():
            if path not in kept:
                path.unlink(missing_ok=True)

    def temporary_path(self) -> Path:
        """A path for an unfinished file, on the same volume. The next start removes what is left there."""
        return self._parts / f"part-{secrets.token_hex(8)}"

    def probe(self) -> None:
        """Check that files can be written, by writing and removing one, and moved into the folder. Raises OSError."""
        try:
            self.owner.verify()
            part = AtomicFile(self.temporary_path(), mode=0o600)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, FOLDER_GONE) from error
        try:
            part.write(b"probe")
            part.flush()
        finally:
            part.discard()
        if not os.access(self.root, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.root))

    def commit(self, part: PartialFile, name: str, replaced: str | None = None) -> str:
        """Store a written file durably: fsync, rename, fsync of the folder and its parent. Returns its name.

        That is `name`, unless another file has it: then the name has the checksum too. `replaced`: the name of an
        earlier version of the file, which is replaced; a file with the same content may be. Raises OSError.
        """
        sha256, target = part.sha256, self.path(name)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        if name != replaced and os.path.lexists(target) and self.sha256(name) != sha256:
            target = target.with_stem(f"{target.stem}-{sha256}")
            name = str(target.relative_to(self.root))
        part.commit(target)
        fsync_folder(self.root)  # each time: a process that made the task's folder may have been killed before this
        self._cache_checksum(_fingerprint(target), sha256)
        return name

    def remove(self, folder: str, names: Iterable[str]) -> None:
        """Remove all files in a task's `folder`, and the files `names`, durably. Raises OSError.

        Files that are gone already are no error: an earlier attempt may have been killed.
        """
        self.owner.verify()
        files = {self.path(name) for name in names}
        with suppress(FileNotFoundError):
            files.update(path for path in self.path(folder).iterdir() if not path.is_dir())
        for path in files:
            path.unlink(missing_ok=True)
        for parent in {self.path(folder), *(path.parent for path in files)}:
            try:
                parent.rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                fsync_folder(parent)
        fsync_folder(self.root)

    def path(self, name: str) -> Path:
        """The path of the file `name`."""
        return path_inside(self.root, name)  # of a row, which a restored database may bring from elsewhere

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
        raise ValueError(f"must be a folder's address like {_suggested(url)}.")
    if path.startswith("/~/"):
        raise ValueError(f"has a ~, which only a shell replaces. Write {_suggested(path[1:])}.")
    return Path(path)


def _suggested(path: str) -> str:
    """The address of the folder that a relative path may mean, or an example."""
    word = r"(?:file:(?://)?)?((?:~|\.{1,2})(?:/[^\0]*)?|[\w-]+)/?"
    words = r"(?:file:)?([\w-]+/[^:\0]*)"  # after two slashes, the first word is a host
    relative = re.fullmatch(word, path, re.IGNORECASE) or re.fullmatch(words, path, re.IGNORECASE)
    try:
        return Path(relative[1]).expanduser().absolute().as_uri() if relative else EXAMPLE
    except (OSError, RuntimeError):  # without a home, or without a working folder
        return EXAMPLE


EXAMPLE = "file:///var/lib/kling/results"

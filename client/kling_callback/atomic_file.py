"""A file that appears under its name whole, checked and durable, or not at all."""

import hashlib
import os
import secrets
from pathlib import Path

MODE = 0o666
"""As for any new file: the umask decides."""


class AtomicFile:
    """Bytes on their way to `path`. Either `land` or `discard` ends it; both may be called twice."""

    def __init__(self, path: Path, *, mode: int = MODE) -> None:
        """`mode`: its permissions. Raises OSError when the folder cannot be written."""
        self._path = path
        self._temp = path.with_name(f".{secrets.token_hex(8)}.part")
        self._file = os.fdopen(os.open(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Add to the draft."""
        self._file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    def commit(self) -> None:
        """Give the file its name; it stays there even if the power fails now."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temp.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Leave nothing behind, unless it has landed."""
        self._file.close()
        self._temp.unlink(missing_ok=True)


class MemoryFile:
    """The same for bytes that stay in memory."""

    def __init__(self) -> None:
        self.content = bytearray()

    @property
    def size(self) -> int:
        """Bytes so far."""
        return len(self.content)

    @property
    def sha256(self) -> str:
        """Of what was written so far."""
        return hashlib.sha256(self.content).hexdigest()

    def write(self, chunk: bytes) -> None:
        """Add to the content."""
        self.content += chunk

    def commit(self) -> None:
        """Nothing: it is there."""

    def discard(self) -> None:
        """Nothing: it goes with this object."""

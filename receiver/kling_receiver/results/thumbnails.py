"""Thumbnails of stored images: each is made once, on demand, and cached in a folder beside the results.

A stored file comes from outside, and a decoder may have flaws. So the receiver decodes none: `thumbnail_child` does, in
a process for each file that has no secrets, no files and few resources. At most one runs at a time.
"""

import asyncio
import errno
import logging
import os
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

from anyio import CapacityLimiter, to_thread

from kling_callback.atomic_file import AtomicFile
from kling_receiver.filesystem import path_inside
from kling_receiver.results.storage import FOLDER_GONE, LocalStorage
from kling_receiver.store.rows import ResultRow

log = logging.getLogger("kling_receiver.thumbnails")

T = TypeVar("T")

DECODABLE_TYPES = frozenset(f"image/{name}" for name in ("png", "jpeg", "webp", "gif", "avif", "bmp"))
"""The media types of which there are thumbnails. Other images have a placeholder."""
MAX_SOURCE_BYTES = 100 << 20
"""Bytes of an image of which a thumbnail is made."""
MAX_BYTES = 1 << 20
"""Bytes of a thumbnail. One of pure noise has 70,000."""
TIMEOUT_SECONDS = 20.0
"""Seconds of a clock for one thumbnail. It takes about 0.2; the process has the lowest claim to a busy machine."""
MAX_WAITING = 100
"""Thumbnails that are made or wait for it. A page shows fewer."""
RETRY_SECONDS = 600
"""Seconds until a thumbnail is tried again that this machine, not the file, prevented."""
MAX_FAILURES = 1_000
"""Such failures that are remembered."""
THREADS = 4

FOLDER = ".thumbnails"
UNDECODABLE_NOTE = b"undecodable\n"
"""The content of a cached file that stands for a source of which no thumbnail can be made."""

PROGRAM = Path(__file__).with_name("thumbnail_child.py")
UNDECODABLE = 3
"""The program's exit code for a file of which no attempt will make a thumbnail."""
FATAL_SIGNALS = frozenset(
    -getattr(signal, name) for name in ("SIGXCPU", "SIGXFSZ", "SIGSEGV", "SIGBUS", "SIGABRT") if hasattr(signal, name)
)
"""Exit codes of a program that the file has ended. (SIGKILL is of an operator or of a machine without memory.)"""

PLACEHOLDER = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 48 36" width="480" height="360">\
<path fill="#808080" fill-opacity=".15" d="M0 0h48v36H0z"/>\
<path fill="#808080" fill-opacity=".5" d="M12 27l8-11 6 8 4-5 6 8z"/>\
<circle fill="#808080" fill-opacity=".5" cx="31" cy="12" r="3"/></svg>"""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """A small image. `is_final`: no later attempt makes another one of the same file."""

    content: bytes
    media_type: str = "image/webp"
    is_final: bool = True


UNDECODABLE_THUMBNAIL = Thumbnail(PLACEHOLDER, "image/svg+xml")
MISSING_THUMBNAIL = Thumbnail(PLACEHOLDER, "image/svg+xml", is_final=False)


class SourceLost(Exception):
    """The image is no longer in the storage as it was stored."""


class TooManyWaiting(Exception):
    """More thumbnails are asked for than can be made."""


class Thumbnails:
    """Makes and caches thumbnails. `program`: what decodes, and its time limit in seconds. `clock`: seconds."""

    def __init__(
        self,
        storage: LocalStorage,
        *,
        program: Path = PROGRAM,
        timeout_seconds: float = TIMEOUT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage, self._program, self._timeout_seconds, self._clock = storage, program, timeout_seconds, clock
        self._cache = ThumbnailCache(storage)
        self._making: dict[str, asyncio.Task[Thumbnail]] = {}
        self._failed_at: dict[str, float] = {}
        self._turn = asyncio.Lock()
        self._threads = CapacityLimiter(THREADS)  # a disk that hangs blocks these alone

    async def get(self, result: ResultRow) -> Thumbnail:
        """The thumbnail of a stored image, or a placeholder. Raises SourceLost, TooManyWaiting."""
        if result["content_type"] not in DECODABLE_TYPES or (result["size"] or 0) > MAX_SOURCE_BYTES:
            return UNDECODABLE_THUMBNAIL
        name = thumbnail_name(result)
        if found := await self._in_thread(lambda: self._cache.read(name)):
            return found
        failed_at = self._failed_at.get(name)
        if failed_at is not None and self._clock() < failed_at + RETRY_SECONDS:
            return MISSING_THUMBNAIL
        task = self._making.get(name)
        if task is None:
            if len(self._making) >= MAX_WAITING:
                raise TooManyWaiting
            task = asyncio.create_task(self._make(name, result), name="thumbnail")
            self._making[name] = task
            task.add_done_callback(lambda done: self._forget(name, done))
        return await asyncio.shield(task)

    def _forget(self, name: str, task: asyncio.Task[Thumbnail]) -> None:
        del self._making[name]
        if not task.cancelled():
            task.exception()  # it is no news where everybody who waited has gone

    async def close(self) -> None:
        """End the running program, and refuse those who wait."""
        tasks = list(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, name: str, result: ResultRow) -> Thumbnail:
        """Make one thumbnail when its turn comes, and cache it."""
        path, media_type = str(result["path"]), str(result["content_type"])
        async with self._turn:
            if await self._in_thread(lambda: self._storage.sha256(path)) != result["sha256"]:
                raise SourceLost
            try:
                content = await self._decode(path, media_type)
            except (OSError, _Failed) as error:
                log.warning("no thumbnail of %s was made: %s. It is tried again in %d s", path, error, RETRY_SECONDS)
                self._failed_at[name] = self._clock()
                if len(self._failed_at) > MAX_FAILURES:
                    del self._failed_at[next(iter(self._failed_at))]
                return MISSING_THUMBNAIL
            self._failed_at.pop(name, None)
            try:
                await self._in_thread(lambda: self._cache.write(name, content, source=path))
            except OSError as error:
                log.warning("a thumbnail of %s is not cached: %s", path, error.strerror or error)
        return Thumbnail(content) if content else UNDECODABLE_THUMBNAIL

    async def _decode(self, path: str, media_type: str) -> bytes | None:
        """A thumbnail by the program; None if it cannot decode the file. Raises _Failed, OSError."""
        source = await self._in_thread(lambda: _open(self._storage.path(path)))
        with source, tempfile.TemporaryFile() as output:
            code = await self._run(media_type, source, output)
            content = await self._in_thread(lambda: _read(output))
        if code == 0 and is_webp(content):
            return content
        if code in (0, UNDECODABLE) or code in FATAL_SIGNALS:
            log.info("%s cannot be decoded as %s (exit code %d)", path, media_type, code)
            return None
        raise _Failed(f"exit code {code}")

    async def _run(self, media_type: str, source: IO[bytes], output: IO[bytes]) -> int:
        """Run the program. Returns its exit code. Raises _Failed if it takes too long, OSError if it cannot start."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",  # neither the working folder nor the user's packages
            str(self._program),
            media_type,
            stdin=source,
            stdout=output,
            stderr=asyncio.subprocess.DEVNULL,
            env=None if sys.platform == "win32" else {},  # an interpreter on Windows needs its own
            start_new_session=True,  # Ctrl-C is for the receiver, which ends it
        )
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await process.wait()
        except TimeoutError:
            raise _Failed(f"it took more than {self._timeout_seconds:g} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await asyncio.shield(process.wait())

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await to_thread.run_sync(function, limiter=self._threads, abandon_on_cancel=True)


class _Failed(Exception):
    """The program did not decide about the file."""


class ThumbnailCache:
    """The cached files, in `.thumbnails` beside the results: one folder for each task. Methods block."""

    def __init__(self, storage: LocalStorage) -> None:
        self._storage, self._root = storage, storage.root / FOLDER

    def read(self, name: str) -> Thumbnail | None:
        """A cached thumbnail; None if there is none, or none that is whole."""
        try:
            with path_inside(self._root, name).open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError:
            return None
        if content == UNDECODABLE_NOTE:
            return UNDECODABLE_THUMBNAIL
        return Thumbnail(content) if is_webp(content) else None

    def write(self, name: str, content: bytes | None, *, source: str) -> None:
        """Cache a thumbnail durably, or that there is none. `source`: the name of its file. Raises OSError.

        If that was removed meanwhile, nothing stays: it is removed before its thumbnails.
        """
        target = path_inside(self._root, name)
        self._storage.owner.verify()
        try:
            for folder in (self._root, target.parent):
                folder.mkdir(mode=0o700, exist_ok=True)
            file = AtomicFile(self._storage.temporary_path(), mode=0o600)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, FOLDER_GONE) from error
        try:
            file.write(content or UNDECODABLE_NOTE)
            file.commit(target)
        finally:
            file.discard()
        if not self._storage.path(source).exists():
            self.remove(str(PurePosixPath(name).parent))

    def remove(self, folder: str) -> None:
        """Remove the thumbnails of a task, whose files are in `folder` of the storage. Raises OSError."""
        path = path_inside(self._root, folder)
        if path == self._root:
            return
        with suppress(FileNotFoundError):
            for file in path.iterdir():
                file.unlink(missing_ok=True)
            path.rmdir()


def thumbnail_name(result: ResultRow) -> str:
    """The name of a result's thumbnail in the cache. A file that was downloaded anew has another."""
    folder = PurePosixPath(str(result["path"])).parent
    return f"{folder}/{result['position']}-{str(result['sha256'])[:32]}.webp"


def is_webp(content: bytes) -> bool:
    """Whether a file is a WebP of a thumbnail's size, and not truncated."""
    return (
        content[:4] == b"RIFF"
        and content[8:12] == b"WEBP"
        and int.from_bytes(content[4:8], "little") == len(content) - 8
        and len(content) <= MAX_BYTES
    )


def _open(path: Path) -> IO[bytes]:
    """Open a stored file: no link, and no pipe that somebody put in its place. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no file")
    return file


def _read(output: IO[bytes]) -> bytes:
    output.seek(0)
    return output.read(MAX_BYTES + 1)

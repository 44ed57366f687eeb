"""Save the files of a task that are not on disk yet."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from anyio import to_thread

from kling_callback.errors import ResultFailed
from kling_callback.tasks import AsyncFile

CHUNK_BYTES = 1 << 20


async def save_missing(files: Sequence[AsyncFile], folder: Path) -> tuple[list[Path], list[str]]:
    """The paths of the files that are in the folder now, and the problems of the others.

    A file with the right checksum, of an earlier run, is not downloaded again.
    """
    paths, problems = list[Path](), list[str]()
    for file in files:
        path = folder / file.name
        try:
            if not await to_thread.run_sync(_is_there, path, file):
                await to_thread.run_sync(lambda: folder.mkdir(parents=True, exist_ok=True))
                await file.save(path)
            paths.append(path)
        except OSError as error:
            problems.append(f"{path} cannot be written: {error.strerror or error}.")
        except ResultFailed as error:
            problems.append(str(error))
    return paths, problems


def _is_there(path: Path, file: AsyncFile) -> bool:
    """Whether a file was saved by an earlier run, whole. Blocks to read it."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    checksum = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            checksum.update(chunk)
    return checksum.hexdigest() == file.sha256

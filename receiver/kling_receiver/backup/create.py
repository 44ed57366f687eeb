"""Create a backup: one snapshot of the database, and the result files that it refers to. The receiver may run.

The folder appears under its name once it is complete. The copied event log has no id: whoever starts from a backup gets
a new one, because the ids of events are used again for other events.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from kling_callback.atomic_file import AtomicFile, fsync_folder
from kling_receiver import __version__
from kling_receiver.backup import postgresql, sqlite
from kling_receiver.backup.snapshot import Snapshot, StoredResult
from kling_receiver.filesystem import make_durable_folder, path_inside
from kling_receiver.store.database import Database
from kling_receiver.store.errors import DatabaseError

MANIFEST = "manifest.json"
FORMAT = 1
"""The version of the manifest's form."""
RESULTS = "results"
COPY_BYTES = 1 << 20
NOT_LINKABLE = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Why a file cannot be linked where it can still be copied: another file system, one without links."""


@dataclass(frozen=True, slots=True)
class BackedUpFile:
    """A file of a backup: its path in the folder, its size in bytes, its SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup contains. `log_id`, `last_event`: of the event log that was copied.

    `lost`: results whose files were lost before the backup; in the copied database they are `failed`.
    """

    version: int
    program: str
    created_at: str
    database: str
    revision: str
    database_id: str
    log_id: str
    last_event: int
    files: list[BackedUpFile]
    lost: list[str] = field(default_factory=list)


def create_backup(database: Database, results: Path, target: Path) -> Manifest:
    """Copy a database and its result files into the folder `target`, which must be new or empty.

    The folder is complete and durable on return, and absent, or empty as before, after an error.
    Raises DatabaseError, OSError.
    """
    _check_target(target, results)
    make_durable_folder(target.parent)
    partial = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    partial.mkdir(mode=0o700)
    try:
        manifest = _fill(database, results, partial)
        _fsync_folders(partial)
        partial.rename(target)
        fsync_folder(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def _check_target(target: Path, results: Path) -> None:
    hint = "Name a new folder, or an empty one."
    if target.is_mount():
        raise DatabaseError(f"{target} is a mount point, which cannot appear at once. Name a folder in it.")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise DatabaseError(f"{target} is not a folder. {hint}")
    if target.resolve().is_relative_to(results.resolve()):
        raise DatabaseError(f"{target} is in the folder for result files. Name a folder elsewhere.")
    if target.exists() and any(target.iterdir()):
        raise DatabaseError(f"{target} is not empty. {hint}")


def _fill(database: Database, results: Path, folder: Path) -> Manifest:
    engine = sqlite if database.is_sqlite else postgresql
    lost: list[StoredResult] = []
    files: list[BackedUpFile] = []

    def copy_files(snapshot: Snapshot) -> list[StoredResult]:
        """Copy the files of a snapshot. Returns the results whose files are not as they were stored."""
        for result in snapshot.results:
            copied = _copy(path_inside(results, result.path), path_inside(folder / RESULTS, result.path))
            if copied == (result.size, result.sha256):
                files.append(BackedUpFile(f"{RESULTS}/{result.path}", result.size, result.sha256))
            else:
                path_inside(folder / RESULTS, result.path).unlink(missing_ok=True)
                lost.append(result)
        return lost

    (folder / RESULTS).mkdir(mode=0o700)
    name, snapshot = engine.copy_database(database, folder, copy_files)
    size, sha256 = _checksum(folder / name)
    manifest = Manifest(
        version=FORMAT,
        program=__version__,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        database=name,
        revision=snapshot.revision,
        database_id=snapshot.log.database_id,
        log_id=snapshot.log.log_id,
        last_event=snapshot.log.newest.event_id,
        files=[BackedUpFile(name, size, sha256), *files],
        lost=[result.path for result in lost],
    )
    file = AtomicFile(folder / f"{MANIFEST}.part", mode=0o600)
    file.write(json.dumps(asdict(manifest), indent=1).encode())
    file.commit(folder / MANIFEST)
    return manifest


def _copy(source: Path, target: Path) -> tuple[int, str] | None:
    """Link a file, or copy it durably. Returns the size and checksum of what is there; None without a source.

    A link is safe, because the receiver writes no stored file again: it replaces the name.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.link(os.path.realpath(source), target)  # not a symbolic link itself: elsewhere it would lead nowhere
        return _checksum(target)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in NOT_LINKABLE:
            raise
    with suppress(FileNotFoundError), source.open("rb") as file:
        copy = AtomicFile(target.with_name(f"{target.name}.part"), mode=0o600)
        try:
            while chunk := file.read(COPY_BYTES):
                copy.write(chunk)
            copy.commit(target)
        finally:
            copy.discard()
        return copy.size, copy.sha256
    return None


def _checksum(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), sha256


def _fsync_folders(root: Path) -> None:
    for folder in (*(path for path in root.rglob("*") if path.is_dir()), root):
        fsync_folder(folder)

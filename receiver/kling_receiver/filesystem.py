"""Folders that survive a power failure, and errors that name the setting of a folder."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kling_callback.atomic_file import fsync_folder


def make_durable_folder(folder: Path) -> None:
    """Make a folder and its missing parents, with mode 0700; their entries are on disk on return. Raises OSError."""
    if folder.is_dir():
        return
    if folder.is_symlink():  # the folder would be hidden once the volume of the other one is mounted
        raise FileNotFoundError(errno.ENOENT, f"a symbolic link to {folder.readlink()}, which is no folder", folder)
    make_durable_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    fsync_folder(folder.parent)


def path_inside(root: Path, name: str) -> Path:
    """The path of the file `name`, such as `a/1.png`, below `root`: no `..` or leading slash leads out of it."""
    return root / os.path.normpath(f"/{name}").lstrip("/")


def make_private(path: Path) -> None:
    """Let nobody but its owner read or write a file, if there is one. Raises OSError unless we may change its mode."""
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except FileNotFoundError:
        pass


@contextmanager
def blame_setting(setting: str) -> Iterator[None]:
    """Name the setting in an OSError about a folder that cannot be made or used. Raises OSError."""
    try:
        yield
    except OSError as error:
        why = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise OSError(f"{setting} cannot be used ({why}). Set it to a folder that may be written.") from error

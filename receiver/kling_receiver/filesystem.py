"""Folders that outlast a power cut: a new one's entry is on disk before anything relies on it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def make_durable_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless they are there; nobody else may look inside. Raises OSError."""
    if folder.is_dir():
        return
    make_durable_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    fsync_folder(folder.parent)


@contextmanager
def blame_setting(setting: str) -> Iterator[None]:
    """Say of a folder that cannot be made or used which setting it comes from. Raises OSError."""
    try:
        yield
    except OSError as error:
        why = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise OSError(f"{setting} cannot be used ({why}). Set it to a folder that may be written.") from error


def fsync_folder(folder: Path) -> None:
    """Put on disk which files and folders are in a folder. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

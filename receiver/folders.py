"""Folders that outlast a power cut: a new one's entry is on disk before anything relies on it."""

import os
from pathlib import Path


def make(folder: Path) -> None:
    """Make a folder, and those above it, unless they are there; nobody else may look inside. Raises OSError."""
    if folder.is_dir():
        return
    make(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync(folder.parent)


def sync(folder: Path) -> None:
    """Put on disk which files and folders are in a folder. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

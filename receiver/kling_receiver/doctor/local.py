"""The checks that send no request: the space on the disks, the address for Kling, the names of settings."""

import shutil
from pathlib import Path

from kling_callback.display import counted
from kling_receiver.doctor.checks import Check
from kling_receiver.settings import ReceiverSettings

MIN_FREE_BYTES = 1_000_000_000
"""Bytes of a disk below which a check fails: a busy receiver then has hours, not days, until callbacks are refused."""
GB = 1e9


def disk_folders(settings: ReceiverSettings) -> dict[str, Path]:
    """The folders whose disks fill, by what they hold; one for both, where database and files share a disk."""
    files, database = settings.results, settings.database_file
    folders = {"result files": existing(files)}
    if database is not None:
        parent = existing(database.parent)
        if parent.stat().st_dev == folders["result files"].stat().st_dev:
            return {"database and result files": folders["result files"]}
        folders = {"database": parent, **folders}
    return folders


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def disk_checks(settings: ReceiverSettings) -> list[Check]:
    """Whether each disk has space. Blocks while a disk does not answer. Raises OSError."""
    checks = []
    for what, folder in disk_folders(settings).items():
        usage = shutil.disk_usage(folder)
        needed = MIN_FREE_BYTES if what == "database" else max(MIN_FREE_BYTES, settings.result_max_bytes)
        text = f"{usage.free / GB:.1f} of {usage.total / GB:.1f} GB are free for the {what}, in {folder}."
        hint = f" {needed / GB:.1f} GB should be. Remove what is not needed, or move the folder to a larger disk."
        checks.append(Check("disk", usage.free >= needed, text if usage.free >= needed else text + hint))
    return checks


def settings_checks(settings: ReceiverSettings) -> list[Check]:
    """Whether Kling can reach the address, and what may be wrong with the settings, although they are valid."""
    reason = settings.unreachable_reason
    address = Check("address", not reason, reason or f"Kling is given {settings.receiver_url}.")
    warnings = settings.warnings()
    known = f"{counted(len(settings.model_fields_set), 'setting')} set, and no variable is misspelt."
    return [address, Check("settings", not warnings, " ".join(warnings) or known)]

"""Remove finished tasks: the rows in one commit, then the files by a job that this commit has enqueued.

A kill in between leaves files without rows, which the job removes later; never a row whose file is gone.
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

from kling_receiver.jobs import enqueue
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.queue import ClaimedJob, Done, Effect, RetryAt, settle_as
from kling_receiver.results.fetch import StorageUnavailable, storage_call
from kling_receiver.results.records import task_folder
from kling_receiver.results.storage import LocalStorage
from kling_receiver.results.thumbnails import ThumbnailCache
from kling_receiver.store import removed
from kling_receiver.store.sql import Statement
from kling_receiver.store.transaction import Transaction

Removal = Literal["removed", "unknown", "unfinished", "in_use"]

PATHS = Statement("SELECT path FROM result WHERE task_id = :id AND path <> '' ORDER BY position")
REMOVAL_BACKOFF = Backoff((1, 10, 60, 600, 3600))
"""Seconds between attempts to remove files from a storage that fails. The last one repeats."""


def remove_task(tx: Transaction, task_id: str) -> Removal:
    """Remove a task that is done, with its events, deliveries and files.

    `in_use`: a job works on it just now, so that it can be removed in a moment.
    """
    task = tx.task(task_id)
    if task is None:
        return "unknown"
    tx.write_changes()
    if not task["done"]:
        return "unfinished"
    if removed.is_in_use(tx, task):
        return "in_use"
    paths = PATHS.scalars(tx.connection, id=task_id)
    removed.delete_task(tx, task)
    enqueue.remove_files(tx, task_id, paths)
    return "removed"


class FileRemover:
    """Handles the jobs that remove the files of removed tasks."""

    def __init__(self, storage: LocalStorage, *, backoff: Backoff = REMOVAL_BACKOFF) -> None:
        self._storage, self._thumbnails, self._backoff = storage, ThumbnailCache(storage), backoff

    async def remove(self, job: ClaimedJob) -> Effect:
        """Handle one `remove` job. It is retried without end: without it, nothing knows of the files."""
        try:
            await storage_call(self._remove, task_folder(job.task_id), job.args["paths"])
        except StorageUnavailable as error:
            reason, steps = str(error), self._backoff.steps
            return lambda tx: RetryAt(self._backoff.next_at(min(job.attempts, len(steps)), tx.now) or tx.now, reason)
        return settle_as(Done())

    def _remove(self, folder: str, paths: Sequence[str]) -> None:
        """Remove the files, then their thumbnails: one that is made meanwhile then finds no file, and does not stay."""
        self._storage.remove(folder, paths)
        for each in {folder, *(str(PurePosixPath(path).parent) for path in paths)}:
            self._thumbnails.remove(each)

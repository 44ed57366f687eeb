"""Enqueue the jobs of a task: a query to Kling, its deadline, the download of a result file."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from kling_receiver.jobs.kinds import Kind, Pool, ask_key, create_key, download_key, overdue_key, remove_key
from kling_receiver.store.transaction import Transaction

OVERDUE_CONCURRENCY_KEY = "overdue"
"""Checks at deadlines and the sweep after a start share it: callbacks' own queries never wait for them."""


def ask(tx: Transaction, task_id: str, due_at: int | None = None) -> None:
    """Enqueue a query about a task. `due_at`: unix ms; None: now."""
    key = ask_key(task_id)
    tx.enqueue(Kind.ASK, task_id, unique_key=key, pool=Pool.KLING, concurrency_key="kling", due_at=due_at)


def create(tx: Transaction, task_id: str) -> None:
    """Enqueue the create of a task that was submitted here."""
    # A key of its own for each task: MAX_PER_POOL alone limits how many are sent at once.
    key = create_key(task_id)
    tx.enqueue(Kind.CREATE, task_id, unique_key=key, pool=Pool.CREATES, concurrency_key=key)


def overdue(
    tx: Transaction, task_id: str, family: str, early_ms: int | None = None, *, created_at: int | None = None
) -> None:
    """Enqueue the check of a task at its deadline, or `early_ms` from now, if it is not to wait for that.

    `created_at`: unix ms, from which the deadline counts; None: now. An early check holds this time: a task may have
    been opened again after its creation.
    """
    # The clock may have been ahead at the create.
    opened_at = tx.now if created_at is None else min(created_at, tx.now)
    tx.enqueue(
        Kind.OVERDUE,
        task_id,
        unique_key=overdue_key(task_id),
        pool=Pool.KLING,
        concurrency_key=OVERDUE_CONCURRENCY_KEY,
        due_at=tx.now + early_ms if early_ms is not None else opened_at + tx.policy.overdue_ms(family),
        args=None if early_ms is None else {"opened_at": opened_at},
    )


def download(tx: Transaction, task_id: str, index: int, url: str) -> None:
    """Enqueue the download of one file. Files of one host wait for each other, not for other hosts."""
    tx.enqueue(
        Kind.DOWNLOAD,
        task_id,
        unique_key=download_key(task_id, index),
        pool=Pool.DOWNLOADS,
        concurrency_key=f"download {host_of(url)}",
        args={"index": index},
    )


def remove_files(tx: Transaction, task_id: str, paths: Sequence[str]) -> None:
    """Enqueue the removal of a removed task's files. `paths`: those that its results named, in the storage."""
    tx.enqueue(
        Kind.REMOVE,
        task_id,
        unique_key=remove_key(task_id),
        pool=Pool.REMOVALS,
        concurrency_key=Kind.REMOVE,
        args={"paths": list(paths)},
    )


def host_of(url: str) -> str:
    """The host of a URL as written, in lower case; "" if it has none. Its ports are one host's: it chooses them."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")[:200]
    except ValueError:
        return ""

"""The files of a task, from where Kling named them to where they are stored; none is given up in silence."""

from dataclasses import dataclass

from kling_callback.protocol.reports import Output
from kling_receiver.jobs import enqueue
from kling_receiver.results.expiry import expires_at
from kling_receiver.states import FINAL
from kling_receiver.store.sql import Row, Statement
from kling_receiver.store.transaction import Transaction

UPSERT_PENDING = Statement("""
    INSERT INTO result (task, n, kind, kling_id, duration, status, source_url, expires_at, error)
    VALUES (:task, :n, :kind, :kling_id, :duration, 'pending', :source_url, :expires_at, '')
    ON CONFLICT (task, n) DO UPDATE SET
        kind = excluded.kind, kling_id = excluded.kling_id, duration = excluded.duration, status = 'pending',
        source_url = excluded.source_url, expires_at = excluded.expires_at, error = ''
    WHERE result.status <> 'stored'
""")
SELECT_PENDING = Statement(
    "SELECT n, source_url FROM result WHERE task = :task AND status = 'pending' ORDER BY n"
)
COUNT_NAMED = Statement("SELECT count(*) FROM result WHERE task = :task AND source_url <> ''")
MARK_STORED = Statement("""
    UPDATE result SET status = 'stored', content_type = :content_type, size = :size, sha256 = :sha256,
        name = :name, error = ''
    WHERE task = :task AND n = :n AND status <> 'stored'
""")
MARK_LOST = Statement("""
    UPDATE result SET status = 'failed', sha256 = NULL, error = :error WHERE task = :task AND n = :n
""")
MARK_FAILED = Statement(
    "UPDATE result SET status = 'failed', error = :error WHERE task = :task AND n = :n AND status = 'pending'"
)
INSERT_MISSING = Statement("""
    INSERT INTO result (task, n, kind, status, source_url, error)
    VALUES (:task, 0, 'file', 'failed', '', :error)
    ON CONFLICT (task, n) DO NOTHING
""")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that lies in the storage, whole: `size` in bytes."""

    path: str
    content_type: str
    size: int
    sha256: str


def enqueue_downloads(tx: Transaction, task: Row, outputs: tuple[Output, ...]) -> None:
    """Owe the download of each file, once."""
    if outputs and not COUNT_NAMED.scalar(tx.connection, task=task["id"]):
        refresh_downloads(tx, task, outputs)


def refresh_downloads(tx: Transaction, task: Row, outputs: tuple[Output, ...]) -> None:
    """Owe the download of each file that is not stored, from where Kling says that it lies now."""
    rows = [
        {
            "task": task["id"],
            "n": n,
            "kind": output.kind,
            "kling_id": output.id,
            "duration": output.duration,
            "source_url": output.url,
            "expires_at": expires_at(output.url, tx.now),
        }
        for n, output in enumerate(outputs)
    ]
    tx.flush_new_tasks()
    UPSERT_PENDING.executemany(tx.connection, rows)
    for row in SELECT_PENDING.all(tx.connection, task=task["id"]):
        tx.update_task(task, done=False)
        enqueue.download(tx, task["id"], row["n"], row["source_url"])


def mark_stored(tx: Transaction, task: Row, index: int, stored: StoredFile) -> None:
    """A file is on disk: say so."""
    values = {
        "name": stored.path,
        "content_type": stored.content_type,
        "size": stored.size,
        "sha256": stored.sha256,
    }
    if MARK_STORED.execute(tx.connection, **values, task=task["id"], n=index):
        tx.add_event(task["id"], "result.stored", {"index": index, **values})
        finish_task(tx, task)


def mark_failed(tx: Transaction, task: Row, index: int, reason: str) -> None:
    """A file cannot be had: say so, loudly."""
    if MARK_FAILED.execute(tx.connection, task=task["id"], n=index, error=reason):
        tx.add_event(task["id"], "result.failed", {"index": index, "reason": reason})
    finish_task(tx, task)


def mark_lost(tx: Transaction, task: Row, index: int, reason: str) -> None:
    """A file that was stored is no longer there: say so, until it is fetched again."""
    MARK_LOST.execute(tx.connection, task=task["id"], n=index, error=reason)
    tx.add_event(task["id"], "result.failed", {"index": index, "reason": reason})


def mark_missing(tx: Transaction, task: Row, reason: str) -> None:
    """A success of which nobody names the files, unless somebody has: say so, as loudly."""
    tx.flush_new_tasks()
    if INSERT_MISSING.execute(tx.connection, task=task["id"], error=reason):
        tx.add_event(task["id"], "result.failed", {"index": 0, "reason": reason})
    finish_task(tx, task)


def finish_task(tx: Transaction, task: Row) -> None:
    """Call a task done when its end is believed and no file is owed any more."""
    if task["done"] or task["status"] not in FINAL:
        return
    if not SELECT_PENDING.all(tx.connection, task=task["id"]):
        tx.update_task(task, done=True, hint=None)
        tx.add_event(task["id"], "task.done", {"status": task["status"], "origin": task["origin"]})

"""The rows of result files: pending, stored or failed. Each failure adds an event and a line in the log."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from kling_callback.protocol.results.outputs import Output
from kling_receiver.jobs import enqueue
from kling_receiver.results.expiry import expires_at
from kling_receiver.states import FINAL
from kling_receiver.store.rows import ResultRow, TaskRow
from kling_receiver.store.sql import Statement
from kling_receiver.store.transaction import Transaction

UPSERT_PENDING = Statement("""
    INSERT INTO result (task_id, position, kind, kling_id, duration, status, source_url, expires_at, error)
    VALUES (:task_id, :position, :kind, :kling_id, :duration, 'pending', :source_url, :expires_at, '')
    ON CONFLICT (task_id, position) DO UPDATE SET
        kind = excluded.kind, kling_id = excluded.kling_id, duration = excluded.duration, status = 'pending',
        source_url = excluded.source_url, expires_at = excluded.expires_at, error = '', warning = ''
    WHERE result.status <> 'stored'
""")
INSERT_AWAITED = Statement("""
    INSERT INTO result (task_id, position, kind, kling_id, duration, status, source_url, error)
    VALUES (:task_id, :position, :kind, :kling_id, :duration, 'pending', '', '')
    ON CONFLICT (task_id, position) DO NOTHING
""")
RETRY_FAILED = Statement("""
    UPDATE result SET status = 'pending', error = '', warning = ''
    WHERE task_id = :task_id AND status = 'failed' AND source_url <> ''
""")
DELETE_AWAITED = Statement("DELETE FROM result WHERE task_id = :task_id AND source_url = ''")
SELECT_ADDRESSES = Statement[ResultRow](
    "SELECT position, source_url FROM result WHERE task_id = :task_id ORDER BY position"
)
SELECT_PENDING = Statement[ResultRow](
    "SELECT position, source_url FROM result WHERE task_id = :task_id AND status = 'pending' ORDER BY position"
)
SELECT_ALL_PENDING = Statement("SELECT task_id, position FROM result WHERE status = 'pending'")
SET_ADDRESS = Statement("""
    UPDATE result SET source_url = :source_url, expires_at = :expires_at
    WHERE task_id = :task_id AND position = :position AND kind = :kind AND status = 'pending' AND source_url <> ''
""")
MARK_STORED = Statement("""
    UPDATE result SET status = 'stored', content_type = :content_type, size = :size, sha256 = :sha256,
        path = :path, error = '', warning = :warning
    WHERE task_id = :task_id AND position = :position AND status <> 'stored'
""")
MARK_LOST = Statement("""
    UPDATE result SET status = 'failed', sha256 = NULL, error = :error
    WHERE task_id = :task_id AND position = :position
""")
MARK_FAILED = Statement("""
    UPDATE result SET status = 'failed', error = :error
    WHERE task_id = :task_id AND position = :position AND status = 'pending'
""")
INSERT_MISSING = Statement("""
    INSERT INTO result (task_id, position, kind, status, source_url, error)
    VALUES (:task_id, 0, 'file', 'failed', '', :error)
    ON CONFLICT (task_id, position) DO NOTHING
""")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A complete file in the storage: `path` inside it, `size` in bytes, `sha256` in hex.

    `warning`: what is unusual about it, or "".
    """

    path: str
    content_type: str
    size: int
    sha256: str
    warning: str = ""


def enqueue_downloads(tx: Transaction, task: TaskRow, outputs: tuple[Output, ...]) -> None:
    """Enqueue the download of each file, unless the addresses of all files of the task are already known."""
    known = SELECT_ADDRESSES.all(tx.connection, task_id=task["id"])
    if outputs and not (known and all(row["source_url"] for row in known)):
        refresh_downloads(tx, task, outputs)


def refresh_downloads(tx: Transaction, task: TaskRow, outputs: tuple[Output, ...]) -> None:
    """Enqueue the download of each file that is not stored, from the address in Kling's latest report.

    A file that the report does not name, or not yet, keeps the address by which it is known. Without any, it is pending
    without a job: the query about the task goes on.
    """
    tx.flush_new_tasks()
    known = SELECT_ADDRESSES.all(tx.connection, task_id=task["id"])
    rows = [
        {
            "task_id": task["id"],
            "position": position,
            "kind": output.kind,
            "kling_id": output.id,
            "duration": output.duration,
            "source_url": output.url,
            "expires_at": expires_at(output.url, tx.now),
        }
        for position, output in zip(_positions(known, outputs), outputs, strict=True)
    ]
    RETRY_FAILED.execute(tx.connection, task_id=task["id"])
    UPSERT_PENDING.executemany(tx.connection, [row for row in rows if row["source_url"]])
    if awaited := [row for row in rows if not row["source_url"]]:
        INSERT_AWAITED.executemany(tx.connection, awaited)
    else:
        DELETE_AWAITED.execute(tx.connection, task_id=task["id"])
    for row in SELECT_PENDING.all(tx.connection, task_id=task["id"]):
        tx.update_task(task, done=False)
        if row["source_url"]:
            enqueue.download(tx, task["id"], row["position"], row["source_url"])
    finish_task(tx, task)


def _positions(known: Sequence[ResultRow], outputs: tuple[Output, ...]) -> list[int]:
    """The position of each output: that of the file with its address, else the first free one.

    A file whose address comes late may move those behind it. A query is no part of an address unless it tells files
    apart: Kling may sign its addresses anew. A report of fewer files than are known does not say which of them it
    leaves out, so a new address in it replaces none.
    """
    left = [row for row in known if row["source_url"]]
    addressed = {row["position"] for row in left} if len(outputs) < len(known) else set()
    found: dict[int, int] = {}
    keys: tuple[Callable[[str], str], ...] = (str, lambda url: url.partition("?")[0])
    for key in keys:
        for index, output in enumerate(outputs):
            row = next((row for row in left if index not in found and key(row["source_url"]) == key(output.url)), None)
            if row:
                left.remove(row)
                found[index] = row["position"]
    for index, output in enumerate(outputs):
        if index not in found:
            taken = {*found.values(), *(addressed if output.url else ())}
            found[index] = next(position for position in count() if position not in taken)
    return [found[index] for index in range(len(outputs))]


def has_moved(known: Sequence[ResultRow], result: ResultRow, outputs: tuple[Output, ...]) -> bool:
    """Whether Kling's latest report names another address for a file. `known`: all files of its task."""
    named = [output for output, n in zip(outputs, _positions(known, outputs), strict=True) if n == result["position"]]
    return any(output.kind == result["kind"] and output.url not in ("", result["source_url"]) for output in named)


def set_addresses(tx: Transaction, task_id: str, outputs: tuple[Output, ...]) -> None:
    """Download the pending files of a task from the addresses in Kling's latest report from now on."""
    known = SELECT_ADDRESSES.all(tx.connection, task_id=task_id)
    rows = [
        {
            "task_id": task_id,
            "position": position,
            "kind": output.kind,
            "source_url": output.url,
            "expires_at": expires_at(output.url, tx.now),
        }
        for position, output in zip(_positions(known, outputs), outputs, strict=True)
    ]
    SET_ADDRESS.executemany(tx.connection, [row for row in rows if row["source_url"]])


def part_name(task_id: str, index: int) -> str:
    """The name of a file that is not stored yet, in the storage."""
    return f"{task_id}/{index}"


def file_name(task_id: str, index: int, suffix: str) -> str:
    """The name of a file in the storage, `<task_id>/<index>.<suffix>`: no other file's, also where case is ignored.

    The ids that we make, and those in small letters, are the names of their folders. Any other has its checksum in its
    folder's name: `A` is not to meet `a`, and Windows has no `a:b`, no `con` and no `a.`, also behind an SMB share.
    """
    return f"{task_folder(task_id)}/{index}.{suffix}"


def task_folder(task_id: str) -> str:
    """The name of the folder of a task's files in the storage: no other task's."""
    is_ours = len(task_id) == ID_CHARS and OUR_ID.fullmatch(task_id)
    is_plain = len(task_id) != ID_CHARS and PLAIN_ID.fullmatch(task_id) and task_id.split(".")[0] not in RESERVED
    if is_ours or is_plain:
        return task_id
    readable = re.sub("[^a-z0-9_-]+", "-", task_id.lower())[:MAX_READABLE_CHARS]
    return f"{readable}+{hashlib.sha256(task_id.encode()).hexdigest()[:32]}"  # no id contains a plus sign


ID_CHARS = 26
OUR_ID = re.compile("[0-9A-Z]+")
PLAIN_ID = re.compile("[a-z0-9](?:[a-z0-9_.=@-]*[a-z0-9_=@-])?")
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
MAX_READABLE_CHARS = 60


def pending_parts(tx: Transaction) -> list[str]:
    """The names of all files that are not stored yet."""
    return [part_name(row["task_id"], row["position"]) for row in SELECT_ALL_PENDING.all(tx.connection)]


def mark_stored(tx: Transaction, task: TaskRow, index: int, stored: StoredFile) -> None:
    """Record that a file is on disk. A repeat has no effect."""
    file = {"content_type": stored.content_type, "size": stored.size, "sha256": stored.sha256}
    row = {**file, "path": stored.path, "warning": stored.warning, "task_id": task["id"], "position": index}
    if MARK_STORED.execute(tx.connection, **row):
        warning = {"warning": stored.warning} if stored.warning else {}
        tx.add_event(task["id"], "result.stored", {"index": index, "name": stored.path, **file, **warning})
        finish_task(tx, task)


def mark_failed(tx: Transaction, task: TaskRow, index: int, reason: str) -> None:
    """Record that a file cannot be downloaded."""
    if MARK_FAILED.execute(tx.connection, task_id=task["id"], position=index, error=reason):
        _add_failure(tx, task, index, reason)
    finish_task(tx, task)


def mark_lost(tx: Transaction, task: TaskRow, index: int, reason: str) -> None:
    """Record that a stored file is gone or was changed, until it is downloaded again."""
    MARK_LOST.execute(tx.connection, task_id=task["id"], position=index, error=reason)
    _add_failure(tx, task, index, reason)


def mark_missing(tx: Transaction, task: TaskRow, reason: str) -> None:
    """Record that Kling named no file of a succeeded task, or not the addresses that are still awaited."""
    tx.flush_new_tasks()
    for row in SELECT_PENDING.all(tx.connection, task_id=task["id"]):
        if not row["source_url"]:
            mark_failed(tx, task, row["position"], reason)
    if INSERT_MISSING.execute(tx.connection, task_id=task["id"], error=reason):
        _add_failure(tx, task, 0, reason)
    finish_task(tx, task)


def finish_without_files(tx: Transaction, task: TaskRow) -> None:
    """Finish a succeeded task whose outputs are no files. That none was known before is no failure any more."""
    DELETE_AWAITED.execute(tx.connection, task_id=task["id"])
    finish_task(tx, task)


def _add_failure(tx: Transaction, task: TaskRow, index: int, reason: str) -> None:
    tx.add_event(task["id"], "result.failed", {"index": index, "reason": reason})
    tx.log_after_commit(
        f"task {task['id']} succeeded, but a file of it is missing. "
        f"Download it again with: kling-receiver tasks fetch {task['id']}"
    )


def finish_task(tx: Transaction, task: TaskRow) -> None:
    """Mark a task as done once its status is final and no download is pending."""
    if task["done"] or task["status"] not in FINAL:
        return
    if not SELECT_PENDING.all(tx.connection, task_id=task["id"]):
        tx.update_task(task, done=True, hint=None)
        tx.add_event(task["id"], "task.done", {"status": task["status"], "origin": task["origin"]})

"""The files of a task, from where Kling named them to where they are stored; none is given up in silence."""

from dataclasses import dataclass

from sqlalchemy import text

from client.codec import Output
from receiver import owed
from receiver.expiry import expires_at
from receiver.states import FINAL
from receiver.transaction import Row, Transaction

EXPECT = text("""
    INSERT INTO result (task, n, kind, kling_id, duration, status, source_url, expires_at, error)
    VALUES (:task, :n, :kind, :kling_id, :duration, 'pending', :source_url, :expires_at, '')
    ON CONFLICT (task, n) DO UPDATE SET
        kind = excluded.kind, kling_id = excluded.kling_id, duration = excluded.duration, status = 'pending',
        source_url = excluded.source_url, expires_at = excluded.expires_at, error = ''
    WHERE result.status <> 'stored'
""")
PENDING = text("SELECT n, source_url FROM result WHERE task = :task AND status = 'pending' ORDER BY n")
HAS_RESULTS = text("SELECT count(*) FROM result WHERE task = :task AND source_url <> ''")
STORE = text("""
    UPDATE result SET status = 'stored', content_type = :content_type, size = :size, sha256 = :sha256,
        name = :name, error = ''
    WHERE task = :task AND n = :n AND status <> 'stored'
""")
LOSE = text("""
    UPDATE result SET status = 'failed', sha256 = NULL, error = :error WHERE task = :task AND n = :n
""")
FAIL = text(
    "UPDATE result SET status = 'failed', error = :error WHERE task = :task AND n = :n AND status = 'pending'"
)
ADD_FAILED = text("""
    INSERT INTO result (task, n, kind, status, source_url, error)
    VALUES (:task, 0, 'file', 'failed', '', :error)
    ON CONFLICT (task, n) DO NOTHING
""")


@dataclass(frozen=True, slots=True)
class Stored:
    """A file that lies in the storage, whole: `size` in bytes."""

    name: str
    content_type: str
    size: int
    sha256: str


def expect(tx: Transaction, task: Row, outputs: tuple[Output, ...]) -> None:
    """Owe the download of each file, once."""
    if outputs and not tx.connection.execute(HAS_RESULTS, {"task": task["id"]}).scalar():
        renew(tx, task, outputs)


def renew(tx: Transaction, task: Row, outputs: tuple[Output, ...]) -> None:
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
    tx.insert()
    tx.connection.execute(EXPECT, rows)
    for row in tx.connection.execute(PENDING, {"task": task["id"]}):
        tx.change(task, done=False)
        owed.download(tx, task["id"], row.n, row.source_url)


def store(tx: Transaction, task: Row, n: int, stored: Stored) -> None:
    """A file is on disk: say so."""
    values = {
        "name": stored.name,
        "content_type": stored.content_type,
        "size": stored.size,
        "sha256": stored.sha256,
    }
    if tx.connection.execute(STORE, {**values, "task": task["id"], "n": n}).rowcount:
        tx.log(task["id"], "result.stored", {"index": n, **values})
        finish(tx, task)


def fail(tx: Transaction, task: Row, n: int, reason: str) -> None:
    """A file cannot be had: say so, loudly."""
    if tx.connection.execute(FAIL, {"task": task["id"], "n": n, "error": reason}).rowcount:
        tx.log(task["id"], "result.failed", {"index": n, "reason": reason})
    finish(tx, task)


def lose(tx: Transaction, task: Row, n: int, reason: str) -> None:
    """A file that was stored is no longer there: say so, until it is fetched again."""
    tx.connection.execute(LOSE, {"task": task["id"], "n": n, "error": reason})
    tx.log(task["id"], "result.failed", {"index": n, "reason": reason})


def lack(tx: Transaction, task: Row, reason: str) -> None:
    """A success of which nobody names the files, unless somebody has: say so, as loudly."""
    tx.insert()
    if tx.connection.execute(ADD_FAILED, {"task": task["id"], "error": reason}).rowcount:
        tx.log(task["id"], "result.failed", {"index": 0, "reason": reason})
    finish(tx, task)


def finish(tx: Transaction, task: Row) -> None:
    """Call a task done when its end is believed and no file is owed any more."""
    if task["done"] or task["status"] not in FINAL:
        return
    if not tx.connection.execute(PENDING, {"task": task["id"]}).first():
        tx.change(task, done=True, hint=None)
        tx.log(task["id"], "task.done", {"status": task["status"], "origin": task["origin"]})

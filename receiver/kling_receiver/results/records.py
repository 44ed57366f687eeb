"""The files of a task, from where Kling named them to where they are stored; none is given up in silence."""

from dataclasses import dataclass

from kling_callback.protocol.reports import Output
from kling_receiver.jobs import enqueue
from kling_receiver.results.expiry import expires_at
from kling_receiver.states import FINAL
from kling_receiver.store.sql import Row, Sql
from kling_receiver.store.transaction import Transaction

EXPECT = Sql("""
    INSERT INTO result (task, n, kind, kling_id, duration, status, source_url, expires_at, error)
    VALUES (:task, :n, :kind, :kling_id, :duration, 'pending', :source_url, :expires_at, '')
    ON CONFLICT (task, n) DO UPDATE SET
        kind = excluded.kind, kling_id = excluded.kling_id, duration = excluded.duration, status = 'pending',
        source_url = excluded.source_url, expires_at = excluded.expires_at, error = ''
    WHERE result.status <> 'stored'
""")
PENDING = Sql("SELECT n, source_url FROM result WHERE task = :task AND status = 'pending' ORDER BY n")
HAS_RESULTS = Sql("SELECT count(*) FROM result WHERE task = :task AND source_url <> ''")
STORE = Sql("""
    UPDATE result SET status = 'stored', content_type = :content_type, size = :size, sha256 = :sha256,
        name = :name, error = ''
    WHERE task = :task AND n = :n AND status <> 'stored'
""")
LOSE = Sql("""
    UPDATE result SET status = 'failed', sha256 = NULL, error = :error WHERE task = :task AND n = :n
""")
FAIL = Sql(
    "UPDATE result SET status = 'failed', error = :error WHERE task = :task AND n = :n AND status = 'pending'"
)
ADD_FAILED = Sql("""
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
    if outputs and not HAS_RESULTS.value(tx.connection, task=task["id"]):
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
    EXPECT.do_each(tx.connection, rows)
    for row in PENDING.all(tx.connection, task=task["id"]):
        tx.change(task, done=False)
        enqueue.download(tx, task["id"], row["n"], row["source_url"])


def store(tx: Transaction, task: Row, n: int, stored: Stored) -> None:
    """A file is on disk: say so."""
    values = {
        "name": stored.name,
        "content_type": stored.content_type,
        "size": stored.size,
        "sha256": stored.sha256,
    }
    if STORE.do(tx.connection, **values, task=task["id"], n=n):
        tx.log(task["id"], "result.stored", {"index": n, **values})
        finish(tx, task)


def fail(tx: Transaction, task: Row, n: int, reason: str) -> None:
    """A file cannot be had: say so, loudly."""
    if FAIL.do(tx.connection, task=task["id"], n=n, error=reason):
        tx.log(task["id"], "result.failed", {"index": n, "reason": reason})
    finish(tx, task)


def lose(tx: Transaction, task: Row, n: int, reason: str) -> None:
    """A file that was stored is no longer there: say so, until it is fetched again."""
    LOSE.do(tx.connection, task=task["id"], n=n, error=reason)
    tx.log(task["id"], "result.failed", {"index": n, "reason": reason})


def lack(tx: Transaction, task: Row, reason: str) -> None:
    """A success of which nobody names the files, unless somebody has: say so, as loudly."""
    tx.insert()
    if ADD_FAILED.do(tx.connection, task=task["id"], error=reason):
        tx.log(task["id"], "result.failed", {"index": 0, "reason": reason})
    finish(tx, task)


def finish(tx: Transaction, task: Row) -> None:
    """Call a task done when its end is believed and no file is owed any more."""
    if task["done"] or task["status"] not in FINAL:
        return
    if not PENDING.all(tx.connection, task=task["id"]):
        tx.change(task, done=True, hint=None)
        tx.log(task["id"], "task.done", {"status": task["status"], "origin": task["origin"]})

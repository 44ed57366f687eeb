"""Delete the rows of tasks, and remember their ids: no late callback and no client makes a removed task again."""

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection

from kling_receiver.jobs.kinds import Kind, task_keys
from kling_receiver.store.rows import RemovedRow, TaskRow
from kling_receiver.store.sql import Statement, columns
from kling_receiver.store.tables import REMOVED
from kling_receiver.store.transaction import Transaction

SELECT_REMOVED = Statement[RemovedRow](f"SELECT {columns(REMOVED)} FROM removed WHERE id IN :ids ORDER BY id")
COUNT_CALLBACKS = Statement("UPDATE removed SET callback_count = callback_count + :times WHERE id = :id")
INSERT_REMOVED = Statement("INSERT INTO removed (id, removed_at, callback_count) VALUES (:id, :now, 0)")
POSITIONS = Statement("SELECT position FROM result WHERE task_id = :id")
RUNNING = Statement("SELECT 1 FROM job WHERE unique_key IN :keys AND state = 'running'")
SUBMITTED = Statement("SELECT 1 FROM submission WHERE task_id = :id")
DELETE_OWN_JOBS = Statement("DELETE FROM job WHERE unique_key IN :keys")
SET_REMOVED_UNTIL = Statement("""
    UPDATE event_log SET removed_until = newest.id FROM (SELECT max(id) AS id FROM event WHERE task_id = :id) AS newest
    WHERE newest.id > removed_until
""")
DELETE_DELIVERY_JOBS = Statement(f"""
    DELETE FROM job WHERE unique_key IN (
        SELECT '{Kind.DELIVERY}/' || event.id || '/' || hook.name FROM event, hook
        WHERE event.task_id = :id AND hook.task_id IS NULL)
""")  # a constant
DELETE_ROWS = [
    Statement(sql)
    for sql in (
        "DELETE FROM job WHERE hook_name IN (SELECT name FROM hook WHERE task_id = :id)",
        "DELETE FROM hook WHERE task_id = :id",
        "DELETE FROM delivery_attempt WHERE event_id IN (SELECT id FROM event WHERE task_id = :id)",
        "DELETE FROM event WHERE task_id = :id",
        "DELETE FROM result WHERE task_id = :id",
        "DELETE FROM tag WHERE task_id = :id",
        "DELETE FROM task WHERE id = :id",
    )
]


def removed_tasks(connection: Connection, ids: Collection[str]) -> dict[str, RemovedRow]:
    """Those of these ids whose tasks were removed."""
    return {row["id"]: row for row in SELECT_REMOVED.all(connection, ids=sorted(set(ids)))} if ids else {}


def describe_removed(row: RemovedRow) -> str:
    """When a task was removed, in one sentence."""
    at = datetime.fromtimestamp(row["removed_at"] / 1000, UTC)
    return f"Task {row['id']} was removed on {at:%Y-%m-%d at %H:%M} UTC."


def count_callbacks(tx: Transaction, ids: Sequence[str]) -> dict[str, RemovedRow]:
    """Count callbacks of removed tasks. `ids`: the task of each callback. Returns the rows as they were before."""
    removed, times = removed_tasks(tx.connection, ids), Counter(ids)
    if removed:
        COUNT_CALLBACKS.executemany(tx.connection, [{"id": id_, "times": times[id_]} for id_ in sorted(removed)])
    return removed


def is_in_use(tx: Transaction, task: TaskRow) -> bool:
    """Whether a job works on a task just now: it may write a file of it, or send its create."""
    return RUNNING.scalar(tx.connection, keys=_own_jobs(tx, task["id"])) is not None or (
        SUBMITTED.scalar(tx.connection, id=task["id"]) is not None
    )


def delete_task(tx: Transaction, task: TaskRow) -> None:
    """Delete a task with its events, results, tags, jobs and deliveries, and remember its id. Its files stay.

    Call it for a task that is not in use.
    """
    task_id = task["id"]
    tx.flush_new_tasks()
    DELETE_OWN_JOBS.execute(tx.connection, keys=_own_jobs(tx, task_id))
    SET_REMOVED_UNTIL.execute(tx.connection, id=task_id)
    DELETE_DELIVERY_JOBS.execute(tx.connection, id=task_id)
    for statement in DELETE_ROWS:
        statement.execute(tx.connection, id=task_id)
    INSERT_REMOVED.execute(tx.connection, id=task_id, now=tx.now)
    tx.forget_task(task_id)


def _own_jobs(tx: Transaction, task_id: str) -> list[str]:
    """The keys of all jobs that a task may have, besides those of hooks."""
    return task_keys(task_id, POSITIONS.scalars(tx.connection, id=task_id))

"""Repair after a start: enqueue missing jobs, clamp due times, and query each open task once.

A callback may have arrived while no receiver ran. Nothing is assumed to be complete, and Kling is not flooded.
"""

import logging

from kling_receiver.hooks import records as hook_records
from kling_receiver.jobs import enqueue, queue
from kling_receiver.jobs.enqueue import OVERDUE_CONCURRENCY_KEY
from kling_receiver.jobs.kinds import Kind, Pool
from kling_receiver.jobs.worker import LEASE_MS
from kling_receiver.store.sql import Statement
from kling_receiver.store.tables import SENT_HERE
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import slots, submission

log = logging.getLogger("kling_receiver.startup")

SPACING_MS = 100
"""Milliseconds from one query of the sweep to the next: ten a second."""

OPEN = "status IN ('created', 'submitted', 'processing') AND status <> 'succeed'"
"""The second condition is that of the index `task_status`: SQLite does not infer it from the first."""


def _no_job(key: str) -> str:
    return f"NOT EXISTS (SELECT 1 FROM job WHERE unique_key = {key} AND state <> 'dead')"


NO_ASK = _no_job(f"'{Kind.ASK}/' || task.id")
MISSING_OVERDUE = Statement(f"""
    SELECT id, family, created_at FROM task WHERE {OPEN} AND {_no_job(f"'{Kind.OVERDUE}/' || task.id")}
        AND NOT EXISTS (SELECT 1 FROM submission WHERE task_id = task.id AND submission.state <> 'sending')
""")  # constants; the deadline of a task counts from its create
MISSING_CREATE = Statement(f"""
    SELECT task_id AS id FROM submission WHERE state <> 'queued' AND {_no_job(f"'{Kind.CREATE}/' || task_id")}
""")  # constants
MISSING_ASK = Statement(f"""
    SELECT id FROM task WHERE {OPEN} AND hint IS NOT NULL AND {NO_ASK}
    UNION ALL SELECT id FROM task WHERE origin IS NOT NULL AND NOT done
        AND (hint IS NOT NULL AND origin <> 'kling'
            OR NOT EXISTS (SELECT 1 FROM result WHERE task_id = task.id AND status = 'pending')
            OR EXISTS (SELECT 1 FROM result WHERE task_id = task.id AND status = 'pending' AND source_url = ''))
        AND {NO_ASK}
""")  # constants
MISSING_DISPATCH = Statement(f"""
    SELECT name FROM hook WHERE paused_at IS NULL AND (task_id IS NULL OR task_id IN (
            SELECT id FROM task WHERE {OPEN} UNION ALL SELECT id FROM task WHERE origin IS NOT NULL AND NOT done))
        AND {_no_job(f"'{Kind.DISPATCH}/' || hook.name")}
        AND EXISTS (SELECT 1 FROM event
            WHERE id > hook.cursor AND (hook.task_id IS NULL OR event.task_id = hook.task_id))
""")  # constants
MISSING_DOWNLOAD = Statement(f"""
    SELECT task.id, position, source_url FROM task JOIN result ON result.task_id = task.id
    WHERE origin IS NOT NULL AND NOT done AND result.status = 'pending' AND source_url <> ''
        AND {_no_job(f"'{Kind.DOWNLOAD}/' || task.id || '/' || position")}
""")  # constants
RELEASE_SLOTS = Statement("""
    UPDATE task SET slots = 0 WHERE slots > 0 AND (origin IS NOT NULL
        OR EXISTS (SELECT 1 FROM submission WHERE task_id = task.id AND submission.state <> 'sending'))
""")
RELEASE_OF_CLIENTS = Statement(f"""
    UPDATE task SET slots = 0 WHERE slots > 0 AND create_token NOT LIKE '{SENT_HERE}%'
""")  # a constant
OPEN_WITHOUT_SLOTS = Statement(f"""
    SELECT id FROM task WHERE {OPEN} AND slots = 0
        AND NOT EXISTS (SELECT 1 FROM submission WHERE task_id = task.id AND submission.state <> 'sending')
""")  # a constant
QUEUED_SLOTS = Statement("SELECT task_id, model, slots FROM submission WHERE state = 'queued' AND slots > 1")
CALM = Statement("UPDATE account SET create_interval_ms = 0, next_create_at = 0")
MOVE_NEXT_CREATE = Statement("UPDATE account SET next_create_at = next_create_at + :jump_ms")
SPREAD_OVERDUE = Statement(f"""
    UPDATE job SET due_at = :now + turn.delay_ms, delay_ms = turn.delay_ms FROM (
        SELECT id, :spacing * row_number() OVER (ORDER BY due_at, id) AS delay_ms FROM job
        WHERE kind = '{Kind.OVERDUE}' AND state = 'ready' AND due_at <= :now
    ) AS turn WHERE job.id = turn.id
""")  # constants
DELETE_SWEEP = Statement(f"DELETE FROM job WHERE kind = '{Kind.SWEEP}'")  # a constant
"""The sweep of an earlier start: all its jobs came due while no receiver ran."""
INSERT_SWEEP = Statement(f"""
    INSERT INTO job (unique_key, kind, pool, task_id, concurrency_key, args, state, attempts, due_at, delay_ms,
        error, created_at)
    SELECT '{Kind.SWEEP}/' || task_id, '{Kind.SWEEP}', '{Pool.KLING}', task_id, '{OVERDUE_CONCURRENCY_KEY}',
        'null', 'ready', 0, :now + :first + turn, :first + turn, '', :now
    FROM (
        SELECT task_id, :spacing * row_number() OVER (ORDER BY job.id) AS turn
        FROM job JOIN task ON task.id = job.task_id
        WHERE kind = '{Kind.OVERDUE}' AND state = 'ready' AND due_at > :now + :first
            AND (task.created_at < :started OR task.created_at > :now)
    ) AS open_task
""")  # constants


def repair(tx: Transaction) -> int:
    """Enqueue jobs that rows imply but the queue lacks. Returns how many; more than 0 means a bug."""
    overdue, asks, downloads, creates = (
        query.all(tx.connection) for query in (MISSING_OVERDUE, MISSING_ASK, MISSING_DOWNLOAD, MISSING_CREATE)
    )
    names = MISSING_DISPATCH.scalars(tx.connection)
    hooks = [hook for name in names if (hook := hook_records.hook(tx.connection, name))]
    for task in overdue:
        enqueue.overdue(tx, task["id"], task["family"], created_at=task["created_at"])
    for task in asks:
        enqueue.ask(tx, task["id"])
    for result in downloads:
        enqueue.download(tx, result["id"], result["position"], result["source_url"])
    for task in creates:
        enqueue.create(tx, task["id"])
    for row in (*overdue, *asks, *downloads, *creates):
        log.error("task %s lacked a job; it is enqueued now", row["id"])
    for hook in hooks:
        hook_records.enqueue_dispatch(tx, hook)
        log.error("hook %s is behind and lacked a job; it is enqueued now", hook["name"])
    return len(overdue) + len(asks) + len(downloads) + len(creates) + len(hooks)


def correct_slots(tx: Transaction) -> None:
    """Let the tasks that are open at Kling hold their slots, those alone, and hand the free ones to the queue.

    KLING_CONCURRENCY may have been set, changed or removed since the last start.
    """
    tx.write_changes()  # this transaction also has the first requests: what they submitted or ended holds no slots
    RELEASE_SLOTS.execute(tx.connection)
    limits = tx.policy.slots
    if limits.are_limited:
        ids = OPEN_WITHOUT_SLOTS.scalars(tx.connection)
        tx.load(ids)
        for task_id in ids:
            slots.hold(tx, tx.require_task(task_id))
    else:
        RELEASE_OF_CLIENTS.execute(tx.connection)
    for row in QUEUED_SLOTS.all(tx.connection):
        if problem := limits.problem(row["model"], row["slots"]):
            submission.cancel(tx, row["task_id"], f"{problem} It was not sent.")
    CALM.execute(tx.connection)
    slots.freed(tx)


def clamp_due_times(tx: Transaction) -> None:
    """Clamp due times to the delay that was asked for, in case the clock was ahead when they were set."""
    if moved := queue.clamp_due_times(tx):
        log.warning("%d jobs were due later than their delay allows; was the clock ahead?", moved)


def follow_clock(tx: Transaction, jump_ms: int) -> None:
    """Correct what depends on the wall clock, after it jumped by `jump_ms` or the machine was suspended so long.

    A jump forward makes jobs due sooner, which harms nothing; after one back they would be due too late.
    """
    log.warning("the clock jumped by %+.0f s: it was set, or this machine was suspended", jump_ms / 1000)
    hook_records.move_failing_since(tx, jump_ms)
    MOVE_NEXT_CREATE.execute(tx.connection, jump_ms=jump_ms)
    clamp_due_times(tx)
    queue.clamp_leases(tx, LEASE_MS)


def schedule_sweep(tx: Transaction, started: int) -> None:
    """Enqueue a query about each task that was open at `started` (unix ms), one every SPACING_MS.

    Tasks whose deadline passed meanwhile come first: their own jobs are spread.
    """
    DELETE_SWEEP.execute(tx.connection)
    late = SPREAD_OVERDUE.execute(tx.connection, now=tx.now, spacing=SPACING_MS)
    INSERT_SWEEP.execute(tx.connection, now=tx.now, spacing=SPACING_MS, first=late * SPACING_MS, started=started)

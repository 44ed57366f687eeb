"""After a start: every row that should have work owed has it, and each open task is asked about, in its turn.

A callback may have come while nobody listened. Nothing is assumed to be whole, and Kling is not flooded.
"""

import logging
from collections.abc import Mapping, Sequence

from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import DEFAULT_SCHEDULE
from kling_receiver.jobs import enqueue
from kling_receiver.jobs.backoff import MAX_RETRY_AFTER_SECONDS
from kling_receiver.jobs.queue import NEVER
from kling_receiver.results import download
from kling_receiver.store.sql import Statement
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import overdue, reconcile

log = logging.getLogger("kling_receiver.sweep")

SPACING_MS = 100
"""Milliseconds between two questions: ten a second."""
MISSING_OVERDUE = Statement("""
    SELECT id, family FROM task WHERE status IN ('created', 'submitted', 'processing')
        AND NOT EXISTS (SELECT 1 FROM job WHERE key = 'overdue/' || task.id AND state <> 'dead')
""")
MISSING_ASK = Statement("""
    SELECT id FROM task WHERE status IN ('created', 'submitted', 'processing') AND hint IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM job WHERE key = 'ask/' || task.id AND state <> 'dead')
    UNION ALL SELECT id FROM task WHERE origin IS NOT NULL AND NOT done
        AND (hint IS NOT NULL AND origin <> 'kling'
            OR NOT EXISTS (SELECT 1 FROM result WHERE task = task.id AND status = 'pending'))
        AND NOT EXISTS (SELECT 1 FROM job WHERE key = 'ask/' || task.id AND state <> 'dead')
""")
MISSING_DISPATCH = Statement("""
    SELECT name FROM hook WHERE paused_at IS NULL AND (task IS NULL OR task IN (
            SELECT id FROM task WHERE status IN ('created', 'submitted', 'processing')
            UNION ALL SELECT id FROM task WHERE origin IS NOT NULL AND NOT done))
        AND NOT EXISTS (SELECT 1 FROM job WHERE key = 'dispatch/' || hook.name AND state <> 'dead')
        AND EXISTS (
            SELECT 1 FROM event WHERE id > hook.cursor AND (hook.task IS NULL OR event.task = hook.task))
""")
MISSING_DOWNLOAD = Statement("""
    SELECT task.id, n, source_url FROM task JOIN result ON result.task = task.id
    WHERE origin IS NOT NULL AND NOT done AND result.status = 'pending'
        AND NOT EXISTS (SELECT 1 FROM job WHERE key = 'download/' || task.id || '/' || n AND state <> 'dead')
""")
SPREAD_OVERDUE = Statement("""
    UPDATE job SET due_at = turn.at FROM (
        SELECT id, :now + :spacing * row_number() OVER (ORDER BY due_at, id) AS at FROM job
        WHERE kind = 'overdue' AND state = 'ready' AND due_at <= :now
    ) AS turn WHERE job.id = turn.id
""")
DELETE_SWEEP = Statement("DELETE FROM job WHERE kind = 'sweep'")
"""The turns of an earlier start: while nobody took them, they all came due."""
INSERT_SWEEP = Statement("""
    INSERT INTO job (key, kind, task, lane, data, state, attempts, due_at, error, created_at)
    SELECT 'sweep/' || task, 'sweep', task, 'overdue', 'null', 'ready', 0,
        :first + :spacing * row_number() OVER (ORDER BY job.id), '', :now
    FROM job JOIN task ON task.id = job.task
    WHERE kind = 'overdue' AND state = 'ready' AND due_at > :first
        AND (task.created_at < :started OR task.created_at > :now)
""")
CLAMP = """
    UPDATE job SET due_at = :latest
    WHERE state = 'ready' AND kind = :kind AND attempts <= :attempts AND due_at > :latest AND due_at < :far
"""
NO_LIMIT = (1 << 31) - 1
"""More attempts than any job has."""


def repair(tx: Transaction) -> int:
    """Owe what a row says is owed and no job does. How much there was: nothing, unless something went wrong."""
    unwatched, unasked, unfetched = (
        query.all(tx.connection) for query in (MISSING_OVERDUE, MISSING_ASK, MISSING_DOWNLOAD)
    )
    named = [hook_records.hook(tx.connection, name) for name in MISSING_DISPATCH.scalars(tx.connection)]
    unoffered = [hook for hook in named if hook]
    for task in unwatched:
        enqueue.overdue(tx, task["id"], task["family"])
    for task in unasked:
        enqueue.ask(tx, task["id"])
    for result in unfetched:
        enqueue.download(tx, result["id"], result["n"], result["source_url"])
    for row in (*unwatched, *unasked, *unfetched):
        log.error("task %s had work to do that was not owed; it is now", row["id"])
    for each in unoffered:
        hook_records.enqueue_dispatch(tx, each)
        log.error("hook %s was behind, and nobody owed it a look; it is owed now", each["name"])
    return len(unwatched) + len(unasked) + len(unfetched) + len(unoffered)


def clamp_due_times(tx: Transaction) -> None:
    """Nothing is owed later than it can have been put off: the clock may have been ahead for a while."""
    for kind in ("dispatch", "replay", "dispatch-task", "replay-task"):
        _bring_forward(tx, kind, {MAX_RETRY_AFTER_SECONDS: NO_LIMIT})
    for kind, backoff in (("ask", reconcile.QUERY_BACKOFF), ("download", download.DOWNLOAD_BACKOFF)):
        _bring_forward(tx, kind, _waits(backoff.steps))
    _bring_forward(tx, "overdue", {(tx.policy.overdue_ms("") << overdue.MAX_QUERIES - 2) / 1000: NO_LIMIT})
    _bring_forward(tx, "hook-task", _waits(DEFAULT_SCHEDULE))
    for hook in hook_records.hooks(tx.connection):
        _bring_forward(tx, "hook", _waits(hook["schedule"]), hook=hook["name"])


def _waits(steps: Sequence[float]) -> dict[float, int]:
    """Seconds that a retry may be put off, each with the attempts up to which it is no longer."""
    waits = {
        max((*steps[:attempts], MAX_RETRY_AFTER_SECONDS)): attempts for attempts in range(1, len(steps) + 1)
    }
    return waits | {max(waits, default=MAX_RETRY_AFTER_SECONDS): NO_LIMIT}


def _bring_forward(tx: Transaction, kind: str, waits: Mapping[float, int], *, hook: str = "") -> None:
    sooner = Statement(CLAMP + (" AND hook = :hook" if hook else ""))
    for seconds, attempts in sorted(waits.items(), reverse=True):
        by = {"kind": kind, "attempts": attempts, "latest": tx.now + int(seconds * 1000), "far": NEVER}
        if moved := sooner.execute(tx.connection, **by, **({"hook": hook} if hook else {})):
            log.warning("%d jobs (%s) were due later than they can be; was the clock ahead?", moved, kind)


def schedule_sweep(tx: Transaction, started: int) -> None:
    """Owe a question about each task that was open when we `started` (unix ms), one after the other.

    First come those whose deadline passed meanwhile.
    """
    DELETE_SWEEP.execute(tx.connection)
    now = {"now": tx.now, "spacing": SPACING_MS}
    late = SPREAD_OVERDUE.execute(tx.connection, **now)
    INSERT_SWEEP.execute(tx.connection, **now, first=tx.now + late * SPACING_MS, started=started)

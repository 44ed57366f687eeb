"""Rehearse a callback: all that is written from its arrival to its delivery, for a task that nobody sees, then undone.

A commit that changes nothing shows only that the database commits. A damaged page, a revoked right or a constraint
shows when the rows of a callback are written.
"""

import hashlib
import json
from functools import partial
from typing import cast

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.reports import Report, parse_callback
from kling_callback.protocol.results.outputs import Output
from kling_receiver.hooks.deliveries import DeliveryAttempt, save_attempts
from kling_receiver.jobs import queue
from kling_receiver.jobs.kinds import ask_key, download_key
from kling_receiver.jobs.queue import Capacity, ClaimedJob, Done, Effect, Outcome
from kling_receiver.results import records as result_records
from kling_receiver.results.records import StoredFile
from kling_receiver.states import Status
from kling_receiver.store.rows import HookRow, Row
from kling_receiver.store.sql import Statement
from kling_receiver.store.transaction import Transaction, last_event
from kling_receiver.tasks import transitions
from kling_receiver.tasks.ingest import Callback, ingest

FAMILY = "images/generations"
ANSWER = Report("succeed", "rehearsal", outputs=(Output("image", "https://rehearsal.invalid/0.png"),))
FILE = StoredFile("rehearsal/0.png", "image/png", 1, hashlib.sha256(b"1").hexdigest())
HOOK = cast(HookRow, {"name": "(rehearsal)"})
SELECT_JOB = Statement("SELECT id, kind, pool, concurrency_key, attempts FROM job WHERE unique_key = :unique_key")


def rehearse(tx: Transaction) -> None:
    """Do all that callbacks of a task cause, and undo it. Raises what the database raises: `tx` must not go on then.

    The next event has the id that it would have had. On PostgreSQL the ids of jobs and attempts have gaps.
    """
    with tx.database.keep_event_ids(tx.connection):
        savepoint = tx.connection.begin_nested()  # if it fails, SQLite may have ended the whole transaction
        _rehearse(tx, new_id())
        savepoint.rollback()


def _rehearse(tx: Transaction, task_id: str) -> None:
    processing, succeed = _callback(task_id, "processing"), _callback(task_id, "succeed")
    for callbacks in ([processing], [processing, succeed]):  # a new task, then a repeat and a known task
        step = _step(tx)
        ingest(step, callbacks)
        step.flush()
    _run_job(tx, task_id, ask_key(task_id), partial(_answer, task_id=task_id))
    _run_job(tx, task_id, download_key(task_id, 0), partial(_store, task_id=task_id))
    save_attempts(tx, [DeliveryAttempt(HOOK, last_event(tx.connection), task_id, tx.now, 0, 1, delivered=True)])


def _step(tx: Transaction) -> Transaction:
    """A unit of work of its own, whose rows the next one reads."""
    return Transaction(tx.connection, tx.database, tx.now, tx.policy)


def _callback(task_id: str, status: Status) -> Callback:
    body = json.dumps({"task_id": "rehearsal", "task_status": status}).encode()
    return Callback(task_id, FAMILY, hashlib.sha256(body).hexdigest(), body, len(body), parse_callback(body))


def _run_job(tx: Transaction, task_id: str, unique_key: str, effect: Effect) -> None:
    """Claim a job as a worker does, and settle it. Other jobs are only found, not claimed."""
    step = _step(tx)
    queue.claim_due(step, Capacity(per_key=0), claim_id=task_id, lease_ms=0)
    queue.next_due(step, Capacity(per_key=1))
    job: Row = SELECT_JOB.all(step.connection, unique_key=unique_key)[0]
    claimed = ClaimedJob(**job, unique_key=unique_key, task_id=task_id, args=None, claim_id=task_id)
    claim = {"id": claimed.id, "claim_id": task_id, "lease_expires_at": tx.now}
    queue.CLAIM.execute(step.connection, **claim)
    queue.settle(step, claimed, effect)
    step.flush()


def _answer(tx: Transaction, task_id: str) -> Outcome:
    transitions.apply_report(tx, tx.require_task(task_id), ANSWER)
    return Done()


def _store(tx: Transaction, task_id: str) -> Outcome:
    result_records.mark_stored(tx, tx.require_task(task_id), 0, FILE)
    return Done()

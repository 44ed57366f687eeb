"""Store authenticated callbacks: keep or count each body, apply its status or record it as a hint.

`submitted` and `processing` are applied. A final status is a hint, which enqueues a query to Kling; only a body that
Kling signed is applied at once. No callback is refused here.
"""

import logging
from collections.abc import Set
from dataclasses import dataclass
from typing import cast

from kling_callback.protocol.reports import Report
from kling_receiver.jobs import enqueue
from kling_receiver.states import FINAL, FinalStatus, transition
from kling_receiver.store.removed import count_callbacks, describe_removed
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.sql import Statement
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import transitions

log = logging.getLogger("kling_receiver.ingest")

MAX_KEPT_CALLBACKS = 200
MAX_KEPT_BYTES = 1_000_000
"""Callbacks of one task in the event log; past either limit they are only counted. A body has 1 MB at most."""

CREATE_ANSWER_GRACE_MS = 2_000
"""How long a query waits for the create's answer, which may name the id by which Kling is to be queried."""

UNCOUNTED_ASK_DELAY_MS = 60_000
"""How long a query waits when only a callback past the limits gives cause to it."""

KNOWN_DIGESTS = Statement("""
    SELECT task_id, body_sha256 FROM event
    WHERE body_sha256 IS NOT NULL AND (task_id, body_sha256) IN :pairs
""")
OTHER_TASK = Statement("""
    SELECT id FROM task WHERE (id = :external_task_id OR kling_id = :kling_id) AND id <> :id LIMIT 1
""")


@dataclass(frozen=True, slots=True)
class Callback:
    """An authenticated callback. `body`: as much of it as is kept; `size`: bytes that were sent.

    `signed`: Kling's own signature holds. `problem`: why the body could not be read as it should.
    """

    task_id: str
    family: str
    body_sha256: str
    body: bytes
    size: int
    report: Report | None
    signed: bool = False
    problem: str | None = None


def ingest(tx: Transaction, callbacks: list[Callback]) -> None:
    """Store callbacks, in the order in which they arrived. A callback of an unknown task creates the task.

    One of a removed task is only counted.
    """
    families = {callback.task_id: callback.family for callback in callbacks}
    tx.load(families)
    if unknown := families.keys() - tx.tasks.keys():
        callbacks = _drop_removed(tx, callbacks, unknown)
        families = {callback.task_id: callback.family for callback in callbacks}
    new = [{"id": id_, "family": families[id_]} for id_ in sorted(families.keys() - tx.tasks.keys())]
    tx.add_tasks(new)
    for row in new:
        tx.add_event(row["id"], "task.created", {"by": "callback"})
        enqueue.overdue(tx, row["id"], row["family"])
    known = _known_digests(tx, callbacks)
    for callback in callbacks:
        task = tx.tasks[callback.task_id]
        tx.update_task(task, callback_count=task["callback_count"] + 1)
        if (callback.task_id, callback.body_sha256) in known:
            tx.count_repeat(callback.task_id, callback.body_sha256)
            _reapply_if_signed(tx, task, callback)
            continue
        if kept := _has_room(task):
            known.add((callback.task_id, callback.body_sha256))
            _store_event(tx, task, callback)
        else:
            tx.count("callback.unkept")
        _apply(tx, task, callback, kept)


def _drop_removed(tx: Transaction, callbacks: list[Callback], unknown: Set[str]) -> list[Callback]:
    """Leave out the callbacks of removed tasks, which are counted. `unknown`: the ids without a task."""
    late = [callback.task_id for callback in callbacks if callback.task_id in unknown]
    removed = count_callbacks(tx, late)
    for row in removed.values():
        if not row["callback_count"]:
            log.warning("%s A callback of it has arrived; it is counted, but not stored", describe_removed(row))
    return [callback for callback in callbacks if callback.task_id not in removed]


def _reapply_if_signed(tx: Transaction, task: TaskRow, callback: Callback) -> None:
    """A repeat changes nothing, unless Kling signed it and the first one had no valid signature."""
    report = callback.report
    if not (report and report.status and callback.signed):
        return
    if transition(task["status"], task["origin"], report.status, "kling") == "applied":
        _apply(tx, task, callback, kept=True)


def _known_digests(tx: Transaction, callbacks: list[Callback]) -> set[tuple[str, str]]:
    with_events = [each for each in callbacks if tx.tasks[each.task_id]["kept_callbacks"]]
    pairs = sorted({(each.task_id, each.body_sha256) for each in with_events})
    if not pairs:
        return set()
    rows = KNOWN_DIGESTS.all(tx.connection, pairs=pairs)
    return {(row["task_id"], row["body_sha256"]) for row in rows}


def _has_room(task: TaskRow) -> bool:
    return task["kept_callbacks"] < MAX_KEPT_CALLBACKS and task["kept_bytes"] < MAX_KEPT_BYTES


def _store_event(tx: Transaction, task: TaskRow, callback: Callback) -> None:
    tx.update_task(
        task,
        kept_callbacks=task["kept_callbacks"] + 1,
        kept_bytes=task["kept_bytes"] + len(callback.body),
    )
    data = {
        "status": callback.report.status if callback.report else None,
        "signed": callback.signed,
        "size": callback.size,
        **({"trouble": callback.problem} if callback.problem else {}),
    }
    tx.add_event(task["id"], "callback.received", data, body=callback.body, body_sha256=callback.body_sha256)


def _apply(tx: Transaction, task: TaskRow, callback: Callback, kept: bool) -> None:
    report = callback.report
    if report and report.kling_id and report.external_task_id != task["id"]:
        tx.update_task(task, callback_kling_id=report.kling_id)
    if report and report.external_task_id and task["outcome"] == "none" and not task["external_task_id"]:
        transitions.set_external_id(tx, task, report.external_task_id)  # until Kling itself names it
    if report and report.status and callback.signed and not _belongs_to_another_task(tx, task, report):
        transitions.apply_report(tx, task, report, log=kept)
        if report.status == "succeed" and not report.is_complete:
            enqueue.ask(tx, task["id"])
    elif report and report.status and not report.final:
        _apply_progress(tx, task, report, kept)
    else:
        _record_hint(tx, task, report, kept)


def _belongs_to_another_task(tx: Transaction, task: TaskRow, report: Report) -> bool:
    """Whether a report that Kling signed is of another task, so that a third party sent it to this address."""
    if report.external_task_id == task["id"]:
        return False
    if report.external_task_id and task["outcome"] != "none":
        return True  # our create named our id
    if task["kling_id"] and report.kling_id:
        return report.kling_id != task["kling_id"]
    ids = {"external_task_id": report.external_task_id or "", "kling_id": report.kling_id or ""}
    return OTHER_TASK.scalar(tx.connection, id=task["id"], **ids) is not None


def _apply_progress(tx: Transaction, task: TaskRow, report: Report, kept: bool) -> None:
    """Apply `submitted` or `processing`, which any authenticated callback may report."""
    assert report.status
    outcome = transition(task["status"], task["origin"], report.status, "callback")
    if outcome == "applied":
        transitions.set_status(tx, task, report.status, report.message, "callback")
    elif task["status"] in FINAL and task["origin"] != "kling":
        _record_hint(tx, task, None, kept)  # the task goes on at Kling, although we thought it had ended
    elif outcome == "late" and kept:
        transitions.log_ignored(tx, task, report.status, "late")


def _record_hint(tx: Transaction, task: TaskRow, report: Report | None, kept: bool) -> None:
    """Enqueue a query, because only Kling can say what happened, unless its final status is known already."""
    status = cast(FinalStatus | None, report.status) if report else None
    if task["status"] in FINAL and task["origin"] == "kling":
        if kept and report and status != task["status"]:
            transitions.log_ignored(tx, task, str(status), "contradictory")
        return
    if report:
        tx.update_task(task, hint=status, hint_msg=report.message)
    if kept:  # a callback that is only counted speeds up nothing
        tx.update_task(task, hint_count=task["hint_count"] + 1)
    create_answered = task["outcome"] != "pending" or task["kling_id"]
    delay_ms = (0 if create_answered else CREATE_ANSWER_GRACE_MS) if kept else UNCOUNTED_ASK_DELAY_MS
    enqueue.ask(tx, task["id"], tx.now + delay_ms)

"""Proven callbacks are taken in: each kept or counted, and what it says applied. None is refused here."""

from dataclasses import dataclass

from kling_callback.protocol.reports import Report
from kling_receiver.jobs import enqueue
from kling_receiver.states import FINAL, transition
from kling_receiver.store.sql import Row, Statement
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import transitions

MAX_KEPT_CALLBACKS = 200
MAX_KEPT_BYTES = 1_000_000
"""Callbacks of one task that are kept; past either they are only counted. A body has 1 MB at most."""

CREATE_ANSWER_GRACE_MS = 2_000
"""For how long a question waits for the create's answer: it may name the id that Kling is to be asked by."""

UNCOUNTED_ASK_DELAY_MS = 60_000
"""For how long a question waits that a task's uncounted callbacks give cause to."""

KNOWN_DIGESTS = Statement(
    "SELECT task, digest FROM event WHERE digest IS NOT NULL AND (task, digest) IN :pairs"
)
OTHER_TASK = Statement(
    "SELECT id FROM task WHERE (id = :external_id OR task_id = :task_id) AND id <> :id LIMIT 1"
)


@dataclass(frozen=True, slots=True)
class Callback:
    """A proven callback. `body` is what is kept of it; `trouble` says why it could not be read as it should."""

    task_id: str
    family: str
    body_sha256: str
    body: bytes
    size: int
    report: Report | None
    signed: bool = False
    problem: str | None = None


def ingest(tx: Transaction, callbacks: list[Callback]) -> None:
    """Take in proven callbacks, in the order in which they arrived."""
    families = {callback.task_id: callback.family for callback in callbacks}
    tx.load(families)
    new = [{"id": task, "family": families[task]} for task in sorted(families.keys() - tx.tasks.keys())]
    tx.add_tasks(new)
    for row in new:
        tx.add_event(row["id"], "task.created", {"by": "callback"})
        enqueue.overdue(tx, row["id"], row["family"])
    seen = _known_digests(tx, callbacks)
    for callback in callbacks:
        task = tx.tasks[callback.task_id]
        tx.update_task(task, callbacks=task["callbacks"] + 1)
        if (callback.task_id, callback.body_sha256) in seen:
            tx.count_repeat(callback.task_id, callback.body_sha256)
            _reapply_if_signed(tx, task, callback)
            continue
        if kept := _has_room(task):
            seen.add((callback.task_id, callback.body_sha256))
            _store_event(tx, task, callback)
        _apply(tx, task, callback, kept)


def _reapply_if_signed(tx: Transaction, task: Row, callback: Callback) -> None:
    """A repeat says nothing new, unless Kling signed what was not (rightly) signed before."""
    report = callback.report
    if not (report and report.status and callback.signed):
        return
    if transition(task["status"], task["origin"], report.status, "kling") == "applied":
        _apply(tx, task, callback, kept=True)


def _known_digests(tx: Transaction, callbacks: list[Callback]) -> set[tuple[str, str]]:
    pairs = {(each.task_id, each.body_sha256) for each in callbacks if tx.tasks[each.task_id]["kept"]}
    if not pairs:
        return set()
    return {(row["task"], row["digest"]) for row in KNOWN_DIGESTS.all(tx.connection, pairs=sorted(pairs))}


def _has_room(task: Row) -> bool:
    return bool(task["kept"] < MAX_KEPT_CALLBACKS and task["kept_bytes"] < MAX_KEPT_BYTES)


def _store_event(tx: Transaction, task: Row, callback: Callback) -> None:
    tx.update_task(task, kept=task["kept"] + 1, kept_bytes=task["kept_bytes"] + len(callback.body))
    report = callback.report
    said = {
        "status": report.status if report else None,
        "signed": callback.signed,
        "size": callback.size,
        **({"trouble": callback.problem} if callback.problem else {}),
    }
    tx.add_event(task["id"], "callback.received", said, digest=callback.body_sha256, body=callback.body)


def _apply(tx: Transaction, task: Row, callback: Callback, kept: bool) -> None:
    report = callback.report
    if report and report.kling_id and report.external_task_id != task["id"]:
        tx.update_task(task, callback_id=report.kling_id)
    if report and report.status and callback.signed and not _belongs_to_another_task(tx, task, report):
        transitions.apply_report(tx, task, report, log=kept)
        if report.status == "succeed" and not report.outputs:
            enqueue.ask(tx, task["id"])
    elif report and report.status and not report.final:
        _apply_progress(tx, task, report, kept)
    else:
        _record_hint(tx, task, report, kept)


def _belongs_to_another_task(tx: Transaction, task: Row, report: Report) -> bool:
    """Whether a record that Kling signed is of another task: then it was not Kling who sent it here."""
    if report.external_task_id == task["id"]:
        return False
    if report.external_task_id and task["outcome"] != "none":
        return True  # our create named our id
    if task["task_id"] and report.kling_id:
        return bool(report.kling_id != task["task_id"])
    named = {"external_id": report.external_task_id or "", "task_id": report.kling_id or ""}
    return OTHER_TASK.scalar(tx.connection, id=task["id"], **named) is not None


def _apply_progress(tx: Transaction, task: Row, report: Report, kept: bool) -> None:
    """`submitted` and `processing` are taken from any proven callback."""
    moved = transition(task["status"], task["origin"], str(report.status), "callback")
    if moved == "applied":
        transitions.set_status(tx, task, report, "callback")
    elif task["status"] in FINAL and task["origin"] != "kling":
        _record_hint(tx, task, None, kept)  # it lives, although we thought it had ended
    elif moved == "late" and kept:
        transitions.log_ignored(tx, task, report, "late")


def _record_hint(tx: Transaction, task: Row, report: Report | None, kept: bool) -> None:
    """Something happened that only Kling can tell us of: ask, unless its final word is known."""
    if task["status"] in FINAL and task["origin"] == "kling":
        if kept and report and report.status != task["status"]:
            transitions.log_ignored(tx, task, report, "contradictory")
        return
    if report:
        tx.update_task(task, hint=report.status, hint_msg=report.message)
    if kept:  # what is only counted hastens nothing
        tx.update_task(task, hints=task["hints"] + 1)
    is_answered = task["outcome"] != "pending" or task["task_id"]
    wait = (0 if is_answered else CREATE_ANSWER_GRACE_MS) if kept else UNCOUNTED_ASK_DELAY_MS
    enqueue.ask(tx, task["id"], tx.now + wait)

"""Status changes of a task, by their source. Nothing here replaces Kling's own final status.

`apply_report` applies what Kling itself reports. `accept_hint` and `reject_hint` end a hint: the final status of a
callback, which `tasks/ingest` records. `fail_locally` is the receiver's own decision.
"""

from typing import TypedDict, cast

from kling_callback.protocol.reports import Report
from kling_receiver.jobs import enqueue
from kling_receiver.jobs.kinds import overdue_key
from kling_receiver.results import records as result_records
from kling_receiver.states import FINAL, Origin, Status, transition
from kling_receiver.store.rows import TaskChanges, TaskRow
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import durations, slots


class Refusal(TypedDict):
    """Kling's answer to a create that it refused: in the event of the failure. `answer`: its JSON, as text."""

    http_status: int | None
    answer: str


def apply_report(tx: Transaction, task: TaskRow, report: Report, *, log: bool = True, timely: bool = True) -> None:
    """Apply a status that Kling itself reports, and enqueue the downloads of the files that it names.

    `log`: False for a callback that is only counted, so that no event says that it was ignored. `timely`: False for
    the answer to a question at any time, so that the task's age says nothing about its duration.
    """
    assert report.status
    if report.external_task_id:
        set_external_id(tx, task, report.external_task_id)
    outcome = transition(task["status"], task["origin"], report.status, "kling")
    if outcome in ("late", "contradictory"):
        if log:
            log_ignored(tx, task, report.status, outcome)
        return
    _record_details(tx, task, report)
    if outcome == "applied":
        if report.status == "succeed":
            tx.update_task(task, duration_ms=durations.of(task, report, tx.now, timely=timely))
        set_status(tx, task, report.status, report.message, "kling")
    if report.status == "failed":
        result_records.finish_task(tx, task)
    elif report.status == "succeed":
        result_records.enqueue_downloads(tx, task, report.outputs)
        if report.has_results and not report.outputs:
            result_records.finish_without_files(tx, task)


def _record_details(tx: Transaction, task: TaskRow, report: Report) -> None:
    """Record what Kling says beside the status: cost, outputs that are no files, its times, its request id."""
    named: TaskChanges = {
        "cost": report.cost,
        "outputs": list(report.objects) or None,
        "request_id": report.request_id,
        "kling_created_at": report.created_at,
        "kling_updated_at": report.updated_at,
    }
    changes = {name: value for name, value in named.items() if value is not None}
    tx.update_task(task, **cast(TaskChanges, changes))


def set_external_id(tx: Transaction, task: TaskRow, external_task_id: str) -> None:
    """Store the caller's id at Kling of a task, by which people find it, unless it is our id."""
    if external_task_id not in (task["id"], task["external_task_id"]):
        tx.update_task(task, external_task_id=external_task_id)


def keep_our_id(tx: Transaction, task: TaskRow) -> bool:
    """Before a program is answered our id as Kling's: later records have it, too. False: Kling's is known meanwhile.

    A program recognizes the callbacks of its task by the id that its create was answered.
    """
    if not task["keeps_our_id"] and not task["kling_id"]:
        tx.update_task(task, keeps_our_id=True)
    return task["keeps_our_id"]


def accept_hint(tx: Transaction, task: TaskRow, error: str = "") -> None:
    """Accept the callback's final status, because Kling could not be queried; not the files that it names.

    `error`: of the last query.
    """
    if task["hint"] and task["status"] not in FINAL:
        set_status(tx, task, task["hint"], task["hint_msg"], "callback")
    if task["status"] == "succeed":
        reason = "Kling could not be queried, and file addresses are accepted from Kling only."
        reason = f"{reason} {error}".rstrip()
        result_records.mark_missing(tx, task, reason)
    elif task["status"] == "failed":
        result_records.finish_task(tx, task)


def reject_hint(tx: Transaction, task: TaskRow, kling_says: str) -> None:
    """Discard the callback's final status, because Kling repeatedly answered with another one."""
    if task["hint"]:
        log_ignored(tx, task, task["hint"], f"Kling says {kling_says}")
        tx.update_task(task, hint=None, hint_msg="")


def fail_locally(tx: Transaction, task: TaskRow, reason: str, refusal: Refusal | None = None) -> None:
    """Fail a task by the receiver's own decision. A status from Kling replaces it whenever it arrives.

    `refusal`: Kling's answer to its create, which is the reason.
    """
    if task["status"] not in FINAL:
        set_status(tx, task, "failed", reason, "local", refusal)
        result_records.finish_task(tx, task)


def set_status(
    tx: Transaction, task: TaskRow, status: Status, message: str, by: Origin, refusal: Refusal | None = None
) -> None:
    """Set a status, and with it start or end the task's deadline, and hold or release its slots.

    `refusal`: as in `fail_locally`.
    """
    final = status in FINAL
    reopened = task["status"] in FINAL and not final
    tx.update_task(task, status=status, status_msg=message, origin=by if final else None, done=False)
    if final:
        tx.cancel_job(overdue_key(task["id"]))
        slots.release(tx, task)
    else:
        slots.hold(tx, task)
    if reopened:
        enqueue_deadline(tx, task)
        if task["hint"]:
            enqueue.ask(tx, task["id"])
    named = {"refusal": refusal} if refusal else {}
    tx.add_event(task["id"], f"task.{status}", {"by": by, "message": message, **named})


def enqueue_deadline(tx: Transaction, task: TaskRow) -> None:
    """Enqueue the question at the deadline of a task that is open from now on, or one before it (`durations`)."""
    early_ms = None if task["callback_count"] else durations.early_question_ms(tx, task["family"], task["model"])
    enqueue.overdue(tx, task["id"], task["family"], early_ms)


def log_ignored(tx: Transaction, task: TaskRow, status: str, reason: str) -> None:
    """Log a callback's status that does not change the task, and why."""
    data = {"reason": reason, "status": status, "stands": task["status"]}
    tx.add_event(task["id"], "callback.ignored", data)

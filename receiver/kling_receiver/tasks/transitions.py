"""What a task's status becomes, and by whose word. Nothing here takes back Kling's own.

Whom to believe: a proven callback moves a task to `submitted` or `processing`; its final status is a hint,
until Kling says so itself (in the answer to our question, or in a body that it signed).
"""

from kling_callback.protocol.reports import Report
from kling_receiver.jobs import enqueue
from kling_receiver.results import records as result_records
from kling_receiver.states import FINAL, Origin, transition
from kling_receiver.store.sql import Row
from kling_receiver.store.transaction import Transaction


def apply_report(tx: Transaction, task: Row, report: Report, *, log: bool = True) -> None:
    """Take Kling's own word, and owe the download of the files that it names.

    `noted`: False for what is only counted, so that no event says that it was ignored.
    """
    moved = transition(task["status"], task["origin"], str(report.status), "kling")
    if moved in ("late", "contradictory"):
        if log:
            log_ignored(tx, task, report, moved)
        return
    if report.cost is not None:
        tx.update_task(task, cost=report.cost)
    if moved == "applied":
        set_status(tx, task, report, "kling")
    if report.status == "failed":
        result_records.finish_task(tx, task)
    elif report.status == "succeed":
        result_records.enqueue_downloads(tx, task, report.outputs)


def accept_hint(tx: Transaction, task: Row) -> None:
    """Kling could not be asked: the callback's status stands, and what it named is not to be trusted."""
    if task["hint"] and task["status"] not in FINAL:
        set_status(tx, task, Report(task["hint"], message=task["hint_msg"]), "callback")
    if task["status"] == "succeed":
        result_records.mark_missing(
            tx, task, "Kling could not be asked, and addresses are taken from nobody else."
        )
    elif task["status"] == "failed":
        result_records.finish_task(tx, task)


def reject_hint(tx: Transaction, task: Row, kling_says: str) -> None:
    """Kling, asked again and again, says otherwise than the callback: Kling is believed."""
    if task["hint"]:
        log_ignored(tx, task, Report(task["hint"]), f"Kling says {kling_says}")
        tx.update_task(task, hint=None, hint_msg="")


def fail_locally(tx: Transaction, task: Row, reason: str) -> None:
    """End a task by our own judgement; Kling's word, whenever it comes, goes before it."""
    if task["status"] not in FINAL:
        set_status(tx, task, Report("failed", message=reason), "local")
        result_records.finish_task(tx, task)


def set_status(tx: Transaction, task: Row, report: Report, by: Origin) -> None:
    """Set the status that a report names, by whose word; what watches the task follows it."""
    final = report.final
    revived = task["status"] in FINAL and not final
    tx.update_task(
        task,
        status=report.status,
        status_msg=report.message,
        origin=by if final else None,
        done=False,
    )
    if final:
        tx.cancel_job(f"overdue/{task['id']}")
    if revived:
        enqueue.overdue(tx, task["id"], task["family"])
        if task["hint"]:
            enqueue.ask(tx, task["id"])
    tx.add_event(task["id"], f"task.{report.status}", {"by": by, "message": report.message})


def log_ignored(tx: Transaction, task: Row, report: Report, reason: str) -> None:
    """Log what does not count, and why."""
    said = {"reason": reason, "status": report.status, "stands": task["status"]}
    tx.add_event(task["id"], "callback.ignored", said)

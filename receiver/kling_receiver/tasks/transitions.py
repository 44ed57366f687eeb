"""What a task's status becomes, and by whose word. Nothing here takes back Kling's own.

Whom to believe: a proven callback moves a task to `submitted` or `processing`; its final status is a hint,
until Kling says so itself (in the answer to our question, or in a body that it signed).
"""

from kling_callback.protocol.reports import Report
from kling_receiver.jobs import enqueue
from kling_receiver.results import records as result_records
from kling_receiver.states import FINAL, Origin, move
from kling_receiver.store.sql import Row
from kling_receiver.store.transaction import Transaction


def believe(tx: Transaction, task: Row, report: Report, *, noted: bool = True) -> None:
    """Take Kling's own word, and owe the download of the files that it names.

    `noted`: False for what is only counted, so that no event says that it was ignored.
    """
    moved = move(task["status"], task["origin"], str(report.status), "kling")
    if moved in ("late", "contradictory"):
        if noted:
            ignore(tx, task, report, moved)
        return
    if report.cost is not None:
        tx.change(task, cost=report.cost)
    if moved == "applied":
        move_to(tx, task, report, "kling")
    if report.status == "failed":
        result_records.finish(tx, task)
    elif report.status == "succeed":
        result_records.expect(tx, task, report.outputs)


def stand(tx: Transaction, task: Row) -> None:
    """Kling could not be asked: the callback's status stands, and what it named is not to be trusted."""
    if task["hint"] and task["status"] not in FINAL:
        move_to(tx, task, Report(task["hint"], message=task["hint_msg"]), "callback")
    if task["status"] == "succeed":
        result_records.lack(tx, task, "Kling could not be asked, and addresses are taken from nobody else.")
    elif task["status"] == "failed":
        result_records.finish(tx, task)


def drop_hint(tx: Transaction, task: Row, said: str) -> None:
    """Kling, asked again and again, says otherwise than the callback: Kling is believed."""
    if task["hint"]:
        ignore(tx, task, Report(task["hint"]), f"Kling says {said}")
        tx.change(task, hint=None, hint_msg="")


def end_locally(tx: Transaction, task: Row, reason: str) -> None:
    """End a task by our own judgement; Kling's word, whenever it comes, goes before it."""
    if task["status"] not in FINAL:
        move_to(tx, task, Report("failed", message=reason), "local")
        result_records.finish(tx, task)


def move_to(tx: Transaction, task: Row, report: Report, by: Origin) -> None:
    """Set the status that a report names, by whose word; what watches the task follows it."""
    final = report.final
    revived = task["status"] in FINAL and not final
    tx.change(
        task,
        status=report.status,
        status_msg=report.message,
        origin=by if final else None,
        done=False,
    )
    if final:
        tx.forget(f"overdue/{task['id']}")
    if revived:
        enqueue.watch(tx, task["id"], task["family"])
        if task["hint"]:
            enqueue.ask(tx, task["id"])
    tx.log(task["id"], f"task.{report.status}", {"by": by, "message": report.message})


def ignore(tx: Transaction, task: Row, report: Report, reason: str) -> None:
    """Log what does not count, and why."""
    said = {"reason": reason, "status": report.status, "stands": task["status"]}
    tx.log(task["id"], "callback.ignored", said)

"""Adopt a task that was created elsewhere: from Kling's answer about it to a task like any other."""

from dataclasses import dataclass

from kling_callback.jobs.body import model_of
from kling_callback.protocol.ids import is_id, new_id
from kling_callback.protocol.reports import Report
from kling_receiver.jobs import enqueue
from kling_receiver.store.reader import FIND_BY_KLING_ID
from kling_receiver.store.removed import removed_tasks
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.sql import Statement
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import registration as task_registration
from kling_receiver.tasks import transitions
from kling_receiver.tasks.overdue import apply_answer

FIND_BY_CALLBACK = Statement("""
    SELECT id FROM task
    WHERE callback_kling_id = :kling_id AND family = :family AND kling_id IS NULL AND outcome <> 'pending' LIMIT 2
""")  # without an index: only an operator asks


@dataclass(frozen=True, slots=True)
class Adopted:
    """`task_id`: our id of the task. `created`: whether the receiver did not have it before."""

    task_id: str
    created: bool


def adopt(tx: Transaction, family: str, kling_id: str, report: Report) -> Adopted:
    """Add a task that Kling has, or complete the one that is known here, and apply Kling's report of it.

    Its `external_task_id` becomes our id if it can be one: a client that creates under this id then continues the
    task, and does not pay for another.
    """
    if known := _known(tx, kling_id):
        return Adopted(known, created=False)
    task = _unfinished_create(tx, family, kling_id, report) or _called_back(tx, family, kling_id, report)
    created = task is None
    if task is None:
        task = _add(tx, family, report)
    tx.update_task(task, outcome="created")
    task_registration.set_kling_id(tx, task, kling_id)
    apply_answer(tx, task, report, "operator")
    return Adopted(task["id"], created)


def _known(tx: Transaction, kling_id: str) -> str | None:
    """Our id of the task that Kling's id belongs to, perhaps since an adoption in this transaction."""
    here = next((task["id"] for task in tx.tasks.values() if task["kling_id"] == kling_id), None)
    return here or FIND_BY_KLING_ID.scalar(tx.connection, kling_id=kling_id)


def _unfinished_create(tx: Transaction, family: str, kling_id: str, report: Report) -> TaskRow | None:
    """The task whose create named this `external_task_id`, and whose id at Kling is not known yet.

    The create of a task that is known by its callbacks alone need not have named our id: they may name another task.
    """
    external_id = report.external_task_id
    task = tx.task(external_id) if external_id and is_id(external_id) else None
    if task is None or task["family"] != family or task["kling_id"]:
        return None
    named = task["callback_kling_id"]
    return task if task["outcome"] != "none" or named in (None, kling_id) else None


def _called_back(tx: Transaction, family: str, kling_id: str, report: Report) -> TaskRow | None:
    """The one task whose callbacks name this id of Kling's, unless Kling's report says that it is another task.

    It is a task that another program created with an address that it signed itself: added a second time, it could not
    be queried any more. The id of a callback counts here as it does in a query (`tasks/reconcile`).
    """
    found = FIND_BY_CALLBACK.scalars(tx.connection, family=family, kling_id=kling_id)
    task = tx.task(found[0]) if len(found) == 1 else None
    if task is None or report.external_task_id in (None, task["id"]):
        return task
    return task if task["outcome"] == "none" and tx.task(report.external_task_id) is None else None


def _add(tx: Transaction, family: str, report: Report) -> TaskRow:
    external_id = report.external_task_id
    takes_it = (
        external_id is not None
        and is_id(external_id)
        and tx.task(external_id) is None
        and not removed_tasks(tx.connection, [external_id])  # that task's late callbacks are not this one's
    )
    task_id = external_id if external_id and takes_it else new_id(tx.now / 1000)
    tx.add_tasks([{"id": task_id, "family": family, "model": model_of(family, {})}])
    task = tx.tasks[task_id]
    tx.add_event(task_id, "task.created", {"by": "operator"})
    enqueue.overdue(tx, task_id, family)
    if external_id:
        transitions.set_external_id(tx, task, external_id)
    return task

"""Adopt a task that was created elsewhere: from Kling's answer about it to a task like any other."""

from dataclasses import dataclass

from kling_callback.jobs.body import model_of
from kling_callback.protocol.ids import is_id, new_id
from kling_callback.protocol.reports import Report
from kling_receiver.jobs import enqueue
from kling_receiver.store.reader import FIND_BY_KLING_ID
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import registration as task_registration
from kling_receiver.tasks import transitions
from kling_receiver.tasks.overdue import apply_answer


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
    task = _unfinished_create(tx, family, report)
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


def _unfinished_create(tx: Transaction, family: str, report: Report) -> TaskRow | None:
    """The task whose create named this `external_task_id`, and whose id at Kling is not known yet."""
    external_id = report.external_task_id
    task = tx.task(external_id) if external_id and is_id(external_id) else None
    return task if task and task["family"] == family and not task["kling_id"] else None


def _add(tx: Transaction, family: str, report: Report) -> TaskRow:
    external_id = report.external_task_id
    takes_it = external_id is not None and is_id(external_id) and tx.task(external_id) is None
    task_id = external_id if external_id and takes_it else new_id(tx.now / 1000)
    tx.add_tasks([{"id": task_id, "family": family, "model": model_of(family, {})}])
    task = tx.tasks[task_id]
    tx.add_event(task_id, "task.created", {"by": "operator"})
    enqueue.overdue(tx, task_id, family)
    if external_id:
        transitions.set_external_id(tx, task, external_id)
    return task

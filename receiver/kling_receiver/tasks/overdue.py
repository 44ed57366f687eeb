"""Tasks whose callback never comes: Kling is asked at the deadline, then ever more seldom, to an end.

It is also asked once after a start, and when an operator says so.
"""

import functools
import logging
from typing import Literal

from kling_callback.errors import GatewayError
from kling_callback.protocol.reports import Report
from kling_receiver.jobs import enqueue
from kling_receiver.jobs.queue import ClaimedJob, Done, Outcome, RetryAt, Settle, settle_as
from kling_receiver.states import FINAL
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import registration as task_registration
from kling_receiver.tasks import transitions
from kling_receiver.tasks.reconcile import Reconciler

log = logging.getLogger("kling_receiver.recover")

MAX_QUERIES = 6
"""Questions about a task that Kling knows; the waits between them double, from the deadline's own length on."""
MAX_QUERIES_UNKNOWN = 3
"""Questions about a task that Kling says it does not know."""

NOT_FOUND_REASON = {False: ": its create did not arrive", True: ", although it took its create"}

NEVER_CALLED_BACK = (
    "none of the newest tasks was ever called back, and Kling has ended one: it cannot reach this receiver, or "
    "it calls nobody back. Test the way with: kling-receiver doctor"
)


class OverdueTasks:
    """Looks after tasks that did not end in time."""

    def __init__(self, reconciler: Reconciler, reader: Reader) -> None:
        self._reconciler, self._reader = reconciler, reader
        self._warned = False

    async def check(self, job: ClaimedJob) -> Settle:
        """The handler of `overdue`."""
        task = await self._reader.task(job.task_id)
        if task is None or task["status"] in FINAL:
            return functools.partial(_settle_final, job=job)
        if not job.args:
            log.warning("task %s is overdue: no final callback came; asking Kling", job.task_id)
        try:
            report = await self._reconciler.query(task)
        except GatewayError as error:
            return functools.partial(_settle_unanswered, job=job, error=error)
        if report and report.final:
            await self._warn_never_called_back(task)
        return functools.partial(_settle_answer, job=job, report=report)

    async def check_after_start(self, job: ClaimedJob) -> Settle:
        """The handler of `sweep`: one question after a start, before which a callback may have been missed."""
        task = await self._reader.task(job.task_id)
        if task is None or task["status"] in FINAL:
            return settle_as(Done())
        try:
            report = await self._reconciler.query(task)
        except GatewayError as error:
            log.info("task %s, asked about after the start: %s", job.task_id, error)
            return settle_as(Done())  # its deadline stands
        return functools.partial(_settle_sweep, task_id=job.task_id, report=report)

    async def _warn_never_called_back(self, task: TaskRow) -> None:
        """Say once, loudly, that this gateway seems never to call back."""
        if not self._warned and not task["callback_count"] and not await self._reader.any_recent_callback():
            self._warned = True
            log.error(NEVER_CALLED_BACK)


def apply_answer(
    tx: Transaction, task: TaskRow, report: Report, by: Literal["deadline", "startup", "operator"]
) -> None:
    """Believe what Kling said when it was asked without a callback's cause."""
    open_until_now = task["status"] not in FINAL
    if report.kling_id and not task["kling_id"]:
        task_registration.set_kling_id(tx, task, report.kling_id)
    if report.status:
        transitions.apply_report(tx, task, report)
    if report.final and open_until_now:
        tx.add_event(task["id"], "task.recovered", {"by": by})
    if report.status == "succeed" and not report.outputs:
        enqueue.ask(tx, task["id"])


def _settle_sweep(tx: Transaction, task_id: str, report: Report | None) -> Outcome:
    if report:
        apply_answer(tx, tx.require_task(task_id), report, "startup")
    return Done()


def _settle_final(tx: Transaction, job: ClaimedJob) -> Outcome:
    """The task has ended, unless Kling's word revived it since it was read."""
    task = tx.task(job.task_id)
    return Done() if task is None or task["status"] in FINAL else RetryAt(tx.now, "It lives again.")


def _settle_answer(tx: Transaction, job: ClaimedJob, report: Report | None) -> Outcome:
    task = tx.require_task(job.task_id)
    if task["status"] in FINAL:
        return Done()
    _log_overdue(tx, job)
    if report:
        apply_answer(tx, task, report, "deadline")
    if report and report.final:
        return Done()
    if report is None and _query_count(job) >= MAX_QUERIES_UNKNOWN and not task["callback_count"]:
        why = NOT_FOUND_REASON[task["kling_id"] is not None]
        transitions.fail_locally(tx, task, f"Kling does not know this task{why}.")
        return Done()
    return _retry(tx, job, f"Kling says {report.status}." if report else "Kling does not know the task.")


def _settle_unanswered(tx: Transaction, job: ClaimedJob, error: GatewayError) -> Outcome:
    if tx.require_task(job.task_id)["status"] in FINAL:
        return Done()
    _log_overdue(tx, job)
    return _retry(tx, job, str(error))


def _log_overdue(tx: Transaction, job: ClaimedJob) -> None:
    if not job.args:
        tx.add_event(job.task_id, "task.overdue", {})


def _query_count(job: ClaimedJob) -> int:
    """How often Kling was asked, this time included; a look that was cut off does not count."""
    return int((job.args or {}).get("queries", 0)) + 1


def _retry(tx: Transaction, job: ClaimedJob, error: str) -> Outcome:
    task, looks = tx.require_task(job.task_id), _query_count(job)
    if looks >= MAX_QUERIES:
        transitions.accept_hint(tx, task)  # where a callback told of an end, that is what is known
        transitions.fail_locally(tx, task, f"The task did not end, and was asked about {looks} times: {error}")
        return Done()
    wait = tx.policy.overdue_ms(task["family"]) * 2 ** (looks - 1)
    return RetryAt(tx.now + wait, error, args={"queries": looks})

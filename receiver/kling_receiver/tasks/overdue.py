"""Tasks without a final callback at their deadline: Kling is queried, with doubling waits, six times at most.

Tasks of a family that is never called back are asked about before that, when they usually end (`tasks/durations`).
Kling is also queried once after a start, and when an operator requests it.
"""

import logging
from typing import Literal

from kling_callback.api.refusals import NOT_KLING
from kling_callback.errors import GatewayError
from kling_callback.protocol.reports import Report
from kling_receiver.jobs import enqueue
from kling_receiver.jobs.queue import ClaimedJob, Done, Effect, Outcome, RetryAt, settle_as
from kling_receiver.states import FINAL
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import durations, submission, transitions
from kling_receiver.tasks import registration as task_registration
from kling_receiver.tasks.reconcile import Reconciler

log = logging.getLogger("kling_receiver.overdue")

MAX_QUERIES = 6
"""Queries about a task that Kling knows. The first wait between them is the deadline's length, then it doubles."""
MAX_QUERIES_UNKNOWN = 3
"""Queries about a task that Kling does not know."""

NOT_FOUND_REASON = {False: ": its create did not arrive", True: ", although Kling accepted its create"}
"""By whether Kling gave the task an id."""

NEVER_CALLED_BACK = (
    "Kling finished a task, but none of the newest tasks had a callback: Kling cannot reach this receiver, or sends "
    "no callbacks. Check it with: kling-receiver doctor"
)


class OverdueTasks:
    """Handles `overdue` and `sweep` jobs: queries Kling about tasks that had no final callback."""

    def __init__(self, reconciler: Reconciler, reader: Reader) -> None:
        self._reconciler, self._reader = reconciler, reader
        self._warned = False

    async def check(self, job: ClaimedJob) -> Effect:
        """Handle one `overdue` job: query Kling, then end the task, fail it, or retry after a longer wait."""
        task = await self._reader.task(job.task_id)
        if task is None or task["status"] in FINAL:

            def settle_final(tx: Transaction) -> Outcome:
                # Kling may have reopened the task since it was read.
                task = tx.task(job.task_id)
                final = task is None or task["status"] in FINAL
                return Done() if final else RetryAt(tx.now, "The task was reopened.")

            return settle_final
        if not job.args:
            log.warning("task %s is overdue: no final callback arrived; querying Kling", job.task_id)
        answer: Report | GatewayError | None
        try:
            answer = await self._reconciler.query(task)
        except GatewayError as error:
            answer = error
        if isinstance(answer, Report) and answer.final:
            await self._warn_never_called_back(task)

        def apply(tx: Transaction) -> Outcome:
            task = tx.require_task(job.task_id)
            if task["status"] in FINAL or submission.waits(tx, task):
                return Done()
            if not job.args:
                tx.add_event(job.task_id, "task.overdue", {})
            elif "opened_at" in job.args and not (isinstance(answer, Report) and answer.final):
                if isinstance(answer, Report):
                    apply_answer(tx, task, answer, "deadline")
                return _ask_again_before_deadline(tx, task, job.args["opened_at"])
            if isinstance(answer, GatewayError):
                if answer.code == NOT_KLING and not task["kling_id"] and not task["callback_count"]:
                    transitions.fail_locally(tx, task, f"The create did not reach Kling's API. {answer}")
                    return Done()
                return _retry_or_fail(tx, job, str(answer))
            if answer is None:
                if _query_count(job) >= MAX_QUERIES_UNKNOWN and not task["callback_count"]:
                    reason = NOT_FOUND_REASON[task["kling_id"] is not None]
                    transitions.fail_locally(tx, task, f"Kling does not know this task{reason}.{_create_words(task)}")
                    return Done()
                return _retry_or_fail(tx, job, "Kling does not know the task.")
            apply_answer(tx, task, answer, "deadline")
            return Done() if answer.final else _retry_or_fail(tx, job, f"Kling says {answer.status}.")

        return apply

    async def check_after_start(self, job: ClaimedJob) -> Effect:
        """Handle one `sweep` job: query Kling once, because a callback may have been missed before the start."""
        task = await self._reader.task(job.task_id)
        if task is None or task["status"] in FINAL:
            return settle_as(Done())
        try:
            report = await self._reconciler.query(task)
        except GatewayError as error:
            log.info("task %s could not be queried after the start: %s", job.task_id, error)
            return settle_as(Done())  # its deadline is still to come

        def apply(tx: Transaction) -> Outcome:
            if report:
                apply_answer(tx, tx.require_task(job.task_id), report, "startup")
            return Done()

        return apply

    async def _warn_never_called_back(self, task: TaskRow) -> None:
        """Log an error, once, if Kling never seems to send callbacks to this receiver."""
        if not self._warned and not task["callback_count"] and not await self._reader.any_recent_callback():
            self._warned = True
            log.error(NEVER_CALLED_BACK)


def apply_answer(
    tx: Transaction, task: TaskRow, report: Report, by: Literal["deadline", "startup", "operator"]
) -> None:
    """Apply Kling's answer to a query that no callback caused; a final status then recovers the task."""
    was_open = task["status"] not in FINAL
    if report.kling_id and not task["kling_id"]:
        task_registration.set_kling_id(tx, task, report.kling_id)
    if report.status:
        transitions.apply_report(tx, task, report, timely=by == "deadline")
    if report.final and was_open:
        tx.add_event(task["id"], "task.recovered", {"by": by})
    if report.status == "succeed" and not report.is_complete:
        enqueue.ask(tx, task["id"])


def _query_count(job: ClaimedJob) -> int:
    """The number of queries, the current one included. Interrupted queries are not counted."""
    return int((job.args or {}).get("queries", 0)) + 1


def _ask_again_before_deadline(tx: Transaction, task: TaskRow, opened_at: int) -> RetryAt:
    """The question came too early: the task's age doubles until the next one, which is at the deadline at last."""
    opened_at = min(opened_at, tx.now)  # the clock may have been ahead, and questions would stay frequent until then
    deadline = opened_at + tx.policy.overdue_ms(task["family"])
    due = tx.now + max(tx.now - opened_at, durations.MIN_QUESTION_MS)
    if due < deadline:
        return RetryAt(due, "The task usually ends sooner.", args={"opened_at": opened_at})
    return RetryAt(max(deadline, tx.now), "The task usually ends sooner.", args={})


def _create_words(task: TaskRow) -> str:
    """What was answered to a create of unknown outcome, for the last message about its task."""
    return f" {task['status_msg']}" if task["status"] == "created" and task["status_msg"] else ""


def _retry_or_fail(tx: Transaction, job: ClaimedJob, error: str) -> Outcome:
    """Query again after a longer wait; after the last query, accept the callback's status or fail the task."""
    task, count = tx.require_task(job.task_id), _query_count(job)
    if count >= MAX_QUERIES:
        transitions.accept_hint(tx, task, error)  # a callback's final status is better than a local one
        said = f"The task did not finish. Kling was queried {count} times: {error}{_create_words(task)}"
        transitions.fail_locally(tx, task, said)
        return Done()
    wait = tx.policy.overdue_ms(task["family"]) * 2 ** (count - 1)
    return RetryAt(tx.now + wait, error, args={"queries": count})

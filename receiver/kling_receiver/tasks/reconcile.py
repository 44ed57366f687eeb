"""Query Kling about one task and apply its answer."""

import functools
import time
from collections.abc import Callable

from kling_callback.errors import GatewayError
from kling_callback.kling_api import KlingApi
from kling_callback.protocol.reports import Report
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.queue import ClaimedJob, Done, GiveUp, Outcome, RetryAt, Settle, settle_as
from kling_receiver.metrics import Metrics
from kling_receiver.results import records as result_records
from kling_receiver.results.download import log
from kling_receiver.states import FINAL
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import registration as task_registration
from kling_receiver.tasks import transitions

QUERY_BACKOFF = Backoff((1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 900, 1800))
"""Seconds between questions: an hour in all."""
BACKOFFS = {"unanswered": QUERY_BACKOFF, "undecided": Backoff(QUERY_BACKOFF.steps[:6])}
"""By what became of the last question. After seven to which Kling said otherwise, the callback is false."""
OVERTAKEN_RETRY_MS = 2_000
"""Between two questions of which each was overtaken by another callback."""

CREATE_REPORT_TIMEOUT_MS = 900_000
"""For how long a create's answer may be out: a client that has not told of it by then has died."""


class Reconciler:
    """Asks Kling about a task, and has the answer believed."""

    def __init__(
        self, kling_api: KlingApi, reader: Reader, metrics: Metrics, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._kling_api, self._reader, self._metrics, self._clock = kling_api, reader, metrics, clock

    async def reconcile(self, job: ClaimedJob) -> Settle:
        """The handler of `ask`: a callback hinted at an end, or Kling's word named no files."""
        task = await self._reader.task(job.task_id)
        if task is None or await self._is_settled(task):
            return settle_as(Done())
        try:
            report = await self.query(task)
        except GatewayError as error:
            log.warning("task %s: %s", job.task_id, error)
            return functools.partial(_retry_or_accept_hint, job=job, error=error)
        return functools.partial(_apply_answer, job=job, report=report, hint_count=task["hint_count"])

    async def _is_settled(self, task: TaskRow) -> bool:
        """Whether Kling's final word is known, and the files that go with it."""
        if task["status"] not in FINAL or task["origin"] != "kling":
            return False
        named = [each["source_url"] for each in await self._reader.results(task["id"])]
        return task["status"] == "failed" or any(named)

    async def query(self, task: TaskRow) -> Report | None:
        """Kling's record of a task: by the create answer's id, else by ours, else by the callback's.

        The last only for a task that no other of ours is, and when the record names no other task of ours:
        a callback's address proves whose it is, its body proves nothing. And not while the create's own answer
        is out: the id may be that of another whose answer is out, too. Raises GatewayError.
        """
        outcome = "unanswered"
        try:
            report = await self._query_by_known_id(task)
            outcome = "answered" if report else "unknown_task"
        finally:
            self._metrics.questions.labels(outcome).inc()
        return report

    async def _query_by_known_id(self, task: TaskRow) -> Report | None:
        if task["kling_id"]:
            return await self._kling_api.query(task["family"], task_id=task["kling_id"])
        ways = [self._query_by_our_id, self._query_by_callback_id]
        if task["outcome"] == "none" and task["callback_kling_id"]:
            ways.reverse()  # nobody registered it: its create may not have named our id
        refused = None
        for way in ways:
            try:
                if report := await way(task):
                    return report
            except GatewayError as error:
                if error.retryable:
                    raise
                refused = error  # a relay's own word for an id that it does not know, perhaps
        if refused:
            raise refused
        return None

    async def _query_by_our_id(self, task: TaskRow) -> Report | None:
        return await self._kling_api.query(task["family"], external_id=task["id"])

    async def _query_by_callback_id(self, task: TaskRow) -> Report | None:
        theirs = task["callback_kling_id"]
        untold = task["outcome"] == "pending" and self._clock() * 1000 < task["updated_at"] + CREATE_REPORT_TIMEOUT_MS
        if not theirs or untold or await self._reader.find_by_kling_id(theirs):
            return None
        report = await self._kling_api.query(task["family"], task_id=theirs)
        if report is None or report.external_task_id in (None, task["id"]):
            return report
        # Another name: the caller's own, where nobody registered the task; never that of another task of ours.
        if task["outcome"] != "none" or await self._reader.task(report.external_task_id):
            return None
        return report


def _apply_answer(tx: Transaction, job: ClaimedJob, report: Report | None, hint_count: int) -> Outcome:
    """Kling said something: believe it, and see whether more is to be asked. `hints`: those known then."""
    task = tx.require_task(job.task_id)
    if report and report.kling_id and not task["kling_id"]:
        task_registration.set_kling_id(tx, task, report.kling_id)
    if report and report.status:
        transitions.apply_report(tx, task, report)
    if report is None or not report.final:
        return _retry_or_reject_hint(tx, job, task, report, hint_count)
    if task["hint"] != report.status:
        transitions.reject_hint(tx, task, str(report.status))
    if task["status"] == "failed" or report.outputs:
        return Done()
    if report.status == "succeed" and (again := _next_retry(tx, job, "undecided", "Kling names no file.")):
        return again
    result_records.mark_missing(tx, task, f"Kling says {report.status}, and names no file.")
    return Done()


def _retry_or_reject_hint(
    tx: Transaction, job: ClaimedJob, task: TaskRow, report: Report | None, hint_count: int
) -> Outcome:
    """Kling does not (yet) say what the callback said."""
    if report is None:
        return _retry_or_accept_hint(tx, job, GatewayError("Kling does not know the task."))
    if task["hint_count"] != hint_count:
        return RetryAt(tx.now + OVERTAKEN_RETRY_MS, "Another callback came while Kling was asked.", args={})
    if again := _next_retry(tx, job, "undecided", f"Kling says {report.status}."):
        return again
    transitions.reject_hint(tx, task, str(report.status))
    if task["status"] == "succeed":
        result_records.mark_missing(tx, task, f"Kling now says {report.status}, and named no file.")
    return Done()


def _retry_or_accept_hint(tx: Transaction, job: ClaimedJob, error: GatewayError) -> Outcome:
    """Kling did not answer, or not of this task: again later; at the end the callback's status stands."""
    if again := _next_retry(tx, job, "unanswered", str(error), at_least=error.retry_after):
        return again
    transitions.accept_hint(tx, tx.require_task(job.task_id))
    return GiveUp(str(error))


def _next_retry(
    tx: Transaction, job: ClaimedJob, reason: str, error: str, *, at_least: float | None = None
) -> RetryAt | None:
    """The next question, or None after the last of this kind. Kinds are counted apart, restarts not at all."""
    count = (job.args or {}).get(reason, 0) + 1
    due = BACKOFFS[reason].next_at(count, tx.now, at_least=at_least)
    return None if due is None else RetryAt(due, error, args={**(job.args or {}), reason: count})

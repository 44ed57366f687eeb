"""Query Kling about one task and apply its answer, because only Kling's own final status is authoritative."""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from kling_callback.api.kling import KlingApi
from kling_callback.errors import GatewayError
from kling_callback.protocol.reports import Report
from kling_callback.protocol.results.outputs import Output
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.queue import ClaimedJob, Done, Effect, GiveUp, Outcome, RetryAt, settle_as
from kling_receiver.metrics import Metrics
from kling_receiver.results import records as result_records
from kling_receiver.states import FINAL
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import registration as task_registration
from kling_receiver.tasks import transitions

log = logging.getLogger("kling_receiver.reconcile")

QUERY_BACKOFF = Backoff((1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 900, 1800))
"""Seconds between queries, an hour in all; then the callback's status is accepted."""
MAX_UNDECIDED_RETRIES = 6
"""Retries after an answer that does not confirm the callback, a minute in all; then the callback is false."""
OVERTAKEN_RETRY_MS = 2_000
"""Milliseconds between two queries when another callback arrived during the first one."""
CREATE_REPORT_TIMEOUT_MS = 900_000
"""Milliseconds for which the report of a create may be missing; a client that has not sent it by then has died."""


class Reconciler:
    """Handles `ask` jobs: queries Kling about a task and applies the answer. `backoff`: between queries."""

    def __init__(
        self,
        kling_api: KlingApi,
        reader: Reader,
        metrics: Metrics,
        *,
        backoff: Backoff = QUERY_BACKOFF,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kling_api, self._reader, self._metrics, self._clock = kling_api, reader, metrics, clock
        undecided = Backoff(backoff.steps[:MAX_UNDECIDED_RETRIES], backoff.draw)
        self._backoffs = {"unanswered": backoff, "undecided": undecided}

    async def reconcile(self, job: ClaimedJob) -> Effect:
        """Handle one `ask` job: a callback hinted at a final status, or Kling's report lacked the address of a file."""
        task = await self._reader.task(job.task_id)
        if task is None or await self._is_settled(task):
            return settle_as(Done())
        hint_count = task["hint_count"]
        try:
            answer = await self.query(task) or GatewayError("Kling does not know the task.")
        except GatewayError as error:
            log.warning("task %s: %s", job.task_id, error)
            answer = error

        def apply(tx: Transaction) -> Outcome:
            if isinstance(answer, GatewayError):
                return self._retry_or_accept_hint(tx, job, answer)
            task = tx.require_task(job.task_id)
            if answer.kling_id and not task["kling_id"]:
                task_registration.set_kling_id(tx, task, answer.kling_id)
            if answer.status:
                transitions.apply_report(tx, task, answer)
            if not answer.final:
                if task["hint_count"] != hint_count:
                    return RetryAt(tx.now + OVERTAKEN_RETRY_MS, "Another callback arrived during the query.", args={})
                return self._retry_or_reject_hint(tx, job, task, answer)
            if task["hint"] != answer.status:
                transitions.reject_hint(tx, task, str(answer.status))
            if task["status"] == "failed" or answer.is_complete:
                return Done()
            missing = "no address of this file" if answer.has_results else "no result"
            if answer.status == "succeed" and (retry := self._retry(tx, job, "undecided", f"Kling names {missing}.")):
                return retry
            if outputs := self._outputs_of(task, answer):
                result_records.refresh_downloads(tx, task, outputs)
            result_records.mark_missing(tx, task, f"Kling says {answer.status}, and names {missing}.")
            return Done()

        return apply

    async def _is_settled(self, task: TaskRow) -> bool:
        """Whether Kling's final status is known, and the files or other outputs of a success are."""
        if task["status"] not in FINAL or task["origin"] != "kling":
            return False
        source_urls = [result["source_url"] for result in await self._reader.results(task["id"])]
        has_results = all(source_urls) if source_urls else task["done"]  # done without files: it has other outputs
        return task["status"] == "failed" or has_results

    def _retry_or_reject_hint(self, tx: Transaction, job: ClaimedJob, task: TaskRow, report: Report) -> Outcome:
        """Kling reports another status than the callback: retry, and at last discard the callback's status."""
        if retry := self._retry(tx, job, "undecided", f"Kling says {report.status}."):
            return retry
        transitions.reject_hint(tx, task, str(report.status))
        if task["status"] == "succeed":
            result_records.mark_missing(tx, task, f"Kling now says {report.status}, and named no result.")
        return Done()

    def _retry_or_accept_hint(self, tx: Transaction, job: ClaimedJob, error: GatewayError) -> Outcome:
        """Kling did not answer, or does not know the task: retry, and at last accept the callback's status."""
        if retry := self._retry(tx, job, "unanswered", str(error), at_least=error.retry_after):
            return retry
        transitions.accept_hint(tx, tx.require_task(job.task_id), str(error))
        return GiveUp(str(error))

    def _retry(
        self, tx: Transaction, job: ClaimedJob, reason: str, error: str, *, at_least: float | None = None
    ) -> RetryAt | None:
        """The next query; None after the last one for this reason. Interrupted queries are not counted."""
        count = (job.args or {}).get(reason, 0) + 1
        due = self._backoffs[reason].next_at(count, tx.now, at_least=at_least)
        return None if due is None else RetryAt(due, error, args={**(job.args or {}), reason: count})

    async def query(self, task: TaskRow) -> Report | None:
        """Kling's report of a task, by the create answer's id, else by our id, else by the callback's id.

        The callback's id is used only if it belongs to no other task, and its report names no other task: a
        callback's address proves which task it is for, its body proves nothing. It is not used while the create's
        answer is missing either: the id may be that of another task whose answer is missing. Raises GatewayError.
        """
        return await self._count(self._query_by_known_id(task))

    async def query_files(self, task: TaskRow) -> Report | None:
        """Kling's report of a task, whose files are needed now: with a relay's content, if it names no file.

        Raises GatewayError.
        """
        report = await self.query(task)
        return replace(report, outputs=self._outputs_of(task, report)) if report else None

    def _outputs_of(self, task: TaskRow, report: Report) -> tuple[Output, ...]:
        """The files of a task: those that a report names; else, of a success, what a relay may serve as its content.

        The path of the content has the id by which the relay knows the task, which may be another than in its report.
        """
        if report.status != "succeed" or report.has_results:
            return report.outputs
        content = self._kling_api.content(task["family"], task["kling_id"] or report.kling_id)
        return (content,) if content else ()

    async def query_kling_id(self, family: str, kling_id: str) -> Report | None:
        """Kling's report of a task that is not known here. Raises GatewayError."""
        return await self._count(self._kling_api.query(family, kling_id=kling_id))

    async def _count(self, query: Awaitable[Report | None]) -> Report | None:
        """Await a query, and count it by its outcome."""
        outcome = "unanswered"
        try:
            report = await query
            outcome = "answered" if report else "unknown_task"
        finally:
            self._metrics.queries.labels(outcome).inc()
        return report

    async def _query_by_known_id(self, task: TaskRow) -> Report | None:
        if task["kling_id"]:
            return await self._kling_api.query(task["family"], kling_id=task["kling_id"])
        queries = [self._query_by_our_id, self._query_by_callback_id]
        if task["outcome"] == "none" and task["callback_kling_id"]:
            queries.reverse()  # an unregistered task: its create may not have named our id
        refusal = None
        for query in queries:
            try:
                if report := await query(task):
                    return report
            except GatewayError as error:
                if error.retryable:
                    raise
                refusal = error  # some relays answer so for an id that they do not know
        if refusal:
            raise refusal
        return None

    async def _query_by_our_id(self, task: TaskRow) -> Report | None:
        return await self._kling_api.query(task["family"], task_id=task["id"])

    async def _query_by_callback_id(self, task: TaskRow) -> Report | None:
        kling_id = task["callback_kling_id"]
        # A time far in the future was set by a clock that was ahead; it must not keep the create pending until then.
        is_recent = abs(self._clock() * 1000 - task["updated_at"]) < CREATE_REPORT_TIMEOUT_MS
        create_pending = task["outcome"] == "pending" and is_recent
        if not kling_id or create_pending or await self._reader.find_by_kling_id(kling_id):
            return None
        report = await self._kling_api.query(task["family"], kling_id=kling_id)
        if report is None or report.external_task_id in (None, task["id"]):
            return report
        # Another external id: the caller's own for an unregistered task, but never that of another task of ours.
        if task["outcome"] != "none" or await self._reader.task(report.external_task_id):
            return None
        return report

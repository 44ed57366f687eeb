"""Download jobs: fetch a result file that Kling named, check it, and store it."""

import logging
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial

from starlette.concurrency import run_in_threadpool

from kling_callback.errors import GatewayError
from kling_callback.protocol.media_types import extension
from kling_callback.protocol.reports import Report
from kling_callback.protocol.results.outputs import Output
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.queue import ClaimedJob, Done, Effect, GiveUp, Outcome, RetryAt, settle_as
from kling_receiver.metrics import Metrics
from kling_receiver.net.client import GuardedClient, RequestFailed
from kling_receiver.net.guard import Refused
from kling_receiver.results import records as result_records
from kling_receiver.results.fetch import (
    Interrupted,
    InvalidFile,
    StorageUnavailable,
    UnexpectedResponse,
    fetch,
    storage_call,
)
from kling_receiver.results.media import UNKNOWN_TYPE
from kling_receiver.results.records import StoredFile, file_name, part_name
from kling_receiver.results.storage import LocalStorage
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import ResultRow, TaskRow
from kling_receiver.store.transaction import Transaction

log = logging.getLogger("kling_receiver.results")

Query = Callable[[TaskRow], Awaitable[Report | None]]
"""Ask Kling about a task. Raises GatewayError."""

DOWNLOAD_BACKOFF = Backoff((1, 2, 5, 10, 30, 60, 120, 300, 600, 900, 1800))
MAX_REFUSALS = 9
"""Attempts at a file that its host refuses (403, 404 and the like), or that is no file: five to nine minutes.

A new file may take minutes to reach every host of a network.
"""
REFUSALS_BEFORE_QUERY = 5
"""Refusals after which Kling is asked for another address, once: the one it named may have expired."""
MAX_SHOWN_BYTES = 12
"""Bytes of a file of unknown type that its warning shows."""

ADDRESS = re.compile(r"https?://\S+")


class Downloader:
    """Handles the jobs that download result files.

    `query`: asks Kling. `max_bytes`: of one file. `backoff`: between attempts. `clock`: unix seconds.
    """

    def __init__(
        self,
        client: GuardedClient,
        storage: LocalStorage,
        reader: Reader,
        metrics: Metrics,
        query: Query,
        *,
        max_bytes: int,
        backoff: Backoff = DOWNLOAD_BACKOFF,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client, self._storage, self._reader, self._metrics = client, storage, reader, metrics
        self._query, self._max_bytes, self._backoff, self._clock = query, max_bytes, backoff, clock

    async def download(self, job: ClaimedJob) -> Effect:
        """Handle one `download` job: the file is stored, retried, or failed with a reason.

        It has no time limit: it ends once too few bytes arrive, and is resumed, as a cancelled one is. An attempt that
        brought a part of the file is not counted: each has less to do than the one before.
        """
        index = int(job.args["index"])
        result = await self._reader.result(job.task_id, index)
        if result is None or result["status"] != "pending":
            return settle_as(Done())
        try:
            stored = await self._download(result)
        except Exception as error:  # any: a result must end stored or failed, never pending for ever
            log.warning("task %s, result %d: %s", job.task_id, index, describe(error))
            self._metrics.downloads.labels("failed").inc()
            if isinstance(error, StorageUnavailable):
                return partial(self._settle_unstored, job=job, error=error)
            return await self._failed(job, result, error)
        if stored.warning:
            log.warning("task %s, result %d is stored, but %s", job.task_id, index, stored.warning)
        self._metrics.downloads.labels("stored").inc()
        return partial(_settle_stored, job=job, index=index, stored=stored)

    def _settle_unstored(self, tx: Transaction, job: ClaimedJob, error: StorageUnavailable) -> Outcome:
        """Retry without end: the file is paid for, and can be had once the disk is repaired."""
        failures = min(job.args.get("storage_failures", 0) + 1, len(self._backoff.steps))
        due = self._backoff.next_at(failures, tx.now) or tx.now
        return RetryAt(due, describe(error), args={**job.args, "storage_failures": failures}, counts=False)

    async def _failed(self, job: ClaimedJob, result: ResultRow, error: Exception) -> Effect:
        """Retry, from another address if Kling has one, or give up."""
        index, reason = result["position"], describe(error)
        known = await self._reader.results(job.task_id)
        latest = next((row for row in known if row["position"] == index), None)
        if latest and latest["source_url"] != result["source_url"]:  # Kling was asked for another file of the task
            args = {**job.args, "asked_after": job.attempts}
            return lambda tx: RetryAt(tx.now, reason, args=args)
        attempts = job.attempts - job.args.get("asked_after", 0)
        is_refusal, is_final = _is_refusal(error), isinstance(error, Refused)
        counts = not isinstance(error, Interrupted)
        is_last = (
            is_final or (counts and attempts > len(self._backoff.steps)) or (is_refusal and attempts >= MAX_REFUSALS)
        )
        expired = result["expires_at"] is not None and result["expires_at"] <= self._clock() * 1000
        may_be_old = is_last or (is_refusal and (expired or attempts >= REFUSALS_BEFORE_QUERY))
        outputs: tuple[Output, ...] | None = None
        if may_be_old and not is_final and "asked_after" not in job.args:
            outputs = await self._ask_for_addresses(result)
        is_other = result_records.has_moved(known, result, outputs or ())
        if is_last and not is_other:
            await run_in_threadpool(self._storage.discard_part, part_name(job.task_id, index))

        def settle(tx: Transaction) -> Outcome:
            if is_other:
                result_records.set_addresses(tx, job.task_id, outputs or ())
                return RetryAt(tx.now, reason, args={**job.args, "asked_after": job.attempts})
            if is_last:
                result_records.mark_failed(tx, tx.require_task(job.task_id), index, reason)
                return GiveUp(reason)
            retry_after = error.retry_after if isinstance(error, UnexpectedResponse) else None
            due = self._backoff.next_at(min(attempts, len(self._backoff.steps)), tx.now, at_least=retry_after)
            assert due is not None
            args = None if outputs is None else {**job.args, "asked_after": 0}
            return RetryAt(due, reason, args=args, counts=counts)

        return settle

    async def _ask_for_addresses(self, result: ResultRow) -> tuple[Output, ...] | None:
        """Ask Kling where the files of a task are now; None without an answer."""
        task = await self._reader.task(result["task_id"])
        try:
            report = await self._query(task) if task else None
        except GatewayError as error:
            log.warning("task %s: no other address of a file is known: %s", result["task_id"], error)
            return None
        return report.outputs if report and report.status == "succeed" else ()

    async def _download(self, result: ResultRow) -> StoredFile:
        name, url, kind = part_name(result["task_id"], result["position"]), result["source_url"], result["kind"]
        part = await storage_call(self._storage.part, name, url)
        try:
            content_type = await fetch(self._client, url, part, kind=kind, max_bytes=self._max_bytes)
            path = file_name(result["task_id"], result["position"], extension(content_type))
            warning = ""
            if content_type == UNKNOWN_TYPE:
                warning = f"its type is unknown: it begins with {part.head(MAX_SHOWN_BYTES)!r}"
                warning += "" if part.length else ". Its host named no length, so it may be truncated"
            path = await storage_call(self._storage.commit, part, path, result["path"])
            stored = StoredFile(path, content_type, part.size, part.sha256, warning)
        except InvalidFile:
            await run_in_threadpool(part.discard)
            raise
        except BaseException:
            await run_in_threadpool(part.close)
            raise
        return stored


def _settle_stored(tx: Transaction, job: ClaimedJob, index: int, stored: StoredFile) -> Outcome:
    result_records.mark_stored(tx, tx.require_task(job.task_id), index, stored)
    return Done()


def _is_refusal(error: Exception) -> bool:
    """Whether more attempts are of little use: the host refuses, or the file is wrong."""
    if isinstance(error, UnexpectedResponse):
        return 300 <= error.status < 500 and error.status not in (408, 425, 429)
    return isinstance(error, InvalidFile)


def describe(error: Exception) -> str:
    """One line about an error, without URLs: the query of one may grant access to the file."""
    message = ADDRESS.sub("(address)", str(error).split("\n")[0])
    if message and isinstance(error, InvalidFile | StorageUnavailable | Refused | RequestFailed | UnexpectedResponse):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__

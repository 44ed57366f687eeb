"""Download jobs: fetch a result file that Kling named, check it, and store it."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from kling_callback.api.http import retry_after_seconds
from kling_callback.atomic_file import AtomicFile
from kling_callback.protocol.media_types import extension
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.queue import ClaimedJob, Done, Effect, GiveUp, Outcome, RetryAt, settle_as
from kling_receiver.metrics import Metrics
from kling_receiver.net.client import GuardedClient, RequestFailed, Response
from kling_receiver.net.guard import Refused, join_url
from kling_receiver.results import records as result_records
from kling_receiver.results.media import HEAD_BYTES, is_complete, matches_kind, sniff
from kling_receiver.results.records import StoredFile
from kling_receiver.results.storage import LocalStorage
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import ResultRow
from kling_receiver.store.transaction import Transaction

log = logging.getLogger("kling_receiver.results")

T = TypeVar("T")
DOWNLOAD_BACKOFF = Backoff((1, 2, 5, 10, 30, 60, 120, 300, 600, 900, 1800))
MAX_REFUSALS = 5
"""Attempts at a file that its host refuses (403, 404 and the like), or that is not a file of its kind."""
MAX_REDIRECTS = 5
MAX_RESUMES = 5
"""Times that a download which was cut short is resumed, within one attempt."""
DOWNLOAD_TIMEOUT_SECONDS = 840
"""Seconds for one attempt at a file; less than the worker gives a job, so that the attempt ends here."""
BUFFER_BYTES = 1 << 20
"""Bytes that are written to the disk at once."""

ADDRESS = re.compile(r"https?://\S+")


class InvalidFile(Exception):
    """The file is not what Kling named: another kind, truncated, too large."""


class UnexpectedResponse(Exception):
    """The host answered with a status that brings no file. `retry_after`: seconds that it asks to wait."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"the host answered {response.status}")
        self.status, self.retry_after = response.status, retry_after_seconds(response.headers)


class StorageUnavailable(Exception):
    """The storage cannot take the file: the disk is full, or the folder is gone. The file itself may be good."""


async def _storage_call(function: Callable[..., T], *args: Any) -> T:
    """Do disk work in a thread. Raises StorageUnavailable."""
    try:
        return await run_in_threadpool(function, *args)
    except OSError as error:
        raise StorageUnavailable(f"the storage failed: {error.strerror or error}") from error


class Downloader:
    """Handles the jobs that download result files.

    `max_bytes`: of one file. `backoff`: between attempts. `timeout_seconds`: for one attempt.
    """

    def __init__(
        self,
        client: GuardedClient,
        storage: LocalStorage,
        reader: Reader,
        metrics: Metrics,
        *,
        max_bytes: int,
        backoff: Backoff = DOWNLOAD_BACKOFF,
        timeout_seconds: float = DOWNLOAD_TIMEOUT_SECONDS,
    ) -> None:
        self._client, self._storage, self._reader, self._metrics = client, storage, reader, metrics
        self._max_bytes, self._backoff, self._timeout_seconds = max_bytes, backoff, timeout_seconds

    async def download(self, job: ClaimedJob) -> Effect:
        """Handle one `download` job: the file is stored, retried, or failed with a reason."""
        index = int(job.args["index"])
        result = await self._reader.result(job.task_id, index)
        if result is None or result["status"] != "pending":
            return settle_as(Done())
        try:
            async with asyncio.timeout(self._timeout_seconds):
                stored = await self._download(result)
        except Exception as error:  # any: a result must end stored or failed, never pending for ever
            late = f"the download took longer than {self._timeout_seconds:g} s"
            failure = RequestFailed(late) if isinstance(error, TimeoutError) else error
            log.warning("task %s, result %d: %s", job.task_id, index, describe(failure))
            self._metrics.downloads.labels("failed").inc()
            return partial(self._settle_failed, job=job, index=index, error=failure)
        self._metrics.downloads.labels("stored").inc()
        return partial(_settle_stored, job=job, index=index, stored=stored)

    def _settle_failed(self, tx: Transaction, job: ClaimedJob, index: int, error: Exception) -> Outcome:
        if isinstance(error, StorageUnavailable):  # the file is paid for, and can be had once the disk is repaired
            failures = min(job.args.get("storage_failures", 0) + 1, len(self._backoff.steps))
            due = self._backoff.next_at(failures, tx.now) or tx.now
            return RetryAt(due, describe(error), args={**job.args, "storage_failures": failures}, counts=False)
        retry_after = error.retry_after if isinstance(error, UnexpectedResponse) else None
        retry_at = self._backoff.next_at(job.attempts, tx.now, at_least=retry_after)
        exhausted = isinstance(error, Refused) or (_is_refusal(error) and job.attempts >= MAX_REFUSALS)
        if exhausted or retry_at is None:
            result_records.mark_failed(tx, tx.require_task(job.task_id), index, describe(error))
            return GiveUp(describe(error))
        return RetryAt(retry_at, describe(error))

    async def _download(self, result: ResultRow) -> StoredFile:
        part = await _storage_call(self._storage.create)
        try:
            content_type, measured = await self._stream_into(part, result)
            name = f"{result['task_id']}/{result['position']}.{extension(content_type)}"
            await _storage_call(self._commit, part, name, None if measured else content_type)
        except BaseException:
            await run_in_threadpool(part.discard)
            raise
        return StoredFile(name, content_type, part.size, part.sha256)

    def _commit(self, part: AtomicFile, name: str, unmeasured: str | None) -> None:
        """Move the finished file into place. `unmeasured`: the type of a file whose host named no length."""
        part.flush()
        if unmeasured and not is_complete(part.path, unmeasured):
            raise InvalidFile(f"the {unmeasured} file is truncated")
        self._storage.commit(part, name)

    async def _stream_into(self, part: AtomicFile, result: ResultRow) -> tuple[str, bool]:
        """Download into `part`, resuming where a connection was cut.

        Returns the content type that the bytes show, and whether the host named the length.
        """
        url, validator, head = result["source_url"], None, b""
        for resumes in range(MAX_RESUMES + 1):
            response = await self._open(url, part.size, validator)
            try:
                length = _length(response, part.size, self._max_bytes)
                validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
                async for data in _buffered(response):
                    head = (head + data)[:HEAD_BYTES] if len(head) < HEAD_BYTES else head
                    if len(head) == HEAD_BYTES:
                        _check(head, result["kind"])
                    if part.size + len(data) > self._max_bytes:
                        raise _too_large(self._max_bytes)
                    await _storage_call(part.write, data)
            except RequestFailed:
                if resumes == MAX_RESUMES or not part.size or not validator:
                    raise
                continue
            finally:
                await response.close()
            if length is not None and part.size != length:
                raise InvalidFile(f"received {part.size} of {length} bytes")
            return _check(head, result["kind"]), length is not None
        raise AssertionError("unreachable")

    async def _open(self, url: str, start: int, validator: str | None) -> Response:
        """Request the file from byte `start` on; redirects are followed one by one, and each target is checked."""
        headers: dict[str, str] = {}
        if start and validator:
            headers = {"Range": f"bytes={start}-", "If-Range": validator}
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._client.send("GET", url, headers=headers)
            if response.location is None:
                break
            await response.close()
            url = join_url(url, response.location)
        if response.status == (206 if start else 200) and _resumes_at(response, start):
            return response
        await response.close()
        raise UnexpectedResponse(response)


def _check(head: bytes, kind: str) -> str:
    """The content type that the first bytes show. Raises InvalidFile if it is not of this kind."""
    content_type = sniff(head)
    if content_type and matches_kind(content_type, kind):
        return content_type
    raise InvalidFile(f"not a valid {kind} file: it begins with {head[:12]!r}" if head else "the file is empty")


def _resumes_at(response: Response, start: int) -> bool:
    return not start or response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


async def _buffered(response: Response) -> AsyncIterator[bytes]:
    """The body in pieces of a size fit for the disk; bytes received before a cut are yielded before the error."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise InvalidFile("the file was sent compressed, which was not requested")
    buffer = bytearray()
    try:
        async for chunk in response.iter_bytes():
            buffer += chunk
            if len(buffer) >= BUFFER_BYTES:
                yield bytes(buffer)
                buffer.clear()
    except RequestFailed:
        if buffer:
            yield bytes(buffer)
        raise
    if buffer:
        yield bytes(buffer)


def _length(response: Response, start: int, max_bytes: int) -> int | None:
    """Bytes of the whole file, if the host names a length. Raises InvalidFile for too many."""
    header = response.headers.get("Content-Length", "")
    if not header.isdecimal():
        return None
    if start + int(header) > max_bytes:
        raise _too_large(max_bytes)
    return start + int(header)


def _too_large(max_bytes: int) -> InvalidFile:
    return InvalidFile(f"the file is larger than {max_bytes} bytes")


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

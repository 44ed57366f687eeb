"""From a finished task to files on disk: ask Kling once, fetch each file, check it, store it."""

import asyncio
import functools
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar
from urllib.parse import urljoin

import httpx
from starlette.concurrency import run_in_threadpool

from kling_callback.http import retry_after_seconds
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.queue import ClaimedJob, Done, GiveUp, Outcome, RetryAt, Settle, settle_as
from kling_receiver.metrics import Metrics
from kling_receiver.net.client import GuardedClient
from kling_receiver.net.guard import Refused
from kling_receiver.results import records as result_records
from kling_receiver.results.media import EXTENSIONS, HEAD_BYTES, is_complete, matches_kind, sniff
from kling_receiver.results.records import StoredFile
from kling_receiver.results.storage import LocalStorage, PartialFile
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import ResultRow
from kling_receiver.store.transaction import Transaction

log = logging.getLogger("kling_receiver.results")

T = TypeVar("T")
DOWNLOAD_BACKOFF = Backoff((1, 2, 5, 10, 30, 60, 120, 300, 600, 900, 1800))
MAX_REFUSALS = 5
"""Attempts at a file that its host refuses (403, 404 and the like), or that is not what it should be."""
MAX_REDIRECTS = 5
MAX_RESUMES = 5
"""Times that a download cut short goes on where it was, within one attempt."""
DOWNLOAD_TIMEOUT_SECONDS = 840
"""Seconds for one attempt at a file; less than the worker gives a job, so that it ends here."""
BUFFER_BYTES = 1 << 20
"""Bytes that go to the disk at once."""

ADDRESS = re.compile(r"https?://\S+")


class InvalidFile(Exception):
    """What came is not the file that Kling named."""


class StorageUnavailable(Exception):
    """The storage does not take the file: its disk is full, its folder is gone. No fault of the file's."""


async def _storage_call(function: Callable[..., T], *args: Any) -> T:
    """Do what concerns our own disk, beside the event loop. Raises NoRoom."""
    try:
        return await run_in_threadpool(function, *args)
    except OSError as error:
        raise StorageUnavailable(f"the storage fails: {error.strerror or error}") from error


class Downloader:
    """Brings the files that Kling named into the storage."""

    def __init__(
        self, client: GuardedClient, storage: LocalStorage, reader: Reader, metrics: Metrics, *, max_bytes: int
    ) -> None:
        """`largest`: bytes that one file may have."""
        self._client, self._storage, self._reader, self._max_bytes = client, storage, reader, max_bytes
        self._metrics = metrics

    async def download(self, job: ClaimedJob) -> Settle:
        """The handler of `download`: one file, checked and on disk, or a reason why not."""
        n = int(job.args["index"])
        result = await self._reader.result(job.task_id, n)
        if result is None or result["status"] != "pending":
            return settle_as(Done())
        try:
            async with asyncio.timeout(DOWNLOAD_TIMEOUT_SECONDS):
                stored = await self._download(result)
        except Exception as error:  # whatever it was, the file ends stored, or failed for all to see
            log.warning("task %s, result %d: %s", job.task_id, n, describe(error))
            self._metrics.downloads.labels("failed").inc()
            return functools.partial(_settle_failed, job=job, index=n, error=error)
        self._metrics.downloads.labels("stored").inc()
        return functools.partial(_settle_stored, job=job, index=n, stored=stored)

    async def _download(self, result: ResultRow) -> StoredFile:
        part = await _storage_call(self._storage.create)
        try:
            content_type, measured = await self._stream_into(part, result)
            name = f"{result['task_id']}/{result['position']}{EXTENSIONS.get(content_type, '')}"
            await _storage_call(self._commit, part, name, None if measured else content_type)
        except BaseException:
            await run_in_threadpool(part.discard)
            raise
        return StoredFile(name, content_type, part.size, part.sha256)

    def _commit(self, part: PartialFile, name: str, unmeasured: str | None) -> None:
        """`unmeasured`: the type of a file whose host did not say how long it is."""
        part.flush()
        if unmeasured and not is_complete(part.path, unmeasured):
            raise InvalidFile(f"the {unmeasured} is cut short")
        self._storage.commit(part, name)

    async def _stream_into(self, part: PartialFile, result: ResultRow) -> tuple[str, bool]:
        """Download into `part`, going on where a connection was cut.

        The content type that the bytes show, and whether the host said how many bytes there are.
        """
        url, validator, head = result["source_url"], None, b""
        for cut in range(MAX_RESUMES + 1):
            response = await self._open(url, part.size, validator)
            try:
                whole = _length(response, part.size, self._max_bytes)
                validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
                async for data in _buffered(response):
                    head = (head + data)[:HEAD_BYTES] if len(head) < HEAD_BYTES else head
                    if len(head) == HEAD_BYTES:
                        _check(head, result["kind"])
                    if part.size + len(data) > self._max_bytes:
                        raise InvalidFile(f"it is larger than {self._max_bytes} bytes")
                    await _storage_call(part.write, data)
            except httpx.TransportError:
                if cut == MAX_RESUMES or not part.size or not validator:
                    raise
                continue
            finally:
                await response.aclose()
            if whole is not None and part.size != whole:
                raise InvalidFile(f"{part.size} of {whole} bytes came")
            return _check(head, result["kind"]), whole is not None
        raise AssertionError("unreachable")

    async def _open(self, url: str, start: int, validator: str | None) -> httpx.Response:
        """The answer that holds the file, from `start` on; redirects are followed hop by hop, each checked."""
        headers: dict[str, str] = {}
        if start and validator:
            headers = {"Range": f"bytes={start}-", "If-Range": validator}
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._client.send("GET", url, headers=headers)
            if not response.has_redirect_location:
                break
            await response.aclose()
            url = _redirect_target(url, response.headers["Location"])
        if response.status_code == (206 if start else 200) and _resumes_at(response, start):
            return response
        await response.aclose()
        raise httpx.HTTPStatusError(
            f"the host answered {response.status_code}", request=httpx.Request("GET", url), response=response
        )


def _redirect_target(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise Refused(f"it redirects to no web address ({error})") from error


def _check(head: bytes, kind: str) -> str:
    """The content type that the first bytes show. Raises BadFile when it is not of this kind."""
    content_type = sniff(head)
    if content_type and matches_kind(content_type, kind):
        return content_type
    raise InvalidFile(f"it is no {kind}: it begins with {head[:12]!r}" if head else "it is empty")


def _resumes_at(response: httpx.Response, start: int) -> bool:
    return not start or response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


async def _buffered(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body in pieces worth a trip to the disk; what came before a cut is given out before the error."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise InvalidFile("it came compressed, although it was asked for as it is")
    buffer = bytearray()
    try:
        async for chunk in response.aiter_raw():
            buffer += chunk
            if len(buffer) >= BUFFER_BYTES:
                yield bytes(buffer)
                buffer.clear()
    except httpx.TransportError:
        if buffer:
            yield bytes(buffer)
        raise
    if buffer:
        yield bytes(buffer)


def _length(response: httpx.Response, start: int, max_bytes: int) -> int | None:
    """Bytes that the whole file has by its host's word, if it says so."""
    said = response.headers.get("Content-Length", "")
    if not said.isdecimal():
        return None
    if start + int(said) > max_bytes:
        raise InvalidFile(f"it is larger than {max_bytes} bytes")
    return start + int(said)


def _settle_stored(tx: Transaction, job: ClaimedJob, index: int, stored: StoredFile) -> Outcome:
    result_records.mark_stored(tx, tx.require_task(job.task_id), index, stored)
    return Done()


def _settle_failed(tx: Transaction, job: ClaimedJob, index: int, error: Exception) -> Outcome:
    if isinstance(error, StorageUnavailable):  # paid for, and to be had as soon as the disk is mended
        times = min(job.args.get("storage_failures", 0) + 1, len(DOWNLOAD_BACKOFF.steps))
        again = DOWNLOAD_BACKOFF.next_at(times, tx.now) or tx.now
        return RetryAt(again, describe(error), args={**job.args, "storage_failures": times}, counts=False)
    due = (
        None
        if isinstance(error, Refused)
        else DOWNLOAD_BACKOFF.next_at(job.attempts, tx.now, at_least=_retry_after(error))
    )
    if due is None or (_is_final(error) and job.attempts >= MAX_REFUSALS):
        result_records.mark_failed(tx, tx.require_task(job.task_id), index, describe(error))
        return GiveUp(describe(error))
    return RetryAt(due, describe(error))


def _is_final(error: Exception) -> bool:
    """Whether trying often is of no use: the host refuses, or the file is wrong."""
    if isinstance(error, httpx.HTTPStatusError):
        return 300 <= error.response.status_code < 500 and error.response.status_code not in (408, 425, 429)
    return isinstance(error, InvalidFile)


def _retry_after(error: Exception) -> float | None:
    return retry_after_seconds(error.response) if isinstance(error, httpx.HTTPStatusError) else None


def describe(error: Exception) -> str:
    """One line, without the address: its query may open the file to whoever reads the log."""
    said = str(error).split("\n")[0]
    said = ADDRESS.sub("(address)", said)
    if said and isinstance(error, InvalidFile | StorageUnavailable | Refused | httpx.HTTPStatusError):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__

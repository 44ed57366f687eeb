"""From a finished task to files on disk: ask Kling once, fetch each file, check it, store it."""

import asyncio
import functools
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar
from urllib.parse import urljoin

import httpx

from kling_callback.http import retry_after_seconds
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.queue import Claimed, Done, GiveUp, Outcome, RetryAt, Verdict, verdict
from kling_receiver.metrics import Metrics
from kling_receiver.net.client import Outbound
from kling_receiver.net.guard import Refused
from kling_receiver.results import records as result_records
from kling_receiver.results.media import EXTENSIONS, HEAD, is_whole, sniff, suits
from kling_receiver.results.records import Stored
from kling_receiver.results.storage import Folder, Part
from kling_receiver.store.reader import Reader, in_thread
from kling_receiver.store.sql import Row
from kling_receiver.store.transaction import Transaction

log = logging.getLogger("kling_receiver.results")

T = TypeVar("T")
FETCH_AGAIN = Backoff((1, 2, 5, 10, 30, 60, 120, 300, 600, 900, 1800))
REFUSED_AGAIN = 5
"""Attempts at a file that its host refuses (403, 404 and the like), or that is not what it should be."""
MOST_REDIRECTS = 5
MOST_CUTS = 5
"""Times that a download cut short goes on where it was, within one attempt."""
LONGEST_FETCH = 840
"""Seconds for one attempt at a file; less than the worker gives a job, so that it ends here."""
BUFFER = 1 << 20
"""Bytes that go to the disk at once."""

ADDRESS = re.compile(r"https?://\S+")


class BadFile(Exception):
    """What came is not the file that Kling named."""


class NoRoom(Exception):
    """The storage does not take the file: its disk is full, its folder is gone. No fault of the file's."""


async def _locally(function: Callable[..., T], *args: Any) -> T:
    """Do what concerns our own disk, beside the event loop. Raises NoRoom."""
    try:
        return await in_thread(function, *args)
    except OSError as error:
        raise NoRoom(f"the storage fails: {error.strerror or error}") from error


class Fetcher:
    """Brings the files that Kling named into the storage."""

    def __init__(
        self, outbound: Outbound, folder: Folder, reader: Reader, metrics: Metrics, *, largest: int
    ) -> None:
        """`largest`: bytes that one file may have."""
        self._outbound, self._folder, self._reader, self._largest = outbound, folder, reader, largest
        self._metrics = metrics

    async def download(self, job: Claimed) -> Verdict:
        """The handler of `download`: one file, checked and on disk, or a reason why not."""
        n = int(job.data["n"])
        result = await self._reader.result(job.task, n)
        if result is None or result["status"] != "pending":
            return verdict(Done())
        try:
            async with asyncio.timeout(LONGEST_FETCH):
                stored = await self._fetch(result)
        except Exception as error:  # whatever it was, the file ends stored, or failed for all to see
            log.warning("task %s, result %d: %s", job.task, n, reason(error))
            self._metrics.downloads.labels("failed").inc()
            return functools.partial(_not_fetched, job=job, n=n, error=error)
        self._metrics.downloads.labels("stored").inc()
        return functools.partial(_fetched, job=job, n=n, stored=stored)

    async def _fetch(self, result: Row) -> Stored:
        part = await _locally(self._folder.part)
        try:
            content_type, measured = await self._fill(part, result)
            name = f"{result['task']}/{result['n']}{EXTENSIONS.get(content_type, '')}"
            await _locally(self._keep, part, name, None if measured else content_type)
        except BaseException:
            await in_thread(part.drop)
            raise
        return Stored(name, content_type, part.size, part.sha256)

    def _keep(self, part: Part, name: str, unmeasured: str | None) -> None:
        """`unmeasured`: the type of a file whose host did not say how long it is."""
        part.flush()
        if unmeasured and not is_whole(part.path, unmeasured):
            raise BadFile(f"the {unmeasured} is cut short")
        self._folder.keep(part, name)

    async def _fill(self, part: Part, result: Row) -> tuple[str, bool]:
        """Download into `part`, going on where a connection was cut.

        The content type that the bytes show, and whether the host said how many bytes there are.
        """
        url, validator, head = result["source_url"], None, b""
        for cut in range(MOST_CUTS + 1):
            response = await self._open(url, part.size, validator)
            try:
                whole = _length(response, part.size, self._largest)
                validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
                async for data in _buffered(response):
                    head = (head + data)[:HEAD] if len(head) < HEAD else head
                    if len(head) == HEAD:
                        _check(head, result["kind"])
                    if part.size + len(data) > self._largest:
                        raise BadFile(f"it is larger than {self._largest} bytes")
                    await _locally(part.write, data)
            except httpx.TransportError:
                if cut == MOST_CUTS or not part.size or not validator:
                    raise
                continue
            finally:
                await response.aclose()
            if whole is not None and part.size != whole:
                raise BadFile(f"{part.size} of {whole} bytes came")
            return _check(head, result["kind"]), whole is not None
        raise AssertionError("unreachable")

    async def _open(self, url: str, start: int, validator: str | None) -> httpx.Response:
        """The answer that holds the file, from `start` on; redirects are followed hop by hop, each checked."""
        headers: dict[str, str] = {}
        if start and validator:
            headers = {"Range": f"bytes={start}-", "If-Range": validator}
        for _ in range(MOST_REDIRECTS + 1):
            response = await self._outbound.send("GET", url, headers=headers)
            if not response.has_redirect_location:
                break
            await response.aclose()
            url = _onward(url, response.headers["Location"])
        if response.status_code == (206 if start else 200) and _continues(response, start):
            return response
        await response.aclose()
        raise httpx.HTTPStatusError(
            f"the host answered {response.status_code}", request=httpx.Request("GET", url), response=response
        )


def _onward(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise Refused(f"it redirects to no web address ({error})") from error


def _check(head: bytes, kind: str) -> str:
    """The content type that the first bytes show. Raises BadFile when it is not of this kind."""
    content_type = sniff(head)
    if content_type and suits(content_type, kind):
        return content_type
    raise BadFile(f"it is no {kind}: it begins with {head[:12]!r}" if head else "it is empty")


def _continues(response: httpx.Response, start: int) -> bool:
    return not start or response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


async def _buffered(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body in pieces worth a trip to the disk; what came before a cut is given out before the error."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise BadFile("it came compressed, although it was asked for as it is")
    buffer = bytearray()
    try:
        async for chunk in response.aiter_raw():
            buffer += chunk
            if len(buffer) >= BUFFER:
                yield bytes(buffer)
                buffer.clear()
    except httpx.TransportError:
        if buffer:
            yield bytes(buffer)
        raise
    if buffer:
        yield bytes(buffer)


def _length(response: httpx.Response, start: int, largest: int) -> int | None:
    """Bytes that the whole file has by its host's word, if it says so."""
    said = response.headers.get("Content-Length", "")
    if not said.isdecimal():
        return None
    if start + int(said) > largest:
        raise BadFile(f"it is larger than {largest} bytes")
    return start + int(said)


def _fetched(tx: Transaction, job: Claimed, n: int, stored: Stored) -> Outcome:
    result_records.store(tx, tx.known(job.task), n, stored)
    return Done()


def _not_fetched(tx: Transaction, job: Claimed, n: int, error: Exception) -> Outcome:
    if isinstance(error, NoRoom):  # paid for, and to be had as soon as the disk is mended
        times = min(job.data.get("no_room", 0) + 1, len(FETCH_AGAIN.steps))
        again = FETCH_AGAIN.after(times, tx.now) or tx.now
        return RetryAt(again, reason(error), data={**job.data, "no_room": times}, counts=False)
    due = (
        None
        if isinstance(error, Refused)
        else FETCH_AGAIN.after(job.attempts, tx.now, at_least=_asked_for(error))
    )
    if due is None or (_is_final(error) and job.attempts >= REFUSED_AGAIN):
        result_records.fail(tx, tx.known(job.task), n, reason(error))
        return GiveUp(reason(error))
    return RetryAt(due, reason(error))


def _is_final(error: Exception) -> bool:
    """Whether trying often is of no use: the host refuses, or the file is wrong."""
    if isinstance(error, httpx.HTTPStatusError):
        return 300 <= error.response.status_code < 500 and error.response.status_code not in (408, 425, 429)
    return isinstance(error, BadFile)


def _asked_for(error: Exception) -> float | None:
    return retry_after_seconds(error.response) if isinstance(error, httpx.HTTPStatusError) else None


def reason(error: Exception) -> str:
    """One line, without the address: its query may open the file to whoever reads the log."""
    said = str(error).split("\n")[0]
    said = ADDRESS.sub("(address)", said)
    if said and isinstance(error, BadFile | NoRoom | Refused | httpx.HTTPStatusError):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__

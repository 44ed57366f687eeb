"""From a finished task to files on disk: ask Kling once, fetch each file, check it, store it."""

import asyncio
import functools
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar
from urllib.parse import urljoin

import httpx

from client.codec import Report
from client.errors import GatewayError
from client.gateway import Gateway, retry_after_seconds
from receiver import belief, creates, files
from receiver.files import Stored
from receiver.media import EXTENSIONS, HEAD, is_whole, sniff, suits
from receiver.metrics import Metrics
from receiver.outbound import Outbound, Refused
from receiver.outbox import Backoff, Claimed, Done, GiveUp, Outcome, RetryAt, Verdict, verdict
from receiver.reading import Reader, in_thread
from receiver.sql import Row
from receiver.states import FINAL
from receiver.storage import Folder, Part
from receiver.transaction import Transaction

log = logging.getLogger("receiver.results")

T = TypeVar("T")

ASK_AGAIN = Backoff((1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 900, 1800))
"""Seconds between questions: an hour in all."""
AGAIN = {"unanswered": ASK_AGAIN, "undecided": Backoff(ASK_AGAIN.steps[:6])}
"""By what became of the last question. After seven to which Kling said otherwise, the callback is false."""
FETCH_AGAIN = Backoff((1, 2, 5, 10, 30, 60, 120, 300, 600, 900, 1800))
SOON_MS = 2_000
"""Between two questions of which each was overtaken by another callback."""
REFUSED_AGAIN = 5
"""Attempts at a file that its host refuses (403, 404 and the like), or that is not what it should be."""
MOST_REDIRECTS = 5
MOST_CUTS = 5
"""Times that a download cut short goes on where it was, within one attempt."""
LONGEST_FETCH = 840
"""Seconds for one attempt at a file; less than the worker gives a job, so that it ends here."""
BUFFER = 1 << 20
"""Bytes that go to the disk at once."""

UNTOLD_MS = 900_000
"""For how long a create's answer may be out: a client that has not told of it by then has died."""

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


class Asker:
    """Asks Kling about a task, and has the answer believed."""

    def __init__(
        self, gateway: Gateway, reader: Reader, metrics: Metrics, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._gateway, self._reader, self._metrics, self._clock = gateway, reader, metrics, clock

    async def ask(self, job: Claimed) -> Verdict:
        """The handler of `ask`: a callback hinted at an end, or Kling's word named no files."""
        task = await self._reader.task(job.task)
        if task is None or await self._settled(task):
            return verdict(Done())
        try:
            report = await self.question(task)
        except GatewayError as error:
            log.warning("task %s: %s", job.task, error)
            return functools.partial(_unanswered, job=job, error=error)
        return functools.partial(_answered, job=job, report=report, hints=task["hints"])

    async def _settled(self, task: Row) -> bool:
        """Whether Kling's final word is known, and the files that go with it."""
        if task["status"] not in FINAL or task["origin"] != "kling":
            return False
        named = [each["source_url"] for each in await self._reader.results(task["id"])]
        return task["status"] == "failed" or any(named)

    async def question(self, task: Row) -> Report | None:
        """Kling's record of a task: by the create answer's id, else by ours, else by the callback's.

        The last only for a task that no other of ours is, and when the record names no other task of ours:
        a callback's address proves whose it is, its body proves nothing. And not while the create's own answer
        is out: the id may be that of another whose answer is out, too. Raises GatewayError.
        """
        outcome = "unanswered"
        try:
            report = await self._query(task)
            outcome = "answered" if report else "unknown_task"
        finally:
            self._metrics.questions.labels(outcome).inc()
        return report

    async def _query(self, task: Row) -> Report | None:
        if task["task_id"]:
            return await self._gateway.query(task["family"], task_id=task["task_id"])
        ways = [self._by_our_id, self._by_their_id]
        if task["outcome"] == "none" and task["callback_id"]:
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

    async def _by_our_id(self, task: Row) -> Report | None:
        return await self._gateway.query(task["family"], external_id=task["id"])

    async def _by_their_id(self, task: Row) -> Report | None:
        theirs = task["callback_id"]
        untold = task["outcome"] == "pending" and self._clock() * 1000 < task["updated_at"] + UNTOLD_MS
        if not theirs or untold or await self._reader.holder(theirs):
            return None
        report = await self._gateway.query(task["family"], task_id=theirs)
        if report is None or report.external_id in (None, task["id"]):
            return report
        # Another name: the caller's own, where nobody registered the task; never that of another task of ours.
        if task["outcome"] != "none" or await self._reader.task(report.external_id):
            return None
        return report


def _answered(tx: Transaction, job: Claimed, report: Report | None, hints: int) -> Outcome:
    """Kling said something: believe it, and see whether more is to be asked. `hints`: those known then."""
    task = tx.known(job.task)
    if report and report.task_id and not task["task_id"]:
        creates.learn_id(tx, task, report.task_id)
    if report and report.status:
        belief.believe(tx, task, report)
    if report is None or not report.final:
        return _undecided(tx, job, task, report, hints)
    if task["hint"] != report.status:
        belief.drop_hint(tx, task, str(report.status))
    if task["status"] == "failed" or report.outputs:
        return Done()
    if report.status == "succeed" and (again := _later(tx, job, "undecided", "Kling names no file.")):
        return again
    files.lack(tx, task, f"Kling says {report.status}, and names no file.")
    return Done()


def _undecided(tx: Transaction, job: Claimed, task: Row, report: Report | None, hints: int) -> Outcome:
    """Kling does not (yet) say what the callback said."""
    if report is None:
        return _unanswered(tx, job, GatewayError("Kling does not know the task."))
    if task["hints"] != hints:
        return RetryAt(tx.now + SOON_MS, "Another callback came while Kling was asked.", data={})
    if again := _later(tx, job, "undecided", f"Kling says {report.status}."):
        return again
    belief.drop_hint(tx, task, str(report.status))
    if task["status"] == "succeed":
        files.lack(tx, task, f"Kling now says {report.status}, and named no file.")
    return Done()


def _unanswered(tx: Transaction, job: Claimed, error: GatewayError) -> Outcome:
    """Kling did not answer, or not of this task: again later; at the end the callback's status stands."""
    if again := _later(tx, job, "unanswered", str(error), at_least=error.retry_after):
        return again
    belief.stand(tx, tx.known(job.task))
    return GiveUp(str(error))


def _later(
    tx: Transaction, job: Claimed, what: str, said: str, *, at_least: float | None = None
) -> RetryAt | None:
    """The next question, or None after the last of this kind. Kinds are counted apart, restarts not at all."""
    count = (job.data or {}).get(what, 0) + 1
    due = AGAIN[what].after(count, tx.now, at_least=at_least)
    return None if due is None else RetryAt(due, said, data={**(job.data or {}), what: count})


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
    files.store(tx, tx.known(job.task), n, stored)
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
        files.fail(tx, tx.known(job.task), n, reason(error))
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

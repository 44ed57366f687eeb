"""One attempt to download a file into its part: redirects, ranges, and the check of what arrives."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool

from kling_callback.api.http import retry_after_seconds
from kling_receiver.net.client import GuardedClient, RequestFailed, Response
from kling_receiver.net.guard import join_url
from kling_receiver.results.headers import content_length, content_range, strong_validator
from kling_receiver.results.media import (
    HEAD_BYTES,
    UNKNOWN_TYPE,
    is_complete,
    is_compressed,
    is_text,
    matches_kind,
    sniff,
)
from kling_receiver.results.storage import PartialFile

T = TypeVar("T")
MAX_REDIRECTS = 5
MAX_RESUMES = 5
"""Times that a download which was cut short is resumed, within one attempt."""
RESPONSE_SECONDS = 120
"""Seconds until a host has sent the head of its response; its body may take any time."""
MIN_PROGRESS_BYTES = 1 << 16
PROGRESS_SECONDS = 300
"""An attempt must bring so many bytes in so many seconds, 220 a second on average, again and again until its end.

A slow download goes on, for days if need be. One that is slower gives its place to others, and is resumed later. Five
minutes: so long a slower one may keep others waiting, and a host that pauses for a while is not given up.
"""
BUFFER_BYTES = 1 << 20
"""Bytes that are written to the disk at once."""
BUFFER_SECONDS = 1.0
"""Seconds for which fewer bytes wait for more."""


class InvalidFile(Exception):
    """The file is not what Kling named: another kind, truncated, too large."""


class Interrupted(RequestFailed):
    """The attempt failed after it had brought a part of the file that the next one does not request again."""


class UnexpectedResponse(Exception):
    """The host answered with a status that brings no file. `retry_after`: seconds that it asks to wait."""

    def __init__(self, response: Response) -> None:
        super().__init__(f"the host answered {response.status}")
        self.status, self.retry_after = response.status, retry_after_seconds(response.headers)


class Progress:
    """Checks that an attempt brings MIN_PROGRESS_BYTES in each PROGRESS_SECONDS."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._missing, self._due = MIN_PROGRESS_BYTES, time.monotonic() + PROGRESS_SECONDS

    def check(self, received: int = 0) -> None:
        """Count bytes that were received. Raises RequestFailed if there are too few of them."""
        self._missing -= received
        if self._missing <= 0:
            self._restart()
        elif time.monotonic() > self._due:
            raise RequestFailed(f"the host is too slow: less than {MIN_PROGRESS_BYTES} bytes in {PROGRESS_SECONDS:g} s")


class StorageUnavailable(Exception):
    """The storage cannot take the file: the disk is full, or the folder is gone. The file itself may be good."""


async def storage_call(function: Callable[..., T], *args: Any) -> T:
    """Do disk work in a thread. Raises StorageUnavailable."""
    try:
        return await run_in_threadpool(function, *args)
    except OSError as error:
        raise StorageUnavailable(f"the storage failed: {error.strerror or error}") from error


async def fetch(client: GuardedClient, url: str, part: PartialFile, *, kind: str, max_bytes: int) -> str:
    """Download a file of this kind into `part`, from where it ends. Returns the content type that its bytes show.

    It takes as long as bytes arrive, and resumes where a connection was cut.
    Raises InvalidFile, UnexpectedResponse, StorageUnavailable, Refused, RequestFailed, or its subclass Interrupted.
    """
    begun = part.size
    try:
        headers = await _receive_all(client, url, part, kind, max_bytes)
    except RequestFailed as error:
        if part.validator and part.size - begun >= MIN_PROGRESS_BYTES:
            raise Interrupted(str(error)) from error
        raise
    content_type = await storage_call(_check, part, kind, headers)
    if part.length is None and not await storage_call(is_complete, part.path, content_type):
        raise InvalidFile(f"the {content_type} file is truncated")
    return content_type


async def _receive_all(
    client: GuardedClient, url: str, part: PartialFile, kind: str, max_bytes: int
) -> Mapping[str, str]:
    """Request the file, and what is missing of it, until it is whole. Returns the headers of the last response."""
    headers: Mapping[str, str] = {}
    progress = Progress()
    for resumes in range(MAX_RESUMES + 1):
        if part.is_whole:  # the receiver was stopped before the file was stored
            break
        response = await _open(client, url, part, max_bytes, progress)
        try:
            await _receive(response, part, kind, max_bytes, progress)
            headers = response.headers
            break
        except RequestFailed:
            if resumes == MAX_RESUMES or not (part.size and part.validator):
                raise
        finally:
            await response.close()
    return headers


async def _open(client: GuardedClient, url: str, part: PartialFile, max_bytes: int, progress: Progress) -> Response:
    """Request the rest of the file; redirects are followed one by one, and each target is checked."""
    headers: dict[str, str] = {}
    if part.size and part.validator:
        headers = {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    redirected_by: list[str] = []
    for _ in range(MAX_REDIRECTS + 1):
        progress.check()
        response = await _send(client, url, headers, redirected_by)
        if response.location is None:
            break
        await response.close()
        redirected_by.append(url)
        url = join_url(url, response.location)
    try:
        await _begin(response, part, max_bytes)
    except BaseException:
        await response.close()
        raise
    return response


async def _send(client: GuardedClient, url: str, headers: Mapping[str, str], redirected_by: Sequence[str]) -> Response:
    try:
        async with asyncio.timeout(RESPONSE_SECONDS):
            return await client.send("GET", url, headers=headers, redirected_by=redirected_by)
    except TimeoutError as error:
        raise RequestFailed(f"the host did not answer within {RESPONSE_SECONDS:g} s") from error


async def _begin(response: Response, part: PartialFile, max_bytes: int) -> None:
    """Prepare `part` for the body of a response: the rest of the same file, or a file from its first byte on."""
    if part.size and response.status == 206 and (match := _continues(response, part)):
        if match[3] != "*":
            part.length = _checked_length(int(match[3]), max_bytes)
        return
    if part.size and response.status in (206, 416):
        await storage_call(part.restart)
        raise RequestFailed("the host has another file than the one that was begun")
    if response.status != 200:
        raise UnexpectedResponse(response)
    if part.size:
        await storage_call(part.restart)
    part.validator = strong_validator(response.headers)
    part.length = _checked_length(content_length(response.headers), max_bytes)


async def _receive(response: Response, part: PartialFile, kind: str, max_bytes: int, progress: Progress) -> None:
    checked, end = False, _end(response, part)
    async for data in _buffered(response, progress):
        if part.size + len(data) > max_bytes:
            raise _too_large(max_bytes)
        if end is not None and part.size + len(data) > end:
            raise InvalidFile(f"the host sent more than the {end} bytes that it named")
        await storage_call(part.write, data)
        if not checked and part.size >= HEAD_BYTES:
            checked = bool(await storage_call(_check, part, kind, response.headers))
    if part.length is not None and part.size != part.length:
        if response.status == 206:  # a host may send less than was requested
            raise RequestFailed(f"the host sent {part.size} of {part.length} bytes")
        raise InvalidFile(f"received {part.size} of {part.length} bytes")


def _check(part: PartialFile, kind: str, headers: Mapping[str, str]) -> str:
    """The content type that the first bytes show. Raises InvalidFile for a file of another kind, and for no file."""
    head = part.head(HEAD_BYTES)
    if not head:
        raise InvalidFile("the file is empty")
    content_type = sniff(head, kind)
    if content_type is None:
        if is_compressed(head, headers.get("Content-Encoding", "")):
            raise InvalidFile("the file was sent compressed, which was not requested")
        if not is_text(head, headers.get("Content-Type", "")):
            return UNKNOWN_TYPE
    elif matches_kind(content_type, kind):
        return content_type
    raise InvalidFile(f"not a valid {kind} file: it begins with {head[:12]!r}")


def _continues(response: Response, part: PartialFile) -> re.Match[str] | None:
    """The range of a partial response that is the rest of this version of the file, or begins it; else None."""
    match = content_range(response.headers)
    if not match or int(match[1]) != part.size:
        return None
    name = "ETag" if str(part.validator).startswith('"') else "Last-Modified"
    same_version = response.headers.get(name, part.validator) == part.validator
    return match if same_version and (part.length is None or match[3] in ("*", str(part.length))) else None


def _end(response: Response, part: PartialFile) -> int | None:
    """The size of the part at which this response must end; None if the host named none."""
    match = content_range(response.headers) if response.status == 206 else None
    ends = [part.length, int(match[2]) + 1 if match else None]
    return min((end for end in ends if end is not None), default=None)


async def _buffered(response: Response, progress: Progress) -> AsyncIterator[bytes]:
    """The body in pieces of a size fit for the disk; bytes received before a cut are yielded before the error."""
    buffer, chunk = bytearray(), b"-"
    while chunk:
        try:
            async with asyncio.timeout(BUFFER_SECONDS if buffer else None):
                chunk = await response.read()
            buffer += chunk
            if chunk:
                progress.check(len(chunk))
        except TimeoutError:
            pass
        except RequestFailed:
            if buffer:
                yield bytes(buffer)
            raise
        else:
            if chunk and len(buffer) < BUFFER_BYTES:
                continue
        if buffer:
            yield bytes(buffer)
            buffer.clear()


def _checked_length(length: int | None, max_bytes: int) -> int | None:
    if length is not None and length > max_bytes:
        raise _too_large(max_bytes)
    return length


def _too_large(max_bytes: int) -> InvalidFile:
    return InvalidFile(f"the file is larger than {max_bytes} bytes")

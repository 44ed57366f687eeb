"""Result files over HTTP: URLs that expire, ranges, and the ways in which a download fails."""

import hashlib
import re
import time

from kling_sandbox.api.auth import authenticate
from kling_sandbox.media import TYPES, render
from kling_sandbox.records.results import watermarked
from kling_sandbox.state import Download, State
from kling_sandbox.tasks import WATERMARK, Task, now
from kling_sandbox.web.http import (
    Chunked,
    CutShort,
    Request,
    Response,
    gzip_response,
    html_response,
    redirect,
    text_response,
)

METADATA_URL = "http://169.254.169.254/"
"""A private address that a download must not be redirected to."""


class Files:
    """The route of the result files."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def get(self, request: Request, task_id: str, name: str) -> Response:
        """Answer with a file, or as the task's switches say."""
        self._state.record(self._state.downloads, Download(task_id, name, now()))
        task = self._state.tasks.get(task_id) or self._state.shown.get(task_id)
        if not task or name not in (*task.files, *map(watermarked, task.files)):
            return text_response("no such file", 404)
        if _is_expired(request.query.get("ksTime", "")):
            return text_response("this address has expired", 403)
        return self._refusal(task, request) or self._file(task, name, request)

    async def content(self, request: Request, task_id: str) -> Response:
        """Answer with the first file of a task whose results have no address (`no-url`), for the key only."""
        authenticate(request, self._state, self._state.switches(), new=False)
        self._state.record(self._state.downloads, Download(task_id, "content", now()))
        task = self._state.tasks.get(task_id)
        if not task or not task.has("no-url") or not task.files:
            return text_response("no such file", 404)
        if task.status != "succeed":
            return text_response(f"the task is {task.status}", 400)
        return self._refusal(task, request) or self._file(task, task.files[0], request)

    def _refusal(self, task: Task, request: Request) -> Response | None:
        if task.has("redirect-file") and "direct" not in request.query:
            return redirect(f"{request.origin}{request.target}{'&' if request.query else '?'}direct=1")
        if task.has("redirect-private"):
            return redirect(METADATA_URL)
        if task.has("file-403"):
            return text_response("forbidden", 403)
        if task.has("file-html"):
            return html_response("<h1>Please verify that you are human</h1>")
        if task.has("file-500-once") and self._state.is_first("file-500-once", request.path):
            return text_response("try again", 500)
        return None

    def _file(self, task: Task, name: str, request: Request) -> Response:
        index, extension = int(re.sub(r"\D.*", "", name) or 0), name.rpartition(".")[2]
        stamp, size = f"{task.id}/{name}", self._state.sizes.get(extension, 0)
        body = render(extension, task.page(index, watermark=WATERMARK in name), stamp, size)
        content_type = "text/plain" if task.has("wrong-type") else TYPES[extension]
        if task.has("cut-once") and self._state.is_first("cut-once", request.path):
            return CutShort(body, content_type=content_type)
        if task.has("no-length"):
            return Chunked(body, content_type=content_type)
        if task.has("gzip-file"):
            return gzip_response(body, content_type)
        etag = hashlib.sha256(f"{stamp}/{size}".encode()).hexdigest()[:16]
        return _ranged(body, content_type, f'"{etag}"', request)


def _is_expired(stamp: str) -> bool:
    """Whether a hexadecimal unix time is over."""
    try:
        return int(stamp, 16) < time.time()
    except ValueError:
        return True


def _ranged(body: bytes, content_type: str, etag: str, request: Request) -> Response:
    headers = {"etag": etag, "accept-ranges": "bytes"}
    span = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not span or span[0] == "bytes=-" or request.headers.get("if-range", etag) != etag:
        return Response(body, 200, content_type, headers)
    first, last = _positions(span[1], span[2], len(body))
    if first > last:
        return Response(status=416, headers=headers | {"content-range": f"bytes */{len(body)}"})
    headers["content-range"] = f"bytes {first}-{last}/{len(body)}"
    return Response(body[first : last + 1], 206, content_type, headers)


def _positions(first: str, last: str, length: int) -> tuple[int, int]:
    """The first and the last byte of a range."""
    if not first:
        return max(0, length - int(last)), length - 1
    return int(first), min(int(last or length), length - 1)

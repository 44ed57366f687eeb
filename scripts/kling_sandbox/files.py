"""Result files over HTTP: addresses that expire, ranges, and every way in which a download goes wrong."""

import hashlib
import re
import time
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse

from kling_sandbox.ledger import Download, Ledger
from kling_sandbox.media import TYPES, content
from kling_sandbox.replies import CutShort, zipped
from kling_sandbox.tasks import Task, now


class Files:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def get(self, request: Request) -> Response:
        number, name = request.path_params["number"], request.path_params["name"]
        self.ledger.note(self.ledger.downloads, Download(number, name, now()))
        task = self.ledger.tasks.get(number)
        if not task or name not in task.files:
            return PlainTextResponse("no such file", 404)
        if expired(request.query_params.get("ksTime", "")):
            return PlainTextResponse("this address has expired", 403)
        return self.refusal(task, request) or self.answer(task, name, request)

    def refusal(self, task: Task, request: Request) -> Response | None:
        if task.has("redirect-file") and "direct" not in request.query_params:
            return RedirectResponse(request.url.include_query_params(direct=1), 302)
        if task.has("redirect-private"):
            return RedirectResponse("http://169.254.169.254/", 302)
        if task.has("file-403"):
            return PlainTextResponse("forbidden", 403)
        if task.has("file-html"):
            return HTMLResponse("<h1>Please verify that you are human</h1>")
        if task.has("file-500-once") and self.ledger.first("file-500-once", request.url.path):
            return PlainTextResponse("try again", 500)
        return None

    def answer(self, task: Task, name: str, request: Request) -> Response:
        index, _, ending = name.partition(".")
        stamp, size = f"{task.id}/{name}", self.ledger.sizes[task.family.kind]
        body = content(ending, task.variant + int(index), stamp, size)
        media_type = "text/plain" if task.has("wrong-type") else TYPES[ending]
        if task.has("cut-once") and self.ledger.first("cut-once", request.url.path):
            return CutShort(body, media_type=media_type)
        if task.has("no-length"):
            return StreamingResponse(pieces(body), media_type=media_type)
        if task.has("gzip-file"):
            return zipped(body, media_type)
        etag = hashlib.sha256(f"{stamp}/{size}".encode()).hexdigest()[:16]
        return ranged(body, media_type, f'"{etag}"', request)


def expired(stamp: str) -> bool:
    try:
        return int(stamp, 16) < time.time()
    except ValueError:
        return True


async def pieces(body: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(body), 2**16):
        yield body[at : at + 2**16]


def ranged(body: bytes, media_type: str, etag: str, request: Request) -> Response:
    headers = {"etag": etag, "accept-ranges": "bytes"}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not wanted or wanted[0] == "bytes=-" or request.headers.get("if-range", etag) != etag:
        return Response(body, headers=headers, media_type=media_type)
    first, last = span(wanted[1], wanted[2], len(body))
    if first > last:
        return Response(status_code=416, headers=headers | {"content-range": f"bytes */{len(body)}"})
    headers["content-range"] = f"bytes {first}-{last}/{len(body)}"
    return Response(body[first : last + 1], 206, headers, media_type)


def span(first: str, last: str, length: int) -> tuple[int, int]:
    if not first:
        return max(0, length - int(last)), length - 1
    return int(first), min(int(last or length), length - 1)

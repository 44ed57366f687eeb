"""GET /api/tasks/{id}/results/{n}: result files, with ranges, ETags and signed links.

The bytes come from outside, and a browser that opens a link must run nothing in them. Images, videos and sounds are
shown, by a type that the first bytes prove; any other file is only saved.
"""

import logging
import re
import time
from collections.abc import Callable

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from kling_callback.errors import TokenError
from kling_callback.protocol.media_types import extension
from kling_callback.protocol.signing import verify_link
from kling_receiver.doctor.echo import DOCTOR_TASK, doctor_answer
from kling_receiver.results.media import INLINE_TYPES, UNKNOWN_TYPE
from kling_receiver.results.storage import LocalStorage
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import ResultRow
from kling_receiver.web.api.tasks import get_task_or_404
from kling_receiver.web.auth import Guard
from kling_receiver.web.errors import ApiError

log = logging.getLogger("kling_receiver.results")

RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
"""One range. Several ranges, or another unit, are answered with the whole file."""

PLAYER_POLICY = "default-src 'none'; media-src 'self'; img-src 'self'"
"""For the page that a browser makes of a video or a sound: under `sandbox`, Chromium's player loads nothing.

`img-src`: the site's icon.
"""
IMAGE_POLICY = "sandbox; default-src 'none'; img-src 'self'; style-src 'unsafe-inline'"
"""For the page of an image: to the policy, the browser's own styles, which centre and zoom it, are the page's."""
ATTACHMENT_POLICY = "sandbox; default-src 'none'"

SHARED_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Content-Length, Content-Range, ETag, Accept-Ranges",
    "Cross-Origin-Resource-Policy": "cross-origin",
}
"""For requests with a signed link: who has it may use the file on any page. `*` excludes cookies and tokens."""
PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, HEAD",
    "Access-Control-Allow-Headers": "Range, If-Range, If-None-Match",
    "Access-Control-Max-Age": "7200",
}
LINK_HINT = "Get a new link from GET /api/tasks/{id}."
OWN_HEADERS = {"Cross-Origin-Resource-Policy": "same-origin"}
"""For requests with a token or a session: no page of another origin may use the file with them."""


class ResultRoutes:
    """The route of result files, authorized by a token or by the signed link in `href`. `clock`: unix seconds."""

    def __init__(
        self,
        settings: ReceiverSettings,
        guard: Guard,
        *,
        reader: Reader,
        storage: LocalStorage,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._guard = settings, guard
        self._reader, self._storage, self._clock = reader, storage, clock
        self._checking = CapacityLimiter(1)  # concurrent requests for one large file compute its checksum once

    def routes(self) -> list[Route]:
        """The routes of this module."""
        return [Route("/api/tasks/{id}/results/{n}", self._result, methods=["GET", "OPTIONS"])]

    async def _result(self, request: Request) -> Response:
        task_id, index = request.path_params["id"], parse_index(request.path_params["n"])
        if "signature" in request.query_params:
            self._verify_link(request, task_id, index)
            headers = SHARED_HEADERS
        elif request.method == "OPTIONS":
            raise ApiError(401, "bad_link", "Only a signed link is for other origins.", LINK_HINT)
        else:
            await self._guard.check(request, "read")
            headers = OWN_HEADERS
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers | PREFLIGHT_HEADERS)
        if task_id == DOCTOR_TASK and headers is SHARED_HEADERS:
            return JSONResponse(doctor_answer(str(index)), headers={**headers, "Cache-Control": "no-store"})
        try:
            response = await self._stored(request, task_id, index)
        except ApiError as error:
            error.headers |= headers
            raise
        response.headers.update(headers)
        return response

    async def _stored(self, request: Request, task_id: str, index: int) -> Response:
        """The file of a stored result. Raises ApiError for any other."""
        task_id = (await get_task_or_404(self._reader, task_id)).row["id"]
        result = await self._reader.result(task_id, index)
        if result is None:
            raise result_not_found()
        if result["status"] == "failed":
            hint = "Check the result's `error`. Run: kling-receiver tasks fetch TASK"
            raise ApiError(409, "result_failed", "The file could not be downloaded.", hint)
        if result["status"] != "stored":
            hint = "Wait for the task's `result.stored` event."
            raise ApiError(409, f"result_{result['status']}", "The file is not stored yet.", hint)
        return await self._file(request, task_id, result)

    async def _file(self, request: Request, task_id: str, result: ResultRow) -> Response:
        assert result["path"]
        path = self._storage.path(result["path"])
        sha256 = await to_thread.run_sync(self._storage.sha256, result["path"], limiter=self._checking)
        if sha256 != result["sha256"]:
            log.error("task %s, result %d: the file %s is missing or was altered", task_id, result["position"], path)
            message = "The file is no longer in the storage as it was stored."
            raise ApiError(410, "result_lost", message, "Check the storage folder, and restore the file.")
        is_inline = result["content_type"] in INLINE_TYPES
        media_type = str(result["content_type"]) if is_inline else UNKNOWN_TYPE
        headers = {
            "ETag": f'"{result["sha256"]}"',
            "Cache-Control": "private, max-age=31536000, immutable",
            "Content-Security-Policy": _policy(media_type),
            "X-Content-Type-Options": "nosniff",
        }
        if not_modified(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        _check_range(request, headers["ETag"], result["size"] or 0)
        return FileResponse(
            path,
            headers=headers,
            media_type=media_type,
            filename=f"{task_id}-{result['position']}.{extension(media_type)}",
            content_disposition_type="inline" if is_inline else "attachment",
        )

    def _verify_link(self, request: Request, task_id: str, index: int) -> None:
        signature, expires = request.query_params["signature"], request.query_params.get("expires", "")
        try:
            verify_link(self._settings.signing_secrets, task_id, index, expires, signature, now=self._clock())
        except TokenError as error:
            raise ApiError(401, "bad_link", str(error), LINK_HINT) from None


def _policy(media_type: str) -> str:
    """The Content-Security-Policy of a file."""
    if media_type == UNKNOWN_TYPE:
        return ATTACHMENT_POLICY
    return IMAGE_POLICY if media_type.startswith("image/") else PLAYER_POLICY


def not_modified(request: Request, etag: str) -> bool:
    """Whether the client has this file already. A proxy that compresses marks the tag as weak."""
    tags = [tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")]
    return etag in tags or "*" in tags


def _check_range(request: Request, etag: str, size: int) -> None:
    """Remove a `Range` header that must be ignored from the request. Raises ApiError for a range past the end."""
    match = RANGE.fullmatch(request.headers.get("Range", ""))
    first, last = (match[1], match[2]) if match else ("", "")
    reversed_ = first and last and int(first) > int(last)
    if not (first or last) or reversed_ or request.headers.get("If-Range", etag) != etag:
        request.scope["headers"] = [header for header in request.scope["headers"] if header[0] != b"range"]
    elif int(first or 0) >= size or (not first and int(last) == 0):
        message, hint = f"The range is past the end: the file has {size} bytes.", "Fix the Range header."
        raise ApiError(416, "bad_range", message, hint, Content_Range=f"bytes */{size}")


def parse_index(text: str) -> int:
    """The index of a result. Raises ApiError if it is not a number."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise result_not_found()
    return int(text)


def result_not_found() -> ApiError:
    """The error for an index that the task's results do not have."""
    return ApiError(404, "unknown_result", "There is no such result.", "Check the task's `results`.")

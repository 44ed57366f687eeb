"""GET /api/tasks/{id}/results/{n}: result files, with ranges, ETags and signed links."""

import logging
import re
import time
from collections.abc import Callable

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from kling_callback.errors import TokenError
from kling_callback.protocol.signing import verify_link
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
        return [Route("/api/tasks/{id}/results/{n}", self._result, methods=["GET"])]

    async def _result(self, request: Request) -> Response:
        task_id, index = request.path_params["id"], _parse_index(request.path_params["n"])
        await self._authorize(request, task_id, index)
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
        headers = {
            "ETag": f'"{result["sha256"]}"',
            "Cache-Control": "private, max-age=31536000, immutable",
            "Content-Security-Policy": "sandbox; default-src 'none'",
            "X-Content-Type-Options": "nosniff",
        }
        if _not_modified(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        _check_range(request, headers["ETag"], result["size"] or 0)
        return FileResponse(
            path,
            headers=headers,
            media_type=result["content_type"],
            filename=f"{task_id}-{result['position']}{path.suffix}",
            content_disposition_type="inline",
        )

    async def _authorize(self, request: Request, task_id: str, index: int) -> None:
        signature = request.query_params.get("signature")
        if signature is None:
            await self._guard.check(request, "read")
            return
        expires = request.query_params.get("expires", "")
        try:
            verify_link(self._settings.signing_secrets, task_id, index, expires, signature, now=self._clock())
        except TokenError as error:
            raise ApiError(401, "bad_link", str(error), "Get a new link from GET /api/tasks/{id}.") from None


def _not_modified(request: Request, etag: str) -> bool:
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


def _parse_index(text: str) -> int:
    """The index of a result. Raises ApiError if it is not a number."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise result_not_found()
    return int(text)


def result_not_found() -> ApiError:
    """The error for an index that the task's results do not have."""
    return ApiError(404, "unknown_result", "There is no such result.", "Check the task's `results`.")

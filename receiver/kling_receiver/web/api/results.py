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
from kling_callback.protocol.ids import is_id
from kling_callback.protocol.signing import verify_link
from kling_receiver.results.storage import LocalStorage
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import ResultRow
from kling_receiver.web.auth import check_role
from kling_receiver.web.errors import ApiError

log = logging.getLogger("kling_receiver.results")

RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
"""One range; more of them at a time, or in another unit, are answered with the whole file."""


class ResultRoutes:
    """The route of result files: open to a token, or to the signed link in `href`. `clock`: unix seconds."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        reader: Reader,
        storage: LocalStorage,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._reader, self._storage, self._clock = settings, reader, storage, clock
        self._checking = CapacityLimiter(1)  # concurrent requests for one large file compute its checksum once

    def routes(self) -> list[Route]:
        """Every route."""
        return [Route("/api/tasks/{id}/results/{n}", self._result, methods=["GET"])]

    async def _result(self, request: Request) -> Response:
        task, n = request.path_params["id"], _parse_index(request.path_params["n"])
        self._authorize(request, task, n)
        result = await self._reader.result(task, n) if is_id(task) else None
        if result is None:
            raise ApiError(404, "unknown_result", "There is no such result.", "Look at the task's `results`.")
        if result["status"] != "stored":
            why = "It could not be had." if result["status"] == "failed" else "It is not here yet."
            raise ApiError(409, f"result_{result['status']}", why, "Wait for the task's `result.stored` event.")
        return await self._file(request, task, result)

    async def _file(self, request: Request, task_id: str, result: ResultRow) -> Response:
        assert result["path"]
        path = self._storage.path(result["path"])
        found = await to_thread.run_sync(self._storage.sha256, result["path"], limiter=self._checking)
        if found != result["sha256"]:
            log.error("task %s, result %d: the file %s is gone, or was altered", task_id, result["position"], path)
            why = "The file is no longer in the storage as it was stored."
            raise ApiError(410, "result_lost", why, "Look at the storage folder, and put the file back.")
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

    def _authorize(self, request: Request, task_id: str, index: int) -> None:
        signature = request.query_params.get("signature")
        if signature is None:
            check_role(request, self._settings.signing_secrets, "read")
            return
        expires = request.query_params.get("expires", "")
        try:
            verify_link(self._settings.signing_secrets, task_id, index, expires, signature, now=self._clock())
        except TokenError as error:
            raise ApiError(401, "bad_link", str(error), "Ask GET /api/tasks/{id} for a new link.") from None


def _not_modified(request: Request, etag: str) -> bool:
    """Whether the client has this file; a proxy that compresses marks its tag as weak."""
    tags = [each.strip().removeprefix("W/") for each in request.headers.get("If-None-Match", "").split(",")]
    return etag in tags or "*" in tags


def _check_range(request: Request, etag: str, size: int) -> None:
    """Leave a `Range` in the request only if it is one that can be answered. ApiError for one past the end."""
    found = RANGE.fullmatch(request.headers.get("Range", ""))
    first, last = (found[1], found[2]) if found else ("", "")
    turned = first and last and int(first) > int(last)
    if not (first or last) or turned or request.headers.get("If-Range", etag) != etag:
        request.scope["headers"] = [each for each in request.scope["headers"] if each[0] != b"range"]
    elif int(first or 0) >= size or (not first and int(last) == 0):
        whole = f"bytes */{size}"
        raise ApiError(416, "bad_range", f"The file has {size} bytes.", "Ask for less.", Content_Range=whole)


def _parse_index(text: str) -> int:
    """A result's number. Raises ApiError."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ApiError(404, "unknown_result", "There is no such result.", "Look at the task's `results`.")
    return int(text)

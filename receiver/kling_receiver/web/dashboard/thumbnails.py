"""GET /dashboard/thumbnails/{task}/{n}: the thumbnail of a stored image, for a session or a token of the role read."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kling_callback.protocol.ids import is_id
from kling_receiver.results.thumbnails import MISSING_THUMBNAIL, SourceLost, Thumbnails, TooManyWaiting
from kling_receiver.store.reader import Reader
from kling_receiver.web.api.results import IMAGE_POLICY, not_modified, parse_index, result_not_found
from kling_receiver.web.auth import Guard
from kling_receiver.web.errors import ApiError

VERSION_CHARS = 16
"""Of the file's checksum in a thumbnail's address: with them it never changes."""
LONG = "private, max-age=31536000, immutable"
HEADERS = {
    "Content-Security-Policy": IMAGE_POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


class ThumbnailRoutes:
    """The route of thumbnails, which the list and the page of a task show."""

    def __init__(self, guard: Guard, *, reader: Reader, thumbnails: Thumbnails) -> None:
        self._guard, self._reader, self._thumbnails = guard, reader, thumbnails

    def routes(self) -> list[Route]:
        """The routes of this module."""
        endpoint = self._guard.require("read", self._show, query=("v",))
        return [Route("/dashboard/thumbnails/{task}/{n}", endpoint, methods=["GET"])]

    async def _show(self, request: Request) -> Response:
        """`v`, which pages add, begins the file's checksum: a file that was downloaded anew has another address."""
        task_id, index = request.path_params["task"], parse_index(request.path_params["n"])
        result = await self._reader.result(task_id, index) if is_id(task_id) else None
        if result is None or result["status"] != "stored" or not str(result["content_type"]).startswith("image/"):
            raise result_not_found()
        sha256 = str(result["sha256"])
        etag = f'"{sha256}-thumbnail"'
        is_lasting = request.query_params.get("v") == sha256[:VERSION_CHARS]
        headers = {**HEADERS, "ETag": etag, "Cache-Control": LONG if is_lasting else "private, no-cache"}
        if not_modified(request, etag):
            return Response(status_code=304, headers=headers)
        try:
            thumbnail = await self._thumbnails.get(result)
        except SourceLost:
            message = "The file is no longer in the storage as it was stored."
            raise ApiError(410, "result_lost", message, "Check the storage folder, and restore the file.") from None
        except TooManyWaiting:
            return _placeholder(503)
        if not thumbnail.is_final:
            return _placeholder(200)
        return Response(thumbnail.content, headers=headers, media_type=thumbnail.media_type)


def _placeholder(status: int) -> Response:
    """A placeholder that the next request replaces; a browser shows it with any status."""
    headers = {**HEADERS, "Cache-Control": "no-store", **({"Retry-After": "5"} if status == 503 else {})}
    return Response(MISSING_THUMBNAIL.content, status, headers=headers, media_type=MISSING_THUMBNAIL.media_type)

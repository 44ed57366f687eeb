"""The JSON API: registration, tasks, events as they happen, and the files."""

import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from client.errors import TokenError
from client.ids import is_id
from client.signing import CallbackSigner, Role, read_link
from receiver import creates
from receiver.access import Endpoint, for_role, require
from receiver.body import LARGE, Bodies, Share, read_body
from receiver.errors import ApiError
from receiver.feed import Feed
from receiver.paging import cursor_of, limit_of, place_of
from receiver.reading import Filter, Full, Reader, in_thread
from receiver.registration import check_account, check_hook, read_registration, registration
from receiver.settings import ReceiverSettings
from receiver.states import STATUSES
from receiver.storage import Folder
from receiver.views import Views
from receiver.writer import Writer

log = logging.getLogger("receiver.api")

RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
"""One range; more of them at a time, or in another unit, are answered with the whole file."""


class Api:
    """The routes under `/api`."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        writer: Writer,
        reader: Reader,
        feed: Feed,
        bodies: Bodies,
        folder: Folder,
        views: Views,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._writer, self._reader = settings, writer, reader
        self._feed, self._bodies, self._folder = feed, bodies, folder
        self._views, self._clock = views, clock
        self._signer = CallbackSigner(settings.signing_secrets, clock=clock)
        self._checking = CapacityLimiter(1)  # whoever asks for the same large file finds it checked

    def routes(self) -> list[Route]:
        """Every route; a result is open to whoever has its link."""
        return [
            Route("/api/tasks", self._for("read", self._list), methods=["GET"]),
            Route("/api/tasks/{id}", self._task, methods=["GET", "PUT"]),
            Route("/api/tasks/{id}/events", self._for("read", self._task_events), methods=["GET"]),
            Route("/api/tasks/{id}/results/{n}", self._result, methods=["GET"]),
            Route("/api/events", self._for("read", self._all_events), methods=["GET"]),
        ]

    def _for(self, role: Role, endpoint: Endpoint) -> Endpoint:
        return for_role(self._settings.signing_secrets, role, endpoint)

    async def _task(self, request: Request) -> Response:
        register, show = self._for("client", self._register), self._for("read", self._show)
        return await (register if request.method == "PUT" else show)(request)

    async def _register(self, request: Request) -> Response:
        task = request.path_params["id"]
        if not is_id(task):
            hint = "Use 1 to 128 letters, digits and . _ - : @ =, beginning with a letter or digit."
            raise ApiError(422, "bad_id", "This cannot be a task's id.", hint)
        with Share(self._bodies) as share:
            body = await read_body(request, share)
            if body.trouble or body.size > len(body.kept):
                raise ApiError(
                    413, "too_large", "The registration is too long.", "Leave image bytes out of `request`."
                )
            large = body.size > LARGE  # looked through beside the event loop
            given = await in_thread(read_registration, body.kept) if large else read_registration(body.kept)
            check_account(given, self._settings)
            check_hook(given, self._settings)
            known = registration(task, given)
            done = await self._writer.run(lambda tx: creates.register(tx, known), size=body.size)
        if done.conflict:
            raise ApiError(409, "conflict", done.conflict, "Use another external_task_id.")
        full = await known_task(self._reader, task)
        answer = {
            "task": self._views.task(full),
            "callback_url": self._signer.url(self._settings.receiver_url, task, full.row["family"]),
            "create": done.create,
        }
        return JSONResponse(answer, 201 if done.new else 200)

    async def _show(self, request: Request) -> Response:
        return JSONResponse(self._views.task(await known_task(self._reader, request.path_params["id"])))

    async def _list(self, request: Request) -> Response:
        page = await self._reader.page(_filter(request), lambda full: _json(self._views.task(full)))
        cursor = _json(cursor_of(page.last) if page.last else None)
        body = b'{"tasks":[%s],"next":%s}' % (b",".join(page.shown), cursor)
        return Response(body, media_type="application/json")

    async def _task_events(self, request: Request) -> Response:
        full = await known_task(self._reader, request.path_params["id"])
        return self._stream(request, full.row["id"], await self._after(request))

    async def _all_events(self, request: Request) -> Response:
        return self._stream(request, None, await self._after(request))

    async def _after(self, request: Request) -> int:
        """Where a stream begins: after `Last-Event-ID`, or `?after=`, which may also be `latest`."""
        said = request.headers.get("Last-Event-ID") or request.query_params.get("after") or "0"
        if said == "latest":
            return await self._reader.last_event()
        if not (said.isascii() and said.isdigit() and len(said) < 19):
            raise ApiError(422, "bad_event_id", "The event id is not a number.", "Send back an id that came.")
        return int(said)

    def _stream(self, request: Request, task: str | None, after: int) -> Response:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        if request.method == "HEAD":  # has no body to wait for
            return Response(media_type="text/event-stream", headers=headers)
        if self._feed.is_full:
            raise ApiError(
                503, "too_many_streams", "Too many streams are open.", "Close some.", Retry_After="30"
            )
        return StreamingResponse(self._frames(task, after), media_type="text/event-stream", headers=headers)

    async def _frames(self, task: str | None, after: int) -> AsyncIterator[bytes]:
        # The id is where it begins: who loses the stream before anything happens misses nothing.
        yield f": this stream tells what happens, as it happens\nid: {after}\n\n".encode()
        async for rows in self._feed.follow(task, after):
            if not rows:
                yield b":\n\n"
                continue
            while rows:
                frames = await self._reader.batch(rows, lambda row, full: _frame(self._views.event(row, full)))
                rows = rows[len(frames) :]
                for frame in frames:
                    yield frame

    async def _result(self, request: Request) -> Response:
        task, n = request.path_params["id"], _index(request.path_params["n"])
        self._check_reader(request, task, n)
        result = await self._reader.result(task, n) if is_id(task) else None
        if result is None:
            raise ApiError(404, "unknown_result", "There is no such result.", "Look at the task's `results`.")
        if result["status"] != "stored":
            why = "It could not be had." if result["status"] == "failed" else "It is not here yet."
            raise ApiError(409, f"result_{result['status']}", why, "Wait for the task's `result.stored` event.")
        return await self._file(request, task, result)

    async def _file(self, request: Request, task: str, result: dict[str, Any]) -> Response:
        path = self._folder.path(result["name"])
        found = await to_thread.run_sync(self._folder.sha256, result["name"], limiter=self._checking)
        if found != result["sha256"]:
            log.error("task %s, result %d: the file %s is gone, or was altered", task, result["n"], path)
            why = "The file is no longer in the storage as it was stored."
            raise ApiError(410, "result_lost", why, "Look at the storage folder, and put the file back.")
        headers = {
            "ETag": f'"{result["sha256"]}"',
            "Cache-Control": "private, max-age=31536000, immutable",
            "Content-Security-Policy": "sandbox; default-src 'none'",
            "X-Content-Type-Options": "nosniff",
        }
        if _has(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        _check_range(request, headers["ETag"], result["size"])
        return FileResponse(
            path,
            headers=headers,
            media_type=result["content_type"],
            filename=f"{task}-{result['n']}{path.suffix}",
            content_disposition_type="inline",
        )

    def _check_reader(self, request: Request, task: str, n: int) -> None:
        signature = request.query_params.get("signature")
        if signature is None:
            require(request, self._settings.signing_secrets, "read")
            return
        expires = request.query_params.get("expires", "")
        try:
            read_link(self._settings.signing_secrets, task, n, expires, signature, now=self._clock())
        except TokenError as error:
            raise ApiError(401, "bad_link", str(error), "Ask GET /api/tasks/{id} for a new link.") from None


async def known_task(reader: Reader, task: str) -> Full:
    """A task with all that is shown of it. Raises ApiError when there is none."""
    found = await reader.full([task]) if is_id(task) else {}
    if task not in found:
        raise ApiError(404, "unknown_task", "There is no such task.", "Look at GET /api/tasks.")
    return found[task]


def _has(request: Request, etag: str) -> bool:
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


def _index(said: str) -> int:
    """A result's number. Raises ApiError."""
    if not (said.isascii() and said.isdigit() and len(said) < 10):
        raise ApiError(404, "unknown_result", "There is no such result.", "Look at the task's `results`.")
    return int(said)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _frame(event: dict[str, Any]) -> bytes:
    data = json.dumps(event, separators=(",", ":"))
    return f"id: {event['id']}\nevent: {event['type']}\ndata: {data}\n\n".encode()


def _filter(request: Request) -> Filter:
    """The filters of a list. Raises ApiError naming every problem."""
    asked, problems = request.query_params, []
    status, limit, cursor = asked.get("status"), asked.get("limit", "50"), asked.get("cursor")
    if status and status not in STATUSES:
        problems.append(f"`status` is one of {', '.join(STATUSES)}.")
    most, before = limit_of(limit, problems), place_of(cursor, problems)
    if problems:
        raise ApiError(422, "bad_filter", " ".join(problems), "Mend the address and send it again.")
    family, tag = (_text(asked.get(name)) for name in ("family", "tag"))
    return Filter(status=status, family=family, tag=tag, before=before, limit=most)


def _text(value: str | None) -> str | None:
    """A filter's text; what no row can hold finds none."""
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode() if value else None

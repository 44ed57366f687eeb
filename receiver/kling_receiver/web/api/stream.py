"""GET /api/events and /api/tasks/{id}/events: event streams (Server-Sent Events) of all tasks or of one."""

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from kling_callback.protocol.events import LogPosition, position_of
from kling_callback.protocol.signing import ApiToken
from kling_receiver.events import log as event_log
from kling_receiver.events.bus import EventBus
from kling_receiver.events.payloads import EventJson, Payloads
from kling_receiver.store.reader import Reader
from kling_receiver.web.api.tasks import get_task_or_404
from kling_receiver.web.auth import Guard, RouteHandler
from kling_receiver.web.errors import ApiError
from kling_receiver.web.requests import check_query

log = logging.getLogger("kling_receiver.events")

CURSOR_HINT = "Send the `id` of a frame, `0` for all events, or `latest`. The number of an event alone names no log."
OTHER_LOG = "The cursor is of another event log: the database was restored or replaced."
OTHER_LOG_HINT = (
    "Start over: `?after=0` has all events, also those that you handled before; `?after=latest` skips them."
)
LOST = (
    "a client says that it has received event %d, which this database does not have. If the database was restored from "
    "a backup, stop the receiver and run: kling-receiver restored"
)


class StreamRoutes:
    """The routes of event streams: past events from a cursor, then live events, until the token expires."""

    def __init__(self, guard: Guard, *, reader: Reader, bus: EventBus, payloads: Payloads) -> None:
        self._guard, self._reader, self._bus, self._payloads = guard, reader, bus, payloads
        self._reported = False

    def routes(self) -> list[Route]:
        """The routes of this module."""
        return [
            Route("/api/tasks/{id}/events", self._guarded(self._task_events), methods=["GET"]),
            Route("/api/events", self._guarded(self._all_events), methods=["GET"]),
        ]

    def _guarded(self, endpoint: Callable[[Request, ApiToken], Awaitable[Response]]) -> RouteHandler:
        async def guarded(request: Request) -> Response:
            token = await self._guard.check(request, "read")
            check_query(request, ("after",))
            return await endpoint(request, token)

        return guarded

    async def _task_events(self, request: Request, token: ApiToken) -> Response:
        detail = await get_task_or_404(self._reader, request.path_params["id"])
        return self._stream(request, token, detail.row["id"], await self._start(request))

    async def _all_events(self, request: Request, token: ApiToken) -> Response:
        return self._stream(request, token, None, await self._start(request))

    async def _start(self, request: Request) -> LogPosition:
        """The position after which a stream begins: `Last-Event-ID`, or `?after=`: a cursor, `0` or `latest`."""
        text = request.headers.get("Last-Event-ID") or request.query_params.get("after") or "0"
        if text in ("0", "latest"):
            newest = await self._reader.read(event_log.newest)
            return newest if text == "latest" else LogPosition(newest.log_id, 0)
        cursor = _parse_cursor(text)
        place = await self._reader.read(lambda connection: event_log.locate(connection, cursor))
        if place == "known":
            return cursor
        if place == "lost" and not self._reported:
            # Logged once, and the log is not renewed: any client with the role `read` can make up such a cursor.
            self._reported = True
            log.error(LOST, cursor.event_id)
        raise ApiError(409, "other_log", OTHER_LOG, OTHER_LOG_HINT)

    def _stream(self, request: Request, token: ApiToken, task_id: str | None, after: LogPosition) -> Response:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        if request.method == "HEAD":  # a response without a body must end at once
            return Response(media_type="text/event-stream", headers=headers)
        if self._bus.is_full:
            raise ApiError(
                503, "too_many_streams", "Too many streams are open.", "Close unused streams.", Retry_After="30"
            )
        frames = self._frames(task_id, after, self._guard.seconds_left(token))
        return StreamingResponse(frames, media_type="text/event-stream", headers=headers)

    async def _frames(
        self, task_id: str | None, after: LogPosition, seconds_left: Callable[[], float]
    ) -> AsyncIterator[bytes]:
        # The cursor is where the stream begins, so that a client which reconnects before any event misses none.
        yield f": past events, then live events\nid: {after}\n\n".encode()
        async for rows in self._bus.follow(task_id, after.event_id, seconds_left=seconds_left):
            if not rows:  # a comment keeps proxies from closing a silent connection
                yield b":\n\n"
                continue
            while rows and seconds_left():  # a slow client may take long to read what it has
                frames = await self._reader.render_events(
                    rows, lambda event, detail: _frame(self._payloads.event(event, detail))
                )
                rows = rows[len(frames) :]
                for frame in filter(None, frames):
                    yield frame


def _parse_cursor(text: str) -> LogPosition:
    try:
        return LogPosition.parse(text)
    except ValueError:
        raise ApiError(422, "bad_event_id", "This is not the cursor of an event.", CURSOR_HINT) from None


def _frame(event: EventJson) -> bytes:
    data = json.dumps(event, separators=(",", ":"))
    cursor = position_of(event["log_id"], event["id"], event["at"])
    return f"id: {cursor}\nevent: {event['type']}\ndata: {data}\n\n".encode()

"""Follow the receiver's event stream (Server-Sent Events), resumed after the last event when it breaks. No polling."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import anyio
import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

from kling_callback.api.receiver import ReceiverApi, task_path, unreadable_answer
from kling_callback.api.task_json import has_id, is_task
from kling_callback.display import logger
from kling_callback.errors import ReceiverError
from kling_callback.protocol.events import MAX_EVENT_BYTES, Event, LogPosition, position_of
from kling_callback.protocol.nesting import MAX_ANSWER_DEPTH, is_deeper

log = logger("kling_callback.events")

OTHER_LOG = "other_log"
"""The receiver's error code for a cursor of another event log: its database was restored or replaced."""


async def follow(
    receiver: ReceiverApi,
    task_id: str | None = None,
    *,
    after: LogPosition | None = None,
    on_reconnect: Callable[[], object] | None = None,
) -> AsyncGenerator[Event, None]:
    """Yield the events of a task until it is done; without `task_id`, of all tasks, without end. Reconnects.

    The receiver ends a stream when its token expires; the next connection has a new one, and begins after the last
    event. `task_id`: any id of the task. Reconnections use ours: Kling's id may be corrected meanwhile.
    `after`: only events after it are yielded. `on_reconnect`: called when any connection but the first attempt is open:
    a task that ended and was removed before it has no events any more; following such a task alone is refused (404).
    When the receiver's database was restored, a task's events begin anew; without `task_id`, the cursor is refused.
    Raises ReceiverError when the receiver refuses (`code` OTHER_LOG for such a cursor), or was never reached within
    `unreachable_seconds`.
    """
    last, failures, done, started_at = after, 0, False, anyio.current_time()
    on_open: Callable[[], object] | None = None
    while True:
        opened_at, broke = anyio.current_time(), False
        try:
            async with aclosing(_stream(receiver, task_id, last, on_open)) as events:
                on_open = on_reconnect
                async for event in events:
                    last, failures = event.position, 0
                    task_id = task_id and event.task["id"]
                    yield event
                    done = task_id is not None and event.task.get("done") is True
                    if done and event.ends:
                        return
            if done:
                return
        except ReceiverError as error:
            if error.code == OTHER_LOG and task_id and last:
                log.warning("The receiver's database was restored: the events of task %s begin anew", task_id)
                last = None
                continue
            waited = anyio.current_time() - started_at
            if not error.retryable or (not receiver.reached and waited > receiver.retry.unreachable_seconds):
                raise
            log.info("The event stream%s broke: %s", f" of task {task_id}" if task_id else "", error)
            broke = True
        if anyio.current_time() - opened_at > receiver.retry.max_wait:
            failures = 0
            if not broke:  # the token of the stream has expired: each connection has a new one
                continue
        failures += 1
        await anyio.sleep(receiver.retry.pause(failures))


async def last_event(receiver: ReceiverApi) -> LogPosition:
    """The position after the newest event of all tasks. Raises ReceiverError."""

    async def read() -> LogPosition:
        async with aclosing(_frames(receiver, "/api/events?after=latest", None)) as frames:
            async for frame in frames:
                return _position(frame.id)
        raise unreadable_answer()

    policy = receiver.retry
    return await policy.retry(read, lambda error: error.retryable, policy.read_seconds)


async def _stream(
    receiver: ReceiverApi, task_id: str | None, last: LogPosition | None, on_open: Callable[[], object] | None
) -> AsyncGenerator[Event, None]:
    """The events of one connection, after `last`. `on_open`: called when the receiver has accepted it."""
    path = f"{task_path(task_id)}/events" if task_id else "/api/events"
    async with aclosing(_frames(receiver, path, last, on_open)) as frames:
        async for frame in frames:
            if frame.data and _is_after(event := _event(frame, task_id), last):
                yield event


async def _frames(
    receiver: ReceiverApi, path: str, last: LogPosition | None, on_open: Callable[[], object] | None = None
) -> AsyncGenerator[ServerSentEvent, None]:
    """The frames of one connection, heartbeats included."""
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    timeout = httpx.Timeout(30, connect=10, read=receiver.retry.stream_timeout)
    async with receiver.open("GET", path, headers=headers, timeout=timeout) as response:
        if on_open:
            on_open()
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _LimitedStream(response.stream)
        try:
            async with aclosing(EventSource(response).aiter_sse()) as frames:
                async for frame in frames:
                    yield frame
        except SSEError:
            raise unreadable_answer() from None


def _event(frame: ServerSentEvent, task_id: str | None) -> Event:
    try:
        content = json.loads(frame.data)
        task, data = content["task"], content.get("data")
        position = position_of(content["log_id"], content["id"], content["at"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise unreadable_answer() from None
    if not is_task(task) or not (task_id is None or has_id(task, task_id)) or is_deeper(data, MAX_ANSWER_DEPTH):
        raise unreadable_answer()
    data = data if isinstance(data, dict) else {}
    return Event(position.event_id, frame.event, content["at"], data, task, position.log_id)


def _is_after(event: Event, last: LogPosition | None) -> bool:
    return last is None or event.log_id != last.log_id or event.id > last.event_id


def _position(text: str) -> LogPosition:
    try:
        return LogPosition.parse(text)
    except ValueError:
        raise unreadable_answer() from None


class _LimitedStream(httpx.AsyncByteStream):
    """A byte stream that ends with an error when one event exceeds MAX_EVENT_BYTES: it is held in memory."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size = len(chunk) if b"\n\n" in chunk or b"\r" in chunk else size + len(chunk)
            if size > MAX_EVENT_BYTES:
                raise unreadable_answer()
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()

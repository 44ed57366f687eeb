"""Events as the receiver tells them: one stream, taken up again where it broke. It never polls."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import anyio
import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

from kling_callback.errors import ReceiverError
from kling_callback.protocol.events import MAX_EVENT_CHARS, Event
from kling_callback.receiver_api import ReceiverApi, is_task, task_path, unreadable_answer

log = logging.getLogger("client")


async def follow(
    receiver: ReceiverApi, task_id: str | None = None, *, after: int | None = None
) -> AsyncGenerator[Event, None]:
    """All events of a task up to the one that ends it, however often the connection breaks.

    Without a task those of all tasks, without end. `after`: an event's id; it and those before are left out.
    Raises ReceiverError when the receiver refuses, or was never reached.
    """
    last, failures, done, began = after, 0, False, anyio.current_time()
    while True:
        try:
            async with aclosing(_stream(receiver, task_id, last)) as events:
                async for event in events:
                    last, failures = event.id, 0
                    yield event
                    done = task_id is not None and event.task.get("done") is True
                    if done and event.ends:
                        return
            if done:
                return
        except ReceiverError as error:
            hopeless = not receiver.reached and anyio.current_time() - began > receiver.retry.unreachable_seconds
            if not error.retryable or hopeless:
                raise
            log.info("The event stream%s broke: %s", f" of task {task_id}" if task_id else "", error)
        failures += 1
        await anyio.sleep(receiver.retry.pause(failures))


async def last_event(receiver: ReceiverApi) -> int:
    """The id of the newest event of all; 0 when there is none. Raises ReceiverError."""

    async def ask() -> int:
        async with aclosing(_frames(receiver, "/api/events?after=latest", None)) as frames:
            async for sent in frames:
                return _number(sent.id)
        raise unreadable_answer()

    policy = receiver.retry
    return await policy.retry(ask, lambda error: error.retryable, policy.read_seconds)


async def _stream(receiver: ReceiverApi, task_id: str | None, last: int | None) -> AsyncGenerator[Event, None]:
    """The events of one connection, those after `last`."""
    path = f"{task_path(task_id)}/events" if task_id else "/api/events"
    async with aclosing(_frames(receiver, path, last)) as frames:
        async for sent in frames:
            if sent.data and (event := _event(sent, task_id)).id > (last or -1):
                yield event


async def _frames(receiver: ReceiverApi, path: str, last: int | None) -> AsyncGenerator[ServerSentEvent, None]:
    """What comes over one connection."""
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    timeout = httpx.Timeout(30, connect=10, read=receiver.retry.stream_timeout)
    async with receiver.open("GET", path, headers=headers, timeout=timeout) as response:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _LimitedStream(response.stream)
        try:
            async with aclosing(EventSource(response).aiter_sse()) as frames:
                async for sent in frames:
                    yield sent
        except SSEError:
            raise unreadable_answer() from None


def _event(sent: ServerSentEvent, task_id: str | None) -> Event:
    try:
        content = json.loads(sent.data)
        task, data = content["task"], content.get("data")
        number = _number(sent.id or content["id"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise unreadable_answer() from None
    if not is_task(task, task_id):
        raise unreadable_answer()
    return Event(number, sent.event, str(content.get("at")), data if isinstance(data, dict) else {}, task)


def _number(said: Any) -> int:
    """An event's id."""
    try:
        return int(said)
    except (ValueError, TypeError):
        raise unreadable_answer() from None


class _LimitedStream(httpx.AsyncByteStream):
    """A stream whose events are not endless: who never ends one would fill our memory."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size = len(chunk) if b"\n\n" in chunk or b"\r" in chunk else size + len(chunk)
            if size > MAX_EVENT_CHARS:
                raise unreadable_answer()
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()

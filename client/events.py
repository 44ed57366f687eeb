"""A task's events as the receiver tells them: one stream, taken up again where it broke. It never polls."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
from httpx_sse import EventSource, ServerSentEvent, SSEError

from client.errors import ReceiverError
from client.receiver import Receiver, is_task, task_path, unreadable

LONGEST_EVENT = 16_000_000
"""Bytes: an event carries the task with its request."""

log = logging.getLogger("client")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a task; `task` is the task's JSON as it was when the event was sent to us."""

    id: int
    type: str
    at: str
    data: dict[str, Any]
    task: dict[str, Any]

    @property
    def ends(self) -> bool:
        """Whether nothing more is owed: an early `task.done` may have given way to Kling's later word."""
        return self.type == "task.done" and self.task.get("done") is True


async def follow(receiver: Receiver, task_id: str) -> AsyncGenerator[Event, None]:
    """All events of a task up to the one that ends it, however often the connection breaks.

    Raises ReceiverError when the receiver refuses, or was never reached.
    """
    last, failures, done, began = None, 0, False, anyio.current_time()
    while True:
        try:
            async with aclosing(_stream(receiver, task_id, last)) as events:
                async for event in events:
                    last, failures, done = event.id, 0, event.task.get("done") is True
                    yield event
                    if event.ends:
                        return
            if done:
                return
        except ReceiverError as error:
            hopeless = not receiver.reached and anyio.current_time() - began > receiver.patience.unreached
            if not error.retryable or hopeless:
                raise
            log.info("The event stream of task %s broke: %s", task_id, error)
        failures += 1
        await anyio.sleep(receiver.patience.pause(failures))


async def _stream(receiver: Receiver, task_id: str, last: int | None) -> AsyncGenerator[Event, None]:
    """The events of one connection, those after `last`."""
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "Cache-Control": "no-store"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    timeout = httpx.Timeout(30, connect=10, read=receiver.patience.silence)
    async with receiver.open(
        "GET", f"{task_path(task_id)}/events", headers=headers, timeout=timeout
    ) as response:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Capped(response.stream)
        try:
            async with aclosing(EventSource(response).aiter_sse()) as events:
                async for sent in events:
                    if sent.data and (event := _event(sent, task_id)).id > (last or -1):
                        yield event
        except SSEError:
            raise unreadable() from None


def _event(sent: ServerSentEvent, task_id: str) -> Event:
    try:
        content = json.loads(sent.data)
        task, data = content["task"], content.get("data")
        number = int(sent.id or content["id"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise unreadable() from None
    if not is_task(task, task_id):
        raise unreadable()
    return Event(number, sent.event, str(content.get("at")), data if isinstance(data, dict) else {}, task)


class _Capped(httpx.AsyncByteStream):
    """A stream whose events are not endless: who never ends one would fill our memory."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size = len(chunk) if b"\n\n" in chunk or b"\r" in chunk else size + len(chunk)
            if size > LONGEST_EVENT:
                raise unreadable()
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()

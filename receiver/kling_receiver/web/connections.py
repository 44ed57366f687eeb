"""uvicorn's HTTP, with an end to every wait: nobody who proves nothing holds memory or a descriptor for long.

A connection on which it is the other side's turn (to send a head, to take an answer) waits. When there are
too many connections, those that have waited longest make room for those that come.
"""

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from kling_receiver.web.errors import error_response

MAX_HEADER_BYTES = 65_536
"""Bytes of a request's head that comes in pieces; also of what is between the pieces of a body, or after it."""
HEADER_SECONDS = 15
"""For a whole head, from its first byte (on a new connection: from its beginning)."""
WRITE_STALL_SECONDS = 60
"""For the other side to take some of what was written."""
MAX_HEADERS = 100
"""Of a request; each costs some thirty times what it took to send it."""
MAX_PIPELINED = 16
"""Requests of one connection that wait for their turn; each costs a hundred times what it took to send it."""


class ConnectionTable(ServerState):
    """What the connections of a server share. `most`: how many there may be."""

    def __init__(self, max_connections: int) -> None:
        super().__init__()
        self.max_connections = max_connections
        self.waiting: OrderedDict[LimitedHttpProtocol, None] = OrderedDict()
        self.closed = False
        """Whether the server ends: a connection that was just taken in has come too late."""

    def evict_idle(self) -> None:
        """End what has waited longest, while there are too many; the newest goes when all others are busy."""
        while len(self.connections) > self.max_connections and self.waiting:
            longest, _ = self.waiting.popitem(last=False)
            self.connections.discard(longest)
            longest.transport.abort()


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    server_state: ConnectionTable

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self._unparsed_bytes = 0
        """Bytes that came since the last head, or piece of a body, was whole."""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        if self.server_state.closed:
            transport.abort()
            return
        self._start_deadline(HEADER_SECONDS)
        self.server_state.evict_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._clear_deadline()

    def data_received(self, data: bytes) -> None:
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            self._reject(error_response(431, "head_too_large", "The head is too large.", "Send fewer headers."))
        elif self._deadline is None and self._is_idle():
            self._start_deadline(HEADER_SECONDS)

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= MAX_HEADERS:
            raise ValueError("too many headers")  # the parser stops, and send_400_response is called
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unparsed_bytes = 0
        self._clear_deadline()
        super().on_headers_complete()
        self._mark_waiting()
        if len(self.pipeline) > MAX_PIPELINED:
            raise ValueError("too many requests at once")  # the parser stops, and send_400_response is called

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        super().on_body(body)
        self._mark_waiting()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if not self._is_idle():
            self.server_state.waiting.pop(self, None)

    def _mark_waiting(self) -> None:
        """More of a body is to come: who sends none of it for long makes room."""
        self.server_state.waiting[self] = None
        self.server_state.waiting.move_to_end(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_idle():  # uvicorn ends it after KEEP_ALIVE, unless something comes
            self.server_state.waiting[self] = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_progress(sys.maxsize)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._is_idle() and self._unparsed_bytes:  # the next head has begun meanwhile
            self._start_deadline(HEADER_SECONDS)
            return
        self._clear_deadline()
        if self._is_idle():
            self.server_state.waiting[self] = None

    def send_400_response(self, msg: str) -> None:
        self._reject(error_response(400, "bad_request", "This is no HTTP request.", "Look at what sends it."))

    def _reject(self, answer: Response) -> None:
        """Answer and end; only end where other answers are owed first, or this request had its own."""
        if self.pipeline or self._has_begun_to_answer():
            self.transport.abort()
            return
        headers = [b"%s: %s\r\n" % header for header in answer.raw_headers]
        head = [STATUS_LINE[answer.status_code], *headers, b"connection: close\r\n\r\n"]
        self.transport.write(b"".join([*head, bytes(answer.body)]))
        self.transport.close()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]  # None at first

    def _has_begun_to_answer(self) -> bool:
        """The request that still comes in, or whose answer still goes out."""
        cycle = self.cycle
        return cycle is not None and cycle.response_started and (cycle.more_body or not cycle.response_complete)  # type: ignore[redundant-expr]

    def _start_deadline(self, seconds: float, end: Callable[[], object] | None = None) -> None:
        """It is the other side's turn, for so long; then comes the `end` (of the connection)."""
        self._clear_deadline()
        self.server_state.waiting[self] = None
        self._deadline = self.loop.call_later(seconds, end or self.transport.abort)

    def _wait_for_progress(self, left: int) -> None:
        """It is the other side's turn to take some of what is `left` of an answer, bytes."""
        now = self.transport.get_write_buffer_size()
        if now >= left:
            self.transport.abort()
            return
        self._start_deadline(WRITE_STALL_SECONDS, partial(self._wait_for_progress, now))

    def _clear_deadline(self) -> None:
        """It is our turn."""
        self.server_state.waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

"""uvicorn's HTTP protocol with time and size limits, so that an unauthenticated peer cannot hold memory or a socket.

A connection waits while the peer has to act: to send a request's head or body, or to read a response. When there
are too many connections, those that have waited longest are closed. `server.create_server` checks that the
installed uvicorn has what this module overrides and uses.
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
"""Bytes of a request's head that arrives in pieces; also of what is between the pieces of a body, or after it."""
HEADER_SECONDS = 15
"""Seconds for a whole head, from its first byte; on a new connection, from its start."""
WRITE_STALL_SECONDS = 60
"""Seconds for the peer to read some of what was written."""
MAX_HEADERS = 100
"""Headers of a request; each costs some thirty times the memory that it took to send."""
MAX_PIPELINED = 16
"""Requests of one connection that are queued; each costs a hundred times the memory that it took to send."""


class ConnectionTable(ServerState):
    """What the connections of a server share. `max_connections`: how many there may be."""

    def __init__(
        self,
        max_connections: int,
        *,
        header_seconds: float = HEADER_SECONDS,
        write_stall_seconds: float = WRITE_STALL_SECONDS,
    ) -> None:
        super().__init__()
        self.max_connections = max_connections
        self.header_seconds, self.write_stall_seconds = header_seconds, write_stall_seconds
        self.waiting: OrderedDict[LimitedHttpProtocol, None] = OrderedDict()
        """Connections whose peer has to act, the one that has waited longest first."""
        self.closed = False
        """Whether the server shuts down: a connection that was accepted just before is ended at once."""

    def evict_idle(self) -> None:
        """Close the connections that have waited longest, while there are too many.

        The newest waits too: it is closed when all others are busy.
        """
        while len(self.connections) > self.max_connections and self.waiting:
            longest, _ = self.waiting.popitem(last=False)
            self.connections.discard(longest)
            longest.transport.abort()


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    server_state: ConnectionTable

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unparsed_bytes = 0
        """Bytes received since the last complete head or piece of a body."""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        if self.server_state.closed:
            transport.abort()
            return
        self._start_deadline(self.server_state.header_seconds)
        self.server_state.evict_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._clear_deadline()

    def data_received(self, data: bytes) -> None:
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            message = f"The head of the request is larger than {MAX_HEADER_BYTES} bytes."
            self._reject(error_response(431, "head_too_large", message, "Send fewer or shorter headers."))
        elif self._deadline is None and self._is_idle():
            self._start_deadline(self.server_state.header_seconds)

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
        """The peer has to send more of a body; one that sends nothing for long can be evicted."""
        self.server_state.waiting[self] = None
        self.server_state.waiting.move_to_end(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_idle():  # uvicorn closes it after the keep-alive time, unless a request arrives
            self.server_state.waiting[self] = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_progress(sys.maxsize)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._is_idle() and self._unparsed_bytes:  # the next head has begun in the meantime
            self._start_deadline(self.server_state.header_seconds)
            return
        self._clear_deadline()
        if self._is_idle():
            self.server_state.waiting[self] = None

    def send_400_response(self, msg: str) -> None:
        hint = "Check the client or proxy that sends it."
        self._reject(error_response(400, "bad_request", "This is not a valid HTTP request.", hint))

    def _reject(self, response: Response) -> None:
        """Send an error and close; only close while earlier responses are pending, or this request's has begun."""
        if self.pipeline or self._response_begun():
            self.transport.abort()
            return
        headers = [b"%s: %s\r\n" % header for header in response.raw_headers]
        head = [STATUS_LINE[response.status_code], *headers, b"connection: close\r\n\r\n"]
        self.transport.write(b"".join([*head, bytes(response.body)]))
        self.transport.close()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]  # None at first

    def _response_begun(self) -> bool:
        """Whether the response to a request has begun while the request, or the response, is incomplete."""
        cycle = self.cycle
        return cycle is not None and cycle.response_started and (cycle.more_body or not cycle.response_complete)  # type: ignore[redundant-expr]

    def _start_deadline(self, seconds: float, end: Callable[[], object] | None = None) -> None:
        """Wait for the peer; after `seconds` call `end`, which by default closes the connection."""
        self._clear_deadline()
        self.server_state.waiting[self] = None
        self._deadline = self.loop.call_later(seconds, end or self.transport.abort)

    def _wait_for_progress(self, unsent_bytes: int) -> None:
        """Close the connection if the peer has read nothing since `unsent_bytes` were counted."""
        still_unsent = self.transport.get_write_buffer_size()
        if still_unsent >= unsent_bytes:
            self.transport.abort()
            return
        self._start_deadline(self.server_state.write_stall_seconds, partial(self._wait_for_progress, still_unsent))

    def _clear_deadline(self) -> None:
        """Stop waiting for the peer: the server has to act."""
        self.server_state.waiting.pop(self, None)
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

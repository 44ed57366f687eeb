"""A small HTTP/1.1 server on asyncio and h11: the sandbox needs no web framework."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable

import h11

from kling_sandbox.web.http import Request, Response

READ_BYTES = 2**16
"""Bytes. One read from a connection."""

App = Callable[[Request], Awaitable[Response]]
logger = logging.getLogger("kling_sandbox")


class Server:
    """Serve `app` on a listening socket, in the running event loop, from `start` to `stop`."""

    def __init__(self, app: App, listening: socket.socket) -> None:
        self._app, self._listening = app, listening
        self._handlers: dict[asyncio.Task[None], socket.socket] = {}

    def start(self) -> None:
        """Accept connections from now on."""
        self._listening.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listening, self._accept)

    async def stop(self) -> None:
        """Accept no more, end every connection, and close the listening socket."""
        asyncio.get_running_loop().remove_reader(self._listening)
        self._listening.close()
        handlers = dict(self._handlers)
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await asyncio.sleep(0)  # transports close their sockets one step later
        for connection in handlers.values():
            connection.close()  # if its handler had not begun

    def _accept(self) -> None:
        # Not asyncio.start_server: it loses connections that are accepted just before it closes.
        try:
            connection, _ = self._listening.accept()
        except OSError:
            return  # gone meanwhile, or too many open files: the loop calls again
        connection.setblocking(False)
        # asyncio sets it on its own sockets only; without it each answer takes 40 ms.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        handler = asyncio.get_running_loop().create_task(self._serve(connection))
        self._handlers[handler] = connection
        handler.add_done_callback(self._handlers.pop)

    async def _serve(self, connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        try:
            await Connection(self._app, reader, writer).serve()
            writer.close()
            await writer.wait_closed()
        except OSError:
            pass  # the client closed it first
        finally:
            writer.transport.abort()


class Connection:
    """One connection: its requests are handled one after the other."""

    def __init__(self, app: App, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._app, self._reader, self._writer = app, reader, writer
        self._http = h11.Connection(h11.SERVER)

    async def serve(self) -> None:
        """Handle requests until either side ends the connection."""
        try:
            while request := await self._receive():
                response = await self._respond(request)
                await self._send(response, head_only=request.method == "HEAD")
                if response.background:
                    await response.background()
                if response.closes or self._http.our_state is not h11.DONE:
                    return
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self._send(Response(str(error).encode(), error.error_status_hint, "text/plain"))

    async def _receive(self) -> Request | None:
        """Read the next request with its whole body; None at the end of the connection."""
        head: h11.Request | None = None
        body = []
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if not await self._read():
                    return None
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage) and head:
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
                return Request(head.method.decode(), head.target.decode("latin-1"), headers, b"".join(body))
            else:
                return None

    async def _read(self) -> bool:
        """Pass received bytes to h11; whether the connection is still open."""
        if self._http.they_are_waiting_for_100_continue:
            self._writer.write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        try:
            self._http.receive_data(await self._reader.read(READ_BYTES))
        except OSError:
            return False
        return True

    async def _respond(self, request: Request) -> Response:
        try:
            return await self._app(request)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            return Response(b"internal error of the sandbox", 500, "text/plain")

    async def _send(self, response: Response, *, head_only: bool = False) -> None:
        """Send a response. A client that is gone does not matter: the request had its effect."""
        parts = [self._http.send(event) for event in response.events() if not (head_only and type(event) is h11.Data)]
        with contextlib.suppress(OSError):
            self._writer.write(b"".join(part for part in parts if part))
            await self._writer.drain()
            if response.closes:
                self._writer.close()
                await self._writer.wait_closed()

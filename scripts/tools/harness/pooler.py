"""A connection pooler for PostgreSQL, in session or in transaction mode, as PgBouncer has them.

In transaction mode a connection to the server is a client's only until its transaction ends.
"""

import selectors
import socket
import socketserver
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from sqlalchemy import make_url

Mode = Literal["session", "transaction"]
Order = Literal["newest", "oldest"]

PROTOCOL = 196608
REQUESTS_FOR_ENCRYPTION = (80877103, 80877104)
GREETING = b"R" + struct.pack("!II", 8, 0)
"""The client is authenticated."""
KEY = b"K" + struct.pack("!III", 12, 1, 1)
READY = b"Z" + struct.pack("!I", 5) + b"I"


class Closed(Exception):
    """The other side closed its connection."""


class Peer:
    """One side: whole messages are read from its socket."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket, self._buffer = connection, b""

    def read(self, size: int) -> bytes:
        """Wait for this many bytes. Raises Closed."""
        while len(self._buffer) < size:
            self._receive()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def _receive(self) -> None:
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            raise Closed
        self._buffer += data

    def messages(self) -> Iterator[bytes]:
        """The whole messages that have arrived; waits for none. Raises Closed."""
        self._receive()
        while len(self._buffer) >= 5 and len(self._buffer) > struct.unpack("!I", self._buffer[1:5])[0]:
            yield self.read(1 + struct.unpack("!I", self._buffer[1:5])[0])


class Servers:
    """Connections to the server that no client has. `order`: which of them the next client gets."""

    def __init__(self, url: str, order: Order) -> None:
        self._url, self._order = make_url(url), order
        self._idle: deque[Peer] = deque()
        self.parameters = b""
        self.release(self._connect())

    def _connect(self) -> Peer:
        host, port = self._url.query.get("host") or self._url.host, self._url.port or 5432
        if str(host).startswith("/"):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(f"{host}/.s.PGSQL.{port}")
        else:
            connection = socket.create_connection((str(host), port))
        names = f"user\0{self._url.username}\0database\0{self._url.database}\0\0".encode()
        connection.sendall(struct.pack("!II", 8 + len(names), PROTOCOL) + names)
        peer, parameters = Peer(connection), b""
        while True:
            for message in peer.messages():
                parameters += message if message[:1] == b"S" else b""
                if message[:1] == b"Z":
                    self.parameters = parameters
                    return peer

    def take(self) -> Peer:
        """A connection for one client."""
        with suppress(IndexError):
            return self._idle.pop() if self._order == "newest" else self._idle.popleft()
        return self._connect()

    def release(self, server: Peer) -> None:
        """Give a connection back."""
        self._idle.append(server)

    def close(self) -> None:
        """Close the connections that no client has."""
        for server in self._idle:
            server.socket.close()


class Session:
    """One client's session."""

    def __init__(self, client: Peer, servers: Servers, mode: Mode) -> None:
        self._client, self._servers, self._mode = client, servers, mode
        self._server: Peer | None = None
        self._unanswered = 0

    def run(self) -> None:
        """Serve the client until it leaves."""
        try:
            self._greet()
            while True:
                with selectors.DefaultSelector() as selector:
                    for peer in filter(None, (self._client, self._server)):
                        selector.register(peer.socket, selectors.EVENT_READ, peer)
                    ready = {key.data for key, _ in selector.select()}
                if self._client in ready:
                    self._forward_request()
                if self._server in ready:
                    self._forward_answer()
        except Closed:
            pass
        finally:
            if self._server:  # its locks and settings end with it
                self._server.socket.close()

    def _greet(self) -> None:
        while True:
            (size, code) = struct.unpack("!II", self._client.read(8))
            self._client.read(size - 8)
            if code == PROTOCOL:
                break
            if code not in REQUESTS_FOR_ENCRYPTION:  # a request to cancel
                raise Closed
            self._client.socket.sendall(b"N")
        self._client.socket.sendall(GREETING + self._servers.parameters + KEY + READY)

    def _forward_request(self) -> None:
        for message in self._client.messages():
            if message[:1] == b"X":
                raise Closed
            self._server = self._server or self._servers.take()
            self._unanswered += message[:1] in b"QSF"
            self._server.socket.sendall(message)

    def _forward_answer(self) -> None:
        assert self._server
        for message in self._server.messages():
            self._client.socket.sendall(message)
            if message[:1] != b"Z":
                continue
            self._unanswered -= 1
            if self._mode == "transaction" and message[-1:] == b"I" and not self._unanswered:
                self._servers.release(self._server)
                self._server = None
                return


@contextmanager
def pooler(url: str, *, mode: Mode = "transaction", order: Order = "newest") -> Iterator[str]:
    """Run a pooler in front of the server of `url`; gives the URL of the same database through it."""
    servers = Servers(url, order)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                Session(Peer(self.request), servers, mode).run()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        port = listener.server_address[1]
        yield make_url(url).set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
        listener.shutdown()
    servers.close()

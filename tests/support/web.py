"""Web servers on loopback that respond as a test demands, and record the requests."""

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx


@dataclass
class Visit:
    """One request, with methods to answer it."""

    method: str
    path: str
    headers: httpx.Headers
    body: bytes
    count: int
    handler: BaseHTTPRequestHandler

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a whole response; `_` in a header's name stands for `-`."""
        self.begin(status, **{"Content_Length": str(len(body)), **headers})
        self.handler.wfile.write(body)

    def begin(self, status: int, **headers: str) -> None:
        """Send the head of a response."""
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()

    def send(self, body: bytes) -> None:
        """Send a piece of a response."""
        self.handler.wfile.write(body)


@dataclass
class Host:
    """A server; `visits` are the requests so far, in order."""

    url: str
    visits: list[Visit] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, count: int, timeout: float = 20) -> list[Visit]:
        """Wait until there are `count` visits. Returns all of them."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.visits) >= count, timeout), self.visits
            return list(self.visits)


@contextmanager
def host(
    respond: Callable[[Visit], None], *, address: str = "127.0.0.1", port: int = 0, certificate: Path | None = None
) -> Iterator[Host]:
    """A server that answers each request by `respond`, and closes the connection after it.

    `certificate`: a file with a certificate and its key, for https.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that the base class calls
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with there.changed:
                visit = Visit(self.command, self.path, httpx.Headers(dict(self.headers)), body, len(there.visits), self)
                there.visits.append(visit)
                there.changed.notify_all()
            respond(visit)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """Ignore clients that disconnect before the whole response was sent."""

    server = Server((address, port), Handler)
    server.daemon_threads = True
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    there = Host(f"http{'s' if certificate else ''}://{address}:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield there
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""The sandbox's HTTP server: framing, connections that end early, and an orderly stop."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from kling_sandbox import Sandbox
from kling_sandbox.web.http import Chunked, CutShort, Hangup, Request, Response, redirect, text_response
from kling_sandbox.web.server import Server

LARGE = 3_000_000


class Echo:
    """An application that answers as the path says, and counts its requests and finished background functions."""

    def __init__(self) -> None:
        self.received = threading.Semaphore(0)
        self.finished = threading.Semaphore(0)
        self.proceed = threading.Event()

    async def __call__(self, request: Request) -> Response:
        self.received.release()
        match request.path:
            case "/chunked":
                return Chunked(b"x" * LARGE, content_type="image/png")
            case "/cut":
                return CutShort(b"0123456789", background=self._finish)
            case "/hangup":
                return Hangup(background=self._finish)
            case "/redirect":
                return redirect(f"{request.origin}/elsewhere")
            case "/error":
                raise ZeroDivisionError
            case "/wait":
                await asyncio.to_thread(self.proceed.wait, 20)
                return Response(b"x" * LARGE, background=self._finish)
        return text_response(f"{request.method} {request.path} {request.query} {len(request.body)}")

    async def _finish(self) -> None:
        self.finished.release()


@contextlib.contextmanager
def serve(app: Echo) -> Iterator[int]:
    """Run a server in a thread; its port."""
    loop, stop = asyncio.SelectorEventLoop(), asyncio.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    async def run() -> None:
        server = Server(app, listening)
        server.start()
        await stop.wait()
        await server.stop()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    yield int(listening.getsockname()[1])
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    assert asyncio.all_tasks(loop) == set()
    loop.close()


@pytest.fixture
def app() -> Echo:
    """The application of the server under test."""
    return Echo()


@pytest.fixture
def port(app: Echo) -> Iterator[int]:
    """The port of a running server."""
    with serve(app) as port:
        yield port


@pytest.fixture
def api(port: int) -> Iterator[httpx.Client]:
    """A client of the server, with one kept connection."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as api:
        yield api


def exchange(port: int, *parts: bytes, wait_for: bytes = b"") -> bytes:
    """Send bytes, end sending, and read to the end; `wait_for` is read between the first part and the others."""
    with closing(socket.create_connection(("127.0.0.1", port), 20)) as connection:
        connection.sendall(parts[0])
        received = b""
        while wait_for not in received:
            received += connection.recv(65536)
        for part in parts[1:]:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        while more := connection.recv(65536):
            received += more
        return received


def test_a_request_has_decoded_path_query_and_body(api: httpx.Client) -> None:
    """The target is percent-decoded; the last of repeated parameters counts."""
    answer = api.post("/a%20b?x=1&x=2&y=", content=b"abc")
    assert answer.text == "POST /a b {'x': '2', 'y': ''} 3"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_connection_serves_many_requests(port: int) -> None:
    """Also when they arrive at once."""
    request = b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n"
    received = exchange(port, request % 1 + request % 2 + request % 3)
    assert [received.count(b"GET /%d " % number) for number in (1, 2, 3)] == [1, 1, 1]
    assert received.count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize("head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"])
def test_a_connection_closes_when_the_client_asks_for_it(port: int, head: bytes) -> None:
    """By the header, or by the old version of HTTP."""
    assert exchange(port, head).startswith(b"HTTP/1.1 200 OK")


def test_a_head_request_has_no_body(api: httpx.Client) -> None:
    """Its headers are those of a GET; the connection stays usable."""
    answer = api.head("/")
    assert (int(answer.headers["content-length"]) > 0, answer.content) == (True, b"")
    assert api.get("/").status_code == 200


def test_a_body_is_asked_for(port: int) -> None:
    """A client that waits for 100 Continue receives it."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"
    received = exchange(port, head, b"abc", wait_for=b"\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 OK")
    assert received.endswith(b"POST / {} 3")


def test_a_chunked_response_has_no_length(api: httpx.Client) -> None:
    """Its end is marked by the encoding."""
    answer = api.get("/chunked")
    assert answer.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in answer.headers
    assert answer.content == b"x" * LARGE


def test_a_response_is_cut_short(app: Echo, api: httpx.Client) -> None:
    """The length promises all of the body; then the background function runs."""
    with pytest.raises(httpx.RemoteProtocolError, match="received 5 bytes, expected 10"):
        api.get("/cut")
    assert app.finished.acquire(timeout=20)


def test_a_hangup_sends_nothing(app: Echo, port: int) -> None:
    """The connection closes, and then the background function runs."""
    assert exchange(port, b"GET /hangup HTTP/1.1\r\nhost: x\r\n\r\n") == b""
    assert app.finished.acquire(timeout=20)


def test_a_redirect_names_the_host_of_the_request(api: httpx.Client) -> None:
    """The client's own name for the server."""
    answer = api.get("/redirect", headers={"host": "kling.test"})
    assert (answer.status_code, answer.headers["location"]) == (302, "http://kling.test/elsewhere")


def test_the_background_function_runs_although_the_client_is_gone(app: Echo, port: int) -> None:
    """The request had its effect."""
    with closing(socket.create_connection(("127.0.0.1", port))) as connection:
        connection.sendall(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
        assert app.received.acquire(timeout=20)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close by a reset
    app.proceed.set()
    assert app.finished.acquire(timeout=20)


@pytest.mark.parametrize("sent", [b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\0\r\n\r\n"])
def test_what_is_no_request_is_a_400(port: int, sent: bytes) -> None:
    """And the connection closes."""
    assert exchange(port, sent).startswith(b"HTTP/1.1 400 Bad Request")


def test_an_error_of_the_application_is_a_500(api: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and the connection stays usable."""
    assert api.get("/error").status_code == 500
    assert "GET /error failed" in caplog.text
    assert api.get("/").status_code == 200


def is_closed(connection: socket.socket) -> bool:
    """Whether the server ended the connection, by an end or a reset; reads what was sent before."""
    connection.settimeout(20)
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_stop_ends_every_connection(app: Echo, capfd: pytest.CaptureFixture[str]) -> None:
    """Idle ones, half a request, a handler at work, and those that are accepted at this moment."""
    with contextlib.ExitStack() as stack:
        with serve(app) as port:
            connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(2)]
            connections[0].sendall(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
            connections[1].sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")
            assert app.received.acquire(timeout=20)
            connections += [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(20)]
            app.proceed.set()
        assert all(is_closed(connection) for connection in connections)
    assert capfd.readouterr().err == ""


def test_a_port_can_be_used_again_at_once() -> None:
    """After a stop that aborted a connection."""
    port = 0
    for _ in range(5):
        with Sandbox(port=port) as sandbox:
            port = sandbox.port
            connection = socket.create_connection(("127.0.0.1", port))
            assert httpx.get(f"{sandbox.url}/sandbox/account").status_code == 200
        assert is_closed(connection)
        connection.close()

"""Limits on connections: each wait has a deadline, heads and queues are capped, and idle connections are evicted."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from kling_receiver.web.connections import (
    HEADER_SECONDS,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    WRITE_STALL_SECONDS,
    ConnectionTable,
    LimitedHttpProtocol,
)

KEEP_ALIVE = 1000
GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 30_000_000
"""Bytes of a response that is larger than all buffers of a socket."""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Responds with as many bytes as the path names: to a GET at once, to a POST after its body."""
    read = scope["method"] == "GET"
    while not read:
        message = await receive()
        read = message["type"] == "http.disconnect" or not message["more_body"]
    length = int(scope["path"][1:])
    headers = [(b"content-length", str(length).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(length // 100_000):
        await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
    await send({"type": "http.response.body", "body": bytes(length % 100_000)})


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be advanced."""

    ahead = 0.0

    def time(self) -> float:
        """Seconds."""
        return super().time() + self.ahead


@dataclass
class Connection:
    """The client's end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Send, and let the server run."""
        self.writer.write(data)
        for _ in range(5):
            await asyncio.sleep(0)

    async def answer(self) -> tuple[int, bytes]:
        """Read one response: its status and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return int(head[9:12]), await self.reader.readexactly(length)

    async def ended(self) -> bool:
        """Whether the server closes the connection without a response."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True


@dataclass
class Served:
    """A server on loopback with a clock of its own."""

    loop: Loop
    table: ConnectionTable
    port: int
    opened: list[Connection] = field(default_factory=list)

    async def open(self) -> Connection:
        """A new connection, accepted by the server."""
        before = len(self.table.connections)
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 16))
        self.opened.append(connection)
        for _ in range(20):
            if len(self.table.connections) > before:
                break
            await asyncio.sleep(0)
        return connection

    def advance(self, seconds: float) -> None:
        """Advance the clock."""
        self.loop.ahead += seconds

    async def close(self) -> None:
        """Close every connection from the client's end."""
        for each in self.opened:
            each.writer.transport.abort()
        while self.table.connections:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0)


def served(test: Callable[[Served], Awaitable[None]], *, max_connections: int = 100) -> None:
    """Run a test against a server with `max_connections`."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        config = uvicorn.Config(app, log_config=None, ws="none", timeout_keep_alive=KEEP_ALIVE)
        table = ConnectionTable(max_connections)
        server = await loop.create_server(
            lambda: LimitedHttpProtocol(config=config, server_state=table, app_state={}), "127.0.0.1", 0
        )
        async with server:
            there = Served(loop, table, server.sockets[0].getsockname()[1])
            try:
                await test(there)
            finally:
                await there.close()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(asyncio.wait_for(run(), 10_000))


def test_a_silent_connection_is_closed() -> None:
    """A connection that sends nothing is closed after the time for a head."""

    async def test(server: Served) -> None:
        silent = await server.open()
        server.advance(HEADER_SECONDS)
        assert await silent.ended()
        assert not server.table.waiting

    served(test)


def test_a_connection_during_shutdown_is_closed() -> None:
    """A connection that was accepted just before does not delay the shutdown."""

    async def test(server: Served) -> None:
        server.table.closed = True
        assert await (await server.open()).ended()

    served(test)


def test_the_head_of_a_request_has_a_deadline() -> None:
    """From its first byte; later bytes do not extend it. A head that arrives in time is answered."""

    async def test(server: Served) -> None:
        slow, quick = await server.open(), await server.open()
        for each in (slow, quick):
            await each.send(GET % 5)
            assert await each.answer() == (200, bytes(5))
        server.advance(KEEP_ALIVE - 1)
        for each in (slow, quick):
            await each.send(b"G")
        server.advance(HEADER_SECONDS - 1)
        await slow.send(b"E")
        await quick.send((GET % 5)[1:])
        assert await quick.answer() == (200, bytes(5))
        server.advance(1)
        assert await slow.ended()

    served(test)


def test_a_body_after_the_response_has_a_deadline() -> None:
    """After the response, the rest of a body has as long as a head, also while bytes arrive."""

    async def test(server: Served) -> None:
        sender = await server.open()
        await sender.send(b"GET /5 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert await sender.answer() == (200, bytes(5))
        await sender.send(b"x")
        server.advance(HEADER_SECONDS - 1)
        await sender.send(b"x")
        server.advance(1)
        assert await sender.ended()

    served(test)


def test_a_request_in_progress_has_no_deadline() -> None:
    """The application limits the time for a body."""

    async def test(server: Served) -> None:
        slow = await server.open()
        await slow.send(b"POST /5 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx")
        server.advance(10 * HEADER_SECONDS)
        await slow.send(b"x")
        assert await slow.answer() == (200, bytes(5))

    served(test)


@pytest.mark.parametrize("piece", [b"x", b"/"], ids=["one header", "address"])
def test_the_bytes_of_a_head_are_limited(piece: bytes) -> None:
    """Up to the limit the head is read, beyond it the response is 431."""

    async def test(server: Served) -> None:
        good, bad = await server.open(), await server.open()
        begin = b"GET /5" if piece == b"/" else b"GET /5 HTTP/1.1\r\nx-b: "
        room = MAX_HEADER_BYTES - len(begin)
        await good.send(begin)
        await bad.send(begin)
        if piece != b"/":
            await good.send((piece * room)[: room // len(piece) * len(piece) - 100] + b"\r\n\r\n")
            assert await good.answer() == (200, bytes(5))
        await bad.send((piece * (room + 1))[: room + 1])
        status, body = await bad.answer()
        assert (status, json.loads(body)["error"]["code"]) == (431, "head_too_large")
        assert await bad.ended()

    served(test)


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("begin", [b"0\r\nx-a: ", b"1;x="], ids=["trailers", "extensions"])
def test_the_bytes_between_and_after_the_chunks_of_a_body_are_limited(begin: bytes, method: bytes) -> None:
    """Whether or not the response was sent before."""

    async def test(server: Served) -> None:
        sender = await server.open()
        await sender.send(b"%s /5 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % method)
        await sender.send(b"1\r\nx\r\n" + begin)
        if method == b"GET":
            assert await sender.answer() == (200, bytes(5))
        await sender.send(b"x" * (MAX_HEADER_BYTES + 1))
        if method == b"POST":
            assert (await sender.answer())[0] == 431
        assert await sender.ended()

    served(test)


def test_the_headers_of_a_request_are_limited() -> None:
    """Each header costs far more memory than its bytes."""

    async def test(server: Served) -> None:
        good, bad = await server.open(), await server.open()
        line = b"GET /5 HTTP/1.1\r\nHost: x\r\n"
        await good.send(line + b"a: b\r\n" * (MAX_HEADERS - 1) + b"\r\n")
        assert await good.answer() == (200, bytes(5))
        await bad.send(line + b"a: b\r\n" * MAX_HEADERS + b"\r\n")
        assert (await bad.answer())[0] == 400

    served(test)


def test_pipelined_requests_are_limited() -> None:
    """Up to the limit all are answered, in order; beyond it the connection is closed."""

    async def test(server: Served) -> None:
        good, bad = await server.open(), await server.open()
        await good.send(b"".join(GET % n for n in range(MAX_PIPELINED + 1)))
        for n in range(MAX_PIPELINED + 1):
            assert await good.answer() == (200, bytes(n))
        await bad.send(b"".join(GET % n for n in range(1000)))
        assert await bad.ended()

    served(test)


def test_a_stalled_response_ends_the_connection() -> None:
    """After a time without progress. A client that reads on gets the whole response, and may send another request."""

    async def test(server: Served) -> None:
        slow, quick, stuck = [await server.open() for _ in range(3)]
        for each in (slow, quick, stuck):
            await each.send(GET % LARGE)
        assert await quick.answer() == (200, bytes(LARGE))
        server.advance(WRITE_STALL_SECONDS - 1)
        await slow.reader.readexactly(LARGE // 2)
        server.advance(WRITE_STALL_SECONDS - 1)
        assert len(await slow.reader.readexactly(LARGE // 2)) == LARGE // 2
        await quick.send(GET % 5)
        assert await quick.answer() == (200, bytes(5))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await stuck.answer()

    served(test)


def test_a_slow_reader_gets_the_whole_response() -> None:
    """In any time, as long as some bytes are read between two checks."""

    async def test(server: Served) -> None:
        slow = await server.open()
        await slow.send(GET % LARGE)
        for _ in range(8):
            server.advance(WRITE_STALL_SECONDS - 1)
            assert len(await slow.reader.readexactly(LARGE // 8)) == LARGE // 8

    served(test)


def test_the_longest_waiting_connection_is_evicted() -> None:
    """Age does not count: a request starts the wait anew, and a request in progress is not evicted."""

    async def test(server: Served) -> None:
        busy, oldest, younger = [await server.open() for _ in range(3)]
        await busy.send(b"POST /5 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n")
        await oldest.send(GET % 5)
        assert await oldest.answer() == (200, bytes(5))
        newest = await server.open()
        assert await younger.ended()
        for each, more in ((busy, b"x"), (oldest, GET % 5), (newest, GET % 5)):
            await each.send(more)
            assert await each.answer() == (200, bytes(5))

    served(test, max_connections=3)


def test_a_stalled_body_is_evicted() -> None:
    """Of many unfinished bodies, those that have been stalled longest are evicted first."""

    async def test(server: Served) -> None:
        stalled, moving, done = [await server.open() for _ in range(3)]
        for each in (stalled, moving):
            await each.send(b"POST /5 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        for each in (stalled, moving):
            await each.send(b"a")
        await done.send(GET % 5)
        assert await done.answer() == (200, bytes(5))
        await moving.send(b"b")
        newest = await server.open()
        assert await stalled.ended()
        await moving.send(b"c")
        assert await moving.answer() == (200, bytes(5))
        await newest.send(GET % 5)
        assert await newest.answer() == (200, bytes(5))

    served(test, max_connections=3)


def test_a_request_that_is_not_http_is_answered_400() -> None:
    """In the shape of all errors; but never in the middle of another response."""

    async def test(server: Served) -> None:
        bad, worse = await server.open(), await server.open()
        await bad.send(b"\0\0\0\0\r\n\r\n")
        status, body = await bad.answer()
        assert (status, json.loads(body)["error"]["code"]) == (400, "bad_request")
        await worse.send(GET % LARGE)
        await worse.send(b"\0\0\0\0\r\n\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await worse.answer()

    served(test)

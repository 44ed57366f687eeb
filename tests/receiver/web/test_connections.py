"""Connections that want to stay: each wait has an end, each head and queue a cap, and the newest finds room."""

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
"""Bytes of an answer that no socket's buffers take whole."""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers the number in the path: so many bytes. A GET is answered at once, a POST after its body."""
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
    """A loop whose clock can be set forward."""

    ahead = 0.0

    def time(self) -> float:
        """Seconds."""
        return super().time() + self.ahead


@dataclass
class Connection:
    """A client's end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Send, and give the server its turn."""
        self.writer.write(data)
        for _ in range(5):
            await asyncio.sleep(0)

    async def answer(self) -> tuple[int, bytes]:
        """One answer's status and body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return int(head[9:12]), await self.reader.readexactly(length)

    async def ended(self) -> bool:
        """Whether the server ends it, without a word."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True


@dataclass
class Served:
    """A server on loopback, and its clock."""

    loop: Loop
    crowd: ConnectionTable
    port: int
    opened: list[Connection] = field(default_factory=list)

    async def open(self) -> Connection:
        """A new connection that the server knows of."""
        seen = len(self.crowd.connections)
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 16))
        self.opened.append(connection)
        for _ in range(20):
            if len(self.crowd.connections) > seen:
                break
            await asyncio.sleep(0)
        return connection

    def passes(self, seconds: float) -> None:
        """So much time."""
        self.loop.ahead += seconds

    async def close(self) -> None:
        """End every connection, from this end."""
        for each in self.opened:
            each.writer.transport.abort()
        while self.crowd.connections:  # noqa: ASYNC110  # uvicorn tells nobody
            await asyncio.sleep(0)


def served(test: Callable[[Served], Awaitable[None]], *, most: int = 100) -> None:
    """Run a test against a server that takes `most` connections."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        config = uvicorn.Config(app, log_config=None, ws="none", timeout_keep_alive=KEEP_ALIVE)
        crowd = ConnectionTable(most)
        server = await loop.create_server(
            lambda: LimitedHttpProtocol(config=config, server_state=crowd, app_state={}), "127.0.0.1", 0
        )
        async with server:
            there = Served(loop, crowd, server.sockets[0].getsockname()[1])
            try:
                await test(there)
            finally:
                await there.close()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(asyncio.wait_for(run(), 10_000))


def test_a_silent_connection_ends() -> None:
    """One that never asks for anything."""

    async def test(server: Served) -> None:
        silent = await server.open()
        server.passes(HEADER_SECONDS)
        assert await silent.ended()
        assert not server.crowd.waiting

    served(test)


def test_who_comes_while_the_server_ends_comes_too_late() -> None:
    """A connection that was taken in just before holds up no end."""

    async def test(server: Served) -> None:
        server.crowd.closed = True
        assert await (await server.open()).ended()

    served(test)


def test_a_head_has_so_long() -> None:
    """From its first byte; those that follow win no time. One that comes in time is answered."""

    async def test(server: Served) -> None:
        slow, quick = await server.open(), await server.open()
        for each in (slow, quick):
            await each.send(GET % 5)
            assert await each.answer() == (200, bytes(5))
        server.passes(KEEP_ALIVE - 1)
        for each in (slow, quick):
            await each.send(b"G")
        server.passes(HEADER_SECONDS - 1)
        await slow.send(b"E")
        await quick.send((GET % 5)[1:])
        assert await quick.answer() == (200, bytes(5))
        server.passes(1)
        assert await slow.ended()

    served(test)


def test_a_body_that_nobody_reads_ends() -> None:
    """After the answer it has as long as a head, however much of it still comes."""

    async def test(server: Served) -> None:
        sender = await server.open()
        await sender.send(b"GET /5 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert await sender.answer() == (200, bytes(5))
        await sender.send(b"x")
        server.passes(HEADER_SECONDS - 1)
        await sender.send(b"x")
        server.passes(1)
        assert await sender.ended()

    served(test)


def test_a_request_under_way_is_left_alone() -> None:
    """How long a body may take is the application's to say."""

    async def test(server: Served) -> None:
        slow = await server.open()
        await slow.send(b"POST /5 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx")
        server.passes(10 * HEADER_SECONDS)
        await slow.send(b"x")
        assert await slow.answer() == (200, bytes(5))

    served(test)


@pytest.mark.parametrize("piece", [b"x", b"/"], ids=["one header", "address"])
def test_a_head_has_so_many_bytes(piece: bytes) -> None:
    """Up to there it is read, past it answered 431."""

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
        status, said = await bad.answer()
        assert (status, json.loads(said)["error"]["code"]) == (431, "head_too_large")
        assert await bad.ended()

    served(test)


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("begin", [b"0\r\nx-a: ", b"1;x="], ids=["trailers", "extensions"])
def test_what_is_between_and_after_the_pieces_of_a_body_has_so_many_bytes(begin: bytes, method: bytes) -> None:
    """Whether or not the request was answered before."""

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


def test_a_head_has_so_many_headers() -> None:
    """Each costs far more than its bytes."""

    async def test(server: Served) -> None:
        good, bad = await server.open(), await server.open()
        line = b"GET /5 HTTP/1.1\r\nHost: x\r\n"
        await good.send(line + b"a: b\r\n" * (MAX_HEADERS - 1) + b"\r\n")
        assert await good.answer() == (200, bytes(5))
        await bad.send(line + b"a: b\r\n" * MAX_HEADERS + b"\r\n")
        assert (await bad.answer())[0] == 400

    served(test)


def test_so_many_requests_may_wait_for_their_turn() -> None:
    """All of them are answered, in order; of more, not one that waits."""

    async def test(server: Served) -> None:
        good, bad = await server.open(), await server.open()
        await good.send(b"".join(GET % n for n in range(MAX_PIPELINED + 1)))
        for n in range(MAX_PIPELINED + 1):
            assert await good.answer() == (200, bytes(n))
        await bad.send(b"".join(GET % n for n in range(1000)))
        assert await bad.ended()

    served(test)


def test_who_takes_nothing_of_an_answer_is_left() -> None:
    """After a while; whoever goes on taking gets it whole, and may ask again."""

    async def test(server: Served) -> None:
        slow, quick, stuck = [await server.open() for _ in range(3)]
        for each in (slow, quick, stuck):
            await each.send(GET % LARGE)
        assert await quick.answer() == (200, bytes(LARGE))
        server.passes(WRITE_STALL_SECONDS - 1)
        await slow.reader.readexactly(LARGE // 2)
        server.passes(WRITE_STALL_SECONDS - 1)
        assert len(await slow.reader.readexactly(LARGE // 2)) == LARGE // 2
        await quick.send(GET % 5)
        assert await quick.answer() == (200, bytes(5))
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await stuck.answer()

    served(test)


def test_who_takes_an_answer_slowly_gets_it_whole() -> None:
    """However long it takes, as long as something of it is taken between two looks."""

    async def test(server: Served) -> None:
        slow = await server.open()
        await slow.send(GET % LARGE)
        for _ in range(8):
            server.passes(WRITE_STALL_SECONDS - 1)
            assert len(await slow.reader.readexactly(LARGE // 8)) == LARGE // 8

    served(test)


def test_who_waits_longest_makes_room() -> None:
    """Not who was there first: a request makes young again, and one under way is not ended."""

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

    served(test, most=3)


def test_a_body_that_stalls_makes_room() -> None:
    """Whoever holds an address may begin a thousand bodies: those that stand still longest go first."""

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

    served(test, most=3)


def test_what_is_no_http_hears_so() -> None:
    """In the shape that all errors have; not in the middle of another answer."""

    async def test(server: Served) -> None:
        bad, worse = await server.open(), await server.open()
        await bad.send(b"\0\0\0\0\r\n\r\n")
        status, said = await bad.answer()
        assert (status, json.loads(said)["error"]["code"]) == (400, "bad_request")
        await worse.send(GET % LARGE)
        await worse.send(b"\0\0\0\0\r\n\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await worse.answer()

    served(test)

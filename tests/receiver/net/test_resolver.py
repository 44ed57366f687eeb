"""Names to addresses: one lookup of a name at a time, and a silent name server holds up nobody else."""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from kling_receiver.net.client import GuardedClient
from kling_receiver.net.guard import Allowlist, Refused
from kling_receiver.net.resolver import THREADS, AddrInfo, ThreadedResolver
from tests.support.outgoing import PATIENCE
from tests.support.web import host

pytestmark = pytest.mark.anyio

SILENT = "silent.example"


class Server:
    """A name server: silent about some names until it speaks; `asked` counts."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses) or ["127.0.0.1"]
        self.asked: Counter[str] = Counter()
        self.came, self.speaks = threading.Event(), threading.Event()

    def look(self, name: str, family: socket.AddressFamily) -> AddrInfo:
        """One answer, of the address whose turn it is."""
        self.asked[name] += 1
        if name.endswith(SILENT):
            self.came.set()
            assert self.speaks.wait(PATIENCE)
        if name.startswith("unknown"):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        address = self.addresses[min(self.asked[name], len(self.addresses)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A name server, which speaks at last."""
    server = Server()
    yield server
    server.speaks.set()


async def test_a_silent_name_server_holds_up_nobody_else(server: Server) -> None:
    """However many wait for its answer: other names, and other work in threads, go on."""
    client = GuardedClient(Allowlist.parse(["127.0.0.1"]), resolver=lambda: ThreadedResolver(server.look))
    with host(lambda visit: visit.answer(200)) as there:
        port = there.url.rpartition(":")[2]
        waiting = [asyncio.create_task(client.send("GET", f"http://{SILENT}:{port}/")) for _ in range(THREADS * 4)]
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.to_thread(server.came.wait, PATIENCE)
            answer = await client.send("GET", f"http://well.example:{port}/")
            assert (answer.status, server.asked[SILENT]) == (200, 1)
            assert not any(each.done() for each in waiting)
            await answer.close()
            server.speaks.set()
            for each in waiting:
                await (await each).close()
    assert server.asked[SILENT] == 1
    await client.close()


async def test_silent_names_take_none_of_the_machine_s_other_threads(server: Server) -> None:
    """More of them than there are threads: only other names wait."""
    names = ThreadedResolver(server.look)
    waiting = [asyncio.create_task(names.resolve(f"{n}.{SILENT}", 80)) for n in range(100)]
    assert await asyncio.to_thread(server.came.wait, PATIENCE)
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*[asyncio.to_thread(int, n) for n in range(100)]) == list(range(100))
    assert server.asked.total() <= THREADS
    server.speaks.set()
    assert {each[0]["host"] for each in await asyncio.gather(*waiting)} == {"127.0.0.1"}
    await names.close()


async def test_who_gives_up_takes_the_answer_from_nobody(server: Server) -> None:
    """The same question goes on for those who still wait, each with a port of its own."""
    names = ThreadedResolver(server.look)
    first, second = (asyncio.create_task(names.resolve(SILENT, port)) for port in (80, 443))
    assert await asyncio.to_thread(server.came.wait, PATIENCE)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    server.speaks.set()
    [found] = await second
    assert (found["hostname"], found["host"], found["port"]) == (SILENT, "127.0.0.1", 443)
    assert server.asked == {SILENT: 1}
    await names.close()


async def test_each_question_is_asked_and_checked_anew() -> None:
    """An answer is kept no longer than it is waited for, be it good or bad."""
    server = Server("127.0.0.1", "10.0.0.1")
    client = GuardedClient(Allowlist.parse(["127.0.0.1"]), resolver=lambda: ThreadedResolver(server.look))
    with host(lambda visit: visit.answer(200, Connection="close")) as there:
        url = f"http://rebound.example:{there.url.rpartition(':')[2]}/"
        await (await client.send("GET", url)).close()
        with pytest.raises(Refused):
            await client.send("GET", url)
    await client.close()
    names = ThreadedResolver(server.look)
    for asked in (1, 2):
        with pytest.raises(socket.gaierror):
            await names.resolve("unknown.example", 80)
        assert server.asked["unknown.example"] == asked
    await names.close()


async def test_the_machine_s_own_names() -> None:
    """Are found as any program finds them."""
    names = ThreadedResolver()
    assert {each["host"] for each in await names.resolve("localhost", 80)} <= {"127.0.0.1", "::1"}
    await names.close()


async def test_a_question_that_nobody_waits_for(server: Server) -> None:
    """May fail in peace, also after the end."""
    names = ThreadedResolver(server.look)
    asking = asyncio.create_task(names.resolve(f"unknown.{SILENT}", 80))
    assert await asyncio.to_thread(server.came.wait, PATIENCE)
    asking.cancel()
    await names.close()
    server.speaks.set()
    with pytest.raises(asyncio.CancelledError):
        await asking

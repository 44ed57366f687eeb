"""DNS lookups: concurrent requests for a name share one, and a silent name server delays no other name."""

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
    """A name server, silent for some names until `speaks` is set; `asked` counts the lookups."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses) or ["127.0.0.1"]
        self.asked: Counter[str] = Counter()
        self.came, self.speaks = threading.Event(), threading.Event()

    def look(self, name: str, family: socket.AddressFamily) -> AddrInfo:
        """One lookup; the n-th of a name has the n-th address."""
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
    """A name server, which answers at the end of the test."""
    server = Server()
    yield server
    server.speaks.set()


async def test_a_silent_name_server_delays_no_other_name(server: Server) -> None:
    """With any number of requests for it, there is one lookup, and other names are resolved."""
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


async def test_silent_names_occupy_none_of_the_default_threads(server: Server) -> None:
    """With more silent names than threads, only other names wait."""
    names = ThreadedResolver(server.look)
    waiting = [asyncio.create_task(names.resolve(f"{n}.{SILENT}", 80)) for n in range(100)]
    assert await asyncio.to_thread(server.came.wait, PATIENCE)
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*[asyncio.to_thread(int, n) for n in range(100)]) == list(range(100))
    assert server.asked.total() <= THREADS
    server.speaks.set()
    assert {each[0]["host"] for each in await asyncio.gather(*waiting)} == {"127.0.0.1"}
    await names.close()


async def test_a_cancelled_request_leaves_the_lookup_to_the_others(server: Server) -> None:
    """The shared lookup goes on for the other requests, each with its own port."""
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


async def test_each_request_is_looked_up_and_checked_anew() -> None:
    """Neither an address nor an error is cached."""
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


async def test_names_of_this_machine() -> None:
    """The resolver of the system is used."""
    names = ThreadedResolver()
    assert {each["host"] for each in await names.resolve("localhost", 80)} <= {"127.0.0.1", "::1"}
    await names.close()


async def test_a_lookup_whose_requests_are_all_cancelled(server: Server) -> None:
    """Its error is not logged, also after `close`."""
    names = ThreadedResolver(server.look)
    asking = asyncio.create_task(names.resolve(f"unknown.{SILENT}", 80))
    assert await asyncio.to_thread(server.came.wait, PATIENCE)
    asking.cancel()
    await names.close()
    server.speaks.set()
    with pytest.raises(asyncio.CancelledError):
        await asking

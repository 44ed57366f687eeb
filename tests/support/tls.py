"""TLS in front of a server of a test, as a reverse proxy in production: each byte is passed on as it comes."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.proxies import make_certificate


@dataclass
class TlsFront:
    """An https server at `host` (`localhost:PORT`) that leads to the server `target`, which may be set later.

    `certificate`: the file of the authority that a client must trust.
    """

    host: str
    certificate: Path
    target: str = ""

    @property
    def url(self) -> str:
        """Its address."""
        return f"https://{self.host}"


@contextmanager
def tls_front(folder: Path) -> Iterator[TlsFront]:
    """Serve TLS for `localhost` until the block ends."""
    certificate = make_certificate(folder, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    loop = asyncio.SelectorEventLoop()

    writers = set[asyncio.StreamWriter]()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await source.read(65536):
                sink.write(chunk)
                await sink.drain()
        sink.close()

    async def serve(reading: asyncio.StreamReader, writing: asyncio.StreamWriter) -> None:
        parts = urlsplit(front.target)
        server_reading, server_writing = await asyncio.open_connection(parts.hostname, parts.port)
        both = {writing, server_writing}
        writers.update(both)
        await asyncio.gather(pump(reading, server_writing), pump(server_reading, writing))
        for each in both:
            with suppress(OSError):
                await each.wait_closed()
        writers.difference_update(both)

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    front = TlsFront(f"localhost:{server.sockets[0].getsockname()[1]}", folder / "public.pem")
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def stop() -> None:
        server.close()
        for each in writers:
            each.transport.abort()
        if connections := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(connections)

    try:
        yield front
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

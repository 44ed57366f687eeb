"""A hook for benches: accepts every POST; GET returns and forgets them as `[[unix seconds, body], ...]`.

Run as a process of its own: `python -m tools.bench.processes.hook PORT`.
"""

import asyncio
import json
import sys
import time
from typing import cast

import uvloop

ACCEPTED = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"

deliveries: list[tuple[float, bytes]] = []


class Connection(asyncio.Protocol):
    """Answers one request after the other. The header `X-Received` of GET and HEAD counts the deliveries."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            length = int((head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]) or 0)
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._answer(head[:4], rest[:length])

    def _answer(self, method: bytes, body: bytes) -> None:
        if method == b"POST":
            deliveries.append((time.time(), body))
            self._transport.write(ACCEPTED)
            return
        count, content = len(deliveries), b""
        if method == b"GET ":
            content = json.dumps([(at, text.decode()) for at, text in deliveries]).encode()
            deliveries.clear()
        head = f"HTTP/1.1 200 OK\r\nX-Received: {count}\r\nContent-Length: {len(content)}\r\n\r\n"
        self._transport.write(head.encode() + content)


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))

"""A hook for benches: takes every POST, and tells on GET when each came: `[[unix seconds, body], ...]`.

Run as a process of its own: `python -m tools.bench.hook PORT`.
"""

import asyncio
import json
import sys
import time
from typing import cast

import uvloop

TAKEN = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"

came: list[tuple[float, bytes]] = []


class Connection(asyncio.Protocol):
    """Reads requests one after the other; a GET hands over what came, and forgets it. HEAD says how many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            head, found, rest = self._buffer.partition(b"\r\n\r\n")
            if not found:
                return
            length = int((head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]) or 0)
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._answer(head[:4], rest[:length])

    def _answer(self, method: bytes, body: bytes) -> None:
        if method == b"POST":
            came.append((time.time(), body))
            self._transport.write(TAKEN)
            return
        told = str(len(came)).encode()
        if method == b"GET ":
            told = json.dumps([(at, text.decode()) for at, text in came]).encode()
            came.clear()
        size = f"HTTP/1.1 200 OK\r\nX-Came: {len(came)}\r\nContent-Length: {len(told)}\r\n\r\n"
        self._transport.write(size.encode() + (told if method == b"GET " else b""))


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))

"""A load of POSTs over kept-alive bare sockets, each with one request in flight; prints rate and durations as JSON.

Run as a process: `python -m tools.bench.processes.load_sockets URL_FILE CONNECTIONS STATUS`, one address a line.
"""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

BODY = (
    b'{"task_id":"%d","task_status":"%s","task_status_msg":"","created_at":1764235825029,'
    b'"updated_at":1764236054436,"task_info":{"external_task_id":"bench"}}'
)


class Connection(asyncio.Protocol):
    """Sends the next request when the last one is answered."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._buffer = b""
        self._started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's transports are not subclasses
        self._send()

    def _send(self) -> None:
        request = self._load.next()
        if request is None:
            self._transport.close()
            return
        self._started = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(rest) >= length:
            self._buffer = b""
            self._load.answered(int(head[9:12]), time.perf_counter() - self._started)
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self._load.closed()


class Load:
    """The requests of one run, the statuses and durations of their answers."""

    def __init__(self, requests: list[bytes], connections: int) -> None:
        self._requests = iter(requests)
        self._open = connections
        self.done = asyncio.Event()
        self.statuses: dict[int, int] = {}
        self.seconds: list[float] = []

    def next(self) -> bytes | None:
        return next(self._requests, None)

    def answered(self, status: int, seconds: float) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.seconds.append(seconds)

    def closed(self) -> None:
        self._open -= 1
        if not self._open:
            self.done.set()


def request(host: str, path: str, number: int, status: str) -> bytes:
    """One POST of a legacy callback."""
    body = BODY % (number, status.encode())
    lines = (f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(lines).encode() + body


async def run(urls: list[str], connections: int, status: str) -> dict[str, object]:
    """Send one POST to each address: answers a second, durations (ms), HTTP statuses."""
    parts = urlsplit(urls[0])
    assert parts.hostname is not None
    assert parts.port is not None
    requests = [request(parts.netloc, urlsplit(url).path, number, status) for number, url in enumerate(urls)]
    load = Load(requests, connections)
    started = time.perf_counter()
    for _ in range(connections):
        await asyncio.get_running_loop().create_connection(lambda: Connection(load), parts.hostname, parts.port)
    await load.done.wait()
    seconds = time.perf_counter() - started
    durations = sorted(load.seconds)
    return {
        "rate": len(durations) / seconds,
        "median_ms": durations[len(durations) // 2] * 1000,
        "p99_ms": durations[len(durations) * 99 // 100] * 1000,
        "statuses": load.statuses,
    }


if __name__ == "__main__":
    addresses = Path(sys.argv[1]).read_text(encoding="utf-8").split()
    print(json.dumps(uvloop.run(run(addresses, int(sys.argv[2]), sys.argv[3]))))

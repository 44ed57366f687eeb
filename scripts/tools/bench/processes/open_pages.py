"""Many open pages: reads their streams, and does as little else as it can, because it shares the processors.

Run as a process: `python -m tools.bench.processes.open_pages URL PATH COUNT COOKIES [watch]`, the cookies of sessions
that are used in turn separated by spaces. Prints "open" once every stream has begun. When its input ends it prints
JSON: `bytes`, of all streams, and `tasks`: with `watch`, for each task id, the monotonic seconds at which it came to
the first and to the last page; without it the kernel drops what arrives.
"""

import json
import os
import re
import selectors
import socket
import sys
import time
from typing import Any
from urllib.parse import urlsplit

NICENESS = 10
PAUSE_SECONDS = 0.02
"""Without `watch`, between two reads of all streams: they are many small ones otherwise."""
BUFFER_BYTES = 4_000_000
ROW = re.compile(rb'id="task-([^"]+)"')


class Streams:
    """The open streams of one page each."""

    def __init__(self, url: str, path: str, count: int, cookies: list[str]) -> None:
        parts = urlsplit(url)
        head = f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: text/event-stream\r\nCookie: "
        self.selector = selectors.EpollSelector()
        self.bytes = 0
        self.seen: list[dict[bytes, float]] = [{} for _ in range(count)]
        self._tails = [b""] * count
        self._buffer = bytearray(BUFFER_BYTES)
        for number in range(count):
            stream = socket.create_connection((parts.hostname or "", parts.port or 80))
            stream.sendall(f"{head}{cookies[number % len(cookies)]}\r\n\r\n".encode())
            self.selector.register(stream, selectors.EVENT_READ, number)
        for key in list(self.selector.get_map().values()):
            self._begin(key.fileobj)

    @staticmethod
    def _begin(stream: Any) -> None:
        """Read until the first message, byte by byte: what follows is for `read`."""
        head = b""
        while not head.endswith(b"retry: 2000\n\n"):
            byte = stream.recv(1)
            if not byte or (head.endswith(b"\r\n\r\n") and b" 200 " not in head[:15]):
                raise SystemExit(f"open_pages: {head[:300]!r}")
            head += byte
        stream.setblocking(False)

    def drop(self, stream: Any) -> None:
        """Let the kernel discard what has arrived."""
        self.bytes += stream.recv_into(self._buffer, BUFFER_BYTES, socket.MSG_TRUNC)

    def read(self, stream: Any, number: int) -> None:
        """Note when each task first came to a page."""
        now, data = time.monotonic(), stream.recv(BUFFER_BYTES)
        self.bytes += len(data)
        data = self._tails[number] + data
        for task_id in ROW.findall(data):
            self.seen[number].setdefault(task_id, now)
        self._tails[number] = data[-100:]

    def times(self) -> dict[str, tuple[float, float]]:
        """When each task that came to all pages came to the first and to the last one."""
        ids = set.intersection(*(set(seen) for seen in self.seen))
        return {
            task_id.decode(): (
                min(seen[task_id] for seen in self.seen),
                max(seen[task_id] for seen in self.seen),
            )
            for task_id in ids
        }


def run(url: str, path: str, count: int, cookies: list[str], *, watch: bool) -> dict[str, Any]:
    """Open the pages, and read them until the input ends."""
    streams = Streams(url, path, count, cookies)
    os.nice(NICENESS)
    streams.selector.register(sys.stdin, selectors.EVENT_READ, None)
    print("open", flush=True)
    while True:
        for key, _ in streams.selector.select():
            if key.data is None:
                return {"bytes": streams.bytes, "tasks": streams.times() if watch else {}}
            if watch:
                streams.read(key.fileobj, key.data)
            else:
                streams.drop(key.fileobj)
        if not watch:
            time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    address, live_path, pages, sessions = sys.argv[1:5]
    print(json.dumps(run(address, live_path, int(pages), sessions.split(), watch=sys.argv[5:] == ["watch"])))

"""The cost of floods: the receiver's memory before and after, and the duration of callbacks meanwhile."""

import resource
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import httpx

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner, Role, api_token
from tools.harness import servers

FAMILY = "videos/text2video"
MAX_SENT_BYTES = 300_000_000
"""Bytes after which an endless flood stops by itself."""
CALLBACKS = 100
READERS = 200
ROLES: tuple[Role, Role] = ("client", "read")

Flood = Callable[[str, ExitStack, int], int]
"""Floods an address and returns the bytes sent; its connections stay open until the stack closes."""


def run(connections: int) -> None:
    """Run every flood against a fresh receiver. `connections`: how many some floods open."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    print(f"{'':44} {'sent MB':>8} {'RSS before':>10} {'after':>6} {'callback ms, median':>20} {'worst':>6}")
    for name, flood in FLOODS.items():
        with servers.receiver() as url, ExitStack() as stack:
            _callbacks(url)
            before = servers.rss_mb(servers.pids[url])
            sent = flood(url, stack, connections)
            durations = sorted(_callbacks(url))
            middle, worst = (1000 * durations[place] for place in (len(durations) // 2, -1))
            after = servers.rss_mb(servers.pids[url])
            print(f"{name:44} {sent / 1e6:8.1f} {before:10} {after:6} {middle:20.1f} {worst:6.1f}", flush=True)


def _callbacks(url: str) -> list[float]:
    """Post callbacks of new tasks one after the other. Returns the seconds of each."""
    durations = []
    with httpx.Client(timeout=20) as http:
        for _ in range(CALLBACKS):
            address = CallbackSigner([servers.SECRET]).url(url, new_id(), FAMILY)
            started = time.perf_counter()
            http.post(address, json={"task_status": "processing"}).raise_for_status()
            durations.append(time.perf_counter() - started)
    return durations


def _connect(url: str, stack: ExitStack) -> socket.socket:
    parts = urlsplit(url)
    return stack.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=5))


def _pour(connection: socket.socket, begin: bytes, piece: bytes) -> int:
    """Send `begin`, then `piece` again and again until the receiver closes the connection."""
    sent = 0
    try:
        connection.sendall(begin)
        while sent < MAX_SENT_BYTES:
            sent += connection.send(piece)
    except OSError:
        pass
    return sent


def _head(url: str, stack: ExitStack, connections: int) -> int:
    return _pour(_connect(url, stack), b"GET / HTTP/1.1\r\n", (b"x-a: " + b"y" * 4000 + b"\r\n") * 50)


def _trailers(url: str, stack: ExitStack, connections: int) -> int:
    begin = b"POST /callbacks/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    return _pour(_connect(url, stack), begin, (b"x-a: " + b"y" * 4000 + b"\r\n") * 50)


def _pipeline(url: str, stack: ExitStack, connections: int) -> int:
    return _pour(_connect(url, stack), b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)


def _bodies(url: str, stack: ExitStack, connections: int) -> int:
    """One leaked address, a thousand connections: a megabyte on each, without its last byte."""
    path = urlsplit(CallbackSigner([servers.SECRET]).url(url, new_id(), FAMILY)).path
    sockets = [_connect(url, stack) for _ in range(1000)]
    return sum(
        _once(each, f"POST {path} HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n".encode() + bytes(999_999))
        for each in sockets
    )


def _once(connection: socket.socket, data: bytes) -> int:
    """Send the data once. Returns the bytes sent: 0 if the receiver closed the connection."""
    with suppress(OSError):
        connection.sendall(data)
        return len(data)
    return 0


def _silent(url: str, stack: ExitStack, connections: int) -> int:
    for _ in range(connections):
        _connect(url, stack)
    return 0


def _slow(url: str, stack: ExitStack, connections: int) -> int:
    begin = b"POST /callbacks/x HTTP/1.1\r\nHost: x\r\nx-a: "
    return sum(_once(_connect(url, stack), begin) for _ in range(connections))


def _slow_readers(url: str, stack: ExitStack, path: str) -> int:
    """With tokens to register and read: create tasks of maximum size, request them, read no answer."""
    client, read = (api_token([servers.SECRET], role, 3600) for role in ROLES)
    body = {"family": FAMILY, "attempt": "one", "request": [[]] * 4900, "tags": [str(n) * 90 for n in range(9)]}
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {client}"}) as http:
        for _ in range(200):
            http.put(f"/api/tasks/{new_id()}", json=body).raise_for_status()
    begin = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {read}\r\n\r\n".encode()
    sent = 0
    for _ in range(READERS):
        reader = stack.enter_context(socket.socket())
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect((urlsplit(url).hostname, urlsplit(url).port))
        sent += _once(reader, begin)
    return sent


def _pages(url: str, stack: ExitStack, connections: int) -> int:
    return _slow_readers(url, stack, "/api/tasks?limit=200")


def _streams(url: str, stack: ExitStack, connections: int) -> int:
    return _slow_readers(url, stack, "/api/events")


FLOODS: dict[str, Flood] = {
    "endless head": _head,
    "endless trailers": _trailers,
    "pipelined requests": _pipeline,
    "1,000 unfinished bodies of 1 MB, good token": _bodies,
    "silent connections": _silent,
    "connections with an unfinished head": _slow,
    "200 unread pages of large tasks": _pages,
    "200 unread streams of large tasks": _streams,
}

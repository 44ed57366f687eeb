"""Proxies on loopback, through which a host that no resolver knows leads to a server of the test."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import httpx

from tests.support.web import Host, Visit, host


@contextmanager
def http_proxy(target: str) -> Iterator[Host]:
    """An HTTP proxy that sends each request to the server `target`, whatever host the request names."""

    def forward(visit: Visit) -> None:
        path = urlsplit(visit.path)
        headers = {"Content-Type": "application/json", "Authorization": visit.headers.get("Authorization", "")}
        url = f"{target}{path.path}{f'?{path.query}' if path.query else ''}"
        answer = client.request(visit.method, url, content=visit.body, headers=headers)
        visit.answer(answer.status_code, answer.content, Content_Type="application/json")

    with httpx.Client(trust_env=False) as client, host(forward) as proxy:
        yield proxy


@contextmanager
def socks_proxy(target: str) -> Iterator[tuple[str, list[bytes]]]:
    """A SOCKS5 proxy that connects to the server `target`. Yields its host and port, and the names it was asked for."""
    parts, names = urlsplit(target), list[bytes]()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection((parts.hostname, parts.port)) as server:
            client.recv(2 + client.recv(2)[1])
            client.sendall(b"\x05\x00")
            client.recv(4)
            names.append(client.recv(client.recv(1)[0]))
            client.recv(2)
            client.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
            back = threading.Thread(target=pump, args=(server, client))
            back.start()
            pump(client, server)
            back.join()

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", names
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()

"""Proxies on loopback, through which a host that no resolver knows leads to a server of the test."""

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.support.web import Host, Visit, host


@contextmanager
def http_proxy(target: str, *, certificate: Path | None = None) -> Iterator[Host]:
    """An HTTP proxy that sends each request to the server `target`, whatever host the request names.

    `certificate`: it is the https server itself, to which another proxy leads.
    """

    def forward(visit: Visit) -> None:
        path = urlsplit(visit.path)
        headers = {"Content-Type": "application/json", "Authorization": visit.headers.get("Authorization", "")}
        if certificate:
            headers["Host"] = visit.headers["Host"]
        url = f"{target}{path.path}{f'?{path.query}' if path.query else ''}"
        answer = client.request(visit.method, url, content=visit.body, headers=headers)
        visit.answer(answer.status_code, answer.content, Content_Type="application/json")

    with httpx.Client(trust_env=False) as client, host(forward, certificate=certificate) as proxy:
        yield proxy


@contextmanager
def socks_proxy(target: str) -> Iterator[tuple[str, list[bytes]]]:
    """A SOCKS5 proxy that connects to the server `target`. Yields its host and port, and the names it was asked for."""
    names = list[bytes]()

    def greet(client: socket.socket) -> bool:
        client.recv(2 + client.recv(2)[1])
        client.sendall(b"\x05\x00")
        client.recv(4)
        names.append(client.recv(client.recv(1)[0]))
        client.recv(2)
        client.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
        return True

    with _proxy(target, greet) as address:
        yield address, names


@contextmanager
def connect_proxy(target: str, *, status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """An HTTP proxy for CONNECT, which leads to the server `target`. Yields its host and port, and the heads it got.

    `status`: its answer; no tunnel is opened after any other than 200.
    """
    heads = list[str]()

    def greet(client: socket.socket) -> bool:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += client.recv(1)
        heads.append(head.decode())
        client.sendall(f"HTTP/1.1 {status} Answer\r\n\r\n".encode())
        return status == 200

    with _proxy(target, greet) as address:
        yield address, heads


@contextmanager
def _proxy(target: str, greet: Callable[[socket.socket], bool]) -> Iterator[str]:
    """A server that connects each client to `target` after `greet`, if that returns True. Yields its host and port."""
    parts = urlsplit(target)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)

    def serve(client: socket.socket) -> None:
        with client, socket.create_connection((parts.hostname, parts.port)) as server:
            if greet(client):
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
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()


def make_certificate(folder: Path, *names: str) -> Path:
    """A file with a certificate for these names, its own authority, and its key."""
    file = folder / "certificate.pem"
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(file)]
    names_option = f"subjectAltName={','.join(f'DNS:{name}' for name in names)}"
    public = ["-x509", "-days", "2", "-subj", "/CN=test", "-addext", names_option, "-out", str(folder / "public.pem")]
    command = ["openssl", "req", *key, *public]
    subprocess.run(command, check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + (folder / "public.pem").read_bytes())
    return file

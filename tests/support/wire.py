"""A server on a bare socket with scripted responses: for cuts and garbage that no HTTP server sends."""

import json
import socket
import threading
from types import TracebackType
from typing import Any, Self


def reply(status: int = 200, body: Any = b"", **headers: str) -> bytes:
    """A whole HTTP response; a body other than bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"Content-Length": str(len(content)), "Connection": "close", **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode("latin-1") + content


class Wire:
    """Sends the n-th response to the n-th request, then the last one again and again; closes after each.

    The first `hold` connections stay open and silent after their response.
    """

    def __init__(self, *answers: bytes, hold: int = 0) -> None:
        self._answers, self._hold = list(answers), hold
        self._held: list[socket.socket] = []
        self.requests: list[bytes] = []
        self.came = threading.Event()

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for each in (self._listening, *self._held):
            each.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection.makefile("rb") as reading:
                self.requests.append(_request(reading))
            self.came.set()
            connection.sendall(self._answers.pop(0) if len(self._answers) > 1 else self._answers[0])
            self._held.append(connection)
            if len(self._held) > self._hold:
                connection.close()


def _request(reading: Any) -> bytes:
    """Read one request, head and body."""
    head = b""
    while line := reading.readline():
        head += line
        if line == b"\r\n":
            break
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
    return head + bytes(reading.read(length))

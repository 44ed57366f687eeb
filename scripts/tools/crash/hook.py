"""Hooks that accept every event, verify its signature, and record it in the history of the run."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from kling_callback.protocol.webhooks import verify
from kling_receiver.hooks.config import DEFAULT_HOOK
from tools.crash.history import Event, History

SECRET = "whsec_YS1zZWNyZXQtb2YtYS1ob29rLTAxMjM0NTY3ODk="
ENDS_HOOK = "ends"
ENDS = frozenset({"task.succeed", "task.failed", "task.done"})


class Hook:
    """A server on loopback with two hooks. `forged`: how many deliveries had a bad signature.

    `url`: of the hook that wants every event; `ends_url`: of the one that wants the types in ENDS.
    `refuses`: called for each delivery; True answers 500. `now`: the time of a message's timestamp, unix seconds.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.refuses: Callable[[], bool] = lambda: False
        self.now: Callable[[dict[str, str]], float] = lambda headers: time.time()
        self.forged = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/events"
        self.ends_url = f"{self.url}/{ENDS_HOOK}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def record(self, path: str, headers: dict[str, str], body: bytes) -> None:
        """Record one delivery."""
        if verify([SECRET], headers, body, self.now(headers)) != "good":
            with self._lock:
                self.forged += 1
            return
        name = path.rpartition("/events")[2].strip("/") or DEFAULT_HOOK
        self.history.deliver(name, Event.parse(json.loads(body)))

    def received(self, name: str) -> set[int]:
        """The ids of the events that a hook has received."""
        return {event.id for event in self.history.delivered[name]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore connections that break: the receiver is killed in the middle of requests."""


def _handler(hook: Hook) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            body = self.rfile.read(size)
            refused = hook.refuses()
            if len(body) == size and not refused:  # shorter: the sender was killed
                hook.record(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            self.send_response(500 if refused else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the library's name
            """Write no access log."""

    return Handler

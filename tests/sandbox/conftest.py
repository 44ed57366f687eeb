"""A quick sandbox, a client of it, and an address that takes callbacks."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from kling_sandbox import Sandbox
from tests.support.sandbox import HEADERS


class Recipient(BaseHTTPRequestHandler):
    """Answers callbacks with the status in the last part of their path."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(int(self.path.rpartition("/")[2]))
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Tests are quiet."""


@pytest.fixture(scope="session")
def recipient() -> Iterator[str]:
    """An address that takes callbacks."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Recipient) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/200"
        server.shutdown()
        thread.join()


@pytest.fixture
def gateway() -> Iterator[Sandbox]:
    """A running sandbox whose tasks are done at once."""
    with Sandbox(image_seconds=0.01, video_seconds=0.01) as gateway:
        yield gateway


@pytest.fixture
def api(gateway: Sandbox) -> Iterator[httpx.Client]:
    """A client of the sandbox, with its key."""
    with httpx.Client(base_url=gateway.url, headers=HEADERS) as api:
        yield api

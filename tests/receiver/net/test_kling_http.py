"""The client for Kling's API: an error says whether the request may have arrived, because a create is paid."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import anyio
import httpx
import pytest

from kling_receiver.net.kling_http import create_kling_client


@contextmanager
def ending(*, reset: bool) -> Iterator[str]:
    """A server that reads a request, then closes the connection without an answer, or resets it."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with closing(connection):
                connection.recv(65536)
                if reset:
                    linger = b"\x01\0\0\0\0\0\0\0"
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread.join(5)


async def post(url: str, **options: float) -> None:
    """Send one request with a body."""
    async with create_kling_client() as client:
        await client.post(url, json={"prompt": "a kangaroo"}, timeout=httpx.Timeout(5, **options))


@pytest.mark.parametrize("reset", [False, True])
def test_an_end_after_the_request_is_no_failure_to_connect(reset: bool) -> None:
    """Whatever was sent may have had its effect."""
    with ending(reset=reset) as url, pytest.raises(httpx.ReadError):
        anyio.run(post, url)


def test_a_refused_connection_proves_that_nothing_was_sent() -> None:
    """The create may be sent again."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises((httpx.ConnectError, httpx.ConnectTimeout)):
        anyio.run(post, f"http://127.0.0.1:{port}")

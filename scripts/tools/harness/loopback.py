"""Servers on loopback for demo, benches and tests: a free port, an environment, readiness."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import httpx

START_SECONDS = 30
"""Seconds until a server answers its first request, on a busy machine."""

web = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
"""The client for requests to such servers, from any thread. A new client would load all CA certificates each time."""


def free_port() -> int:
    """A TCP port on which no socket listens now; another process may take the port before its use."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


def reserve_port() -> socket.socket:
    """A socket bound to a free port that does not listen; until it is closed, no other process gets the port.

    A server of ours can still listen on the port, again and again, since both sockets allow reuse.
    """
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    return reservation


@contextmanager
def reserved_port() -> Iterator[int]:
    """A TCP port for a server that starts and ends inside the block."""
    with closing(reserve_port()) as reservation:
        yield reservation.getsockname()[1]


def environment(**settings: str) -> dict[str, str]:
    """The environment of this process with all `KLING_*` variables replaced by `settings`."""
    return {name: value for name, value in os.environ.items() if not name.startswith("KLING_")} | settings


def answers(url: str, seconds: float = START_SECONDS, *, alive: Callable[[], bool] = lambda: True) -> bool:
    """Wait until `url` answers with a status below 500. False after `seconds`, or once `alive` is false."""
    end = time.monotonic() + seconds
    while alive() and time.monotonic() < end:
        try:
            if web.get(url, timeout=seconds).status_code < 500:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    return False

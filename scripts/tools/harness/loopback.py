"""Servers on this machine, for demo, benches and tests: a port, an environment, the first answer."""

import os
import socket
import time
from collections.abc import Callable
from contextlib import closing

import httpx

START_SECONDS = 30

web = httpx.Client(limits=httpx.Limits(max_keepalive_connections=0))
"""For requests to such servers, from any thread. A client for each would read all certificates each time."""


def free_port() -> int:
    """A port that nobody listens on just now."""
    with closing(socket.create_server(("127.0.0.1", 0))) as bound:
        port: int = bound.getsockname()[1]
        return port


def environment(**settings: str) -> dict[str, str]:
    """This process's environment, with these settings and no other."""
    return {name: value for name, value in os.environ.items() if not name.startswith("KLING_")} | settings


def answers(url: str, seconds: float = START_SECONDS, *, alive: Callable[[], bool] = lambda: True) -> bool:
    """Wait until `url` is answered, other than by a 5xx; whether it was, in time and `alive`."""
    end = time.monotonic() + seconds
    while alive() and time.monotonic() < end:
        try:
            if web.get(url, timeout=seconds).status_code < 500:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    return False

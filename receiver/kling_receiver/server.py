"""uvicorn, told to end our endless streams when it is told to end, and to sleep while nothing happens."""

import asyncio
import resource
import signal
import socket
from contextlib import suppress
from types import FrameType

import uvicorn

from kling_receiver.app import Receiver, create_app
from kling_receiver.web.connections import ConnectionTable, LimitedHttpProtocol

SHUTDOWN_GRACE_SECONDS = 10
"""Seconds for requests under way when the receiver is told to stop."""
KEEP_ALIVE_SECONDS = 75
"""Seconds for which a connection may be silent between two requests."""
BACKLOG = 2048
MAX_CONNECTIONS = 10_000
"""Connections at once, of some 10 KB each; fewer where descriptors are short."""


class Server(uvicorn.Server):
    """Serves one receiver."""

    server_state: ConnectionTable

    def __init__(self, receiver: Receiver) -> None:
        config = uvicorn.Config(
            create_app(receiver),
            http=LimitedHttpProtocol,
            ws="none",
            access_log=False,  # addresses hold tokens, and it halves the speed
            log_config=None,
            lifespan="on",
            backlog=BACKLOG,
            server_header=False,
            proxy_headers=False,  # every link is made from KLING_RECEIVER_URL
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_GRACE_SECONDS,
        )
        super().__init__(config)
        # Half of the descriptors: the files that are sent, the database and what we fetch need some too.
        self.server_state = ConnectionTable(min(MAX_CONNECTIONS, _raise_fd_limit() // 2))
        receiver.bus.max_streams = min(receiver.bus.max_streams, self.server_state.max_connections // 2)
        self._receiver = receiver
        self._stop_requested = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Wake once a second for the Date header, or when told to end; uvicorn's own wakes ten times."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            try:
                async with asyncio.timeout(1):
                    await self._stop_requested.wait()
            except TimeoutError:
                pass

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends in order, a second Ctrl-C at once. uvicorn would raise it again afterwards."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.stop()

    def stop(self) -> None:
        """End in order; may be called from any thread."""
        self.should_exit = True
        self._notify()

    def _notify(self) -> None:
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_requested.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the event streams first: they would outlast any grace."""
        self._receiver.bus.close()
        self.server_state.closed = True
        await super().shutdown(sockets)


def _raise_fd_limit() -> int:
    """How many descriptors this process may have, after asking for all that it may ask for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems name more than they give
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def bind(host: str, port: int) -> socket.socket:
    """A socket bound and listening. Raises OSError when the address is taken or is not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # so named, asyncio sets TCP_NODELAY
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)  # whoever comes before the first answer waits for it
    except OSError as error:
        bound.close()
        hint = "Stop what listens there, or choose another --host or --port."
        raise OSError(f"Cannot listen on {host}, port {port}: {error.strerror}. {hint}") from error
    return bound

"""uvicorn for one receiver: it ends event streams at shutdown, and wakes once a second while idle.

The limits on connections and the shutdown build on parts of uvicorn that it does not document. `create_server`
checks that the installed uvicorn has them; without them it warns, and serves with uvicorn as it is.
"""

import asyncio
import importlib
import logging
import resource
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from kling_receiver.app import Receiver, create_app

if TYPE_CHECKING:
    from kling_receiver.web.connections import ConnectionTable

log = logging.getLogger("kling_receiver")

SHUTDOWN_GRACE_SECONDS = 10
"""Seconds for requests in progress when the receiver is told to stop."""
KEEP_ALIVE_SECONDS = 75
"""Seconds for which a connection may be silent between two requests."""
BACKLOG = 2048
MAX_CONNECTIONS = 10_000
"""Connections at once, of some 10 KB each; fewer where file descriptors are scarce."""

LIMIT_NAMES = {
    "uvicorn.protocols.http.httptools_impl": (
        "STATUS_LINE",
        *(
            f"HttpToolsProtocol.{name}"
            for name in (
                *("connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing"),
                *("on_header", "on_headers_complete", "on_body", "on_message_complete", "on_response_complete"),
                *("send_400_response", "server_state", "transport", "loop", "headers", "cycle", "pipeline"),
            )
        ),
        *(f"RequestResponseCycle.{name}" for name in ("response_started", "response_complete", "more_body")),
    ),
    "uvicorn.server": ("Server.server_state", "ServerState.connections"),
}
"""What `web.connections` overrides or uses, by module."""
SHUTDOWN_NAMES = {
    "uvicorn.server": tuple(
        f"Server.{name}"
        for name in ("main_loop", "on_tick", "handle_exit", "shutdown", "should_exit", "force_exit", "server_state")
    )
}
"""What `Server` overrides or uses."""


def missing_names(required: Mapping[str, Sequence[str]]) -> list[str]:
    """The required names that the installed uvicorn lacks: a module, or its `name` or `Class.attribute`.

    A module that cannot be imported counts by the name of the one that is not installed, such as `httptools`.
    """
    missing = []
    for module_name, names in required.items():
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            missing.append(error.name or module_name)
        else:
            missing += [name for name in names if not _exists(module, *name.split("."))]
    return missing


def _exists(module: object, name: str, attribute: str = "") -> bool:
    owner = getattr(module, name, None)
    return owner is not None and (not attribute or hasattr(owner, attribute) or attribute in _assigned(owner))


def _assigned(owner: type) -> set[str]:
    """Names that the constructors of a class use: its instances have them, the class does not."""
    codes = [getattr(vars(base).get("__init__"), "__code__", None) for base in owner.__mro__]
    return {name for code in codes if code for name in code.co_names}


class PlainServer(uvicorn.Server):
    """uvicorn's own server for one receiver. At shutdown, open event streams are cut after the grace.

    `limits`: of the `ConnectionTable`, where they differ from the default.
    """

    def __init__(self, receiver: Receiver, **limits: float) -> None:
        # Half of the descriptors: the files that are sent, the database and the downloads need some too.
        max_connections = min(MAX_CONNECTIONS, _raise_fd_limit() // 2)
        receiver.store.bus.max_streams = min(receiver.store.bus.max_streams, max_connections // 2)
        protocol: dict[str, Any] = {"limit_concurrency": max_connections}  # requests over the limit are answered 503
        self._connections: ConnectionTable | None = None
        if not missing_names(LIMIT_NAMES):
            from kling_receiver.web import connections as limited

            protocol = {"http": limited.LimitedHttpProtocol}
            self._connections = limited.ConnectionTable(max_connections, **limits)
        super().__init__(
            uvicorn.Config(
                create_app(receiver),
                **protocol,
                ws="none",
                access_log=False,  # URLs contain tokens, and it halves the speed
                log_config=None,
                lifespan="on",
                backlog=BACKLOG,
                server_header=False,
                proxy_headers=False,  # every link is made from KLING_RECEIVER_URL
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=SHUTDOWN_GRACE_SECONDS,
            )
        )
        if self._connections is not None:
            self.server_state = self._connections

    def stop(self) -> None:
        """Shut down in order; may be called from any thread."""
        self.should_exit = True


class Server(PlainServer):
    """uvicorn's server, ended without delay, also while event streams are open."""

    def __init__(self, receiver: Receiver, **limits: float) -> None:
        super().__init__(receiver, **limits)
        self._receiver = receiver
        self._stop_requested = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Wake once a second for the Date header, or at `stop`; uvicorn's own loop wakes ten times a second."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            try:
                async with asyncio.timeout(1):
                    await self._stop_requested.wait()
            except TimeoutError:
                pass

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal shuts down in order, a second Ctrl-C at once. uvicorn would raise it again afterwards."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.stop()

    def stop(self) -> None:
        """Shut down in order; may be called from any thread."""
        super().stop()
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop_requested.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the event streams first: they would outlast any grace."""
        self._receiver.store.bus.close()
        if self._connections is not None:
            self._connections.closed = True
        await super().shutdown(sockets)


def create_server(receiver: Receiver, **limits: float) -> PlainServer:
    """The server for a receiver, as far as the installed uvicorn supports it. Warns of what is missing.

    `limits`: `header_seconds` and `write_stall_seconds`, where they differ from the default.
    """
    if missing := missing_names(LIMIT_NAMES):
        log.warning(
            "uvicorn %s lacks %s. These limits are off: seconds for a request head, its bytes and headers, "
            "pipelined requests, stalled responses, the end of idle connections when there are too many. "
            "Put a proxy with such limits in front of the receiver, or install what is missing, or another uvicorn.",
            uvicorn.__version__,
            ", ".join(missing),
        )
    if missing := missing_names(SHUTDOWN_NAMES):
        log.warning(
            "uvicorn %s lacks %s. A shutdown while event streams are open takes %d s. "
            "Install another version of uvicorn.",
            uvicorn.__version__,
            ", ".join(missing),
            SHUTDOWN_GRACE_SECONDS,
        )
        return PlainServer(receiver, **limits)
    return Server(receiver, **limits)


def _raise_fd_limit() -> int:
    """Set the limit of file descriptors as high as this process may. Returns the limit."""
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems report a higher maximum than they grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError if the address is in use or not one of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # with IPPROTO_TCP asyncio sets NODELAY
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # connections made before the first accept wait in it
    except (OSError, TypeError) as error:  # TypeError: the name is not text
        listener.close()
        hint = "Stop the program that listens there, or set another --host or --port."
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"Cannot listen on {host}, port {port}: {reason}. {hint}") from error
    return listener

"""The running sandbox: a server in a thread of its own, started and stopped by a `with` block."""

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

from kling_sandbox.app import App
from kling_sandbox.lifecycle import Lifecycle
from kling_sandbox.state import State
from kling_sandbox.web.server import Server


class Sandbox(State):
    """A stand-in for Kling that serves on loopback inside a `with` block; `url` is its address.

    The constructor's arguments are those of `State`. Everything that State records may be read meanwhile: `tasks`,
    `creates`, `calls`, `queries`, `callbacks`, `downloads`; `wait_for` waits for it.
    """

    url: str
    """The address for `KLING_API_BASE`, base path included."""

    def __enter__(self) -> Self:
        """Listen, and serve from another thread. Raises OSError if the port is in use."""
        self._socket = socket.create_server((self.host, self.port), backlog=512)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://{self.host}:{self.port}{self.base_path}"
        self._loop = asyncio.SelectorEventLoop()
        self._stop = asyncio.Event()
        self._lifecycle = Lifecycle(self)
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop serving: open connections are aborted, unfinished tasks end without a callback."""
        self._call(self._stop.set)
        self._thread.join()
        self._loop.close()

    def hold(self) -> None:
        """Let no task change its status until `release`, or step by step by `advance`."""
        self.held = True

    def release(self) -> None:
        """Let all held tasks continue."""
        self.held = False
        for task in list(self.tasks.values()):
            self._call(self._lifecycle.release, task)

    def advance(self, task_id: str) -> None:
        """Let one held task change its status once: to processing, or to its final status."""
        self._call(self.tasks[task_id].steps.release)

    def _call(self, action: Callable[..., Any], *arguments: Any) -> None:
        """Call a function in the server's thread."""
        self._loop.call_soon_threadsafe(action, *arguments)

    async def _serve(self) -> None:
        server = Server(App(self, self._lifecycle), self._socket)
        server.start()
        await self._stop.wait()
        await server.stop()
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._lifecycle.callbacks.aclose()

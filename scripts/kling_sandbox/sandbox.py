"""The running sandbox: a server in a thread of its own, started and ended by a `with` block."""

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from kling_sandbox.app import application
from kling_sandbox.ledger import Ledger
from kling_sandbox.life import Life


class Sandbox(Ledger):
    def __enter__(self) -> Self:
        self._socket = socket.create_server((self.host, self.port), backlog=512)
        # asyncio sets it only on sockets which it made itself; without it each answer takes 40 ms.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://{self.host}:{self.port}{self.base_path}"
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._life = Life(self)
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._soon(self._stop.set)
        self._thread.join()
        self._loop.close()

    def hold(self) -> None:
        """Let no task change its status until `release`, or step by step by `advance`."""
        self.held = True

    def release(self) -> None:
        self.held = False
        for task in list(self.tasks.values()):
            self._soon(self._life.let_go, task)

    def advance(self, number: str) -> None:
        """Let one held task take one step: to processing, or to its end."""
        self._soon(self.tasks[number].turns.release)

    def _soon(self, action: Callable[..., Any], *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(action, *arguments)

    async def _serve(self) -> None:
        config = uvicorn.Config(
            application(self, self._life), log_config=None, proxy_headers=False, timeout_keep_alive=600
        )
        state = ServerState()
        # The bare protocol ends at once; uvicorn's own server looks only every tenth of a second.
        server = await self._loop.create_server(lambda: H11Protocol(config, state, {}), sock=self._socket)
        await self._stop.wait()
        self._loop.remove_reader(self._socket)
        for _ in range(2):  # whoever was just taken in begins: asyncio loses a connection made after `close`
            await asyncio.sleep(0)
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        await cancel(asyncio.all_tasks() - {asyncio.current_task()})
        await self._life.callbacks.client.aclose()


async def cancel(work: Any) -> None:
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)

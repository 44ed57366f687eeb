"""Blocking functions in threads that do not delay the end of the process."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def start_daemon(function: Callable[[], T]) -> Future[T]:
    """Run a blocking function in a new thread. The end of the process does not wait for it, as for an executor's."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="blocking", daemon=True).start()
    return future


async def run_in_daemon_thread(function: Callable[[], T]) -> T:
    """Wait for a function that `start_daemon` runs."""
    return await asyncio.wrap_future(start_daemon(function))

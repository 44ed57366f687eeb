"""Kling without `await`: each method runs its namesake of AsyncKling in an event loop of its own thread."""

import functools
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from client.events import Event
from client.kling import AsyncKling
from client.tasks import AsyncFile, AsyncResult, AsyncTask
from client.views import FileView, ResultView, TaskView

P = ParamSpec("P")
T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own, begun by the first call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._context: AbstractContextManager[BlockingPortal] | None = None
        self._portal: BlockingPortal | None = None

    def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """What `call` returns. Ctrl-C here cancels it there."""
        future = self.start(call)
        try:
            return future.result()
        finally:
            future.cancel()  # means nothing to one that is done

    def start(self, call: Callable[[], Awaitable[T]]) -> Future[T]:
        """`call`, under way; cancelling the future cancels it."""
        return self._started().start_task_soon(call)

    def close(self) -> None:
        """End the thread, once what was cancelled has ended."""
        with self._lock:
            context, self._context, self._portal = self._context, None, None
        if context:
            context.__exit__(None, None, None)

    def _started(self) -> BlockingPortal:
        with self._lock:
            if self._portal is None:
                self._context = start_blocking_portal(name="kling")
                self._portal = self._context.__enter__()
            return self._portal


def _creating(
    method: Callable[Concatenate[AsyncKling, P], Awaitable[AsyncTask]],
) -> "Callable[Concatenate[Kling, P], Task]":
    """The method of Kling that is this one of AsyncKling, parameters and all."""

    def blocking(self: "Kling", /, *args: P.args, **kwargs: P.kwargs) -> "Task":
        task = self.loop.run(lambda: method(self.asynchronous, *args, **kwargs))
        return Task(self.loop, task)

    functools.update_wrapper(blocking, method)
    blocking.__qualname__ = f"Kling.{method.__name__}"
    return blocking


class Kling:
    """Kling with a receiver. Open it with `with`, or end it with `close`; threads may share it."""

    def __init__(self, **settings: Any) -> None:
        """The arguments are those of AsyncKling. Raises SettingsError, which lists all problems."""
        self.asynchronous = AsyncKling(**settings)
        self.loop = Loop()

    text_to_image = _creating(AsyncKling.text_to_image)
    image_to_image = _creating(AsyncKling.image_to_image)
    text_to_video = _creating(AsyncKling.text_to_video)
    run = _creating(AsyncKling.run)
    create = _creating(AsyncKling.create)
    task = _creating(AsyncKling.task)

    def tasks(
        self, *, status: str | None = None, family: str | None = None, tag: str | None = None, limit: int = 100
    ) -> "list[Task]":
        """At most `limit` tasks, newest first. Raises ReceiverError."""
        found = self.loop.run(
            lambda: self.asynchronous.tasks(status=status, family=family, tag=tag, limit=limit)
        )
        return [Task(self.loop, task) for task in found]

    def close(self) -> None:
        """Close all connections, then the thread."""
        self.loop.run(self.asynchronous.aclose)
        self.loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Task(TaskView):
    """One task."""

    def __init__(self, loop: Loop, task: AsyncTask) -> None:
        super().__init__(task.data, unreported=task.unreported)
        self._loop, self._task = loop, task

    def wait(
        self, timeout: float | None = None, *, on_event: Callable[[Event], object] | None = None
    ) -> "Result":
        """The result, once the task is done: the receiver wakes us, nothing polls.

        `timeout`: seconds, None for as long as it takes. `on_event` hears what happened, from the beginning,
        in this thread. Raises TaskFailed, ResultFailed, WaitTimeout (the task goes on), or ReceiverError.
        """
        try:
            return Result(self._loop, self._wait(timeout, on_event))
        finally:
            self.data = self._task.data

    def refresh(self) -> "Task":
        """Ask the receiver once how things stand; returns itself."""
        self._loop.run(self._task.refresh)
        self.data = self._task.data
        return self

    def _wait(self, timeout: float | None, on_event: Callable[[Event], object] | None) -> AsyncResult:
        if on_event is None:
            return self._loop.run(lambda: self._task.wait(timeout))
        heard: SimpleQueue[Event | None] = SimpleQueue()
        future = self._loop.start(lambda: self._task.wait(timeout, on_event=heard.put))
        future.add_done_callback(lambda _: heard.put(None))
        try:
            while (event := heard.get()) is not None:
                self.data = event.task
                on_event(event)
            return future.result()
        finally:
            future.cancel()


class Result(ResultView["File"]):
    """The files of a task that succeeded."""

    def __init__(self, loop: Loop, result: AsyncResult) -> None:
        super().__init__(result.task, [File(loop, each) for each in result.files])


class File(FileView):
    """One result file."""

    def __init__(self, loop: Loop, file: AsyncFile) -> None:
        super().__init__(file.data, file.task)
        self._loop, self._file = loop, file

    def save(self, path: str | Path) -> Path:
        """Write the file to `path` (in a folder: under its own name), whole and checked, or not at all.

        Returns where it is. Raises ResultFailed when it cannot be had, OSError when it cannot be written.
        """
        return self._loop.run(lambda: self._file.save(path))

    def read(self) -> bytes:
        """The content, checked. Raises ResultFailed when it cannot be had."""
        return self._loop.run(self._file.read)

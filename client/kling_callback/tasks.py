"""The asynchronous face of a task, its result and its files: waiting, reading, saving."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from inspect import isawaitable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
from anyio import to_thread

from kling_callback.atomic_file import AtomicFile, MemoryFile
from kling_callback.base import BaseFile, BaseResult, BaseTask, check_files, stored_files
from kling_callback.errors import ReceiverError, ResultFailed, TaskFailed, WaitTimeout
from kling_callback.events import follow
from kling_callback.protocol.events import Event
from kling_callback.receiver_api import ReceiverApi

OnEvent = Callable[[Event], object]
"""Called with each event; what it returns is awaited if it can be."""

S = TypeVar("S", bound="FileWriter")


class FileWriter(Protocol):
    """Where the bytes of a file go."""

    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    def write(self, chunk: bytes) -> None: ...
    def commit(self) -> None: ...
    def discard(self) -> None: ...


class AsyncTask(BaseTask):
    """One task."""

    def __init__(self, receiver: ReceiverApi, data: dict[str, Any], *, unreported: str | None = None) -> None:
        super().__init__(data, unreported=unreported)
        self._receiver = receiver

    async def wait(self, timeout: float | None = None, *, on_event: OnEvent | None = None) -> "AsyncResult":
        """The result, once the task is done: the receiver wakes us, nothing polls.

        `timeout`: seconds, None for as long as it takes. `on_event` hears what happened, from the beginning.
        Raises TaskFailed, ResultFailed, WaitTimeout (the task goes on), or ReceiverError.
        """
        with anyio.move_on_after(timeout):
            async with aclosing(self.events()) as events:
                async for event in events:
                    if on_event and isawaitable(heard := on_event(event)):
                        await heard
            return AsyncResult(self._receiver, self._success())
        raise WaitTimeout(
            f"Task {self.id} is not done after {timeout:g} seconds. It goes on.",
            task=self.data,
            hint=f"Wait again with: kling wait {self.id}",
        )

    async def events(self) -> AsyncGenerator[Event, None]:
        """What happened so far, then live, until the task is done."""
        async with aclosing(follow(self._receiver, self.id)) as events:
            async for event in events:
                self.data = event.task
                yield event

    def stored(self) -> "AsyncResult":
        """What there is of the result by now, whatever became of the rest."""
        return AsyncResult(self._receiver, self.data)

    async def refresh(self) -> "AsyncTask":
        """Ask the receiver once how things stand; returns itself."""
        self.data = await self._receiver.task(self.id)
        return self

    def _success(self) -> dict[str, Any]:
        if self.status != "succeed":
            reason = self.status_msg or "Kling gave no reason."
            raise TaskFailed(f"Task {self.id} failed: {reason}", task=self.data)
        check_files(self.data)
        return self.data


class AsyncResult(BaseResult["AsyncFile"]):
    """The files of a task that succeeded."""

    def __init__(self, receiver: ReceiverApi, task: dict[str, Any]) -> None:
        super().__init__(task, [AsyncFile(receiver, each, task) for each in stored_files(task)])


class AsyncFile(BaseFile):
    """One result file."""

    def __init__(self, receiver: ReceiverApi, data: dict[str, Any], task: dict[str, Any]) -> None:
        super().__init__(data, task)
        self._receiver = receiver

    async def save(self, path: str | Path) -> Path:
        """Write the file to `path` (in a folder: under its own name), whole and checked, or not at all.

        Returns where it is. Raises ResultFailed when it cannot be had, OSError when it cannot be written.
        """
        target = await to_thread.run_sync(self._target, Path(path))
        await self._fetch(lambda: AtomicFile(target))
        return target

    async def read(self) -> bytes:
        """The content, checked. Raises ResultFailed when it cannot be had."""
        return bytes((await self._fetch(MemoryFile)).content)

    def _target(self, path: Path) -> Path:
        return path / self.name if path.is_dir() else path

    async def _fetch(self, new: Callable[[], S]) -> S:
        policy = self._receiver.retry
        try:
            return await policy.retry(
                lambda: self._attempt(new), lambda error: error.retryable, policy.download_seconds
            )
        except ReceiverError as error:
            raise ResultFailed(
                f"File {self.index} of task {self.task['id']} cannot be had: {error.message}",
                task=self.task,
                hint=error.hint,
            ) from error

    async def _attempt(self, new: Callable[[], S]) -> S:
        sink = await to_thread.run_sync(new)
        try:
            async with aclosing(self._receiver.file(self.task["id"], self.index)) as chunks:
                async for chunk in chunks:
                    await to_thread.run_sync(sink.write, chunk)
                    self._check(sink.size <= (self.size or sink.size))
            self._check(sink.size == (self.size or sink.size) and sink.sha256 == (self.sha256 or sink.sha256))
            await to_thread.run_sync(sink.commit)
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(sink.discard)
        return sink

    def _check(self, good: bool) -> None:
        if not good:
            raise ReceiverError("it arrived damaged.", code="damaged", retryable=True)

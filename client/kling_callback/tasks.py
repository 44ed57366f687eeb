"""AsyncTask, AsyncResult and AsyncFile: wait for a task, read and save its files."""

import os
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from datetime import datetime
from inspect import isawaitable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import anyio
from anyio import to_thread

from kling_callback.api.receiver import ReceiverApi
from kling_callback.atomic_file import AtomicFile, MemoryFile, temporary_path
from kling_callback.base import BaseFile, BaseResult, BaseTask, check_files, stored_files
from kling_callback.display import escape
from kling_callback.errors import ReceiverError, ResultFailed, TaskFailed, WaitTimeout
from kling_callback.events import follow
from kling_callback.jobs.body import check_depth
from kling_callback.jobs.inputs import InputFile, reachable_url
from kling_callback.protocol.events import Event

MIN_SAMPLES, MAX_SAMPLES = 3, 20
"""Finished tasks from which the time of another one is estimated."""

OnEvent = Callable[[Event], object]
"""Called with each event; an awaitable result is awaited."""

R = TypeVar("R")
W = TypeVar("W", bound="FileWriter")


class FileWriter(Protocol):
    """The destination of a download."""

    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    def write(self, chunk: bytes) -> None: ...
    def discard(self) -> None: ...


class AsyncTask(BaseTask):
    """One task, with the methods of Task, awaited."""

    def __init__(self, receiver: ReceiverApi, data: dict[str, Any], *, unreported: str | None = None) -> None:
        super().__init__(data, unreported=unreported)
        self._receiver = receiver

    async def wait(self, timeout: float | None = None, *, on_event: OnEvent | None = None) -> "AsyncResult":
        """Wait until the task is done, and return its result. The receiver pushes the events: nothing polls.

        `timeout`: seconds; None: no limit. `on_event`: called with each Event, from the task's first one on; an
        awaitable that it returns is awaited, an exception in it ends the wait.
        Raises TaskFailed, ResultFailed, WaitTimeout (the task continues), or ReceiverError.
        """
        with anyio.move_on_after(timeout):
            async with aclosing(self.events()) as events:
                async for event in events:
                    if on_event and isawaitable(returned := on_event(event)):
                        await returned
            return AsyncResult(self._receiver, self._success())
        raise WaitTimeout(
            f"Task {self.id} is not done after {timeout:g} seconds. It continues.",
            task=self.data,
            hint=f"Wait again with: kling wait {self.id}",
        )

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield the past Events, then live ones, until the task is done. Raises ReceiverError."""
        async with aclosing(follow(self._receiver, self.id)) as events:
            async for event in events:
                self.data = event.task
                yield event

    def stored(self) -> "AsyncResult":
        """The files that were stored when `data` was received, whether or not the others follow."""
        return AsyncResult(self._receiver, self.data)

    async def refresh(self) -> "AsyncTask":
        """Read the task from the receiver once, into `data`. Returns itself. Raises ReceiverError."""
        self.data = await self._receiver.task(self.id)
        return self

    async def page_url(self) -> str:
        """The address of the task's page for people, as the receiver names it. Raises ReceiverError."""
        return await self._receiver.page_url(self.id)

    async def usual_seconds(self) -> float | None:
        """The seconds that such a task takes: the median of the newest that succeeded, of the same family and model.

        From the create to the last file. None if fewer than MIN_SAMPLES of the newest MAX_SAMPLES did. One request; one
        more for a task that was never read. Raises ReceiverError.
        """
        if not self.family:
            await self.refresh()
        filters = {"status": "succeed", "family": self.family, "model": self.model or None}
        tasks = await self._receiver.newest(MAX_SAMPLES, **filters)
        return median_seconds(each for each in tasks if (each.get("model") or "") == (self.model or ""))

    def _success(self) -> dict[str, Any]:
        if self.status != "succeed":
            reason = escape(self.status_msg) or "Kling gave no reason."
            raise TaskFailed(f"Task {self.id} failed: {reason}", task=self.data)
        check_files(self.data)
        return self.data


class AsyncResult(BaseResult["AsyncFile"]):
    """The stored files of a task."""

    def __init__(self, receiver: ReceiverApi, task: dict[str, Any]) -> None:
        super().__init__(task, [AsyncFile(receiver, each, task) for each in stored_files(task)])


class AsyncFile(BaseFile):
    """One result file, with the methods of File, awaited."""

    def __init__(self, receiver: ReceiverApi, data: dict[str, Any], task: dict[str, Any]) -> None:
        super().__init__(data, task)
        self._receiver = receiver

    async def save(self, path: str | Path) -> Path:
        """Download the file to `path`, or into the folder `path` as `name`: complete and checked, or not at all.

        A `path` that ends with a slash is a folder. Returns the file's Path. Raises ResultFailed when it cannot be
        downloaded, OSError when it cannot be written.
        """
        target = await to_thread.run_sync(self._target, path)
        await self._download(lambda: AtomicFile(temporary_path(target)), lambda file: file.commit(target))
        return target

    async def read(self) -> bytes:
        """Download the content as bytes, checked. Raises ResultFailed when it cannot be downloaded."""
        return await self._download(MemoryFile, lambda file: bytes(file.content))

    def _target(self, path: str | Path) -> Path:
        is_folder = str(path).endswith(("/", os.sep)) or Path(path).is_dir()
        return Path(path) / self.name if is_folder else Path(path)

    async def _download(self, create: Callable[[], W], finish: Callable[[W], R]) -> R:
        """Download into what `create` returns, check it, and return what `finish` makes of it. Retries."""
        policy = self._receiver.retry
        try:
            return await policy.retry(
                lambda: self._attempt(create, finish), lambda error: error.retryable, policy.download_seconds
            )
        except ReceiverError as error:
            raise ResultFailed(
                f"File {self.index} of task {self.task['id']} cannot be downloaded: {error.message}",
                task=self.task,
                hint=error.hint,
            ) from error

    async def _attempt(self, create: Callable[[], W], finish: Callable[[W], R]) -> R:
        file = await to_thread.run_sync(create)
        try:
            async with aclosing(self._receiver.file(self.task["id"], self.index)) as chunks:
                async for chunk in chunks:
                    await to_thread.run_sync(file.write, chunk)
                    self._check(file.size <= (self.size or file.size))
            self._check(file.size == (self.size or file.size) and file.sha256 == (self.sha256 or file.sha256))
            return await to_thread.run_sync(finish, file)
        finally:
            with anyio.CancelScope(shield=True):  # a cancelled download leaves no temporary file
                await to_thread.run_sync(file.discard)

    def _check(self, intact: bool) -> None:
        if not intact:
            raise ReceiverError("it arrived damaged.", code="damaged", retryable=True)


def median_seconds(tasks: Iterable[dict[str, Any]]) -> float | None:
    """The median of the seconds from the create to the last change; None for fewer than MIN_SAMPLES. `tasks`: JSON."""
    taken = sorted(filter(None, (_seconds_taken(task) for task in tasks if task.get("done") is True)))
    number = len(taken)
    return (taken[(number - 1) // 2] + taken[number // 2]) / 2 if number >= MIN_SAMPLES else None


def _seconds_taken(task: dict[str, Any]) -> float | None:
    try:
        begin, end = (datetime.fromisoformat(str(task.get(name))) for name in ("created_at", "updated_at"))
        return max((end - begin).total_seconds(), 0.001)
    except (ValueError, TypeError):  # no time, or only one of them has a zone
        return None


async def with_files(fields: Any) -> Any:
    """The parameters of a job with each file of an earlier result as an InputFile; images are downloaded.

    Raises ParameterError for parameters that are nested too deep, ResultFailed when an image cannot be downloaded.
    """
    check_depth(fields)
    return await _with_files(fields)


async def _with_files(value: Any) -> Any:
    if isinstance(value, BaseFile):
        return await _input_file(value)
    if isinstance(value, Mapping):
        return {name: await _with_files(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [await _with_files(each) for each in value]
    return value


async def _input_file(file: BaseFile) -> InputFile:
    """A file of either client as an input. A blocking one waits for its own loop, hence the thread."""
    kind = file.kind if file.kind in ("image", "video", "audio") else (file.content_type or "file").partition("/")[0]
    content = await to_thread.run_sync(file.read) if kind == "image" else None
    return InputFile(kind, await content if isawaitable(content) else content, reachable_url(file.data))

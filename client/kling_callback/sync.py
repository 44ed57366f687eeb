"""Kling without `await`: each method runs its namesake of AsyncKling in an event loop of its own thread."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

import httpx

from kling_callback.api.receiver import PAGE_SIZE
from kling_callback.api.retry import RetryPolicy
from kling_callback.base import BaseFile, BaseResult, BaseTask
from kling_callback.display import MAX_INLINE_BYTES, data_url, is_media
from kling_callback.errors import KlingError
from kling_callback.jobs.job import Job
from kling_callback.jobs.methods import JobMethods, returning
from kling_callback.kling import AsyncKling
from kling_callback.loops.thread import LoopThread
from kling_callback.protocol.events import Event
from kling_callback.settings import ClientSettings
from kling_callback.tasks import AsyncFile, AsyncResult, AsyncTask


class KlingArguments(TypedDict, total=False):
    """The arguments of AsyncKling and Kling, by the same names."""

    api_base: str | None
    allow_http_api: bool | None
    api_key: str | None
    access_key: str | None
    secret_key: str | None
    signing_secrets: Sequence[str] | str | None
    receiver_token: str | None
    receiver_url: str | None
    receiver_internal_url: str | None
    settings: ClientSettings | None
    retry: RetryPolicy | None
    http: httpx.AsyncClient | None


class Task(BaseTask):
    """One task at Kling, as the receiver has it."""

    def __init__(self, loop: LoopThread, task: AsyncTask) -> None:
        super().__init__(task.data, unreported=task.unreported)
        self._loop, self._task = loop, task

    def wait(self, timeout: float | None = None, *, on_event: Callable[[Event], object] | None = None) -> "Result":
        """Wait until the task is done, and return its result. The receiver pushes the events: nothing polls.

        `timeout`: seconds; None: no limit. `on_event`: called in this thread with each Event, from the task's first
        one on; an exception in it ends the wait.
        Raises TaskFailed, ResultFailed, WaitTimeout (the task continues), or ReceiverError.
        """
        try:
            return Result(self._loop, self._wait(timeout, on_event))
        finally:
            self.data = self._task.data

    def stored(self) -> "Result":
        """The files that were stored when `data` was received, whether or not the others follow."""
        return Result(self._loop, self._task.stored())

    def refresh(self) -> "Task":
        """Read the task from the receiver once, into `data`. Returns itself. Raises ReceiverError."""
        self._loop.run(self._task.refresh)
        self.data = self._task.data
        return self

    def page_url(self) -> str:
        """The address of the task's page for people, as the receiver names it. Raises ReceiverError."""
        return self._loop.run(self._task.page_url)

    def usual_seconds(self) -> float | None:
        return self._loop.run(self._task.usual_seconds)

    usual_seconds.__doc__ = AsyncTask.usual_seconds.__doc__

    def _wait(self, timeout: float | None, on_event: Callable[[Event], object] | None) -> AsyncResult:
        if on_event is None:
            return self._loop.run(lambda: self._task.wait(timeout))
        events: SimpleQueue[Event | None] = SimpleQueue()
        call = self._loop.start(lambda: self._task.wait(timeout, on_event=events.put))
        call.future.add_done_callback(lambda _: events.put(None))
        try:
            while not call.lost and (event := events.get()) is not None:
                self.data = event.task
                on_event(event)
            return call.result()
        finally:
            call.stop()


class Result(BaseResult["File"]):
    """The stored files of a task."""

    def __init__(self, loop: LoopThread, result: AsyncResult) -> None:
        super().__init__(result.task, [File(loop, each) for each in result.files])


class File(BaseFile):
    """One result file."""

    def __init__(self, loop: LoopThread, file: AsyncFile) -> None:
        super().__init__(file.data, file.task)
        self._loop, self._file = loop, file

    def save(self, path: str | Path) -> Path:
        """Download the file to `path`, or into the folder `path` as `name`: complete and checked, or not at all.

        A `path` that ends with a slash is a folder. Returns the file's Path. Raises ResultFailed when it cannot be
        downloaded, OSError when it cannot be written.
        """
        return self._loop.run(lambda: self._file.save(path))

    def read(self) -> bytes:
        """Download the content as bytes, checked. Raises ResultFailed when it cannot be downloaded."""
        return self._loop.run(self._file.read)

    def _source(self) -> str | None:
        """The content itself, so that a notebook keeps it; a link to a large file, or to one that cannot be read."""
        if is_media(self.content_type) and 0 < (self.size or 0) <= MAX_INLINE_BYTES:
            with suppress(KlingError):
                return data_url(self.read(), str(self.content_type))
        return self.href


@returning(Task)
class Kling(JobMethods[Task]):
    """A blocking client of Kling and its receiver. Open it with `with`, or call `close`. Threads may share it."""

    def __init__(self, **settings: Unpack[KlingArguments]) -> None:
        """The arguments are those of AsyncKling. Raises SettingsError with all problems."""
        self.asynchronous = AsyncKling(**settings)
        self.loop = LoopThread(self.asynchronous.aclose)

    def run(
        self,
        job: Job,
        values: Mapping[str, Any],
        *,
        tags: Sequence[str] = (),
        hook: str | None = None,
        hook_events: Sequence[str] = (),
        callback_url: str | None = None,
        external_task_id: str | None = None,
        priority: int | None = None,
    ) -> Task:
        """Create one of the typed jobs of `kling_callback.jobs.catalog`; `values`: its parameters, checked first.

        Other arguments and errors as in `create`.
        """
        return self._run(job, values, tags, hook, hook_events, callback_url, external_task_id, priority)

    def create(
        self,
        family: str,
        body: Mapping[str, Any],
        *,
        tags: Sequence[str] = (),
        hook: str | None = None,
        hook_events: Sequence[str] = (),
        callback_url: str | None = None,
        external_task_id: str | None = None,
        priority: int | None = None,
    ) -> Task:
        create = partial(self.asynchronous.create, family, body)
        return self._task(
            lambda: create(
                tags=tags,
                hook=hook,
                hook_events=hook_events,
                callback_url=callback_url,
                external_task_id=external_task_id,
                priority=priority,
            )
        )

    create.__doc__ = AsyncKling.create.__doc__

    def task(self, task_id: str) -> Task:
        """Read a task from the receiver. Raises ReceiverError, ParameterError for an invalid id.

        `task_id`: our id, Kling's, or the `external_task_id` that another program sent.
        """
        return self._task(lambda: self.asynchronous.task(task_id))

    def _run(
        self,
        job: Job,
        values: Mapping[str, Any],
        tags: Sequence[str],
        hook: str | None,
        hook_events: Sequence[str],
        callback_url: str | None,
        external_task_id: str | None,
        priority: int | None,
    ) -> Task:
        run = partial(self.asynchronous.run, job, values)
        return self._task(
            lambda: run(
                tags=tags,
                hook=hook,
                hook_events=hook_events,
                callback_url=callback_url,
                external_task_id=external_task_id,
                priority=priority,
            )
        )

    def _task(self, call: Callable[[], Awaitable[AsyncTask]]) -> Task:
        return Task(self.loop, self.loop.run(call))

    def tasks(
        self,
        *,
        status: str | None = None,
        family: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        task_id: str | None = None,
        limit: int = PAGE_SIZE,
    ) -> list[Task]:
        """List at most `limit` tasks, newest first. The filters are optional. Raises ReceiverError.

        `task_id`: Kling's id.
        """
        tasks = self.loop.run(
            lambda: self.asynchronous.tasks(
                status=status, family=family, model=model, tag=tag, task_id=task_id, limit=limit
            )
        )
        return [Task(self.loop, task) for task in tasks]

    def cancel(self, task_id: str) -> Task:
        return self._task(lambda: self.asynchronous.cancel(task_id))

    cancel.__doc__ = AsyncKling.cancel.__doc__

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call an endpoint of Kling's that answers at once, and return its answer's JSON, unchanged.

        GET without a `body`, else POST. `path`: under `/v1` (`videos/identify-face`, `general/presets-voices`), or of
        the account (`account/costs?start_time=...&end_time=...`). Needs a Kling key, and no receiver.

        A call is paid for: it is sent again only if Kling certainly did not accept it. Raises ParameterError before
        anything is sent, NotCreated when Kling did not accept the call, CreateUnknown when it may have.
        """
        return self.loop.run(lambda: self.asynchronous.call(path, body))

    def tasks_at_kling(self, family: str, *, limit: int = PAGE_SIZE) -> list[dict[str, Any]]:
        """List at most `limit` tasks of a legacy family as Kling itself has them: Kling's records, newest first.

        Raises ParameterError for another family, GatewayError if Kling gives no list.
        """
        return self.loop.run(lambda: self.asynchronous.tasks_at_kling(family, limit=limit))

    def close(self) -> None:
        """Cancel the calls that still run, close all connections, end the thread."""
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

"""Wait for several tasks by one event stream. The receiver pushes the events: nothing polls."""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from kling_callback.batch.following import follow_all
from kling_callback.batch.removed import NOT_ONE, RemovedTasks
from kling_callback.batch.runner import MAX_DOWNLOADS, failure_of
from kling_callback.batch.summary import Failure, Summary
from kling_callback.display import escape
from kling_callback.errors import KlingError, ReceiverError
from kling_callback.kling import AsyncKling
from kling_callback.tasks import AsyncTask

if TYPE_CHECKING:
    from anyio import abc

MAX_READS = 4
"""Tasks that are read at once at the beginning."""

MAX_TAGGED, MAX_FETCHING = 10_000, 500
"""Tasks of a tag, of each status; newest succeeded ones among which those without all their files are looked for."""

UNFINISHED = ("created", "submitted", "processing")

OnEnd = Callable[[AsyncTask], Awaitable[list[str]]]
"""Called with each task that has ended, at most MAX_DOWNLOADS at once. Returns the problems of its files."""


async def unfinished(kling: AsyncKling, tag: str) -> list[AsyncTask]:
    """The tasks with a tag that are not done, oldest first. Raises ReceiverError."""
    tasks = [task for status in UNFINISHED for task in await kling.tasks(status=status, tag=tag, limit=MAX_TAGGED)]
    tasks += await kling.tasks(status="succeed", tag=tag, limit=MAX_FETCHING)
    return [task for task in reversed(tasks) if not task.done]


class TaskGroup:
    """Several tasks that are waited for. `summary`: at each moment; `open`: by id, those that have not ended."""

    def __init__(
        self,
        kling: AsyncKling,
        task_ids: Iterable[str],
        *,
        tag: str | None = None,
        on_end: OnEnd,
        on_change: Callable[[Summary], None] = lambda summary: None,
    ) -> None:
        """`task_ids`: any ids. `tag`: the tasks with it that are not done now, too. `on_change`: of the summary."""
        self.summary = Summary(0)
        self.open: dict[str, AsyncTask] = {}
        self._ids, self._tag = iter(dict.fromkeys(task_ids)), tag
        self._kling, self._on_end, self._on_change = kling, on_end, on_change
        self._ending = anyio.CapacityLimiter(MAX_DOWNLOADS)
        self._error: KlingError | OSError | None = None
        self._removed = RemovedTasks(kling, self._not_done, self._lose)
        self._group = anyio.create_task_group()

    async def wait(self) -> None:
        """Wait until each task has ended. What fails for one task alone is in the summary.

        Raises KlingError, OSError of `on_end`.
        """
        cursor = await self._kling.last_event()  # before the tasks are read, so that no event is missed
        for task in await unfinished(self._kling, self._tag) if self._tag else ():
            self._add(task)
        async with anyio.create_task_group() as readers:
            for _ in range(MAX_READS):
                readers.start_soon(self._guarded, readers, self._read)
        self._raise()
        async with self._group as group:
            ended = [task for task in self.open.values() if task.done]
            self._change()
            if self.open:
                follow = partial(
                    follow_all,
                    self._kling,
                    cursor,
                    self._note,
                    on_reconnect=self._removed.reconnected,
                    on_restore=self._read_open,
                )
                group.start_soon(self._guarded, group, follow)
                group.start_soon(self._guarded, group, self._removed.find)
            for task in ended:
                self._start_end(task)
        self._raise()

    def _raise(self) -> None:
        if self._error:
            raise self._error

    async def _guarded(self, group: "abc.TaskGroup", work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Let an error end the wait, alone: the others that the end causes do not count."""
        try:
            await work(*arguments)
        except (KlingError, OSError) as error:
            self._error = self._error or error
            group.cancel_scope.cancel()

    async def _read(self) -> None:
        """Read the next task, until there is none. Several of these share the ids."""
        for task_id in self._ids:
            try:
                self._add(await self._kling.task(task_id))
            except ReceiverError as error:
                if error.http_status not in NOT_ONE:
                    raise
                self.summary.jobs += 1
                self.summary.submitted += 1
                self._fail(task_id, error.message)

    def _add(self, task: AsyncTask) -> None:
        """Add a task, unless it was added by another of its ids."""
        if task.id not in self.open:
            self.open[task.id] = task
            self.summary.jobs += 1
            self.summary.submitted += 1
            self._count(task, +1)

    async def _read_open(self) -> None:
        for task_id in self._not_done():
            await self._read_again(task_id)

    def _not_done(self) -> list[str]:
        """The ids of the tasks that are waited for; the other open ones end already."""
        return [task.id for task in self.open.values() if not task.done]

    async def _read_again(self, task_id: str) -> None:
        try:
            self._note((await self._kling.task(task_id)).data)
        except ReceiverError as error:
            if error.http_status not in NOT_ONE:
                raise
            self._lose(task_id, "The receiver's database was restored, and does not have the task.")

    def _lose(self, task_id: str, reason: str) -> None:
        """End the wait for a task that the receiver does not have any more, unless the task has ended meanwhile."""
        task = self.open.get(task_id)
        if task is None or task.done:
            return
        self._count(self.open.pop(task_id), -1)
        self._fail(task_id, reason)
        self._change()

    def _note(self, data: dict[str, Any]) -> None:
        """Note a task's JSON. A task that is done ends."""
        task = self.open.get(data["id"])
        if task is None or task.done:
            return
        self._count(task, -1)
        task.data = data
        self._count(task, +1)
        if task.done:
            self._start_end(task)
        self._change()

    def _start_end(self, task: AsyncTask) -> None:
        self._group.start_soon(self._guarded, self._group, self._end, task)

    async def _end(self, task: AsyncTask) -> None:
        async with self._ending:
            problems = await self._on_end(task)
        self._count(self.open.pop(task.id), -1)
        reason = failure_of(task)
        self.summary.charges.add(task.family, task.data.get("cost"))
        if reason or problems:
            self._fail(task.id, " ".join([*([reason] if reason else []), *problems]))
        else:
            self.summary.ended += 1
        self._change()

    def _fail(self, task_id: str, reason: str) -> None:
        self.summary.ended += 1
        self.summary.failures.append(Failure(0, task_id, escape(reason)))

    def _count(self, task: AsyncTask, change: int) -> None:
        self.summary.statuses["queued" if task.queue_position else task.status] += change

    def _change(self) -> None:
        """Report the summary. Once all tasks have ended, the wait ends."""
        self._on_change(self.summary)
        if self.summary.ended == self.summary.jobs:
            self._group.cancel_scope.cancel()

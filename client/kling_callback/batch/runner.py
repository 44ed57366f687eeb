"""Run a batch: submit its jobs, follow all of them by one event stream, download their files as they end.

```
lines ─▶ submit (a few at once) ─▶ receiver ─▶ one event stream ─▶ ended ─▶ download (a few at once) ─▶ report
```

A job is resumed by its id: a repeated submission is answered with the task as it is, and a file on disk with the right
checksum is not downloaded again.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from kling_callback.base import check_files
from kling_callback.batch.files import save_missing
from kling_callback.batch.following import follow_all
from kling_callback.batch.lines import BatchCreate, BatchFile, BatchJob
from kling_callback.batch.removed import RemovedTasks
from kling_callback.batch.summary import Failure, Summary
from kling_callback.display import escape, logger
from kling_callback.errors import KlingError, ParameterError, ReceiverError, ResultFailed
from kling_callback.kling import AsyncKling
from kling_callback.tasks import AsyncTask

log = logger("kling_callback.batch.runner")

MAX_SUBMISSIONS = 4
"""Submissions at once: each may have images in memory. The receiver answers at once, before a task is sent."""

MAX_DOWNLOADS = 4
"""Tasks at once whose files are downloaded."""

MAX_FAILURES = 20
"""Consecutive failures of one submission, each after the retries of the client, while the receiver restarts."""

MAX_PAUSE_SECONDS = 30
"""Between two submissions of one job, unless the receiver names another time. The first pause is one second."""

LINE_REFUSED = frozenset({409, 413, 422})
"""HTTP statuses that are about one submission; the others would be the same for all, as is the code NO_KEY."""
NO_KEY = "no_key"
QUEUE_FULL, NO_SUCH_TASK = 429, 404


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that has ended. `task`: with its JSON, without the request; `paths`: of the files that are saved."""

    job: BatchJob
    task: AsyncTask
    paths: tuple[Path, ...]


@dataclass(slots=True)
class _Open:
    """A job that has not ended. `status`: under which the summary counts it; `answered`: whether the receiver has it.

    `event`: the task of the latest event before the answer, which is not of this job if the submission is refused.
    """

    job: BatchJob
    status: str = ""
    answered: bool = False
    event: dict[str, Any] | None = None


class Batch:
    """One run over the jobs of a file. `summary`: at each moment, also after an interruption."""

    def __init__(
        self,
        kling: AsyncKling,
        file: BatchFile,
        jobs: Sequence[BatchJob],
        *,
        wait: bool = True,
        output: Path | None = None,
        on_submit: Callable[[AsyncTask], None] = lambda task: None,
        on_end: Callable[[Ended], None] = lambda ended: None,
        on_change: Callable[[Summary], None] = lambda summary: None,
    ) -> None:
        """`kling`: a client whose creates the receiver sends. `jobs`: of `file`, checked.

        `wait`: False to submit only. `output`: the folder for the files; None: no download. `on_submit` and `on_end`
        are called with each task once the receiver has it, and once it has ended; `on_change` when the summary changes.
        """
        self.summary = Summary(len(jobs))
        self._kling, self._file, self._wait, self._output = kling, file, wait, output
        self._on_submit, self._on_end, self._on_change = on_submit, on_end, on_change
        self._jobs = iter(jobs)
        self._open: dict[str, _Open] = {}
        """By the task's id; also those whose submission is not answered yet."""
        self._error: KlingError | OSError | None = None
        self._removed = RemovedTasks(kling, self._answered, self._lose)
        self._group = anyio.create_task_group()

    async def run(self) -> None:
        """Submit all jobs, and wait until each has ended. What fails for one job alone is in the summary.

        Raises KlingError, OSError of `on_submit` and `on_end`.
        """
        cursor = await self._kling.last_event() if self._wait else ""  # no event of a task of this batch is before it
        self._ended, self._to_end = anyio.create_memory_object_stream[tuple[BatchJob, dict[str, Any]]](math.inf)
        with self._ended, self._to_end:
            async with self._group as group:
                for _ in range(MAX_SUBMISSIONS):
                    group.start_soon(self._guarded, self._submit_jobs)
                if self._wait:
                    follow = partial(
                        follow_all,
                        self._kling,
                        cursor,
                        self._receive,
                        on_reconnect=self._removed.reconnected,
                        on_restore=self._read_open,
                    )
                    group.start_soon(self._guarded, follow)
                    group.start_soon(self._guarded, self._removed.find)
                    for _ in range(MAX_DOWNLOADS):
                        group.start_soon(self._guarded, self._end_jobs)
        if self._error:
            raise self._error

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        """Let an error end the batch, alone: the others that the end causes do not count."""
        try:
            await work()
        except (KlingError, OSError) as error:
            self._error = self._error or error
            self._group.cancel_scope.cancel()

    async def _submit_jobs(self) -> None:
        """Submit the next job, until there is none. Several of these share the jobs."""
        for job in self._jobs:
            entry = self._open[job.task_id] = _Open(job)  # its events may arrive before the answer
            try:
                create = await to_thread.run_sync(self._file.read, job)
                task = await self._submit(job, create)
            except (ParameterError, OSError) as error:
                self.summary.refused += 1
                self._fail(entry, f"The line cannot be sent any more: {error}")
            except ReceiverError as error:
                if error.http_status not in LINE_REFUSED or error.code == NO_KEY:
                    raise
                self.summary.refused += 1
                self._fail(entry, str(error))
            else:
                self.summary.submitted += 1
                entry.answered = True
                self._on_submit(task)
                if self._wait:
                    self._note(entry, task.data if task.done else entry.event or task.data)
                else:
                    self._change()

    async def _submit(self, job: BatchJob, create: BatchCreate) -> AsyncTask:
        """Submit one job, for as long as the receiver's queue is full, and while it restarts."""
        failures = 0
        while True:
            try:
                return await self._kling.create(
                    create.family,
                    create.body,
                    tags=create.tags,
                    hook=create.hook,
                    hook_events=create.hook_events,
                    callback_url=create.callback_url,
                    external_task_id=job.task_id,
                    priority=create.priority,
                )
            except ReceiverError as error:
                failures = 0 if error.http_status == QUEUE_FULL else failures + 1
                if not error.retryable or not self._kling.receiver_reached or failures > MAX_FAILURES:
                    raise
                pause = error.retry_after
                if pause is None:
                    pause = min(2.0 ** max(failures - 1, 0), MAX_PAUSE_SECONDS)
                log.info("%s Trying again in %d seconds.", error.message, pause)
                await anyio.sleep(pause)

    def _receive(self, task: dict[str, Any]) -> None:
        """Note an event's task; that of a job without an answer yet is noted with the answer."""
        entry = self._open.get(task["id"])
        if entry and entry.answered:
            self._note(entry, task)
        elif entry:
            entry.event = {**task, "request": None}

    def _answered(self) -> list[str]:
        """The ids of the tasks that have not ended, of those that the receiver has."""
        return [task_id for task_id, entry in self._open.items() if entry.answered]

    def _lose(self, task_id: str, reason: str) -> None:
        """End a job whose task was removed, unless it has ended meanwhile."""
        if entry := self._open.get(task_id):
            self._fail(entry, reason)

    async def _read_open(self) -> None:
        for entry in [each for each in self._open.values() if each.answered]:
            try:
                task = await self._kling.task(entry.job.task_id)
            except ReceiverError as error:
                if error.http_status != NO_SUCH_TASK:
                    raise
                self._fail(entry, "The receiver's database was restored, and does not have the task. Run again.")
            else:
                self._note(entry, task.data)

    def _note(self, entry: _Open, task: dict[str, Any]) -> None:
        """Note a task's JSON. The files of a task that is done are downloaded next."""
        done = task.get("done") is True
        self._count(entry, "" if done else "queued" if task.get("queue_position") else str(task["status"]))
        if done:
            del self._open[entry.job.task_id]
            self._ended.send_nowait((entry.job, {**task, "request": None}))  # the request may be long
        self._change()

    def _count(self, entry: _Open, status: str) -> None:
        self.summary.statuses[entry.status] -= 1
        self.summary.statuses[status] += 1
        entry.status = status

    def _fail(self, entry: _Open, reason: str) -> None:
        """End a job that has no task."""
        del self._open[entry.job.task_id]
        self._count(entry, "")
        self._end(entry.job, [reason])

    async def _end_jobs(self) -> None:
        """Download the files of the next task that has ended, until the batch ends."""
        while True:
            job, data = await self._to_end.receive()
            task = self._kling.attach(job.task_id)
            task.data = data
            paths, problems = await save_missing(task.stored().files, self._output) if self._output else ([], [])
            reason = failure_of(task)
            self.summary.files += len(paths)
            self.summary.charges.add(job.family, data.get("cost"))
            if not reason:
                self.summary.estimate.add(job.family, job.cost)
            self._on_end(Ended(job, task, tuple(paths)))
            self._end(job, [*([reason] if reason else []), *problems])

    def _end(self, job: BatchJob, problems: Sequence[str]) -> None:
        self.summary.ended += 1
        if problems:
            self.summary.failures.append(Failure(job.line, job.task_id, escape(" ".join(problems))))
        self._change()

    def _change(self) -> None:
        """Report the summary. Once all jobs have ended, and all submissions are answered, the batch ends."""
        self._on_change(self.summary)
        answered = self.summary.submitted + self.summary.refused
        if self._wait and answered == self.summary.ended == self.summary.jobs:
            self._group.cancel_scope.cancel()


def failure_of(task: AsyncTask) -> str:
    """Why a task that is done is no success; "" for one."""
    if task.status != "succeed":
        return task.status_msg or "Kling gave no reason."
    try:
        check_files(task.data)
    except ResultFailed as error:
        return str(error)
    return ""

"""A run of a batch: what is sent and when, one event stream for all jobs, and what stops one job or all."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from kling_callback.batch import runner
from kling_callback.batch.lines import BatchFile, BatchJob
from kling_callback.batch.runner import Batch, Ended
from kling_callback.errors import ReceiverError
from tests.support.kling import Stage, Step, answer, cursor, event, refusal, stream, task_json, usual

pytestmark = pytest.mark.anyio

KEYLESS: dict[str, Any] = {"api_key": "", "signing_secrets": "", "receiver_token": "a-token"}
FILE = {"index": 0, "kind": "image", "status": "stored", "content_type": "image/png", "href": "https://receiver.test/x"}


def done(task_id: str, status: str = "succeed", **more: Any) -> dict[str, Any]:
    return task_json(task_id, status, **{"done": True, "results": [FILE], "family": "images/generations", **more})


class FakeReceiver(Stage):
    """A receiver that takes every job, and whose event stream has what the test pushes."""

    def __init__(self, **script: list[Step]) -> None:
        super().__init__(**script)
        self._events = asyncio.Queue[str]()
        self.count, self.log_id = 0, "8c1f2e3a5b6d7f90"
        self.streams = 0

    def push(self, kind: str, task: dict[str, Any]) -> None:
        """Add an event to the log."""
        self.count += 1
        self._events.put_nowait(event(self.count, kind, task, self.log_id))

    async def handle(self, request: httpx.Request) -> httpx.Response:
        """Answer streams by what is pushed."""
        if request.url.path != "/api/events" or self.script["all"]:
            return await super().handle(request)
        if "latest" in str(request.url.query):
            return stream(f"id: {cursor(self.count, self.log_id)}\n\n")
        self.streams += 1
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=self._content())

    async def _content(self) -> AsyncIterator[bytes]:
        while True:
            yield (await self._events.get()).encode()

    def end(self, request: httpx.Request) -> httpx.Response:
        """Take a job; its task ends at once."""
        task_id = json.loads(request.content)["external_task_id"]
        self.push("task.done", done(task_id))
        return usual("submit", request)


def jobs_file(count: int) -> tuple[BatchFile, list[BatchJob]]:
    lines = ({"job": "text-to-image", "prompt": "x", "external_task_id": f"job-{number}"} for number in range(count))
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    file = BatchFile(Path("jobs.jsonl"))
    return file, file.check()


async def run(stage: Stage, count: int = 1, **options: Any) -> tuple[Batch, list[Ended]]:
    """Run a batch of so many jobs to its end."""
    ended: list[Ended] = []
    file, jobs = jobs_file(count)
    async with stage.kling(**KEYLESS) as kling:
        batch = Batch(kling, file, jobs, on_end=ended.append, **options)
        with anyio.fail_after(20):
            await batch.run()
    return batch, ended


async def test_a_thousand_jobs_have_one_stream_and_few_submissions_at_once() -> None:
    """Of a batch of any length."""
    stage, at_once, most = FakeReceiver(), 0, 0

    async def take(request: httpx.Request) -> httpx.Response:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await anyio.lowlevel.checkpoint()
        at_once -= 1
        return stage.end(request)

    stage.script["submit"] = [take] * 1000
    batch, ended = await run(stage, 1000)
    assert (len(ended), batch.summary.succeeded, stage.streams) == (1000, 1000, 1)
    assert 1 < most <= runner.MAX_SUBMISSIONS
    assert {each.task.data.get("request") for each in ended} == {None}
    assert stage.order == ["submit"] * 1000


async def test_an_event_before_the_answer_is_not_lost() -> None:
    """A quick task may end before its submission is answered; the older answer does not count then."""
    stage = FakeReceiver()

    async def slow(request: httpx.Request) -> httpx.Response:
        stage.push("task.processing", task_json("job-0", "processing"))
        stage.push("task.done", done("job-0"))
        await anyio.wait_all_tasks_blocked()
        return usual("submit", request)

    stage.script["submit"] = [slow]
    batch, ended = await run(stage)
    assert (len(ended), batch.summary.submitted) == (1, 1)
    assert +batch.summary.statuses == {}


async def test_an_event_of_another_task_with_the_same_id_does_not_count() -> None:
    """The receiver refuses the job then, for the id belongs to a task with other parameters."""
    stage = FakeReceiver()

    async def refuse(request: httpx.Request) -> httpx.Response:
        stage.push("task.done", done("job-0"))
        await anyio.wait_all_tasks_blocked()
        return refusal(409, "conflict")

    stage.script["submit"] = [refuse]
    batch, ended = await run(stage)
    assert (ended, batch.summary.refused, len(batch.summary.failures)) == ([], 1, 1)


async def test_a_job_that_is_done_already_needs_no_event() -> None:
    """The answer to its submission is the task as it is. Its failure counts as in the run that created it."""
    batch, ended = await run(
        FakeReceiver(submit=[answer(200, done("job-0", "failed", status_msg="no\x1b", results=[]))])
    )
    assert len(ended) == 1
    assert [str(each) for each in batch.summary.failures] == ["line 1, job-0: no\\x1b"]


async def test_a_full_queue_is_waited_for() -> None:
    """For as long as it takes: a batch may be longer than the queue."""
    stage = FakeReceiver()
    full = answer(429, {"error": {"code": "queue_full", "message": "Full.", "hint": "Wait."}}, Retry_After="0")
    stage.script["submit"] = [*[full] * 40, stage.end]
    batch, _ = await run(stage)
    assert (batch.summary.succeeded, len(stage.requests["submit"])) == (1, 41)


async def test_a_receiver_that_restarts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has been reached; not for ever."""
    monkeypatch.setattr(runner, "MAX_PAUSE_SECONDS", 0)
    monkeypatch.setattr(runner, "MAX_FAILURES", 3)
    gone = httpx.ConnectError("refused")
    stage = FakeReceiver()
    stage.script["submit"] = [*[gone] * 10, stage.end]
    batch, _ = await run(stage)
    assert batch.summary.succeeded == 1
    with pytest.raises(ReceiverError) as error:
        await run(FakeReceiver(submit=[gone] * 100), 10)
    assert error.value.code == "unreachable"


@pytest.mark.parametrize(
    ("status", "code"), [(401, "bad_token"), (403, "forbidden"), (404, "not_found"), (409, "no_key")]
)
async def test_a_refusal_of_all_jobs_stops_the_batch(status: int, code: str) -> None:
    """It would be the same for each of them."""
    stage = FakeReceiver(submit=[refusal(status, code)] * 100)
    with pytest.raises(ReceiverError) as error:
        await run(stage, 100)
    assert error.value.code == code
    assert len(stage.requests["submit"]) <= runner.MAX_SUBMISSIONS


async def test_a_refusal_of_one_job_is_its_failure() -> None:
    """The others go on."""
    stage = FakeReceiver()
    stage.script["submit"] = [refusal(409, "conflict"), refusal(422), answer(413), stage.end]
    batch, _ = await run(stage, 4)
    assert (batch.summary.succeeded, batch.summary.refused, len(batch.summary.failures)) == (1, 3, 3)


async def test_a_line_that_cannot_be_sent_any_more_is_its_failure() -> None:
    """Somebody has changed the file meanwhile."""
    stage, (file, jobs) = FakeReceiver(), jobs_file(2)
    stage.script["submit"] = [stage.end]
    file.path.write_bytes(file.path.read_bytes()[: jobs[1].offset] + b"{}")
    async with stage.kling(**KEYLESS) as kling:
        batch = Batch(kling, file, jobs)
        await batch.run()
    assert (batch.summary.succeeded, batch.summary.failures[0].line) == (1, 2)
    assert "cannot be sent any more" in batch.summary.failures[0].reason


async def test_a_restored_database_has_the_open_tasks_read_anew() -> None:
    """The old cursor is refused. A task that the database does not have any more fails, with what to do."""
    stage, third = FakeReceiver(), anyio.Event()

    def take(request: httpx.Request) -> httpx.Response:
        if len(stage.requests["submit"]) == 3:
            third.set()
        return usual("submit", request)

    stage.script["submit"] = [take] * 3
    tasks = {"job-0": answer(200, done("job-0")), "job-1": answer(200, task_json("job-1", "processing"))}

    def task(request: httpx.Request) -> httpx.Response:
        if len(stage.requests["task"]) == 3:
            stage.push("task.done", done("job-1"))
        return tasks.get(request.url.path.rpartition("/")[2], refusal(404, "unknown_task"))

    async def other_log(_: httpx.Request) -> httpx.Response:
        await third.wait()
        await anyio.wait_all_tasks_blocked()
        return refusal(409, "other_log")

    stage.script["task"] = [task] * 3
    stage.script["all"] = [stream(f"id: {cursor(0)}\n\n"), other_log]
    batch, ended = await run(stage, 3)
    assert sorted(each.job.task_id for each in ended) == ["job-0", "job-1"]
    (failure,) = batch.summary.failures
    assert failure.task_id == "job-2"
    assert "was restored" in failure.reason


async def test_events_of_other_tasks_are_ignored() -> None:
    """And those of a task that has ended."""
    stage = FakeReceiver()
    stage.push("task.done", done("another"))

    def take(request: httpx.Request) -> httpx.Response:
        stage.end(request)
        return stage.end(request)

    stage.script["submit"] = [take]
    _, ended = await run(stage)
    assert len(ended) == 1


async def test_an_error_of_the_report_stops_the_batch_alone() -> None:
    """Such as a closed stdout: the error is raised as it is, not in a group."""
    stage = FakeReceiver()
    stage.script["submit"] = [stage.end] * 3
    file, jobs = jobs_file(3)

    def fail(ended: Ended) -> None:
        raise BrokenPipeError

    async with stage.kling(**KEYLESS) as kling:
        with pytest.raises(BrokenPipeError):
            await Batch(kling, file, jobs, on_end=fail).run()


@pytest.mark.parametrize("content", [b"not the file", None])
async def test_a_file_that_cannot_be_saved_fails_its_job(content: bytes | None, tmp_path: Path) -> None:
    """One that arrives damaged, or a folder that cannot be written; the others are saved."""
    results = [{**FILE, "size": 3, "sha256": "0" * 64}]
    stage = FakeReceiver(
        submit=[answer(200, done("job-0", results=results))], file=[httpx.Response(200, content=content)] * 9
    )
    if content is None:
        (tmp_path / "out").touch()
    batch, ended = await run(stage, output=tmp_path / "out")
    assert (len(ended), ended[0].paths, len(batch.summary.failures)) == (1, (), 1)
    assert ("cannot be written" if content is None else "damaged") in batch.summary.failures[0].reason


async def test_a_missing_result_fails_its_job() -> None:
    """Although the task has succeeded, and other files are there."""
    lost = {"index": 1, "status": "failed", "error": "gone"}
    batch, ended = await run(FakeReceiver(submit=[answer(200, done("job-0", results=[FILE, lost]))]))
    assert len(ended[0].task.stored().files) == 1
    assert "1 of 2 files could not be stored: gone" in batch.summary.failures[0].reason


async def test_without_waiting_no_stream_is_opened() -> None:
    """The tasks are reported as they are submitted; those that were refused are failures."""
    stage, submitted = FakeReceiver(), list[str]()
    stage.script["submit"] = [refusal(422)]
    batch, _ = await run(stage, 3, wait=False, on_submit=lambda task: submitted.append(task.id))
    assert (len(submitted), batch.summary.refused, stage.streams, stage.order) == (2, 1, 0, ["submit"] * 3)


async def test_a_task_that_was_removed_while_the_stream_was_broken_fails() -> None:
    """It ended meanwhile, and no event says so any more: the batch ends, and names the job."""
    stage, is_submitted = FakeReceiver(), anyio.Event()

    def take(request: httpx.Request) -> httpx.Response:
        is_submitted.set()
        return usual("submit", request)

    async def cut(request: httpx.Request) -> httpx.Response:
        await is_submitted.wait()
        await anyio.wait_all_tasks_blocked()
        return stream(httpx.ReadError("cut"))

    stage.script["submit"] = [take]
    stage.script["all"] = [stream(f"id: {cursor(0)}\n\n"), cut]
    stage.script["task"] = [refusal(404, "unknown_task")]
    batch, ended = await run(stage)
    assert (ended, batch.summary.ended) == ([], 1)
    (failure,) = batch.summary.failures
    assert (failure.task_id, failure.reason) == ("job-0", "The receiver refused: It said no.")

"""Waiting for several tasks: one event stream, events before it, a restored database, an error of the output."""

from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest

from kling_callback.batch.waiting import TaskGroup, unfinished
from kling_callback.tasks import AsyncTask
from tests.client.batch.test_runner import FakeReceiver, done
from tests.support.kling import Stage, answer, cursor, refusal, stream, task_json

pytestmark = pytest.mark.anyio


async def wait(stage: Stage, *task_ids: str, **options: Any) -> tuple[TaskGroup, list[str]]:
    """Wait for tasks. Returns the ids in the order of their ends."""
    ended: list[str] = []

    async def end(task: AsyncTask) -> list[str]:
        ended.append(task.id)
        return []

    async with stage.kling() as kling:
        group = TaskGroup(kling, task_ids, **{"on_end": end, **options})
        with anyio.fail_after(20):
            await group.wait()
    return group, ended


def by_id(tasks: dict[str, dict[str, Any]]) -> Callable[[httpx.Request], httpx.Response]:
    """Answers to reads of tasks; others are unknown."""

    def respond(request: httpx.Request) -> httpx.Response:
        data = tasks.get(request.url.path.rpartition("/")[2])
        return answer(200, data) if data else refusal(404, "unknown_task")

    return respond


async def test_an_event_between_the_reads_and_the_stream_is_not_lost() -> None:
    """The cursor is taken before the tasks are read. Of other tasks, nothing counts; one stream serves all."""
    tasks = {f"t{number}": task_json(f"t{number}", "processing") for number in range(50)}
    stage = FakeReceiver()

    def read(request: httpx.Request) -> httpx.Response:
        own_id = request.url.path.rpartition("/")[2]
        stage.push("task.done", done("another"))
        stage.push("task.done", done(own_id))
        return by_id(tasks)(request)

    stage.script["task"] = [read] * 50
    group, ended = await wait(stage, *tasks)
    assert (sorted(ended), group.summary.ended, stage.streams) == (sorted(tasks), 50, 1)
    assert (+group.summary.statuses, group.open) == ({}, {})


async def test_a_restored_database_has_the_open_tasks_read_anew() -> None:
    """The old cursor is refused. A task that the database does not have any more fails."""
    stage = FakeReceiver()
    before = by_id({each: task_json(each, "processing") for each in ("a", "b")})
    after = by_id({"a": done("a")})
    stage.script["task"] = [before, before, after, after]
    stage.script["all"] = [
        stream(f"id: {cursor(0)}\n\n"),
        lambda request: refusal(409, "other_log"),
        stream(f"id: {cursor(0)}\n\n"),
    ]
    group, ended = await wait(stage, "a", "b")
    assert (ended, [each.task_id for each in group.summary.failures]) == (["a"], ["b"])
    assert "was restored" in group.summary.failures[0].reason


async def test_a_task_that_ends_is_not_read_anew() -> None:
    """Its files are being saved when the restored database, which does not have it, answers: it has succeeded."""
    stage, restored = FakeReceiver(), anyio.Event()

    def after(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("b"):
            restored.set()
        return by_id({"b": done("b")})(request)

    async def save(task: AsyncTask) -> list[str]:
        await restored.wait()
        return []

    before = by_id({"a": done("a"), "b": task_json("b", "processing")})
    stage.script["task"] = [before, before, after, after]
    stage.script["all"] = [
        stream(f"id: {cursor(0)}\n\n"),
        lambda request: refusal(409, "other_log"),
        stream(f"id: {cursor(0)}\n\n"),
    ]
    group, _ = await wait(stage, "a", "b", on_end=save)
    assert (group.summary.ended, group.summary.failures) == (2, [])


async def test_an_error_of_the_output_ends_the_wait_alone() -> None:
    """Such as a closed stdout: raised as it is, not in a group."""
    stage = FakeReceiver()
    stage.script["task"] = [by_id({"a": done("a"), "b": task_json("b", "processing")})] * 2

    async def fail(task: AsyncTask) -> list[str]:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        await wait(stage, "a", "b", on_end=fail)


async def test_a_problem_of_a_file_is_a_failure_of_its_task() -> None:
    """The task itself has succeeded."""
    stage = FakeReceiver()
    stage.script["task"] = [by_id({"a": done("a")})]

    async def lose(task: AsyncTask) -> list[str]:
        return ["out/a-0.png cannot be written: no space."]

    group, _ = await wait(stage, "a", on_end=lose)
    assert [each.reason for each in group.summary.failures] == ["out/a-0.png cannot be written: no space."]


async def test_the_unfinished_tasks_of_a_tag() -> None:
    """In each status that is not final, and those succeeded ones whose files are missing; the oldest first."""

    def page(request: httpx.Request) -> httpx.Response:
        query = dict(request.url.params)
        assert query["tag"] == "spring"
        tasks = {
            "created": [task_json("c2", "created"), task_json("c1", "created")],
            "succeed": [done("s2"), task_json("s1", "succeed", done=False)],
        }
        return answer(200, {"tasks": tasks.get(query["status"], []), "next": None})

    stage = Stage(list=[page] * 4)
    async with stage.kling() as kling:
        assert [task.id for task in await unfinished(kling, "spring")] == ["s1", "c1", "c2"]
    assert [request.url.params["status"] for request in stage.requests["list"]] == [
        "created",
        "submitted",
        "processing",
        "succeed",
    ]

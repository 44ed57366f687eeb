"""The shape of a task's JSON: checked where it arrives, whatever the receiver, or who poses as it, sends."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kling_callback import AsyncKling
from kling_callback.api.task_json import is_task
from kling_callback.errors import ReceiverError
from kling_callback.protocol.nesting import MAX_ANSWER_DEPTH
from tests.support.kling import Stage, answer, event, stream, task_json

pytestmark = pytest.mark.anyio


def nested(levels: int) -> Any:
    """Lists in lists."""
    return json.loads("[" * levels + "]" * levels)


def with_file(**changed: Any) -> dict[str, Any]:
    file = {"index": 0, "kind": "image", "status": "stored", "content_type": "image/png", "size": 9, **changed}
    return task_json("K1", "succeed", done=True, results=[file])


NO_TEXT: list[Any] = [5, ["x"], {"a": 1}]

WRONG: dict[str, list[Any]] = {
    "id": ["", "../K1", "a/b", "a\0b", "\x1b[2Jx", "x" * 129, "\ud800", None, *NO_TEXT],
    "status": [None, *NO_TEXT],
    "tags": ["x", 5, [1], [{"a": 1}], {}],
    "outputs": ["x", 5, [1], [None], {}],
    "results": ["x", 5, None, [1], [None], [[]], {}],
    "done": [1, "true"],
    "request": [nested(MAX_ANSWER_DEPTH)],
    **dict.fromkeys(
        ("task_id", "external_task_id", "family", "model", "status_msg", "request_id", "created_at"), NO_TEXT
    ),
}
WRONG_IN_FILE: dict[str, list[Any]] = {
    "index": [-1, True, 1.0, "0", None],
    "size": [-1, True, 1.5, "x"],
    "sha256": [5, "", "x" * 64, "A" * 64],
    "duration": ["5", True, []],
    **dict.fromkeys(
        ("kind", "id", "status", "content_type", "href", "source_url", "expires_at", "error", "warning"), NO_TEXT
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_shape_is_no_task(name: str) -> None:
    """Every field that this client reads has its type."""
    assert [each for each in WRONG[name] if is_task({**task_json("K1"), name: each})] == []


@pytest.mark.parametrize("name", WRONG_IN_FILE)
def test_another_shape_is_no_file(name: str) -> None:
    """Of a task's results as well."""
    assert [each for each in WRONG_IN_FILE[name] if is_task(with_file(**{name: each}))] == []


def test_what_is_no_object_is_no_task() -> None:
    """Any other JSON."""
    assert not any(map(is_task, (None, 5, "x", [], [["id", "K1"]])))


@pytest.mark.parametrize(
    "task",
    [
        {"id": "K1", "status": "created"},
        task_json("K1", **dict.fromkeys(("tags", "outputs", "family", "model", "status_msg", "created_at"))),
        with_file(**dict.fromkeys(("kind", "id", "duration", "size", "sha256", "href", "source_url", "expires_at"))),
        with_file(sha256="0a" * 32, duration=5.1, new_field=[1]),
        task_json("K1", "a-new-status", request=nested(MAX_ANSWER_DEPTH - 1), cost={"any": ["thing"]}),
    ],
)
def test_null_absent_and_new_fields_pass(task: dict[str, Any]) -> None:
    """An older or a newer receiver is still one."""
    assert is_task(task)
    assert is_task(task, "K1")
    assert not is_task(task, "K2")


async def waited(kling: AsyncKling) -> object:
    return await kling.attach("K1").wait()


@pytest.mark.parametrize(
    "read",
    [
        lambda kling: kling.task("K1"),
        lambda kling: kling.tasks(),
        waited,
        lambda kling: kling.create("images/generations", {"prompt": "x"}, external_task_id="K1"),
    ],
)
@pytest.mark.parametrize("task", [task_json("../../EVIL", task_id="K1"), with_file(index=-1), task_json("K1", tags=5)])
async def test_no_answer_with_another_shape_is_used(
    task: dict[str, Any], read: Callable[[AsyncKling], Awaitable[object]]
) -> None:
    """From no route. Nothing is sent to Kling."""
    registered = {"task": task, "callback_url": "https://receiver.test/callbacks/x", "create": True}
    stage = Stage(
        task=[answer(200, task)],
        list=[answer(200, {"tasks": [task], "next": None})],
        events=[stream(event(1, "task.done", task))],
        register=[answer(200, registered)],
    )
    async with stage.kling() as kling:
        with pytest.raises(ReceiverError, match="cannot be read"):
            await read(kling)
    assert len(stage.order) == 1

"""A create that the receiver sends: what it is sent, and what is known when its answer is lost."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from kling_callback.errors import KlingError, ParameterError, ReceiverError, SettingsError
from kling_callback.sync import Kling
from tests.client.jobs.test_catalog import picture
from tests.support.kling import QUICK, SECRET, Stage, answer, event, forever, refusal, stream, task_json

pytestmark = pytest.mark.anyio

FAMILY = "images/generations"
NO_CONNECTION = httpx.ConnectError("refused")
CUT = httpx.ReadError("cut")
KEYLESS: dict[str, Any] = {"api_key": "", "signing_secrets": "", "receiver_token": "a-token"}


async def submit(stage: Stage, **more: Any) -> KlingError | None:
    """The error of a submission with the id `mine`."""
    async with stage.kling(**KEYLESS) as kling:
        try:
            await kling.create(FAMILY, {"prompt": "x"}, external_task_id="mine", **more)
        except KlingError as error:
            return error
    return None


async def test_without_a_key_the_receiver_gets_the_create() -> None:
    """One request, with the receiver's token; Kling gets none. What is not given is left out."""
    stage = Stage()
    async with stage.kling(**KEYLESS) as kling:
        assert not kling.sends_creates
        task = await kling.create(FAMILY, {"prompt": "x"}, external_task_id="mine")
    assert stage.order == ["submit"]
    assert stage.bodies("submit") == [{"family": FAMILY, "body": {"prompt": "x"}, "external_task_id": "mine"}]
    assert stage.requests["submit"][0].headers["Authorization"] == "Bearer a-token"
    assert (task.id, task.status, task.outcome) == ("mine", "created", "unknown")


async def test_all_that_belongs_to_a_create_is_sent(tmp_path: Path) -> None:
    """Files are read here, never by the receiver; a typed job is sent in the body of its family; an id is made."""
    image = tmp_path / "in.png"
    image.write_bytes(picture())
    stage = Stage()
    async with stage.kling(**KEYLESS) as kling:
        task = await kling.image_to_image(
            "x", image, tags=["a"], hook="https://app.test", hook_events=["task.done"], priority=-3
        )
    (sent,) = stage.bodies("submit")
    assert sent.pop("body")["image"].startswith("iVBOR")
    assert sent == {
        "family": FAMILY,
        "tags": ["a"],
        "hook": "https://app.test",
        "hook_events": ["task.done"],
        "external_task_id": task.id,
        "priority": -3,
    }


async def test_secrets_give_access_as_well() -> None:
    """A client that signs its own tokens needs no key either; the blocking one has the same methods."""
    stage = Stage(submit=[lambda _: answer(201, task_json("mine", queue_position=3))])
    settings = {**KEYLESS, "receiver_token": "", "signing_secrets": SECRET}

    def run() -> int | None:
        with Kling(
            http=stage.http(),
            retry=QUICK,
            api_base="https://kling.test",
            receiver_url="https://receiver.test",
            **settings,
        ) as kling:
            created = kling.text_to_image("x", external_task_id="mine", priority=1)
            assert kling.cancel("mine").status == "failed"
            return created.queue_position

    assert await asyncio.to_thread(run) == 3
    assert stage.order == ["submit", "cancel"]


async def test_a_key_of_the_environment_is_not_used_if_the_argument_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may leave its creates to the receiver where others have a key."""
    stage = Stage()
    monkeypatch.setenv("KLING_API_KEY", "key")
    async with stage.kling(**KEYLESS) as kling:
        await kling.text_to_image("x")
    assert stage.order == ["submit"]


async def test_with_a_key_the_client_creates() -> None:
    """As without a receiver that sends creates; a priority would have no effect, and is refused."""
    stage = Stage()
    async with stage.kling(receiver_token="t") as kling:
        await kling.create(FAMILY, {"prompt": "x"})
        assert stage.order == ["register", "create", "report"]
        with pytest.raises(ParameterError, match="priority: works only if the receiver sends the create"):
            await kling.create(FAMILY, {"prompt": "x"}, priority=0)
    assert len(stage.order) == 3


@pytest.mark.parametrize("priority", [1.5, "1", True, 1_000_001, -1_000_001])
async def test_a_wrong_priority_is_refused(priority: Any) -> None:
    """Before anything is sent."""
    stage = Stage()
    error = await submit(stage, priority=priority)
    assert isinstance(error, ParameterError)
    assert "from -1000000 to 1000000" in str(error)
    assert stage.order == []


async def test_the_new_standard_needs_no_key_here() -> None:
    """Which key the receiver has is its own affair."""
    stage = Stage()
    async with stage.kling(**KEYLESS) as kling:
        await kling.create("/text-to-video/kling-3.0-turbo", {"prompt": "x"})
    assert stage.order == ["submit"]


@pytest.mark.parametrize("lost", [CUT, answer(502), answer(503), answer(200, {"nonsense": 1}), httpx.ReadTimeout("")])
async def test_a_lost_answer_is_asked_for_again(lost: httpx.Response | Exception) -> None:
    """By the same request: the task's id makes it safe. An answer that is no task's is no lost one."""
    stage = Stage(submit=[lost])
    error = await submit(stage)
    first, *others = stage.requests["submit"]
    if error is None:
        assert [each.content for each in others] == [first.content]
    else:
        assert (error.code, error.outcome, others) == ("unreadable", "unknown", [])


@pytest.mark.parametrize(
    ("steps", "outcome"),
    [
        ([refusal(422)], "not_created"),
        ([refusal(409)], "not_created"),
        ([answer(302)], "not_created"),
        ([refusal(429)] * 4, "not_created"),
        ([NO_CONNECTION] * 4, "not_created"),
        ([CUT] * 4, "unknown"),
        ([answer(504)] * 4, "unknown"),
        ([CUT, *[NO_CONNECTION] * 3], "unknown"),
        ([CUT, refusal(401)], "unknown"),
    ],
)
async def test_the_outcome_of_a_failed_submission(steps: list[Any], outcome: str) -> None:
    """Once an answer was lost, the receiver may have the task: the error says so, with its id."""
    error = await submit(Stage(submit=steps))
    assert isinstance(error, ReceiverError)
    assert error.outcome == outcome
    assert ("kling wait mine" in str(error)) == (outcome == "unknown")


async def test_an_interrupted_submission_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """With the id to wait for: the receiver may have the task."""
    stage = Stage(submit=[forever])
    sending = asyncio.create_task(submit(stage))
    await stage.came["submit"].wait()
    sending.cancel()
    with suppress(asyncio.CancelledError):
        await sending
    assert "kling wait mine" in caplog.text


async def test_the_place_in_the_queue() -> None:
    """From the task's JSON, until the task has a slot."""
    waiting, sent = (
        task_json("mine", queue_position=2),
        task_json("mine", "submitted", task_id="k", queue_position=None),
    )
    done = task_json("mine", "failed", done=True)
    stage = Stage(
        task=[answer(200, waiting)],
        events=[
            stream(event(1, "task.queued", waiting), event(2, "task.submitted", sent), event(3, "task.done", done))
        ],
    )
    async with stage.kling(**KEYLESS) as kling:
        task = await kling.task("mine")
        assert task.queue_position == 2
        places = [task.queue_position async for _ in task.events()]
    assert places == [2, None, None]


async def test_a_task_is_cancelled_by_any_of_its_ids() -> None:
    """The receiver's refusal is its own error."""
    cancelled = task_json("mine", "failed", task_id=None, external_task_id="theirs", done=True)
    stage = Stage(cancel=[answer(200, cancelled), refusal(409, "conflict"), answer(200, task_json("another"))])
    async with stage.kling(**KEYLESS) as kling:
        assert (await kling.cancel("theirs")).done
        with pytest.raises(ReceiverError) as error:
            await kling.cancel("mine")
        assert error.value.http_status == 409
        with pytest.raises(ReceiverError, match="cannot be read"):
            await kling.cancel("mine")
        with pytest.raises(ParameterError):
            await kling.cancel("a/b")
    assert [request.method for request in stage.requests["cancel"]] == ["DELETE"] * 3


async def test_calls_of_kling_itself_need_a_key() -> None:
    """The message says that the receiver does not make them; nothing is sent."""
    stage = Stage()
    async with stage.kling(**KEYLESS) as kling:
        for call in (kling.call("general/presets-voices"), kling.tasks_at_kling(FAMILY)):
            with pytest.raises(SettingsError, match=r"KLING_API_KEY is missing .* the receiver sends creates only"):
                await call
    assert stage.order == []

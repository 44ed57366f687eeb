"""Kling and AsyncKling as programs use them, with a real receiver and the sandbox."""

import ast
import asyncio
import base64
import inspect
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import kling_callback
from kling_callback import (
    AsyncKling,
    File,
    Kling,
    KlingError,
    NotCreated,
    ParameterError,
    ReceiverError,
    ResultFailed,
    RetryPolicy,
    TaskFailed,
    WaitTimeout,
)
from kling_callback.environment import proxy_for
from kling_callback.jobs.catalog import JOBS, TEXT_TO_IMAGE
from kling_callback.settings import ClientSettings
from kling_callback.sync import KlingArguments, Task
from kling_callback.tasks import AsyncFile
from kling_sandbox import Sandbox
from tests.client.jobs.test_catalog import picture
from tests.client.test_tasks import CONTENT, done, file_json
from tests.support.kling import QUICK, SETTINGS, Stage, answer, event, forever, stream, task_json
from tests.support.receiver import KEY, SECRET, Running, Start
from tests.support.web import host


@pytest.fixture
def receiver(start: Start, gateway: Sandbox) -> Running:
    return start(api_base=gateway.url)


@pytest.fixture
def settings(receiver: Running, gateway: Sandbox) -> dict[str, Any]:
    return {
        "retry": RetryPolicy(initial_wait=0.05, lookup_waits=(0.05, 0.05)),
        "api_base": gateway.url,
        "api_key": KEY,
        "signing_secrets": SECRET,
        "receiver_url": receiver.url,
    }


class InputImage(File):
    """A file of an earlier task, with an image that is large enough to be an input."""

    def __init__(self, kling: Kling, path: Path) -> None:
        data = {"index": 0, "kind": "image", "status": "stored", "content_type": "image/png"}
        super().__init__(kling.loop, AsyncFile(None, data, {"id": "earlier"}))  # type: ignore[arg-type]
        self.path = path

    def read(self) -> bytes:
        return self.path.read_bytes()


@pytest.fixture
def kling(settings: dict[str, Any]) -> Iterator[Kling]:
    with Kling(**settings) as kling:
        yield kling


def test_a_hook_receives_the_events_that_the_call_names(settings: dict[str, Any]) -> None:
    """`hook_events` of each way to create: typed or not, blocking or awaited. A second hook is refused."""

    async def awaited(hook: str) -> None:
        async with AsyncKling(**settings) as kling:
            task = await kling.text_to_image("x", hook=hook, hook_events=["task.done"])
            other = await kling.create("images/generations", {"prompt": "x"}, hook=hook, hook_events="task.done")
            await task.wait(60)
            await other.wait(60)

    with host(lambda visit: visit.answer(204)) as hook, Kling(**settings) as kling:
        given: dict[str, Any] = {"hook": hook.url, "hook_events": ["task.done"]}
        tasks = [kling.text_to_image("x", **given), kling.create("images/generations", {"prompt": "x"}, **given)]
        for task in tasks:
            task.wait(60)
        asyncio.run(awaited(hook.url))
        assert [json.loads(visit.body)["type"] for visit in hook.wait_for(4)] == ["task.done"] * 4
        with pytest.raises(ReceiverError, match="has a hook already") as raised:
            kling.create("images/generations", {"prompt": "x"}, hook=hook.url, external_task_id=tasks[1].id)
        assert (raised.value.http_status, raised.value.outcome) == (409, "not_created")


def test_a_callback_url_receives_what_kling_would_post(settings: dict[str, Any]) -> None:
    """However it is given: typed or not, blocking or awaited, as argument or in the body; in both standards."""
    new, prompt = "/text-to-video/kling-3.0", {"prompt": "x"}

    async def awaited(url: str) -> None:
        async with AsyncKling(**settings) as kling:
            tasks = [
                await kling.text_to_video("x", model_name="kling-3.0", callback_url=url),
                await kling.create(new, {**prompt, "options": {"callback_url": url}}),
            ]
            for task in tasks:
                await task.wait(60)

    with host(lambda visit: visit.answer(200)) as handler, Kling(**settings) as kling:
        url = f"{handler.url}/kling?order=42"
        tasks = [
            kling.text_to_image("x", callback_url=url, hook=None, external_task_id="order-42"),
            kling.create("images/generations", {**prompt, "callback_url": url}),
            kling.run(TEXT_TO_IMAGE, {**prompt, "callback_url": url}),
        ]
        for task in tasks:
            task.wait(60)
        asyncio.run(awaited(url))
        visits = handler.wait_for(15)
        records = [json.loads(visit.body) for visit in visits]
        ends = [each for each in records if each.get("task_status", each.get("status")) in ("succeed", "succeeded")]
        assert {each["task_info"]["external_task_id"] for each in ends if "task_info" in each} == {
            task.id for task in tasks
        }
        assert [len([each for each in ends if name in each]) for name in ("task_id", "id")] == [3, 2]
        assert {visit.path for visit in visits} == {"/kling?order=42"}
        assert kling.text_to_image("x", callback_url=url, external_task_id="order-42").id == "order-42"
        others: tuple[dict[str, Any], ...] = ({}, {"hook": url}, {"callback_url": f"{url}3"})
        for other in others:
            with pytest.raises(ReceiverError, match="has a hook already") if other else nullcontext():
                kling.create("images/generations", prompt, **other, external_task_id=tasks[1].id)
        with pytest.raises(ParameterError, match="Remove it, or hook and hook_events"):
            kling.text_to_image("x", callback_url=url, hook=url)


def test_an_image_from_a_prompt(kling: Kling, gateway: Sandbox, tmp_path: Path) -> None:
    """The README's example: create, wait, save; two files, each as the sandbox made it."""
    task = kling.text_to_image("a kangaroo holding a sign", model_name="kling-v1-5", n=2, tags=["demo"])
    result = task.wait(timeout=60)
    assert (task.status, task.done, len(result.images)) == ("succeed", True, 2)
    path = result.images[0].save(tmp_path / "kangaroo.png")
    assert path.read_bytes() == result.images[0].read()
    assert path.read_bytes().startswith(b"\x89PNG")
    assert len(gateway.creates) == 1


def test_an_image_from_an_image(kling: Kling, gateway: Sandbox, tmp_path: Path) -> None:
    """Kling gets the whole file; the receiver stores a note in its place."""
    (tmp_path / "in.png").write_bytes(picture())
    task = kling.image_to_image("same, but blue", tmp_path / "in.png", image_reference="subject")
    assert task.wait(60).images
    assert base64.b64decode(gateway.creates[0]["image"]) == picture()
    assert task.data["request"]["image"].endswith(" characters, left out)")


def test_a_video_from_a_prompt(kling: Kling) -> None:
    """The duration may be a number; the video has its seconds."""
    (video,) = kling.text_to_video("a kangaroo jumps", duration=5, mode="std").wait(60).videos
    assert (video.content_type, video.duration) == ("video/mp4", 5.0)


def test_any_other_job(kling: Kling) -> None:
    """By its path, in the new standard too."""
    assert kling.create("/text-to-video/kling-3.0-turbo", {"prompt": "x"}).wait(60).videos


def test_a_result_is_the_next_job_s_input(kling: Kling, gateway: Sandbox, tmp_path: Path) -> None:
    """An image by its bytes, in both standards and in any job; a video by an address that Kling can load."""
    (tmp_path / "in.png").write_bytes(picture())
    image = InputImage(kling, tmp_path / "in.png")
    video = kling.image_to_video("it waves", image=image).wait(60).videos[0]
    kling.image_to_video("it waves", image=image, model_name="kling-3.0", last_frame=tmp_path / "in.png")
    kling.create("videos/effects", {"effect_scene": "squish", "input": {"image": image}})
    kling.motion_control(image, video, character_orientation="image")
    legacy, new, effect, motion = gateway.creates
    frames = [each["url"] for each in new["contents"] if each["type"] in ("first_frame", "last_frame")]
    sent = [legacy["image"], *frames, effect["input"]["image"], motion["image_url"]]
    assert [base64.b64decode(each) for each in sent] == [picture()] * 5
    assert motion["video_url"] == video.data["source_url"]


def test_kling_s_failure_is_raised(kling: Kling) -> None:
    """With Kling's reason, and the task up to date."""
    task = kling.text_to_image("x [sandbox: failed]")
    with pytest.raises(TaskFailed, match="asked to fail"):
        task.wait(60)
    assert task.status == "failed"


def test_a_refused_create_is_raised(kling: Kling) -> None:
    """Nothing was created, and the same id may be used again."""
    with pytest.raises(NotCreated) as error:
        kling.text_to_image("x [sandbox: arrears]", external_task_id="order-1")
    assert error.value.code == 1101
    assert kling.text_to_image("x", external_task_id="order-1").wait(60).images


@pytest.mark.parametrize("switch", ["drop-after-create", "create-5002", "create-504", "create-garbage"])
def test_an_unknown_outcome_is_paid_once(kling: Kling, gateway: Sandbox, switch: str) -> None:
    """Without a usable answer the create is sent once, found, and its result is downloaded."""
    assert kling.text_to_image(f"x [sandbox: {switch}]").wait(60).images
    assert len(gateway.creates) == len(gateway.tasks) == 1


def test_a_gateway_without_external_ids_is_paid_once(kling: Kling, gateway: Sandbox) -> None:
    """The task cannot be found by our id; the callback names it, and nothing is sent again."""
    task = kling.text_to_image("x [sandbox: create-504, drop-external-id]")
    assert task.wait(60).images
    assert len(gateway.creates) == 1


def test_a_create_is_retried_at_a_busy_kling(kling: Kling, gateway: Sandbox) -> None:
    """After one rate limit, the second attempt is taken."""
    assert kling.text_to_image("x [sandbox: busy-once]").wait(60).images
    assert (len(gateway.creates), len(gateway.tasks)) == (2, 1)


def test_the_same_id_again_continues(kling: Kling, gateway: Sandbox) -> None:
    """Run twice, paid once: the second call finds the first one's task."""
    first = kling.text_to_image("x", external_task_id="order-42")
    second = kling.text_to_image("x", external_task_id="order-42")
    assert (first.id, second.id, second.task_id) == ("order-42", "order-42", first.task_id)
    assert second.wait(60).images
    assert len(gateway.creates) == 1


def test_another_family_under_the_same_id_is_a_conflict(kling: Kling) -> None:
    """An id has one meaning."""
    kling.text_to_image("x", external_task_id="order-42")
    with pytest.raises(ReceiverError) as error:
        kling.text_to_video("x", external_task_id="order-42")
    assert (error.value.http_status, error.value.outcome) == (409, "not_created")


def test_other_parameters_under_the_same_id_are_a_conflict(kling: Kling, gateway: Sandbox) -> None:
    """The old file is not returned for a new prompt, nor for another image of the same size; nothing is sent."""
    kling.text_to_image("x", n=1, external_task_id="order-42")
    with pytest.raises(ReceiverError, match="they differ in n, prompt") as error:
        kling.text_to_image("y", n=2, external_task_id="order-42")
    assert (error.value.http_status, error.value.outcome) == (409, "not_created")
    assert "same parameters" in (error.value.hint or "")
    same = {"prompt": "x", "n": 1, "negative_prompt": "", "model_name": None, "external_task_id": "order-42"}
    assert kling.create("images/generations", same).id == "order-42"
    images = [base64.b64encode(picture() + bytes([number])).decode() for number in range(2)]
    kling.create("images/generations", {"prompt": "x", "image": images[0]}, external_task_id="order-43")
    with pytest.raises(ReceiverError, match="a value that is not stored"):
        kling.create("images/generations", {"prompt": "x", "image": images[1]}, external_task_id="order-43")
    assert len(gateway.creates) == 2


def test_a_refused_create_can_be_corrected(kling: Kling) -> None:
    """Under the same id: nothing was paid."""
    with pytest.raises(NotCreated):
        kling.create("images/generations", {"prompt": "x", "n": 99}, external_task_id="order-42")
    assert kling.create("images/generations", {"prompt": "x", "n": 1}, external_task_id="order-42").wait(60).images


def test_a_task_is_found_by_kling_s_id(kling: Kling) -> None:
    """Read, attached to and waited for; then it has our id."""
    task = kling.text_to_image("x")
    assert task.task_id
    assert kling.task(task.task_id).id == task.id
    attached = kling.asynchronous.attach(task.task_id)
    kling.loop.run(lambda: attached.wait(60))
    assert attached.id == task.id
    assert [each.id for each in kling.tasks(task_id=task.task_id)] == [task.id]
    assert [each.id for each in kling.tasks(model="kling-v9")] == []


def test_another_key_is_a_conflict(settings: dict[str, Any], gateway: Sandbox) -> None:
    """One receiver serves one account; nothing is sent."""
    with Kling(**{**settings, "api_key": "another"}) as kling, pytest.raises(ReceiverError) as error:
        kling.text_to_image("x")
    assert error.value.http_status == 409
    assert gateway.creates == []


def test_on_event_is_called_in_this_thread(kling: Kling) -> None:
    """Events arrive in order, in the caller's thread, and the function may use Kling itself."""
    received: list[tuple[str, int, str]] = []
    task = kling.text_to_image("x")
    task.wait(60, on_event=lambda each: received.append((each.type, threading.get_ident(), kling.task(task.id).id)))
    assert received[0][0] == "task.created"
    assert received[-1][0] == "task.done"
    assert {thread for _, thread, _ in received} == {threading.get_ident()}


def test_an_error_in_on_event_ends_the_wait(kling: Kling) -> None:
    """The caller's own error is raised unchanged."""
    with pytest.raises(ZeroDivisionError):
        kling.text_to_image("x").wait(60, on_event=lambda each: 1 / 0)


def test_a_wait_may_time_out_and_be_done_again(kling: Kling, gateway: Sandbox) -> None:
    """The task continues, and another wait, by another handle, has the result."""
    gateway.hold()
    task = kling.text_to_image("x")
    with pytest.raises(WaitTimeout):
        task.wait(0.05)
    gateway.release()
    assert kling.task(task.id).wait(60).images


def test_a_wait_survives_a_restart_of_the_receiver(
    kling: Kling, gateway: Sandbox, receiver: Running, start: Start
) -> None:
    """The stream breaks, and is resumed at the next receiver without repeats."""
    gateway.hold()
    task = kling.text_to_image("x")
    port = int(receiver.url.rpartition(":")[2])
    types: list[str] = []

    def restart(event: kling_callback.Event) -> None:
        types.append(event.type)
        if len(types) == 1:
            receiver.stop()
            start(api_base=gateway.url, port=port)
            gateway.release()

    assert task.wait(60, on_event=restart).images
    assert types.count("task.created") == types.count("task.done") == 1


def test_tasks_are_listed_by_status_family_and_tag(kling: Kling) -> None:
    """Newest first, up to the limit."""
    for number in range(3):
        kling.text_to_image("x", tags=[f"tag-{number}"]).wait(60)
    kling.text_to_video("x").wait(60)
    assert len(kling.tasks()) == 4
    assert [task.family for task in kling.tasks(limit=1)] == ["videos/text2video"]
    assert [task.tags for task in kling.tasks(tag="tag-1")] == [("tag-1",)]
    assert len(kling.tasks(status="succeed", family="images/generations")) == 3
    assert kling.tasks(status="failed") == []


def test_a_task_can_be_read(kling: Kling) -> None:
    """By its id; refresh updates it; an unknown id is an error."""
    task = kling.text_to_image("x")
    seen = kling.task(task.id)
    task.wait(60)
    assert (seen.refresh().done, repr(seen)) == (True, f"<Task {task.id} succeed>")
    with pytest.raises(ReceiverError) as error:
        kling.task("nobody")
    assert error.value.http_status == 404
    with pytest.raises(ParameterError):
        kling.task("../x")


def test_stored_files_can_be_read_although_others_failed() -> None:
    """Half a result was paid for; without `await` too."""
    task = done(file_json(), {"index": 1, "status": "failed"})
    stage = Stage(
        task=[answer(200, task)],
        events=[stream(event(9, "task.done", task))],
        file=[httpx.Response(200, content=CONTENT)],
    )
    with Kling(http=stage.http(), retry=QUICK, **SETTINGS) as kling:
        waiting = kling.task("mine")
        with pytest.raises(ResultFailed):
            waiting.wait()
        (file,) = waiting.stored().files
        assert file.read() == CONTENT


def test_threads_may_share_a_kling(kling: Kling) -> None:
    """Four threads, four tasks, one Kling."""
    tasks: list[Task] = []

    def create() -> None:
        task = kling.text_to_image("x")
        task.wait(60)
        tasks.append(task)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len({task.id for task in tasks}) == 4


def test_ctrl_c_ends_a_blocking_wait_and_the_task_goes_on(kling: Kling, gateway: Sandbox) -> None:
    """KeyboardInterrupt is raised at once; Kling can still be used."""
    gateway.hold()
    task = kling.text_to_image("x")
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            task.wait(60, on_event=lambda each: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    gateway.release()
    assert task.wait(60).images


def test_ctrl_c_in_a_blocking_create_is_reported() -> None:
    """The outcome unknown is reported to the receiver before the interrupt is raised."""
    main = threading.main_thread().ident
    assert main is not None

    async def interrupting(request: httpx.Request) -> httpx.Response:
        signal.pthread_kill(main, signal.SIGINT)
        return await forever(request)

    stage = Stage(create=[interrupting])
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Kling(http=stage.http(), retry=QUICK, **SETTINGS) as kling, pytest.raises(KeyboardInterrupt):
            kling.text_to_image("x")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [body["outcome"] for body in stage.bodies("report")] == ["unknown"]


def test_a_kling_that_was_never_used_closes() -> None:
    """Leaving the block is always possible."""
    with Kling(api_key="k", receiver_token="t", receiver_url="https://receiver.test"):
        pass


def test_the_public_names() -> None:
    """Each name of `__all__` exists; the deprecated one is an alias."""
    assert kling_callback.Patience is kling_callback.RetryPolicy
    assert sorted(kling_callback.__all__) == kling_callback.__all__
    assert all(hasattr(kling_callback, name) for name in kling_callback.__all__)
    expected = {
        "AsyncKling",
        "CallbackSigner",
        "CreateUnknown",
        "Kling",
        "KlingError",
        "NotCreated",
        "RetryPolicy",
        "TaskFailed",
    }
    assert expected <= set(kling_callback.__all__)


def test_both_classes_have_the_same_arguments() -> None:
    """Every setting is an argument of both, by the same name, except the one that only `kling listen` uses."""
    assert list(KlingArguments.__annotations__) == list(inspect.signature(AsyncKling).parameters)
    fields = set(ClientSettings.model_fields) - {"hook_secret"}
    assert fields == set(KlingArguments.__annotations__) - {"settings", "retry", "http"}


def test_both_classes_have_the_same_methods() -> None:
    """What AsyncKling can do, Kling can, with the same parameters, defaults and description."""
    for name in (*(job.name for job in JOBS), "run", "create", "task", "tasks", "call", "tasks_at_kling"):
        blocking, asynchronous = getattr(Kling, name), getattr(AsyncKling, name)
        parameters, others = (inspect.signature(each).parameters.values() for each in (blocking, asynchronous))
        assert [(each.name, each.default) for each in parameters] == [(each.name, each.default) for each in others]
        assert inspect.getdoc(blocking) == inspect.getdoc(asynchronous)
        assert not inspect.iscoroutinefunction(blocking)
        assert blocking.__qualname__ == f"Kling.{name}"


@pytest.mark.anyio
async def test_every_public_thing_works_awaited(settings: dict[str, Any], tmp_path: Path) -> None:
    """AsyncKling has the same methods, awaited."""
    async with AsyncKling(**settings) as kling:
        task = await kling.text_to_video("x")
        result = await task.wait(60)
        assert await result.videos[0].read() == (await result.videos[0].save(tmp_path)).read_bytes()
        assert [each.id for each in await kling.tasks()] == [task.id]


def test_a_task_has_a_page_and_usual_seconds(settings: dict[str, Any]) -> None:
    """Also by the blocking class, and for a task that was only named: it is read first."""
    with Kling(**settings) as kling:
        tasks = [kling.text_to_image("x") for _ in range(3)]
        assert tasks[0].page_url() == f"{settings['receiver_url']}/dashboard/tasks/{tasks[0].id}"
        for task in tasks:
            task.wait(60)
        seconds = tasks[0].usual_seconds()
        assert seconds is not None
        assert 0 < seconds < 60

        async def of_a_name() -> float | None:
            return await kling.asynchronous.attach(tasks[0].id).usual_seconds()

        assert kling.loop.run(of_a_name) == seconds


@pytest.mark.anyio
async def test_a_list_follows_its_cursor_and_ends() -> None:
    """Page by page until there are enough; an empty page whose cursor is the last one ends it."""
    pages = [
        answer(200, {"tasks": [task_json(f"{page}-{number}") for number in range(100)], "next": "more"})
        for page in range(3)
    ]
    stage = Stage(list=[*pages, answer(200, {"tasks": [], "next": "more"})])
    async with stage.kling() as kling:
        assert len(await kling.tasks(limit=1000)) == 300
    asked = [dict(request.url.params) for request in stage.requests["list"]]
    assert asked == [{"limit": "100"}, *[{"limit": "100", "cursor": "more"}] * 3]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "body", [{"tasks": "x", "next": None}, {"tasks": [{}]}, {"tasks": [{"id": 1, "status": "x"}]}, []]
)
async def test_an_answer_that_is_not_a_list_of_tasks_is_an_error(body: Any) -> None:
    """It is not a receiver's."""
    async with Stage(list=[answer(200, body)]).kling() as kling:
        with pytest.raises(ReceiverError) as error:
            await kling.tasks()
    assert error.value.code == "unreadable"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "step", [lambda: answer(200, task_json("other")), lambda: httpx.Response(200, content=b"x" * 33_000_000)]
)
async def test_an_answer_about_another_task_is_an_error(step: Callable[[], httpx.Response]) -> None:
    """Or one without end."""
    async with Stage(task=[step()]).kling() as kling:
        with pytest.raises(ReceiverError) as error:
            await kling.task("mine")
    assert error.value.code == "unreadable"


@pytest.mark.anyio
async def test_a_call_to_the_receiver_has_a_time_limit() -> None:
    """However slowly its answer arrives; then it is retried."""
    stage = Stage(task=[forever, forever])
    async with stage.kling(retry=replace(QUICK, call_seconds=0.01)) as kling:
        assert (await kling.task("mine")).id == "mine"
    assert len(stage.requests["task"]) == 3


@pytest.mark.anyio
async def test_an_internal_address_is_used_for_the_receiver() -> None:
    """This client connects to KLING_RECEIVER_INTERNAL_URL; Kling gets the public address."""
    stage = Stage()
    async with stage.kling(receiver_internal_url="http://internal.test:81/deep") as kling:
        await kling.text_to_image("x", external_task_id="mine")
    assert str(stage.requests["register"][0].url) == "http://internal.test:81/deep/api/tasks/mine"
    assert stage.bodies("create")[0]["callback_url"].startswith("https://receiver.test/")


@pytest.mark.anyio
async def test_all_problems_of_a_call_are_one_error(gateway: Sandbox) -> None:
    """Parameters, id, tags, hook and key, before anything is sent: neither Kling nor the receiver is asked."""
    settings = ClientSettings.load(require=(), receiver_url="http://127.0.0.1:1", api_base=gateway.url)
    wrong: dict[str, Any] = {
        "tags": [""],
        "hook": "nonsense",
        "hook_events": ["task.dome", "x"],
        "callback_url": "/callbacks",
        "external_task_id": "a/b",
        "priority": 0.5,
    }
    missing = ["priority", "KLING_RECEIVER_TOKEN"]
    async with AsyncKling(settings=settings) as kling:
        for create in (
            kling.text_to_image("x" * 3000, n=11, **wrong),
            kling.create("effects", {"image": Path("none.png")}, **wrong),
        ):
            with pytest.raises(ParameterError) as raised:
                await create
            names = [each.split()[0].rstrip(":") for each in raised.value.problems]
            assert names[2:] == [
                *("external_task_id", "tags", "hook", "callback_url", "hook_events", "hook_events", *missing)
            ]
            assert len(names) == 10
        with pytest.raises(ParameterError) as raised:
            await kling.create(5, {}, **wrong)  # type: ignore[arg-type]
        assert [each.split()[0].rstrip(":") for each in raised.value.problems] == ["family", *names[2:]]
    assert gateway.creates == []


def test_a_receiver_on_this_machine_needs_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy from the environment is for Kling; a loopback receiver is called directly."""
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.test:3128")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.test:3128")
    for receiver in ("http://127.0.0.1:8000", "http://[::1]:8000"):
        assert proxy_for(receiver) is None
    assert proxy_for("https://kling.test") == ("http://proxy.test:3128", "HTTPS_PROXY")


def test_client_imports_nothing_of_the_receiver() -> None:
    """No module of the client imports the receiver, nor what only the receiver needs."""
    assert kling_callback.__file__ is not None
    imported: set[str] = set()
    for module in Path(kling_callback.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    assert not imported & {"receiver", "sqlalchemy", "sqlmodel", "starlette", "uvicorn", "alembic", "aiohttp"}


UNCLOSED = """
from kling_callback import Kling
kling = Kling(api_key="k", signing_secrets="a-signing-secret-for-tests-0123456789", receiver_url="{url}")
task = kling.task("mine")
{end}
"""


@pytest.mark.parametrize(("end", "code"), [("", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1)])
def test_a_program_that_closes_nothing_ends(receiver: Running, end: str, code: int) -> None:
    """Also one that fails: the client's thread does not keep the process alive."""
    httpx.put(
        f"{receiver.url}/api/tasks/mine",
        json={"family": "images/generations", "attempt": "x"},
        headers=receiver.headers(),
    ).raise_for_status()
    program = [sys.executable, "-c", UNCLOSED.format(url=receiver.url, end=end)]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == code, ran.stderr


def test_a_closed_kling_says_so(settings: dict[str, Any]) -> None:
    """Every call, also of its tasks, raises the same error; closing it again does nothing."""
    with Kling(**settings) as kling:
        task = kling.text_to_image("x")
    for use in (task.refresh, lambda: kling.task("x"), lambda: task.wait(5)):
        with pytest.raises(KlingError, match="This Kling is closed") as raised:
            use()
        assert raised.value.code == "closed"
    kling.close()


@pytest.mark.anyio
async def test_a_closed_async_kling_says_so(settings: dict[str, Any]) -> None:
    """The same, awaited."""
    async with AsyncKling(**settings) as kling:
        task = await kling.text_to_image("x")
    with pytest.raises(KlingError, match="This Kling is closed"):
        await task.wait(5)

"""Waiting for a task, and its files: whole and checked, or not at all."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from kling_callback.base import BaseFile
from kling_callback.errors import KlingError, ResultFailed, TaskFailed, WaitTimeout
from kling_callback.protocol.events import Event
from kling_callback.tasks import AsyncFile
from tests.support.kling import Stage, Step, answer, event, forever, refusal, stream, task_json

pytestmark = pytest.mark.anyio

CONTENT = b"\x89PNG a picture"
LINK = "https://receiver.test/api/tasks/mine/results/0?expires=9&signature=s"


def file_json(index: int = 0, **more: Any) -> dict[str, Any]:
    usual = {
        "index": index,
        "kind": "image",
        "id": None,
        "duration": None,
        "status": "stored",
        "content_type": "image/png",
        "size": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "href": LINK,
    }
    return {**usual, **more}


def done(*files: dict[str, Any], status: str = "succeed", **more: Any) -> dict[str, Any]:
    return task_json("mine", status, done=True, results=list(files), **more)


def inside(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


async def waited(task: dict[str, Any], **script: list[Step]) -> Any:
    stage = Stage(events=[stream(event(9, "task.done", task))], **script)
    async with stage.kling() as kling:
        return await kling.attach("mine").wait()


async def failed(task: dict[str, Any]) -> KlingError:
    with pytest.raises(KlingError) as error:
        await waited(task)
    return error.value


async def test_a_result_has_its_files_by_kind() -> None:
    """Images, videos and sounds apart, all of them in order in `files`, and the task's JSON."""
    task = done(
        file_json(2, kind="video", content_type="video/mp4", duration=5.1),
        file_json(0),
        file_json(1, kind="audio", content_type="audio/mpeg"),
        file_json(3, kind="watermark"),
    )
    result = await waited(task)
    assert [each.index for each in result.files] == [0, 1, 2, 3]
    assert ([each.index for each in result.images], [each.index for each in result.audios]) == ([0], [1])
    assert (result.videos[0].duration, result.videos[0].name, result.task) == (5.1, "mine-2.mp4", task)
    assert "mine-0.png stored" in repr(result)


async def test_a_failed_task_raises_kling_s_reason() -> None:
    """The message is what Kling said; the task comes along."""
    error = await failed(done(status="failed", status_msg="unsafe content"))
    assert isinstance(error, TaskFailed)
    assert "unsafe content" in error.message
    assert error.task["status_msg"] == "unsafe content"
    assert "no reason" in (await failed(done(status="failed"))).message


async def test_a_file_that_is_missing_raises() -> None:
    """One of two could not be stored: the reason, and where Kling's addresses stand."""
    error = await failed(done(file_json(), {"index": 1, "status": "failed", "error": "It is HTML."}))
    assert isinstance(error, ResultFailed)
    assert "1 of 2 files" in error.message
    assert "It is HTML." in error.message
    assert (error.hint or "").endswith("kling show mine")


async def test_success_without_a_file_raises() -> None:
    """Nobody is handed an empty result in silence."""
    assert isinstance(await failed(done()), ResultFailed)


async def test_what_is_stored_can_be_had_whatever_became_of_the_rest() -> None:
    """Half a result was paid for."""
    task = done(file_json(), {"index": 1, "status": "failed"})
    stage = Stage(events=[stream(event(9, "task.done", task))], file=[httpx.Response(200, content=CONTENT)])
    async with stage.kling() as kling:
        waiting = kling.attach("mine")
        with pytest.raises(ResultFailed):
            await waiting.wait()
        (file,) = waiting.stored().files
        assert await file.read() == CONTENT


async def test_a_wait_ends_with_its_time() -> None:
    """The task goes on; the error says how to wait again, and has the task as last heard of."""
    running = task_json("mine", "processing")
    stage = Stage(events=[stream(event(1, "task.processing", running), httpx.ReadError("cut")), forever])
    async with stage.kling() as kling:
        with pytest.raises(WaitTimeout) as error:
            await kling.attach("mine").wait(timeout=0.05)
    assert error.value.task == running
    assert "kling wait mine" in str(error.value)


async def test_on_event_hears_all_and_may_be_asynchronous() -> None:
    """Each event once, in order; what the function returns is awaited if it can be."""
    heard: list[str] = []

    async def listen(each: Event) -> None:
        await anyio.lowlevel.checkpoint()
        heard.append(each.type)

    for on_event in (lambda each: heard.append(each.type), listen):
        stage = Stage(events=[stream(event(1, "task.created", task_json()), event(2, "task.done", done(file_json())))])
        async with stage.kling() as kling:
            await kling.attach("mine").wait(on_event=on_event)
    assert heard == ["task.created", "task.done"] * 2


async def test_a_task_shows_what_it_is() -> None:
    """Every field of the JSON is an attribute; `refresh` asks the receiver once."""
    whole = task_json("mine", "failed", task_id="k", model="m", tags=["a"], status_msg="why", done=True)
    stage = Stage(task=[answer(200, task_json()), answer(200, whole)])
    async with stage.kling() as kling:
        task = await kling.task("mine")
        assert (task.outcome, task.done, task.tags, task.model, task.status_msg) == (
            "unknown",
            False,
            (),
            "",
            "",
        )
        assert await task.refresh() is task
    assert (task.id, task.task_id, task.family, task.model) == ("mine", "k", "images/generations", "m")
    assert (task.tags, task.status, task.status_msg, task.done) == (("a",), "failed", "why", True)
    assert (task.outcome, repr(task)) == ("created", "<AsyncTask mine failed>")


async def fetch(stage: Stage, use: Callable[[AsyncFile], Any], **more: Any) -> Any:
    settings = more.pop("settings", {})
    async with stage.kling(**settings) as kling:
        task = done(file_json(**more))
        return await use(AsyncFile(kling._receiver, task["results"][0], task))


async def test_a_file_is_read_from_the_archive_by_our_token() -> None:
    """Not by its link: that has an end, and stands in the logs of HTTP clients."""
    stage = Stage(file=[httpx.Response(200, content=CONTENT)])
    assert await fetch(stage, AsyncFile.read) == CONTENT
    (request,) = stage.requests["file"]
    assert str(request.url) == "https://receiver.test/api/tasks/mine/results/0"
    assert request.headers["Authorization"].startswith("Bearer ")


async def test_a_file_is_fetched_where_this_client_reaches_the_receiver() -> None:
    """KLING_RECEIVER_INTERNAL_URL, with its prefix."""
    stage = Stage(file=[httpx.Response(200, content=CONTENT)])
    await fetch(stage, AsyncFile.read, settings={"receiver_internal_url": "http://internal:81/deep"})
    assert str(stage.requests["file"][0].url) == "http://internal:81/deep/api/tasks/mine/results/0"


@pytest.mark.parametrize(
    "trouble",
    [
        httpx.ReadError("cut"),
        httpx.Response(200, content=CONTENT[:5]),
        httpx.Response(200, content=CONTENT[:-1] + b"?"),
        httpx.Response(200, content=CONTENT * 100),
        refusal(503),
    ],
)
async def test_a_file_that_came_badly_is_fetched_again(trouble: Step, tmp_path: Path) -> None:
    """Cut, too short, too long, altered, refused for now: the next try counts, nothing of the first stays."""
    stage = Stage(file=[trouble, httpx.Response(200, content=CONTENT)])
    path = await fetch(stage, lambda file: file.save(tmp_path / "x.png"))
    assert path == tmp_path / "x.png"
    assert inside(tmp_path) == {"x.png": CONTENT}


async def test_a_file_that_never_comes_whole_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """What was there before stays as it was."""
    (tmp_path / "x.png").write_bytes(b"before")
    stage = Stage(file=[httpx.Response(200, content=b"wrong") for _ in range(9)])
    with pytest.raises(ResultFailed, match="damaged"):
        await fetch(stage, lambda file: file.save(tmp_path / "x.png"))
    assert inside(tmp_path) == {"x.png": b"before"}


async def test_a_file_that_is_gone_is_an_error_at_once() -> None:
    """404 will not change by asking again; the receiver's hint comes along."""
    stage = Stage(file=[refusal(404, "gone", "Fetch it again.")])
    with pytest.raises(ResultFailed, match="Fetch it again"):
        await fetch(stage, AsyncFile.read)
    assert len(stage.requests["file"]) == 1


async def test_a_file_without_size_and_digest_is_taken_as_it_comes() -> None:
    """A receiver that does not know them cannot be checked against."""
    stage = Stage(file=[httpx.Response(200, content=b"anything")])
    assert await fetch(stage, AsyncFile.read, size=None, sha256=None) == b"anything"


async def test_into_a_folder_a_file_goes_under_its_own_name(tmp_path: Path) -> None:
    """The task's id, its index and the ending of its type; text is a path too."""
    stage = Stage(file=[httpx.Response(200, content=CONTENT)])
    path = await fetch(stage, lambda file: file.save(str(tmp_path)))
    assert path == tmp_path / "mine-0.png"


async def test_a_folder_that_is_not_there_is_the_caller_s_error(tmp_path: Path) -> None:
    """OSError, as for any file."""
    stage = Stage(file=[httpx.Response(200, content=CONTENT)])
    with pytest.raises(FileNotFoundError):
        await fetch(stage, lambda file: file.save(tmp_path / "missing" / "x.png"))


async def test_an_interrupted_save_leaves_nothing(tmp_path: Path) -> None:
    """Cancelled in the middle of a download: no half file, no draft."""

    async def begun(request: httpx.Request) -> httpx.Response:
        async def content() -> Any:
            yield CONTENT[:5]
            scope.cancel()
            await anyio.sleep_forever()

        return httpx.Response(200, content=content())

    with anyio.CancelScope() as scope:
        await fetch(Stage(file=[begun]), lambda file: file.save(tmp_path / "x.png"))
    assert scope.cancelled_caught
    assert inside(tmp_path) == {}


@pytest.mark.parametrize(
    ("content_type", "kind", "name"),
    [
        ("image/jpeg; charset=binary", "image", "mine-0.jpg"),
        ("audio/x-wav", "audio", "mine-0.wav"),
        ("application/pdf", "file", "mine-0.pdf"),
        (None, "video", "mine-0.mp4"),
        ("../../x", "strange", "mine-0.bin"),
    ],
)
def test_a_file_has_a_good_name(content_type: str | None, kind: str, name: str) -> None:
    """By its media type, by its kind, or plainly .bin."""
    assert BaseFile(file_json(content_type=content_type, kind=kind), task_json()).name == name


def test_a_file_shows_what_it_is() -> None:
    """Every field of the JSON is an attribute."""
    file = BaseFile(file_json(id="k", expires_at="2026"), task_json())
    assert (file.index, file.kind, file.id, file.duration, file.status) == (0, "image", "k", None, "stored")
    assert (file.content_type, file.size, file.href) == ("image/png", len(CONTENT), LINK)
    assert (file.sha256, repr(file)) == (hashlib.sha256(CONTENT).hexdigest(), "<BaseFile mine-0.png stored>")

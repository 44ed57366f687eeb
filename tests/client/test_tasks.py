"""Waiting for a task, and its files: complete and checked, or not at all."""

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
    """Images, videos and audio files apart, all of them in order in `files`, and the task's JSON."""
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
    """The message is Kling's; the error has the task's JSON."""
    error = await failed(done(status="failed", status_msg="unsafe content"))
    assert isinstance(error, TaskFailed)
    assert "unsafe content" in error.message
    assert error.task["status_msg"] == "unsafe content"
    assert "no reason" in (await failed(done(status="failed"))).message


async def test_a_file_that_is_missing_raises() -> None:
    """One of two could not be stored: the reason, and how to find Kling's addresses."""
    error = await failed(done(file_json(), {"index": 1, "status": "failed", "error": "It is HTML."}))
    assert isinstance(error, ResultFailed)
    assert "1 of 2 files" in error.message
    assert "It is HTML." in error.message
    assert (error.hint or "").endswith("kling show mine")


async def test_success_without_a_file_raises() -> None:
    """A result is never silently empty."""
    assert isinstance(await failed(done()), ResultFailed)


async def test_success_with_another_output_is_a_result() -> None:
    """Elements, voices, a session: with Kling's names, in the result and in the task."""
    voice = {"voice_id": "829", "voice_name": "narrator"}
    result = await waited(done(outputs=[voice]))
    assert (result.files, result.outputs) == ([], [voice])
    assert "829" in repr(result)
    assert (await waited(done(file_json(), outputs=None))).outputs == []


async def test_a_file_has_its_warning() -> None:
    """What is unusual about it."""
    result = await waited(done(file_json(), file_json(1, warning="its type is unknown")))
    assert [file.warning for file in result.files] == [None, "its type is unknown"]


async def test_stored_files_can_be_read_although_others_failed() -> None:
    """Half a result was paid for."""
    task = done(file_json(), {"index": 1, "status": "failed"})
    stage = Stage(events=[stream(event(9, "task.done", task))], file=[httpx.Response(200, content=CONTENT)])
    async with stage.kling() as kling:
        waiting = kling.attach("mine")
        with pytest.raises(ResultFailed):
            await waiting.wait()
        (file,) = waiting.stored().files
        assert await file.read() == CONTENT


async def test_a_wait_ends_at_its_timeout() -> None:
    """The task continues; the error says how to wait again, and has the last received task."""
    running = task_json("mine", "processing")
    stage = Stage(events=[stream(event(1, "task.processing", running), httpx.ReadError("cut")), forever])
    async with stage.kling() as kling:
        with pytest.raises(WaitTimeout) as error:
            await kling.attach("mine").wait(timeout=0.05)
    assert error.value.task == running
    assert "kling wait mine" in str(error.value)


async def test_on_event_gets_all_events_and_may_be_asynchronous() -> None:
    """Each event once, in order; an awaitable result is awaited."""
    received: list[str] = []

    async def listen(each: Event) -> None:
        await anyio.lowlevel.checkpoint()
        received.append(each.type)

    for on_event in (lambda each: received.append(each.type), listen):
        stage = Stage(events=[stream(event(1, "task.created", task_json()), event(2, "task.done", done(file_json())))])
        async with stage.kling() as kling:
            await kling.attach("mine").wait(on_event=on_event)
    assert received == ["task.created", "task.done"] * 2


async def test_a_task_has_the_fields_of_its_json() -> None:
    """Every field is an attribute; `refresh` reads the task once."""
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
    """Not by its link, which expires, and appears in the logs of HTTP clients."""
    stage = Stage(file=[httpx.Response(200, content=CONTENT)])
    assert await fetch(stage, AsyncFile.read) == CONTENT
    (request,) = stage.requests["file"]
    assert str(request.url) == "https://receiver.test/api/tasks/mine/results/0"
    assert request.headers["Authorization"].startswith("Bearer ")


async def test_a_file_is_downloaded_from_the_internal_address() -> None:
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
async def test_a_damaged_download_is_retried(trouble: Step, tmp_path: Path) -> None:
    """Truncated, too short, too long, altered, refused for now: nothing of the first attempt stays."""
    stage = Stage(file=[trouble, httpx.Response(200, content=CONTENT)])
    path = await fetch(stage, lambda file: file.save(tmp_path / "x.png"))
    assert path == tmp_path / "x.png"
    assert inside(tmp_path) == {"x.png": CONTENT}


async def test_a_file_that_is_always_damaged_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """An existing file of that name is not changed."""
    (tmp_path / "x.png").write_bytes(b"before")
    stage = Stage(file=[httpx.Response(200, content=b"wrong") for _ in range(9)])
    with pytest.raises(ResultFailed, match="damaged"):
        await fetch(stage, lambda file: file.save(tmp_path / "x.png"))
    assert inside(tmp_path) == {"x.png": b"before"}


async def test_a_file_that_is_gone_is_an_error_at_once() -> None:
    """404 is not retried; the error has the receiver's hint."""
    stage = Stage(file=[refusal(404, "gone", "Fetch it again.")])
    with pytest.raises(ResultFailed, match="Fetch it again"):
        await fetch(stage, AsyncFile.read)
    assert len(stage.requests["file"]) == 1


async def test_a_file_without_size_and_checksum_is_not_checked() -> None:
    """The receiver's JSON may lack them."""
    stage = Stage(file=[httpx.Response(200, content=b"anything")])
    assert await fetch(stage, AsyncFile.read, size=None, sha256=None) == b"anything"


async def test_a_file_is_saved_into_a_folder_under_its_own_name(tmp_path: Path) -> None:
    """The task's id, its index and the extension of its type; the path may be a str."""
    stage = Stage(file=[httpx.Response(200, content=CONTENT)])
    path = await fetch(stage, lambda file: file.save(str(tmp_path)))
    assert path == tmp_path / "mine-0.png"


@pytest.mark.parametrize("name", ["missing/x.png", "missing/"])
async def test_a_missing_folder_is_an_oserror(tmp_path: Path, name: str) -> None:
    """As for any file; a name that ends with a slash is a folder."""
    stage = Stage(file=[httpx.Response(200, content=CONTENT)])
    with pytest.raises(FileNotFoundError):
        await fetch(stage, lambda file: file.save(f"{tmp_path}/{name}"))
    assert inside(tmp_path) == {}


async def test_an_interrupted_save_leaves_nothing(tmp_path: Path) -> None:
    """Cancelled in the middle of a download: no partial file, no temporary file."""

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
        ("application/x-sh", "file", "mine-0.bin"),
        (None, "video", "mine-0.mp4"),
        ("../../x", "strange", "mine-0.bin"),
    ],
)
def test_a_file_has_a_name_with_an_extension(content_type: str | None, kind: str, name: str) -> None:
    """By its media type, by its kind, or .bin."""
    assert BaseFile(file_json(content_type=content_type, kind=kind), task_json()).name == name


def test_a_file_name_is_no_drive() -> None:
    """On Windows, `C:x` leaves the folder that it is joined to."""
    assert BaseFile(file_json(), task_json("C:x")).name == "C_x-0.png"


def test_a_file_has_the_fields_of_its_json() -> None:
    """Every field is an attribute."""
    file = BaseFile(file_json(id="k", expires_at="2026"), task_json())
    assert (file.index, file.kind, file.id, file.duration, file.status) == (0, "image", "k", None, "stored")
    assert (file.content_type, file.size, file.href) == ("image/png", len(CONTENT), LINK)
    assert (file.sha256, repr(file)) == (hashlib.sha256(CONTENT).hexdigest(), "<BaseFile mine-0.png stored>")


async def test_the_usual_seconds_are_the_median_of_finished_tasks() -> None:
    """Of the same family and model, in one request; None for fewer than three, for other times nothing."""

    def finished(seconds: float, model: str = "m", **more: Any) -> dict[str, Any]:
        end = f"2026-11-26T10:{int(seconds) // 60:02}:{seconds % 60:06.3f}Z"
        times = {"created_at": "2026-11-26T10:00:00.000Z", "updated_at": end}
        return task_json(f"t{seconds}", "succeed", **{"model": model, "done": True, **times, **more})

    tasks = [finished(300), finished(100), finished(120), finished(1, model="n"), finished(2, done=False)]
    pages = [tasks, [*tasks, finished(130)], tasks[1:], [*tasks[1:], finished(9, updated_at="soon")]]
    stage = Stage(list=[answer(200, {"tasks": page, "next": "more"}) for page in pages])
    async with stage.kling() as kling:
        task = kling.attach("mine")
        task.data |= {"family": "videos/text2video", "model": "m"}
        assert [await task.usual_seconds() for _ in pages] == [120, 125, None, None]
    asked = [dict(request.url.params) for request in stage.requests["list"]]
    assert asked == [{"limit": "20", "status": "succeed", "family": "videos/text2video", "model": "m"}] * 4

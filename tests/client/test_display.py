"""Results in notebooks: images, videos and sounds are shown, and nothing but the file's own content or link is told."""

import json
from base64 import b64encode
from typing import Any

import httpx
import pytest

from kling_callback import display
from kling_callback.base import BaseFile, BaseResult, BaseTask
from kling_callback.sync import Kling, Result
from kling_callback.tasks import AsyncResult
from tests.client.test_tasks import CONTENT, LINK, done, file_json
from tests.support.kling import SETTINGS, Stage, answer, event, stream


def shown(*files: dict[str, Any], content: list[httpx.Response] | None = None, **task: Any) -> tuple[str, Stage]:
    """The HTML of a blocking result, and the requests that it took."""
    stage = Stage(
        events=[stream(event(9, "task.done", done(*files, **task)))],
        task=[answer(200, done(*files, **task))],
        file=content or [],
    )
    with Kling(http=stage.http(), **SETTINGS) as kling:
        result = kling.task("mine").wait()
        assert isinstance(result, Result)
        html = result._repr_mimebundle_()["text/html"]
    return html, stage


def test_an_image_is_in_the_notebook() -> None:
    """Its content: it is shown for ever, also where nobody reaches the receiver."""
    html, _ = shown(file_json(), content=[httpx.Response(200, content=CONTENT)])
    assert f'<img src="data:image/png;base64,{b64encode(CONTENT).decode()}"' in html
    assert "signature" not in html


@pytest.mark.parametrize(
    ("content_type", "begin"),
    [("video/mp4", "<video src="), ("audio/mpeg", "<audio src="), ("image/avif", "<img src=")],
)
def test_each_kind_has_its_element(content_type: str, begin: str) -> None:
    """With controls where it plays."""
    html, _ = shown(file_json(content_type=content_type), content=[httpx.Response(200, content=CONTENT)])
    assert f'{begin}"data:{content_type};base64,' in html
    assert ("controls" in html) is not content_type.startswith("image/")


def test_a_large_file_is_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read."""
    monkeypatch.setattr("kling_callback.sync.MAX_INLINE_BYTES", len(CONTENT) - 1)
    html, stage = shown(file_json(content_type="video/mp4"))
    assert f'<video src="{LINK.replace("&", "&amp;")}" controls' in html
    assert stage.requests["file"] == []


def test_a_file_that_cannot_be_read_is_a_link() -> None:
    """Nothing is raised in the notebook."""
    html, _ = shown(
        file_json(), content=[answer(410, {"error": {"code": "result_lost", "message": "gone", "hint": ""}})]
    )
    assert f'<img src="{LINK.replace("&", "&amp;")}"' in html


def test_other_files_and_outputs_are_shown_as_text() -> None:
    """A link to a file of no media type, and JSON, with nothing in them that a browser would run."""
    html, _ = shown(file_json(content_type="application/octet-stream"), outputs=[{"element_id": 1, "name": "<script>"}])
    assert ">mine-0.bin</a>" in html
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


@pytest.mark.anyio
async def test_an_asynchronous_result_is_shown_by_its_link() -> None:
    """No request is made: a notebook asks for it in the event loop."""
    stage = Stage(events=[stream(event(9, "task.done", done(file_json())))])
    async with stage.kling() as kling:
        result = await kling.attach("mine").wait()
        assert isinstance(result, AsyncResult)
        (file,) = result.files
        bundle = file._repr_mimebundle_()
        assert result._repr_html_() == f"<div>{file._repr_html_()}</div>"
    assert bundle["text/plain"] == repr(file)
    assert bundle["text/html"].startswith(f'<img src="{LINK.replace("&", "&amp;")}"')
    assert stage.requests["file"] == []


def test_a_name_and_an_address_cannot_leave_their_element() -> None:
    """They are escaped."""
    html = display.file_html('https://x/"><script>', "image/png", '"<b>')
    assert html.count("<") == 1
    assert display.file_html(None, "image/png", "<b>") == "&lt;b&gt;"


@pytest.mark.parametrize("content_type", ["image/png", "video/mp4", "application/zip", None])
@pytest.mark.parametrize(
    "src",
    [
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        " javascript:alert(1)",
        "java\nscript:alert(1)",
        "data:text/html,<script>",
        "data:application/zip;base64,eA==",
        "file:///etc/passwd",
        "//host/x",
        "x.png",
    ],
)
def test_an_address_runs_nothing(src: str, content_type: str | None) -> None:
    """Only the web's, and the content of media, are put into a notebook; else the file's name is all there is."""
    assert display.file_html(src, content_type, "mine-0.png") == "mine-0.png"
    for good in ("https://host/x", "HTTP://host/x", "data:image/png;base64,eA==", "data:audio/mpeg;base64,eA=="):
        assert f'="{good}"' in display.file_html(good, content_type, "mine-0.png")


def test_nothing_controls_a_terminal() -> None:
    """Nor the direction of a text: in `repr`, in JSON and in HTML, also of a task that was not received."""
    odd = "\x1b[2J\x07\x9b\u202e\ud800"
    task = BaseTask({"id": f"a{odd}", "status": odd})
    result = BaseResult[BaseFile](
        {"id": "x", "status": odd, "outputs": [{odd: odd}]}, [BaseFile({"index": 0, "status": odd}, {"id": f"x{odd}"})]
    )
    for text in (
        repr(task),
        repr(result),
        result._repr_html_(),
        display.file_html(f"https://host/{odd}", "image/png", "x"),
        display.json_text([odd], pretty=True),
    ):
        assert not set(text) & set(odd[0] + odd[4:]), ascii(text)


def test_json_of_any_depth_is_printed() -> None:
    """On one line if it is too deep to be indented: that takes a call in Python for each level."""
    deep = json.loads("[" * 900 + "]" * 900)
    assert display.json_text({"a": [1]}, pretty=True) == '{\n  "a": [\n    1\n  ]\n}'
    assert display.json_text(deep, pretty=True) == "[" * 900 + "]" * 900

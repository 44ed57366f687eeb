"""Result links in a browser: media play, images zoom, nothing in a file runs, pages of other origins may use them."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from sqlalchemy import text

from kling_callback.protocol.media_types import extension
from kling_receiver.results.media import sniff
from kling_sandbox import Sandbox
from kling_sandbox.receiver import start_receiver
from tests.deep.dashboard.conftest import Visit
from tests.support.images import chunk, encoded, png
from tests.support.receiver import Running
from tests.support.videos import sound, video
from tests.support.web import Host, host
from tools.harness.submitting import Json, finished, submit

if TYPE_CHECKING:
    from playwright.sync_api import Page

OWN = b"<script>window.owned = document.title = 'owned'</script>"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A receiver for all tests of the module."""
    folder = tmp_path_factory.mktemp("links")
    with Sandbox() as gateway, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        running = start_receiver(folder / "data", api_base=gateway.url)
        running.gateway = gateway  # type: ignore[attr-defined]
        yield running
        running.stop()


def place(running: Running, content: bytes, content_type: str) -> Json:
    """A task with one stored file of this content and type."""
    task = finished(running, submit(running, running.gateway, n=1)[0])  # type: ignore[attr-defined]
    path = str(PurePosixPath(task["id"]) / f"0.{extension(content_type)}")
    running.receiver.store.storage.path(path).write_bytes(content)
    row = {"path": path, "type": content_type, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    kind = content_type.partition("/")[0]
    with running.receiver.store.database.write() as connection:
        query = "UPDATE result SET path = :path, content_type = :type, size = :size, sha256 = :sha256, kind = :kind"
        connection.execute(text(f"{query} WHERE task_id = :id"), {**row, "kind": kind, "id": task["id"]})
    return task


def link(task: Json) -> str:
    """The signed link of a task's file."""
    href: str = task["results"][0]["href"]
    return href


def until(page: "Page", expression: str, seconds: float = 10) -> Any:
    """Wait until an expression is true. (playwright's own way is an `eval`, which the policies refuse.)"""
    deadline = time.monotonic() + seconds
    while not (value := page.evaluate(expression)):
        assert time.monotonic() < deadline, expression
        time.sleep(0.05)
    return value


MP4, WEBM, WAV = video(), video("webm", "libvpx-vp9"), sound()


@pytest.mark.parametrize(
    ("content", "media_type"),
    [(MP4, "video/mp4"), (WEBM, "video/webm"), (WAV, "audio/wav")],
    ids=["mp4", "webm", "wav"],
)
@pytest.mark.parametrize("by", ["link", "session"])
def test_a_video_or_sound_plays_when_opened(
    running: Running, visit: Visit, content: bytes, media_type: str, by: str
) -> None:
    """In the browser's player, with its controls, which jump. Also by a session, without a link."""
    visitor, task = visit(running), place(running, content, media_type)
    page = visitor.page
    if by == "session":
        visitor.sign_in("read")
    page.goto(link(task).partition("?")[0] if by == "session" else link(task))
    assert page.evaluate("document.querySelector('video').controls")
    until(page, "document.querySelector('video').currentTime > 0.2")
    page.evaluate("document.querySelector('video').currentTime = 1.5")
    until(page, "document.querySelector('video').readyState > 2")
    until(page, "document.querySelector('video').currentTime > 1.6")
    assert page.evaluate("document.querySelector('video').error") is None
    assert visitor.problems == []


@pytest.mark.parametrize("decoder", ["PNG", "JPEG", "WEBP", "GIF", "AVIF", "BMP"])
def test_an_image_is_shown_and_zooms(running: Running, visit: Visit, decoder: str) -> None:
    """As the browser's own page does it: fitted to the window, centred, full size by a click and back."""
    visitor = visit(running, viewport={"width": 800, "height": 600})
    page = visitor.page
    page.goto(
        link(place(running, encoded(Image.new("RGB", (1600, 2400), "teal"), decoder), f"image/{decoder.lower()}"))
    )
    image = "document.images[0]"
    assert page.evaluate(f"[{image}.naturalWidth, {image}.width]") == [1600, 400]
    assert page.evaluate(f"{image}.getBoundingClientRect().x") == 200
    page.mouse.click(400, 300)
    until(page, f"{image}.width == 1600")
    page.mouse.click(400, 300)
    until(page, f"{image}.width == 400")
    assert visitor.problems == []


POLYGLOT_GIF = b"GIF89a/*\x01\0\x80\0\0" + bytes(6) + b"*/=1;window.owned=document.title='owned';//" + OWN
POLYGLOT_PNG = png(1, 1, chunk(b"tEXt", OWN), chunk(b"IDAT", b"")) + OWN
FILES = {
    "html": (b"<!doctype html><title>x</title>" + OWN, "text/html"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg">' + OWN + b"</svg>", "image/svg+xml"),
    "xml": (b'<?xml version="1.0"?><x xmlns="http://www.w3.org/1999/xhtml">' + OWN + b"</x>", "text/xml"),
    "xhtml": (b'<html xmlns="http://www.w3.org/1999/xhtml">' + OWN + b"</html>", "application/xhtml+xml"),
    "pdf": (b"%PDF-1.4\n1 0 obj<</OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj", "application/pdf"),
    "script": (b"window.owned = document.title = 'owned'", "text/javascript"),
    "style": (b"body { color: rgb(1, 2, 3) }", "text/css"),
    "unknown": (OWN, "application/octet-stream"),
    "html as png": (OWN, "image/png"),
    "html as mp4": (OWN, "video/mp4"),
    "gif and script": (POLYGLOT_GIF, "image/gif"),
    "png and html": (POLYGLOT_PNG, "image/png"),
    "mp4 and html": (MP4 + OWN, "video/mp4"),
}
SHOWN = ("html as png", "html as mp4", "gif and script", "png and html", "mp4 and html")


@pytest.mark.parametrize("name", FILES)
def test_nothing_in_a_file_runs(running: Running, visit: Visit, name: str) -> None:
    """Opened, framed, or used as a script, style or plugin, by a page with a session on the receiver's own origin."""
    content, content_type = FILES[name]
    visitor, task = visit(running), place(running, content, content_type)
    page = visitor.sign_in()
    for address in (link(task), link(task).partition("?")[0]):
        if name in SHOWN:
            page.goto(address)
            time.sleep(0.2)
            assert page.evaluate("[window.owned, document.title == 'owned']") == [None, False]
        else:
            with page.expect_download() as download:
                page.evaluate("address => { location = address }", address)
            assert download.value.suggested_filename == f"{task['id']}-0.bin"
            assert download.value.failure() is None
    blank = visitor.page.context.new_page()
    blank.goto(f"{running.url}/healthz")
    blank.evaluate(
        """address => { for (const [name, attribute] of [
            ["script", "src"], ["iframe", "src"], ["embed", "src"], ["object", "data"], ["link", "href"]]) {
            const element = document.createElement(name);
            if (name == "link") element.rel = "stylesheet";
            element[attribute] = address; document.body.append(element); } }""",
        link(task),
    )
    time.sleep(0.5)
    assert blank.evaluate("[window.owned, document.title]") == [None, ""]
    assert blank.evaluate("getComputedStyle(document.body).color") != "rgb(1, 2, 3)"
    worker = "address => navigator.serviceWorker.register(address).then(() => 'registered', error => error.name)"
    assert blank.evaluate(worker, link(task)) == "SecurityError"
    assert (
        blank.evaluate("Array.from(frames).some(frame => { try { return frame.owned } catch { return false } })")
        is False
    )


def test_the_polyglots_would_be_stored() -> None:
    """As the types that they are tested with: a download detects these by their first bytes."""
    for name in ("gif and script", "png and html", "mp4 and html"):
        content, content_type = FILES[name]
        assert sniff(content[:512]) == content_type


@pytest.fixture
def elsewhere() -> Iterator[Host]:
    """Pages of another origin on the same site, to which cookies are sent. `/isolated` shows only what permits it."""
    isolated = {"Cross_Origin_Embedder_Policy": "require-corp", "Cross_Origin_Opener_Policy": "same-origin"}
    with host(
        lambda visit: visit.answer(
            200, b"<!doctype html>", Content_Type="text/html", **(isolated if visit.path == "/isolated" else {})
        )
    ) as server:
        yield server


FETCH = """async ([address, options]) => {
    try {
        const response = await fetch(address, options);
        const names = ["ETag", "Content-Range", "Content-Length", "Accept-Ranges"];
        return [response.status, (await response.arrayBuffer()).byteLength, ...names.map(n => response.headers.get(n))];
    } catch (error) { return error.name }
}"""
LOAD = """([name, address, crossOrigin]) => new Promise(resolve => {
    const element = document.createElement(name);
    if (crossOrigin) element.crossOrigin = crossOrigin;
    element.onerror = () => resolve("error");
    element.onload = element.onloadeddata = () => {
        const canvas = document.createElement("canvas");
        try {
            canvas.getContext("2d").drawImage(element, 0, 0);
            resolve(canvas.toDataURL().slice(0, 15));
        } catch (error) { resolve(error.name) }
    };
    element.src = address;
})"""


def test_a_page_of_another_origin_uses_a_link(running: Running, visit: Visit, elsewhere: Host) -> None:
    """By fetch, with a range and a condition, which need a preflight; as image and video, also on a canvas."""
    page = visit(running).page
    page.goto(elsewhere.url)
    task, image = (
        place(running, MP4, "video/mp4"),
        place(running, encoded(Image.new("RGB", (9, 9)), "PNG"), "image/png"),
    )
    etag, size = f'"{hashlib.sha256(MP4).hexdigest()}"', len(MP4)
    assert page.evaluate(FETCH, [link(task), {}]) == [200, size, etag, None, str(size), "bytes"]
    part = {"headers": {"Range": "bytes=0-9"}}
    assert page.evaluate(FETCH, [link(task), part]) == [206, 10, etag, f"bytes 0-9/{size}", "10", "bytes"]
    odd = {"headers": {"Range": "bytes=-7", "If-Range": etag}, "cache": "no-store"}
    assert page.evaluate(FETCH, [link(task), odd])[:2] == [206, 7]
    assert page.evaluate(FETCH, [link(task), {"headers": {"If-None-Match": etag}, "cache": "no-store"}])[0] == 304
    assert page.evaluate(FETCH, [link(task), {"headers": {"Range": "bytes=99999999-"}, "cache": "no-store"}])[0] == 416
    assert page.evaluate(LOAD, ["video", link(task), "anonymous"]) == "data:image/png;"
    assert page.evaluate(LOAD, ["img", link(image), "anonymous"]) == "data:image/png;"
    assert page.evaluate(LOAD, ["img", link(image), ""]) == "SecurityError"  # shown, and not readable
    page.goto(f"{elsewhere.url}/isolated")
    assert page.evaluate("crossOriginIsolated")
    assert page.evaluate(LOAD, ["img", link(image), ""]) == "SecurityError"


def test_a_page_of_another_origin_uses_no_session_and_no_token(running: Running, visit: Visit, elsewhere: Host) -> None:
    """Neither sees the file without a link, nor with one and credentials, although the browser has a session."""
    visitor = visit(running)
    page = visitor.sign_in()
    task = place(running, encoded(Image.new("RGB", (9, 9)), "PNG"), "image/png")
    bare = link(task).partition("?")[0]
    assert page.evaluate(FETCH, [bare, {}])[0] == 200
    page.goto(elsewhere.url)
    assert page.evaluate(FETCH, [bare, {"credentials": "include"}]) == "TypeError"
    assert page.evaluate(FETCH, [bare, {"headers": running.headers("read")}]) == "TypeError"
    assert page.evaluate(FETCH, [link(task), {"headers": running.headers("read")}]) == "TypeError"
    assert page.evaluate(FETCH, [link(task), {"credentials": "include"}]) == "TypeError"
    assert page.evaluate(LOAD, ["img", bare, ""]) == "error"
    assert page.evaluate(LOAD, ["img", bare, "use-credentials"]) == "error"
    thumbnail = f"{running.url}/dashboard/thumbnails/{task['id']}/0"
    assert page.evaluate(LOAD, ["img", thumbnail, ""]) == "error"
    assert page.evaluate(FETCH, [link(task), {}])[0] == 200


def test_the_list_shows_thumbnails(running: Running, visit: Visit) -> None:
    """Of images; of what cannot be decoded, a placeholder."""
    good = place(running, encoded(Image.new("RGB", (1600, 900), "teal"), "PNG"), "image/png")
    bad = place(running, b"\x89PNG\r\n\x1a\n" + bytes(99), "image/png")
    visitor = visit(running)
    page = visitor.sign_in("read")
    for task, width in ((good, 480), (bad, 480)):
        image = f"document.querySelector('#task-{task['id']} img.thumb')"
        until(page, f"{image}.complete && {image}.naturalWidth == {width}")
    assert page.evaluate(f"document.querySelector('#task-{good['id']} img.thumb').naturalHeight") == 270
    assert visitor.problems == []

"""The route of thumbnails: who may see them, how long a browser keeps them, what it gets instead."""

import time
from collections.abc import Iterator

import httpx
import pytest
from sqlalchemy import text

from kling_receiver.results import thumbnails
from kling_sandbox import Sandbox
from tests.support.api import error_of, get
from tests.support.images import decoded
from tests.support.pages import Browser
from tests.support.receiver import Running
from tools.harness.submitting import Json, finished, submit


@pytest.fixture(scope="module")
def task(shared: Running, shared_gateway: Sandbox) -> Json:
    """A task with two stored images."""
    return finished(shared, submit(shared, shared_gateway, n=2)[0])


@pytest.fixture
def browser(shared: Running) -> Iterator[Browser]:
    """A signed-in browser."""
    with Browser(shared) as browser:
        yield browser.sign_in("read")


def path_of(task: Json, n: int = 0) -> str:
    """The path of a thumbnail."""
    return f"/dashboard/thumbnails/{task['id']}/{n}"


def test_a_thumbnail_for_sessions_and_tokens(shared: Running, task: Json, browser: Browser) -> None:
    """Of the role read; nobody else sees one, and no page of another origin."""
    response = browser.get(path_of(task))
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "image/webp"
    assert max(decoded(response.content).size) <= 480
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    assert "Access-Control-Allow-Origin" not in response.headers
    assert get(shared, path_of(task)).content == response.content
    assert error_of(httpx.get(f"{shared.url}{path_of(task)}")) == (401, "no_token")
    signed = httpx.URL(task["results"][0]["href"]).query.decode()
    assert error_of(httpx.get(f"{shared.url}{path_of(task)}?{signed}"))[0] == 401


def test_how_long_it_is_kept(task: Json, browser: Browser) -> None:
    """For a year under the address that pages have, which names the file's version; else it is asked for each time."""
    sha256 = task["results"][0]["sha256"]
    lasting = browser.get(f"{path_of(task)}?v={sha256[:16]}")
    assert lasting.headers["Cache-Control"] == "private, max-age=31536000, immutable"
    for query in ("", "?v=", "?v=0123456789abcdef", f"?v={sha256[:15]}"):
        assert browser.get(path_of(task) + query).headers["Cache-Control"] == "private, no-cache"
    etag = lasting.headers["ETag"]
    again = browser.get(path_of(task), headers={"If-None-Match": etag})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", etag)
    assert error_of(browser.get(f"{path_of(task)}?w=1")) == (422, "bad_query")
    page = browser.get("/").text
    assert f'src="./dashboard/thumbnails/{task["id"]}/0?v={sha256[:16]}"' in page


@pytest.mark.parametrize("path", ["/dashboard/thumbnails/nobody/0", "/dashboard/thumbnails/~%00/0"])
def test_there_is_no_such_thumbnail(browser: Browser, task: Json, path: str) -> None:
    """For an unknown task or file, and for a number that is none."""
    assert error_of(browser.get(path)) == (404, "unknown_result")
    for odd in ("7", "x", "-1", "9" * 50):
        assert error_of(browser.get(f"/dashboard/thumbnails/{task['id']}/{odd}")) == (404, "unknown_result")


def change(running: Running, task: Json, changes: str, **values: object) -> None:
    """Change the row of a task's first file."""
    with running.receiver.store.database.write() as connection:
        query = text(f"UPDATE result SET {changes} WHERE task_id = :id AND position = 0")
        connection.execute(query, {"id": task["id"], **values})


def test_files_without_a_thumbnail(running: Running, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video has none, an image that is no longer there neither; any other image has a placeholder."""
    task = finished(running, submit(running, gateway, n=1)[0])
    with Browser(running) as browser:
        browser.sign_in("read")
        with monkeypatch.context() as patch:
            patch.setattr(thumbnails, "MAX_WAITING", 0)
            busy = browser.get(path_of(task))
        assert (busy.status_code, busy.headers["Retry-After"]) == (503, "5")
        assert busy.headers["Content-Type"] == "image/svg+xml"
        assert busy.headers["Cache-Control"] == "no-store"
        with monkeypatch.context() as patch:
            patch.setattr("sys.executable", "/does/not/exist")
            failed = browser.get(path_of(task))
        assert (failed.status_code, failed.headers["Cache-Control"]) == (200, "no-store")
        assert failed.content == thumbnails.PLACEHOLDER
        change(running, task, "content_type = 'image/tiff'")
        placeholder = browser.get(path_of(task))
        assert placeholder.headers["Content-Type"] == "image/svg+xml"
        assert placeholder.headers["Cache-Control"] == "private, no-cache"
        change(running, task, "content_type = 'video/mp4'")
        assert error_of(browser.get(path_of(task))) == (404, "unknown_result")
        change(running, task, "content_type = 'image/png', sha256 = :sha256", sha256="0" * 64)
        assert error_of(browser.get(path_of(task))) == (410, "result_lost")
        change(running, task, "status = 'failed', sha256 = NULL")
        assert error_of(browser.get(path_of(task))) == (404, "unknown_result")


def test_a_task_is_removed_with_its_thumbnails(running: Running, gateway: Sandbox) -> None:
    """Those of other tasks stay."""
    tasks = [finished(running, submit(running, gateway, n=2)[0]) for _ in range(2)]
    for task in tasks:
        for n in (0, 1):
            assert get(running, path_of(task, n)).headers["Content-Type"] == "image/webp"
    removed = httpx.delete(f"{running.url}/api/tasks/{tasks[0]['id']}", headers=running.headers("admin"))
    assert removed.status_code == 200
    cache = running.settings.results / ".thumbnails"
    deadline = time.monotonic() + 20
    while (cache / tasks[0]["id"]).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [path.name for path in cache.iterdir()] == [tasks[1]["id"]]
    assert error_of(get(running, path_of(tasks[0]))) == (404, "unknown_result")


def test_thumbnails_are_no_results(running: Running, gateway: Sandbox) -> None:
    """They are in a folder of their own, and the next start leaves them."""
    task = finished(running, submit(running, gateway, n=1)[0])
    assert get(running, path_of(task)).headers["Content-Type"] == "image/webp"
    folder = running.settings.results
    assert [path.parent.parent.name for path in folder.rglob("*.webp")] == [".thumbnails"]
    assert [path.name for path in (folder / task["id"]).iterdir()] == ["0.png"]
    assert list((folder / ".parts").iterdir()) == []

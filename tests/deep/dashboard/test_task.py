"""The page of one task in a browser: live from created to done, videos that play on, actions, every size and scheme."""

import time
from typing import TYPE_CHECKING

import pytest

from kling_callback.protocol.ids import new_id
from kling_sandbox import Sandbox
from tests.deep.dashboard.conftest import Visit
from tests.support.browser import PHONE
from tests.support.receiver import Start
from tests.support.web import host
from tools.harness.loopback import web
from tools.harness.submitting import create, finished, post, register, submit

if TYPE_CHECKING:
    from playwright.sync_api import Page

MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"{{7*7}}"
UGLY = f"{MARKUP} {'x' * 300} \N{ARABIC LETTER MEEM}\N{ARABIC LETTER REH} \N{KANGAROO} {'word ' * 700}"
VIDEOS = "videos/text2video"
TALL = 'document.querySelector("#result-0 img").naturalHeight'


def until(page: "Page", condition: str) -> None:
    """Wait until a condition holds in the page, whose policy refuses playwright's own way."""
    ends = time.monotonic() + 15
    while not page.evaluate(condition):
        assert time.monotonic() < ends, condition
        page.wait_for_timeout(50)


def test_a_task_goes_from_created_to_done_without_reload(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """Status, timeline, callbacks and files appear; what was opened stays open, and the focus where it was."""
    running = start(api_base=gateway.url)
    task_id = new_id()
    register(running, task_id, request={"prompt": "a kangaroo at dusk"})
    visitor = visit(running)
    page = visitor.sign_in(path=f"dashboard/tasks/{task_id}")
    visitor.wait_until_live()
    page.evaluate("window.loadedOnce = true")
    page.locator("#task-next").get_by_text("Waits for the client").wait_for()
    kling_id = create(running, gateway, task_id, "no-callback")
    register(running, task_id, outcome="created", task_id=kling_id)
    page.locator("#task-head").get_by_text("submitted").wait_for()
    post(running, task_id, {"task_id": kling_id, "task_status": "processing"})
    page.locator("#task-timeline").get_by_text("Generating").wait_for()
    page.locator("#task-callbacks summary").click()
    page.locator("#task-callbacks pre").get_by_text('"task_status": "processing"').wait_for()
    page.get_by_role("button", name="Ask Kling").focus()
    post(running, task_id, {"task_id": kling_id, "task_status": "succeed"})
    page.locator("#result-0 img").wait_for()
    until(page, f"{TALL} > 0")
    finished(running, task_id)
    page.locator("#task-timeline").get_by_text("Done", exact=True).wait_for()
    page.locator("#task-callbacks").get_by_text("2 came").wait_for(state="detached")
    assert page.locator("#task-callbacks details[open]").count() == 1
    assert page.evaluate("document.activeElement.textContent") == "Ask Kling"
    assert page.evaluate("window.loadedOnce")
    assert page.locator("#task-next").inner_text() == ""
    with page.expect_download() as downloading:
        page.get_by_role("link", name="Download Image").click()
    assert downloading.value.suggested_filename == f"{task_id}-0.png"
    assert visitor.problems == []


def test_a_video_plays_in_place_and_plays_on(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """Through updates of the page, also when all of its files are sent anew."""
    running = start(api_base=gateway.url)
    task_id, kling_id = submit(running, gateway, family=VIDEOS)
    finished(running, task_id)
    visitor = visit(running)
    page = visitor.sign_in(path=f"dashboard/tasks/{task_id}")
    visitor.wait_until_live()
    page.evaluate("const v = document.querySelector('video'); v.muted = true; v.loop = true; v.known = true; v.play()")
    playing = "(v => v && v.known && !v.paused && v.currentTime > {})(document.querySelector('video'))"
    until(page, playing.format(0.1))
    post(running, task_id, {"task_id": kling_id, "task_status": "failed"}, family=VIDEOS)
    page.locator("#task-callbacks").get_by_text("was not applied").wait_for()
    page.evaluate("""() => {
        const again = document.querySelector("#results").innerHTML;
        const added = again.replaceAll("result-0", "result-1").replace(/data-version="\\w+"/, 'data-version="new"');
        const swap = (html) => htmx.swap(document.body, html, { swapStyle: "none" });
        swap(`<div id="results" hx-swap-oob="innerHTML">${again}${added}</div>`);
        window.counts = [document.querySelectorAll(".result").length];
        swap(`<div id="results" hx-swap-oob="innerHTML">${again}</div>`);
        window.counts.push(document.querySelectorAll(".result").length);
        swap(`<div hx-swap-oob="beforeend:#results">${added}</div>`);
        window.counts.push(document.querySelectorAll(".result").length);
    }""")
    assert page.evaluate("window.counts") == [2, 1, 2]
    until(page, playing.format(0.2))
    assert visitor.problems == []


def test_the_actions(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """Ask, redeliver one and all, copy, remove: what destroys asks first, and leads back to the list."""
    running = start(api_base=gateway.url)
    with host(lambda request: request.answer(200)) as app:
        hook = {"name": "app", "address": app.url, "events": ["task.done"]}
        web.post(f"{running.url}/api/hooks", json=hook, headers=running.headers("admin")).raise_for_status()
        task_id, kling_id = submit(running, gateway)
        finished(running, task_id)
        app.wait_for(1)
        visitor = visit(running, permissions=["clipboard-read", "clipboard-write"])
        page = visitor.sign_in(path=f"dashboard/tasks/{task_id}")
        visitor.wait_until_live()
        page.get_by_role("button", name="Ask Kling").click()
        page.get_by_text("Kling was asked.").wait_for()
        page.locator("#deliveries-all > summary").get_by_text("1 of 1 delivered").click()
        page.locator("#delivery-rows").get_by_role("button", name="Send again").click()
        app.wait_for(2)
        page.locator("#delivery-rows summary").get_by_text("2 attempts").click()
        assert page.locator(".attempts li").count() == 2
        page.locator("#task-head").get_by_role("button", name="Redeliver").click()
        page.get_by_role("dialog").get_by_role("button", name="Redeliver").click()
        app.wait_for(3)
        page.get_by_role("button", name="Copy Kling's id", exact=True).click()
        page.get_by_text("Copied.").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == kling_id
        asked = page.get_by_role("dialog").get_by_text("This cannot be undone")
        page.get_by_role("button", name="Remove").click()
        asked.wait_for()
        page.keyboard.press("Escape")
        asked.wait_for(state="hidden")
        page.route(f"**/api/tasks/{task_id}", lambda route: route.fulfill(json={}))
        page.get_by_role("button", name="Remove").click()
        with page.expect_request(lambda request: request.method == "DELETE"):
            page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        page.get_by_role("heading", name="Tasks").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_is_accessible_and_fits(start: Start, gateway: Sandbox, visit: Visit, scheme: str, width: int) -> None:
    """Finished, failed and open, with the ugliest texts: no serious finding, nothing wider than the window."""
    running = start(api_base=gateway.url)
    with host(lambda request: request.answer(500, MARKUP.encode())) as app:
        hook = {"name": "h" * 60, "address": app.url, "retry_schedule": [60]}
        web.post(f"{running.url}/api/hooks", json=hook, headers=running.headers("admin")).raise_for_status()
        finished(running, done := submit(running, gateway, n=3)[0])
        register(running, done, request={"prompt": UGLY[:4000], UGLY[:200]: [{"x": UGLY[:900]}]}, tags=[UGLY[:60]])
        finished(running, failed := submit(running, gateway, "failed")[0])
        finished(running, lost := submit(running, gateway, "file-403")[0])
        register(running, going := new_id(), model=MARKUP[:60], request={"prompt": UGLY[:900]})
        post(running, going, {"task_id": "z" * 200, "task_status": "processing", "task_status_msg": UGLY[:1500]})
        app.wait_for(3)
        visitor = visit(running, viewport={**PHONE, "width": width}, color_scheme=scheme)
        page = visitor.sign_in()
        for task_id in (done, failed, lost, going):
            page.goto(f"{running.url}/dashboard/tasks/{task_id}")
            visitor.wait_until_live()
            page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
            assert visitor.findings() == []
            assert visitor.overflow == 0
            assert page.title() != "owned"
        page.goto(f"{running.url}/dashboard/tasks/unknown")
        page.get_by_text("It may have been removed").wait_for()
        assert visitor.findings() == []

"""The list of tasks in a browser: signed in by link, live, filtered, with every text escaped."""

import time

import pytest

from kling_callback.protocol.ids import new_id
from kling_sandbox import Sandbox
from tests.deep.dashboard.conftest import Visit
from tests.support.browser import PHONE
from tests.support.receiver import Start
from tools.harness.submitting import create, finished, post, register, submit

MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"{{7*7}}"


def test_a_task_goes_from_created_to_done_without_reload(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """Signed in by link; the row appears and changes by itself, and the selection outlives that."""
    running = start(api_base=gateway.url)
    visitor = visit(running)
    page = visitor.sign_in()
    assert page.get_by_text("No tasks yet").is_visible()
    visitor.wait_until_live()
    page.evaluate("window.loadedOnce = true")
    task_id = new_id()
    register(running, task_id, request={"prompt": "a kangaroo at dusk"}, tags=["night"])
    row = page.locator(f"#task-{task_id}")
    row.get_by_text("created").wait_for()
    assert page.get_by_text("No tasks yet").is_hidden()
    row.get_by_role("checkbox").check()
    kling_id = create(running, gateway, task_id, "no-callback")
    register(running, task_id, outcome="created", task_id=kling_id)
    row.get_by_text("submitted").wait_for()
    post(running, task_id, {"task_id": kling_id, "task_status": "processing"})
    row.get_by_text("processing").wait_for()
    assert row.get_by_role("checkbox").is_checked()
    row.get_by_role("link", name="a kangaroo at dusk").focus()
    post(running, task_id, {"task_id": kling_id, "task_status": "succeed"})
    row.get_by_text("succeed").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "a kangaroo at dusk", "the focus stays in the row"
    finished(running, task_id)
    row.locator("img.thumb").wait_for(state="attached")
    assert page.evaluate("window.loadedOnce")
    assert row.get_by_role("link", name="a kangaroo at dusk").get_attribute("href") == f"./dashboard/tasks/{task_id}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380, 360])
def test_the_list_is_accessible_and_fits(start: Start, gateway: Sandbox, visit: Visit, scheme: str, width: int) -> None:
    """In both colour schemes and on a phone: no serious finding of axe-core, nothing wider than the window."""
    running = start(api_base=gateway.url)
    for switches in ("", "failed", "no-callback"):
        task_id, _ = submit(running, gateway, switches, n=3)
        register(running, task_id, request={"prompt": "word " * 60 + "x" * 90}, tags=["a-tag", "y" * 60])
    visitor = visit(running, viewport={**PHONE, "width": width}, color_scheme=scheme)
    page = visitor.sign_in()
    visitor.wait_until_live()
    page.locator(".badge", has_text="failed").wait_for()
    assert visitor.findings() == []
    assert visitor.overflow == 0
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    assert visitor.findings() == []


def test_no_text_becomes_markup(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """In the first page, in its live updates, and in the form of the filters."""
    running = start(api_base=gateway.url)
    visitor = visit(running)
    page = visitor.sign_in()
    visitor.wait_until_live()
    task_id = new_id()
    register(running, task_id, model=MARKUP[:60], request={"prompt": MARKUP}, tags=[MARKUP[:60]])
    for _ in ("live", "reloaded"):
        page.locator(f"#task-{task_id}").get_by_role("link", name=MARKUP).wait_for()
        assert page.title() == "Tasks · Kling receiver"
        page.reload()
    page.get_by_label("Tag").fill(MARKUP[:60])
    page.get_by_role("button", name="Filter").click()
    page.locator(f"#task-{task_id}").get_by_role("link", name=MARKUP).wait_for()
    assert page.get_by_label("Tag").input_value() == MARKUP[:60]
    assert page.title() == "Tasks · Kling receiver"


def test_the_filters_are_in_the_address(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """Only those that are set; a time range is in the time zone of the browser, and in UTC in the address."""
    running = start(api_base=gateway.url)
    dusk, dawn = new_id(), new_id()
    register(running, dusk, request={"prompt": "a kangaroo at dusk"}, tags=["one"])
    register(running, dawn, request={"prompt": "a kangaroo at dawn"}, tags=["two"])
    visitor = visit(running, timezone_id="Asia/Shanghai")
    page = visitor.sign_in()
    page.keyboard.press("/")
    page.keyboard.type("AT DUSK")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?text=AT+DUSK")
    assert page.locator("#rows tr").count() == 1
    page.locator(f"#task-{dusk}").wait_for()
    page.locator("summary", has_text="More filters").click()
    page.get_by_label("From").fill("2026-01-31T08:30")
    page.get_by_role("button", name="Filter").click()
    page.wait_for_url("**since=2026-01-31T00%3A30%3A00.000Z*")
    assert page.get_by_label("From").input_value() == "2026-01-31T08:30"
    page.locator(f"#task-{dusk}").wait_for()
    page.get_by_label("To").fill("2026-01-31T08:31")
    page.get_by_role("button", name="Filter").click()
    page.get_by_text("No task matches").wait_for()
    page.get_by_role("link", name="show all tasks").click()
    page.locator(f"#task-{dawn}").get_by_role("link", name="two").click()
    page.wait_for_url("**/?tag=two")
    assert page.locator("#rows tr").count() == 1
    assert visitor.problems == []


def test_older_tasks_are_on_further_pages(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """By cursor; new tasks appear on the first page only."""
    running = start(api_base=gateway.url)
    for _ in range(5):
        register(running, new_id())
    visitor = visit(running)
    page = visitor.sign_in(path="?limit=2")
    visitor.wait_until_live()
    register(running, newest := new_id())
    page.locator(f"#task-{newest}").wait_for()
    assert page.locator("#rows tr").count() == 2
    page.get_by_role("link", name="Older").click()
    page.get_by_role("link", name="Older").click()
    page.wait_for_url("**cursor=*")
    assert page.locator("#rows tr").count() == 2
    assert page.locator("#live").get_attribute("data-state") == "off"
    assert page.get_by_role("link", name="Older").count() == 0
    page.get_by_role("link", name="Newest").click()
    page.locator(f"#task-{newest}").wait_for()


def test_the_keyboard_alone_suffices(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """Skip link, search, shortcuts, rows, the colour scheme and its memory."""
    running = start(api_base=gateway.url)
    for prompt in ("the older one", "the newer one"):
        register(running, new_id(), request={"prompt": prompt})
    visitor = visit(running)
    page = visitor.sign_in()
    page.get_by_text("Live", exact=True).wait_for()  # its first message may replace the rows
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.matches('[data-search]')")
    page.keyboard.press("Tab")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    assert page.get_by_role("heading", name="Keyboard shortcuts").is_visible()
    page.keyboard.press("Escape")
    page.get_by_role("heading", name="Keyboard shortcuts").wait_for(state="hidden")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.textContent") == "the older one"
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.textContent") == "the newer one"
    page.keyboard.press("x")
    assert page.locator("#bulk-count").inner_text() == "1"
    with page.expect_navigation():
        page.keyboard.press("g")
        page.keyboard.press("t")
    page.get_by_role("button", name="Change the colour scheme").press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert visitor.problems == []


def test_bulk_actions_call_the_api_and_say_what_happened(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """Done for those that succeed; those that fail stay selected, with the API's message and hint."""
    running = start(api_base=gateway.url)
    good, _ = submit(running, gateway)
    finished(running, good)
    bad = new_id()
    register(running, bad)
    page = visit(running).sign_in()
    page.get_by_label("Select all tasks of this page").check()
    assert page.locator("#bulk-count").inner_text() == "2"
    page.get_by_role("button", name="Fetch again").click()
    page.get_by_text("1 of 2: Files are fetched again.").wait_for()
    page.get_by_text("1 of 2 failed: Kling does not know this task.").wait_for()
    assert page.locator("#bulk-count").inner_text() == "1"
    assert page.get_by_label(f"Select the task {bad}").is_checked()
    page.get_by_role("button", name="Replay to hooks").click()
    page.get_by_role("dialog").get_by_role("button", name="Replay to hooks").click()
    page.get_by_text("1 of 1: Events are delivered again.").wait_for()
    page.get_by_label("Select all tasks of this page").check()
    page.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    page.get_by_text("1 of 2: Removed.").wait_for()
    page.locator(f"#task-{good}").wait_for(state="detached")
    assert page.get_by_label(f"Select the task {bad}").is_checked(), "what has not ended stays"


def test_any_id_is_selected_alone(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """Clients choose ids: one named `all`, and one with characters that a path escapes."""
    running = start(api_base=gateway.url)
    for task_id in ("all", "a:b@c=d", "other"):
        register(running, task_id)
    page = visit(running).sign_in()
    page.get_by_label("Select the task all", exact=True).check()
    assert page.locator("#bulk-count").inner_text() == "1"
    page.get_by_label("Select the task a:b@c=d", exact=True).check()
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json) if request.method == "POST" else None)
    page.get_by_role("button", name="Replay to hooks").click()
    page.get_by_role("dialog").get_by_role("button", name="Replay to hooks").click()
    page.get_by_text("2 of 2").wait_for()
    assert asked == [{"task": "all"}, {"task": "a:b@c=d"}]


def test_a_session_that_is_signed_out_elsewhere_leaves_the_page(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """Its open page goes to the login page by itself."""
    running = start(api_base=gateway.url)
    visitor = visit(running)
    page = visitor.sign_in()
    visitor.wait_until_live()
    other = page.context.new_page()
    other.goto(running.url)
    other.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()


def test_a_page_that_nobody_looks_at_has_no_stream(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """Seen again, it is told what it missed: browsers open six connections to one host, for all their tabs."""
    running = start(api_base=gateway.url)
    visitor = visit(running)
    visitor.page.clock.install()
    page = visitor.sign_in()
    visitor.wait_until_live()
    register(running, first := new_id())
    page.locator(f"#task-{first}").wait_for()

    def look(*, away: bool) -> None:
        page.evaluate(
            "hidden => { Object.defineProperty(document, 'hidden', {get: () => hidden, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange')) }",
            away,
        )

    look(away=True)
    page.clock.fast_forward(9_000)
    assert page.locator("#live").get_attribute("data-state") == "on", "a short look elsewhere ends nothing"
    page.clock.fast_forward(2_000)
    assert page.locator("#live").get_attribute("data-state") == "off"
    ends = time.monotonic() + 20
    while running.receiver.store.bus._streams:
        assert time.monotonic() < ends
        time.sleep(0.05)
    register(running, second := new_id())
    look(away=False)
    page.locator(f"#task-{second}").wait_for()
    visitor.wait_until_live()
    assert page.locator("#rows tr").count() == 2


def test_under_a_prefix(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """Live, and back to the page that was asked for before the login."""
    running = start(api_base=gateway.url, path="/kling")
    visitor = visit(running)
    page = visitor.sign_in()
    visitor.wait_until_live()
    task_id = new_id()
    register(running, task_id)
    page.locator(f"#task-{task_id}").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    assert visitor.problems == []

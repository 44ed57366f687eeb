"""The overview and the page of health in a browser: accessible, as wide as the window, renewed, checked by a button."""

import time

import pytest
from sqlalchemy import insert

from kling_callback.protocol.ids import new_id
from kling_receiver.store.tables import METADATA
from kling_sandbox import Sandbox
from tests.deep.dashboard.conftest import Visit
from tests.support.browser import PHONE
from tests.support.receiver import Running, Start
from tools.harness.submitting import finished, register, submit

MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def fill(running: Running, gateway: Sandbox) -> None:
    """Some tasks of all kinds, with long tags, and the counts of earlier hours."""
    for switches in ("", "failed", ""):
        task_id, _ = submit(running, gateway, switches)
        finished(running, task_id)
        register(running, task_id, tags=["a-tag", "y" * 60, MARKUP[:60]])
    register(running, new_id())
    hour = int(time.time()) // 3600
    counts = [("task.created", 70), ("task.succeed", 50), ("task.failed", 20), ("callback.received", 70)]
    rows = [{"hour": hour - n, "name": name, "total": total * n} for n in range(1, 40) for name, total in counts]
    with running.receiver.store.database.write() as connection:
        connection.execute(insert(METADATA.tables["hourly_count"]), rows)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_pages_are_accessible_and_fit(
    start: Start, gateway: Sandbox, visit: Visit, scheme: str, width: int
) -> None:
    """Also with each table open: no serious finding of axe-core, nothing wider than the window, no error."""
    running = start(api_base=gateway.url, concurrency="kling-v3=3,5")
    fill(running, gateway)
    visitor = visit(running, viewport={**PHONE, "width": width}, color_scheme=scheme)
    page = visitor.sign_in(path="dashboard/overview")
    visitor.problems.clear()  # of the list of tasks
    for name in ("24 hours", "7 days", "30 days"):
        page.get_by_role("link", name=name).click()
        page.get_by_role("heading", name="Overview").wait_for()
        assert page.get_by_role("link", name=name).get_attribute("aria-current") == "page"
        for summary in page.locator("details.numbers > summary").all():
            summary.press("Enter")
        page.locator("#outcomes-numbers tbody tr").first.wait_for()
        assert visitor.findings() == []
        assert visitor.overflow == 0
    texts = page.locator(".chart text").all()
    boxes = [box for text in texts if (box := text.bounding_box())]
    assert boxes
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    page.goto(f"{running.url}/dashboard/health")
    page.get_by_role("button", name="Check now").wait_for()
    assert visitor.findings() == []
    assert visitor.overflow == 0
    assert visitor.problems == []


def test_the_overview_is_renewed(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """Without a reload; a table that was open stays open, and nothing else happens while nothing changes."""
    running = start(api_base=gateway.url)
    register(running, new_id())
    visitor = visit(running)
    visitor.page.clock.install()
    page = visitor.sign_in(path="dashboard/overview")
    page.evaluate("window.loadedOnce = true")
    page.locator("#outcomes-numbers > summary").click()
    register(running, new_id())
    page.wait_for_timeout(5_200)  # as long as the numbers are kept
    page.clock.run_for(16_000)
    page.locator(".legend strong", has_text="2").wait_for()
    assert page.locator("#outcomes-numbers[open]").count() == 1
    visitor.wait_until_live()
    assert page.evaluate("window.loadedOnce")
    with page.expect_response(lambda response: "/dashboard/live/overview" in response.url) as renewed:
        page.clock.run_for(16_000)
    assert renewed.value.status == 204
    assert visitor.problems == []


def test_an_admin_runs_the_checks(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """By the button; what fails is named with its remedy, in words and by an icon."""
    running = start(api_base=gateway.url)
    visitor = visit(running)
    page = visitor.sign_in(path="dashboard/health")
    page.get_by_role("button", name="Check now").press("Enter")
    page.get_by_text("a signed callback reached the receiver").wait_for()
    assert page.get_by_text("All checks are fine").is_visible()
    page.get_by_role("button", name="Check again").click()
    page.get_by_text("The checks have just run.").wait_for()
    reader = visit(running).sign_in("read", path="dashboard/health")
    assert reader.get_by_role("button", name="Check again").count() == 0
    assert reader.get_by_text("Callback", exact=True).is_visible()

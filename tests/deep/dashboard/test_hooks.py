"""The pages of hooks in a browser: a hook is added, tested, paused, changed, retried, rotated and removed."""

import pytest

from kling_callback.protocol.ids import new_id
from tests.deep.dashboard.conftest import Visit
from tests.support import web
from tests.support.browser import PHONE
from tests.support.receiver import Start
from tools.harness.submitting import poll_until, register

NO_KLING = "http://127.0.0.1:9"
MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"{{7*7}}"


def test_a_hook_from_its_form_to_its_end(start: Start, visit: Visit) -> None:
    """Every action of the page, by the buttons; each shows what it did without a reload."""
    running = start(api_base=NO_KLING)
    answers = [503]
    with web.host(lambda request: request.answer(answers[0], MARKUP.encode())) as endpoint:
        visitor = visit(running, permissions=["clipboard-read", "clipboard-write"])
        page = visitor.sign_in(path="dashboard/hooks")
        page.get_by_role("link", name="Add a hook").first.click()

        # Problems are next to their fields, and the first of them has the focus.
        page.get_by_label("Address").fill("https://10.1.2.3/")
        page.get_by_label("Seconds between attempts").fill("5, soon")
        page.get_by_role("button", name="Add the hook").click()
        page.locator("#problem-address", has_text="is not a public address").wait_for()
        page.locator("#problem-retry_schedule", has_text="valid number").wait_for()
        assert page.evaluate("document.activeElement.id") == "field-address"
        assert page.get_by_label("Address").get_attribute("aria-invalid") == "true"

        # The secret is shown once, can be copied, and is then nowhere.
        page.get_by_label("Address").fill(f"{endpoint.url}/in?key=hush")
        page.get_by_label("Name").fill("billing")
        page.get_by_label("Seconds between attempts").fill("")
        page.get_by_role("button", name="Add the hook").click()
        dialog = page.get_by_role("dialog", name="The secret")
        secret = dialog.locator("code").inner_text()
        assert secret.startswith("whsec_")
        page.keyboard.press("Escape")
        assert dialog.is_visible(), "a key that is pressed too early loses no secret"
        dialog.get_by_role("button", name="Copy").click()
        page.get_by_text("Copied.").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == secret
        dialog.get_by_role("button", name="I have stored it").click()
        page.get_by_role("heading", name="billing").wait_for()
        assert page.url == f"{running.url}/dashboard/hooks/billing"
        assert secret not in page.content()
        assert "hush" not in page.content()

        # A test of any type shows the response.
        visitor.wait_until_live()
        page.evaluate("window.loadedOnce = true")
        page.locator("[data-test] [name=event]").select_option("task.done")
        page.get_by_role("button", name="Send", exact=True).click()
        page.get_by_text("✕ Not delivered: response 503").wait_for()
        assert MARKUP in page.locator("#test-result pre").inner_text()
        page.locator("[data-test] [name=format]").select_option("kling")
        assert page.locator("[data-test] [name=event]").locator("option[value='task.failed']").is_disabled()
        assert len(endpoint.visits) == 1

        # A dead letter comes by itself, and is retried.
        register(running, new_id())
        page.get_by_text("1 dead letter:").wait_for()
        row = page.locator("#rows tr")
        row.get_by_text("dead letter").wait_for()
        row.get_by_text("1 attempt", exact=True).click()
        assert MARKUP in row.locator("pre").inner_text()
        answers[0] = 200
        row.get_by_role("button", name="Retry").click()
        row.get_by_text("delivered", exact=True).first.wait_for()
        page.get_by_text("1 dead letter:").wait_for(state="hidden")

        # Paused with a reason, changed, resumed.
        page.get_by_role("button", name="Pause …").click()
        page.get_by_label("Reason").fill(MARKUP)
        page.get_by_role("dialog").get_by_role("button", name="Pause").click()
        page.locator("#hook-state", has_text=MARKUP).wait_for()
        assert page.evaluate("window.loadedOnce")
        page.get_by_role("link", name="Change").click()
        assert page.get_by_label("Address").input_value() == f"{endpoint.url}/in?***"
        page.get_by_label("task.done").check()
        page.get_by_label("Tags").fill(f"{MARKUP}\nspring")
        page.get_by_label("Attempts at once").fill("")
        page.get_by_role("button", name="Save").click()
        page.get_by_role("heading", name="Deliveries").wait_for()
        page.locator("dd", has_text=f"{MARKUP}, spring").wait_for()
        page.get_by_role("button", name="Resume").click()
        page.locator("#hook-state", has_text="active").wait_for()
        page.get_by_role("button", name="Send", exact=True).click()
        page.get_by_text("✓ Delivered: response 200").wait_for()
        assert endpoint.visits[-1].path == "/in?key=hush", "the part that is not shown stayed"

        # Rotated, removed.
        page.get_by_role("button", name="Rotate secret …").click()
        page.get_by_role("button", name="Rotate", exact=True).click()
        rotated = dialog.locator("code").inner_text()
        assert rotated.startswith("whsec_")
        assert rotated != secret
        dialog.get_by_role("button", name="I have stored it").click()
        page.locator("#secret-text:empty").wait_for(state="attached")
        assert rotated not in page.content()
        page.get_by_role("button", name="Remove").click()
        page.get_by_role("dialog").get_by_role("button", name="Remove").click()
        page.get_by_text("No hooks yet").wait_for()
        assert page.title() == "Hooks · Kling receiver"
        assert [each for each in visitor.problems if "422" not in each] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 380, 360])
def test_the_pages_are_accessible_and_fit(start: Start, visit: Visit, scheme: str, width: int) -> None:
    """With ugly names and answers: no serious finding of axe-core, nothing wider than the window."""
    running = start(api_base=NO_KLING)
    with web.host(lambda request: request.answer(503, b"<b>" + b"x" * 5_000)) as endpoint:
        visitor = visit(running, viewport={**PHONE, "width": width}, color_scheme=scheme)
        page = visitor.sign_in(path="dashboard/hooks")
        assert visitor.findings() == []
        name = "a" + "-long-name" * 6
        hook = {"name": name, "address": f"{endpoint.url}/{'path' * 300}", "tags": ["y" * 100, "مرحبا", "🎬"]}
        for fields in (hook, {**hook, "name": "stopped"}):
            answer = page.request.post(f"{running.url}/api/hooks", data=fields, headers={"Origin": running.url})
            assert answer.status == 201, answer.text()
        reason = {"reason": "z" * 500}
        page.request.post(f"{running.url}/api/hooks/stopped/pause", data=reason, headers={"Origin": running.url})
        register(running, new_id(), tags=["مرحبا"])
        endpoint.wait_for(1)
        for path in ("hooks", f"hooks/{name}", "hooks/stopped", f"hooks/{name}/edit", "add-hook"):
            page.goto(f"{running.url}/dashboard/{path}")
            for summary in page.locator("details.attempts > summary").all():
                summary.click()
            assert visitor.findings() == [], path
            assert visitor.overflow == 0, path
        page.goto(f"{running.url}/dashboard/hooks/{name}")
        for opener in ("Pause …", "Rotate secret …"):
            page.get_by_role("button", name=opener).press("Enter")
            assert visitor.findings() == [], opener
            page.keyboard.press("Escape")
        poll_until(lambda: page.get_by_role("dialog").count() == 0)

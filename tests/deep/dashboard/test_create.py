"""The page that creates tasks, in a real browser."""

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kling_callback.jobs.images import MAX_BYTES
from kling_sandbox import Sandbox
from tests.deep.dashboard.conftest import Visit
from tests.support.browser import PHONE
from tests.support.receiver import Start
from tests.support.sandbox import picture
from tests.support.submitting import finish, show
from tools.harness.submitting import poll_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"{{7*7}}"
PASTE = """([kind, text, target]) => {
    const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "cat.png", { type: "image/png" }));
    const place = target ? document.querySelector(target) : document.body;
    const options = { bubbles: true, cancelable: true };
    const event = kind === "paste" ? new ClipboardEvent("paste", { clipboardData: data, ...options })
        : new DragEvent(kind, { dataTransfer: data, ...options });
    place.dispatchEvent(event);
}"""
PREVIEW = "[data-field={}] .image-item img"


def create(page: "Page") -> None:
    """Press the button."""
    page.get_by_role("button", name="Create", exact=True).click()


def submitted(page: "Page") -> str:
    """Wait until the task's page is shown. Returns the task's id."""
    page.wait_for_url("**/dashboard/tasks/*")
    return page.url.rpartition("/")[2]


def test_from_an_empty_form_to_a_finished_video(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """Choose a job, paste an image, submit, land on the task's page, see it done: Kling got the pasted bytes."""
    running = start(api_base=gateway.url)
    visitor = visit(running)
    page = visitor.sign_in("client")
    page.get_by_role("link", name="Create", exact=True).click()
    page.get_by_label("Image to video").check()
    page.locator("[data-field=image]").wait_for()
    image = picture(320, 400)
    page.evaluate(PASTE, ["paste", image, None])
    page.locator(PREVIEW.format("image")).wait_for()
    assert page.evaluate("document.querySelector('.image-item img').naturalWidth") == 320
    page.locator("#f-prompt").fill("it waves")
    page.get_by_text("0.42 USD").wait_for()
    page.get_by_label("pro", exact=True).check()
    page.get_by_text("0.56 USD").wait_for()
    page.get_by_label("Model", exact=True).select_option("kling-3.0-turbo")
    page.get_by_text("kling-3.0-turbo has none. Use resolution").wait_for()
    page.locator(PREVIEW.format("image")).wait_for()
    page.get_by_label("Model", exact=True).select_option("kling-v3")
    page.get_by_text("kling-3.0-turbo has none").wait_for(state="detached")
    assert visitor.problems == []
    create(page)
    task_id = submitted(page)
    assert finish(running, task_id)["done"]
    (sent,) = gateway.creates
    assert image in str(sent)
    assert "upload.invalid" not in str(sent)
    page.goto(f"{running.url}/")
    page.locator(f"#task-{task_id}").get_by_text("succeed").wait_for()


def test_problems_are_shown_at_once_and_the_first_is_focused(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """By the keyboard alone; fields name their problems to screen readers, and nothing is sent."""
    running = start(api_base=gateway.url)
    visitor = visit(running)
    page = visitor.sign_in(path="dashboard/create?job=text_to_video")
    page.locator("details summary", has_text="More").press("Enter")
    page.get_by_label("Camera control").fill("{nothing")
    page.get_by_text("Is not valid JSON").wait_for()
    assert page.get_by_label("Camera control").get_attribute("aria-invalid") == "true"
    assert page.locator("#f-prompt").get_attribute("aria-invalid") == "false"
    page.locator("details summary", has_text="More").press("Enter")
    page.get_by_label("Duration").fill("99")
    page.get_by_label("Duration").press("Enter")
    page.get_by_text("3 problems to fix above.").wait_for()
    assert page.evaluate("document.activeElement.id") == "f-prompt"
    described = page.evaluate(
        "document.activeElement.getAttribute('aria-describedby').split(' ')"
        ".map((id) => document.getElementById(id).innerText)"
    )
    assert "Is missing" in described[1]
    assert page.get_by_label("Camera control").is_visible()
    page.keyboard.type("a kangaroo")
    page.get_by_text("2 problems to fix above.").wait_for()
    page.get_by_label("Camera control").fill("")
    page.get_by_label("Duration").fill("10")
    page.get_by_text("to fix above.").wait_for(state="detached")
    assert gateway.creates == []
    assert visitor.problems == []
    page.get_by_label("Duration").press("Enter")
    assert finish(running, submitted(page))["request"]["duration"] == "10"


def test_images_by_every_way(start: Start, gateway: Sandbox, visit: Visit, tmp_path: Path) -> None:
    """Dropped, chosen, by URL, from an earlier task, removed; what is refused is said beside the field."""
    running = start(api_base=gateway.url)
    visitor = visit(running)
    page = visitor.sign_in(path="dashboard/create")
    page.locator("#f-prompt").fill("a cat")
    create(page)
    first = finish(running, submitted(page))
    page.goto(f"{running.url}/dashboard/create?family=videos/omni-video")
    page.get_by_label("Model", exact=True).select_option("kling-3.0-omni")
    field = page.locator("[data-field=refer_image]")
    field.wait_for()
    page.evaluate(PASTE, ["drop", picture(300, 301), "[data-field=refer_image]"])
    field.locator("img").nth(0).wait_for()
    chosen = tmp_path / "<b>chosen.jpg"
    chosen.write_bytes(base64.b64decode(picture(300, 302, "JPEG")))
    field.locator("input[type=file]").set_input_files(str(chosen))
    field.locator("img").nth(1).wait_for()
    assert field.get_by_text("<b>chosen.jpg").is_visible()
    field.get_by_role("button", name="From a task").click()
    page.get_by_role("dialog").get_by_role("button", name="a cat").first.click()
    field.locator("img").nth(2).wait_for()
    for name, content, problem in (
        ("small.png", base64.b64decode(picture(20, 20)), "small.png is 20 x 20 pixels"),
        ("cat.gif", b"GIF89a", "cat.gif is neither a JPEG nor a PNG."),
        ("huge.png", b"\0" * (5 * MAX_BYTES + 1), "huge.png has 50.0 MB; at most 50.0 MB."),
    ):
        bad = tmp_path / name
        bad.write_bytes(content)
        field.locator("input[type=file]").set_input_files(str(bad))
        field.get_by_text(problem).wait_for()
    assert field.locator("img").count() == 3
    field.get_by_role("button", name="Remove <b>chosen.jpg").press("Enter")
    assert field.locator("img").count() == 2
    field.get_by_label("Refer image: URLs").fill("https://example.com/a.png")
    page.locator("#f-prompt").fill("a cat and a dog")
    page.get_by_label("16:9").check()
    create(page)
    task_id = submitted(page)
    (sent,) = poll_until(lambda: [each for each in gateway.creates if task_id in str(each)])
    images = [entry["url"] for entry in body_of(sent)["contents"] if entry["type"] == "refer_image"]
    assert picture(300, 301) in images
    assert "https://example.com/a.png" in images
    digest = first["results"][0]["sha256"]
    assert digest in {sha256(image) for image in images if not image.startswith("http")}
    assert len(images) == 3


def body_of(sent: dict[str, object]) -> dict[str, list[dict[str, str]]]:
    """The parameters of a create that the sandbox recorded."""
    found = sent if "contents" in sent else sent["body"]
    assert isinstance(found, dict)
    return found


def sha256(image: str) -> str:
    """The digest of an image in base64."""
    return hashlib.sha256(base64.b64decode(image)).hexdigest()


def test_a_double_click_pays_once_and_a_refusal_keeps_the_form(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """The API's message and hint are shown; the same form is then sent again."""
    running = start(api_base=gateway.url)
    visitor = visit(running)
    page = visitor.sign_in(path="dashboard/create")
    page.locator("#f-prompt").fill("once")
    refusal = '{"error": {"code": "queue_full", "message": "Many tasks wait.", "hint": "Wait a little."}}'
    page.route("**/api/tasks", lambda route: route.fulfill(status=429, body=refusal, content_type="application/json"))
    create(page)
    page.get_by_role("alert").get_by_text("Many tasks wait. Wait a little.").wait_for()
    assert page.locator("#f-prompt").input_value() == "once"
    page.unroute("**/api/tasks")
    for path in ("form", "check"):
        page.route(f"**/create/{path}", lambda route: route.abort())
    page.get_by_label("Text to video").check()
    page.get_by_text("The form could not be changed.").wait_for()
    assert page.get_by_label("Text to image").is_checked()
    create(page)
    page.get_by_role("alert").get_by_text("The form could not be checked. Check that the receiver runs").wait_for()
    for path in ("form", "check"):
        page.unroute(f"**/create/{path}")
    page.get_by_role("button", name="Create", exact=True).dblclick()
    task_id = submitted(page)
    finish(running, task_id)
    assert len(gateway.creates) == 1
    page.goto(f"{running.url}/dashboard/create?from={task_id}")
    assert page.locator("#f-prompt").input_value() == "once"
    create(page)
    assert submitted(page) != task_id
    poll_until(lambda: len(gateway.creates) == 2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_the_form_is_accessible_and_fits(start: Start, gateway: Sandbox, visit: Visit, scheme: str, width: int) -> None:
    """Every job, with problems and long texts: no serious finding of axe-core, nothing wider than the window."""
    running = start(api_base=gateway.url)
    visitor = visit(running, viewport={**PHONE, "width": width}, color_scheme=scheme)
    page = visitor.sign_in()
    for job in ("text_to_image", "image_to_video", "omni_video", "motion_control", "other"):
        page.goto(f"{running.url}/dashboard/create?job={job}")
        if job == "image_to_video":
            page.evaluate(PASTE, ["paste", picture(320, 400), None])
            page.locator(PREVIEW.format("image")).wait_for()
        page.locator("details summary", has_text="More").click()
        page.get_by_label("Tags").fill("y" * 300)
        create(page)
        page.get_by_text("to fix above.").wait_for()
        assert visitor.findings() == [], job
        assert visitor.overflow == 0, job


def test_no_text_becomes_markup(start: Start, gateway: Sandbox, visit: Visit) -> None:
    """In any field, after a check, a change of the model, and in the form of a stored request."""
    running = start(api_base=gateway.url)
    visitor = visit(running)
    page = visitor.sign_in(path="dashboard/create?job=text_to_video")
    page.locator("details summary", has_text="More").click()
    for field in page.locator("#create textarea, #create input[type=text], #create input:not([type])").all():
        if field.is_visible():
            field.fill(MARKUP)
    create(page)
    page.get_by_text("to fix above.").wait_for()
    page.get_by_label("Model", exact=True).select_option("kling-3.0")
    page.get_by_text("kling-3.0 has none").first.wait_for()
    assert page.locator("#f-prompt").input_value() == MARKUP
    assert page.title() == "Create · Kling receiver"
    page.goto(f"{running.url}/dashboard/create")
    page.locator("#f-prompt").fill(MARKUP)
    create(page)
    task_id = submitted(page)
    assert show(running, task_id)["request"]["prompt"] == MARKUP
    page.goto(f"{running.url}/dashboard/create?from={task_id}")
    assert page.locator("#f-prompt").input_value() == MARKUP
    assert page.title() == "Create · Kling receiver"

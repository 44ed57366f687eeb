"""The command `scripts/screenshots`: takes the screenshots in README.md and docs/ by Chromium."""

import os
import pty
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, FloatRect, Page, sync_playwright
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from kling_receiver.cli.access import new_login_link
from tools.harness.loopback import environment
from tools.screenshots.scene import Scene, scene

ROOT = Path(__file__).parents[3]
OUTPUT = Path(sys.argv[1]).absolute() if sys.argv[1:] else ROOT / "docs" / "images"
WIDE, PHONE = (1180, 760), (380, 760)
"""Windows: width and height."""
MAX_BYTES = 200_000
"""Of a file: all of them are in the repository."""
COLUMNS = 100
"""Of the terminal."""
PROMPT = "The lighthouse keeper opens the door and steps out into the morning light"
TERMINAL = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; display: inline-block; background: #16161d; }}
pre {{ margin: 0; padding: 18px 22px; color: #e4e4ea; font: 14px/1.45 "DejaVu Sans Mono", monospace; }}
b {{ color: #8d8bff; }}
</style><pre><b>$</b> {command}\n{output}</pre>"""


def main() -> None:
    """Take all screenshots."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("screenshots: Chromium is missing. Install it: apt-get install chromium")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kling-screenshots-") as folder, scene(Path(folder)) as shown:
        listed = run_in_terminal("kling list --limit 10", shown)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            take_all(browser, shown)
            terminal = browser.new_page(viewport={"width": 1400, "height": 600}, device_scale_factor=1)
            terminal.set_content(TERMINAL.format(command="kling list --limit 10", output=listed))
            save("terminal", terminal.locator("pre").screenshot())
            browser.close()


def take_all(browser: Browser, shown: Scene) -> None:
    """Those of the pages."""
    with visiting(browser, shown, WIDE, "light") as page:
        save("tasks", page.screenshot(clip={"x": 0, "y": 0, "width": WIDE[0], "height": 940}, full_page=True))
        visit(page, shown, f"dashboard/tasks/{shown.images}")
        save("task", page.screenshot(full_page=True, clip=down_to(page, "#task-timeline")))
        visit(page, shown, "dashboard/overview")
        save("overview", page.screenshot(full_page=True))
        visit(page, shown, "dashboard/hooks")
        save("hooks", page.screenshot(clip=down_to(page, ".table-box")))
        visit(page, shown, "dashboard/create?job=image_to_video")
        page.locator("[data-field=image]").get_by_role("button", name="From a task").click()
        page.get_by_role("dialog").get_by_role("button", name="The same lighthouse").first.click()
        page.locator("[data-field=image] .image-item img").wait_for()
        page.locator("#f-prompt").fill(PROMPT)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(1500)  # the price is asked for
        save("create", page.screenshot())
    with visiting(browser, shown, PHONE, "dark") as page:
        page.evaluate("document.querySelectorAll('#rows tr')[2].scrollIntoView()")
        settle(page)
        save("tasks-phone", page.screenshot())
        visit(page, shown, f"dashboard/tasks/{shown.video}")
        save("task-phone", page.screenshot())


@contextmanager
def visiting(browser: Browser, shown: Scene, size: tuple[int, int], scheme: str) -> Iterator[Page]:
    """A window of this size in which an admin is signed in, on the first page."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if scheme == "dark" else "light"
    )
    page = context.new_page()
    page.goto(new_login_link(shown.running.settings, "admin"))
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(f"{shown.running.url}/")
    settle(page)
    yield page
    context.close()


def visit(page: Page, shown: Scene, path: str) -> None:
    """Go to a page, and wait until it is complete."""
    page.goto(f"{shown.running.url}/{path}")
    settle(page)


def settle(page: Page) -> None:
    """Wait until images and the first frames of videos are there."""
    page.wait_for_load_state("load")
    page.wait_for_timeout(1200)


def down_to(page: Page, selector: str) -> FloatRect:
    """The part of the page from its top to the end of an element, and a margin."""
    box = page.locator(selector).first.bounding_box()
    assert box is not None, selector
    return {"x": 0, "y": 0, "width": WIDE[0], "height": box["y"] + box["height"] + 8}


def run_in_terminal(command: str, shown: Scene) -> str:
    """Run a command in a terminal of its own. Returns what it printed, as HTML."""
    settings = shown.running.settings
    variables = environment(
        KLING_RECEIVER_URL=shown.running.url,
        KLING_SIGNING_SECRETS=settings.signing_secrets[0],
        COLUMNS=str(COLUMNS),
        TERM="xterm-256color",
    )
    program, *arguments = command.split()
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir("/")  # a folder without a `.env` file of the user
        os.execve(Path(sys.executable).parent / program, [program, *arguments], variables)
    printed = b""
    try:
        while piece := os.read(terminal, 65_536):
            printed += piece
    except OSError:
        pass  # the end of a terminal whose program has ended
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    text = printed.decode().replace("\r\n", "\n")
    assert status == 0, text
    console = Console(record=True, width=COLUMNS + 20, file=StringIO(), color_system="256")
    console.print(Text.from_ansi(text), soft_wrap=True)
    return console.export_html(theme=MONOKAI, inline_styles=True, code_format="{code}").rstrip()


def save(name: str, content: bytes) -> None:
    """Write a PNG."""
    path = OUTPUT / f"{name}.png"
    image = Image.open(BytesIO(content)).convert("RGB")
    image.save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.name}: {image.width} x {image.height}, {size:,} bytes", flush=True)
    assert size <= MAX_BYTES, f"{path} has more than {MAX_BYTES:,} bytes"


if __name__ == "__main__":
    main()

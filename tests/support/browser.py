"""A real Chromium, by playwright: Debian's package, which downloads nothing. Tests are skipped where it is absent."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from kling_callback.protocol.signing import Role
from kling_receiver.cli.access import new_login_link
from tests.support.node import MODULES
from tests.support.receiver import ABSENT, Running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 380, "height": 800}
TIMEOUT_MS = 15_000
SERIOUS = ("serious", "critical")
"""The impacts of findings of axe-core that no page may have."""


@contextmanager
def chromium() -> Iterator["Browser"]:
    """A browser until the block ends; skips the test where Chromium or playwright is not installed."""
    if PROGRAM is None:
        pytest.skip(f"{ABSENT}chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason=f"{ABSENT}playwright")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Visitor:
    """A page in a browser profile of its own. `problems`: errors in its console, such as violations of the policy."""

    def __init__(self, browser: "Browser", running: Running, **options: Any) -> None:
        """`options`: of the browser's profile, such as `viewport=PHONE`, `color_scheme="dark"`."""
        self.running = running
        self._context = browser.new_context(**{"viewport": WIDE, **options})
        self._context.set_default_timeout(TIMEOUT_MS)
        self.page: Page = self._context.new_page()
        self.problems: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))

    def _note(self, kind: str, text: str) -> None:
        # A stream that ends with its page is an error for htmx, and for Chromium.
        if kind == "error" and text != "[object Event]" and "net::ERR_" not in text:
            self.problems.append(text)

    def sign_in(self, role: Role = "admin", path: str = "") -> "Page":
        """Sign in by a new link, and go to a path of the receiver, such as `dashboard/hooks`."""
        self.page.goto(new_login_link(self.running.settings, role))
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_url(f"{self.running.url}/")
        if path:
            self.page.goto(f"{self.running.url}/{path}")
        return self.page

    def wait_until_live(self) -> None:
        """Wait until the page's stream is open."""
        self.page.locator("#live[data-state=on]").wait_for()

    def findings(self) -> list[str]:
        """What axe-core finds on the page as it is now: each serious rule that is broken, with the elements."""
        self.page.evaluate((MODULES / "axe-core" / "axe.min.js").read_text())  # past the page's policy
        found = self.page.evaluate("axe.run().then(result => result.violations)")
        return [
            f"{each['id']}: {each['help']}: {[node['target'] for node in each['nodes']]}"
            for each in found
            if each["impact"] in SERIOUS
        ]

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        pixels: int = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return max(pixels, 0)

    def close(self) -> None:
        """End the profile."""
        self._context.close()

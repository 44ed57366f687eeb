"""A browser for the tests of a module, and visitors in it."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.browser import Visitor, chromium
from tests.support.receiver import Running

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Visit = Callable[..., Visitor]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium. Of a module, not of the session: while it runs, asyncio's tests cannot."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser: "Browser") -> Iterator[Visit]:
    """Open a page in a new profile: `visit(running, viewport=PHONE, color_scheme="dark")`."""
    visitors: list[Visitor] = []

    def visit(running: Running, **options: Any) -> Visitor:
        visitors.append(Visitor(browser, running, **options))
        return visitors[-1]

    yield visit
    for each in visitors:
        each.close()

"""All pages as one product, with a day of tasks: links, every size and scheme, lower roles, no text that is markup."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import pytest

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import Role
from tests.deep.dashboard.conftest import Visit
from tests.support.browser import PHONE, WIDE
from tests.support.receiver import Running
from tests.support.web import host
from tools.harness.loopback import web
from tools.harness.submitting import post, register
from tools.screenshots.scene import Scene, scene

MARKUP = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"{{7*7}}"
HREF = re.compile(r'<a\b[^>]*\shref="([^"]*)"')
MAX_PAGES = 150
"""Pages that are followed: filters of the same list are many."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The receiver of this module, with tasks of every status, and hooks of every state."""
    with scene(Path(tmp_path_factory.mktemp("scene"))) as shown:
        yield shown


def pages(shown: Scene) -> tuple[str, ...]:
    """A page of each kind, and each in its main states."""
    return (
        "",
        "?text=nothing",
        f"dashboard/tasks/{shown.images}",
        f"dashboard/tasks/{shown.video}",
        f"dashboard/tasks/{shown.failed}",
        "dashboard/tasks/unknown",
        "dashboard/hooks",
        "dashboard/hooks/film-crew",
        "dashboard/hooks/shop/edit",
        "dashboard/add-hook",
        f"dashboard/create?from={shown.images}",
        "dashboard/overview",
        "dashboard/health",
    )


def test_every_link_leads_to_a_page_or_a_file(shown: Scene, visit: Visit) -> None:
    """From the first page on; and each page of the navigation is marked in it."""
    visitor = visit(shown.running)
    page = visitor.sign_in()
    queue, seen = [f"{shown.running.url}/"], {f"{shown.running.url}/"}
    for url in queue:
        answer = page.request.get(url)
        assert answer.ok, f"{url}: {answer.status}"
        if not answer.headers["content-type"].startswith("text/html"):
            continue
        text = answer.text()
        assert len(re.findall(r'<a\b[^>]*data-key="\w"[^>]*aria-current="page"', text)) == 1, url
        for found in HREF.findall(text):
            target, fragment = urldefrag(urljoin(url, unescape(found)))
            assert not fragment or target != url or f'id="{fragment}"' in text, f"{url}: #{fragment}"
            if target.startswith(shown.running.url) and target not in seen and len(queue) < MAX_PAGES:
                seen.add(target)
                queue.append(target)
    paths = {re.sub(r"[0-9A-Z]{26}", "ID", each.removeprefix(shown.running.url).partition("?")[0]) for each in seen}
    assert paths >= {
        "/",
        "/dashboard/tasks/ID",
        "/api/tasks/ID/results/0",
        "/dashboard/create",
        "/dashboard/hooks",
        "/dashboard/hooks/film-crew",
        "/dashboard/add-hook",
        "/dashboard/overview",
        "/dashboard/health",
    }


@pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (PHONE, "dark")], ids=["wide-light", "phone-dark"])
def test_every_page_is_accessible_and_fits(shown: Scene, visit: Visit, size: dict[str, int], scheme: str) -> None:
    """No serious finding of axe-core, nothing wider than the window, no error in the console; also when signed out."""
    visitor = visit(shown.running, viewport=size, color_scheme=scheme)
    page = visitor.sign_in()
    for path in pages(shown):
        page.goto(f"{shown.running.url}/{path}")
        assert visitor.findings() == [], path
        assert visitor.overflow == 0, path
        small = page.evaluate(
            "[...document.querySelectorAll('button, .nav a, .button')].filter(each => each.checkVisibility()"
            " && (each.offsetHeight < 24 || each.offsetWidth < 24)).map(each => each.outerHTML)"
        )
        assert small == [], f"{path}: too small to press"
    assert [each for each in visitor.problems if "404" not in each] == []
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    assert visitor.findings() == []
    assert visitor.overflow == 0


@pytest.mark.parametrize("role", ["read", "client"])
def test_a_lower_role_sees_what_it_may_do(shown: Scene, visit: Visit, role: Role) -> None:
    """Each page without buttons that the API would refuse; a page that it may not see names the remedy."""
    visitor = visit(shown.running)
    page = visitor.sign_in(role)
    names = page.locator(".nav a").all_inner_texts()
    assert names == ["Tasks", *(["Create"] if role == "client" else []), "Overview", "Health"]
    for path in ("", f"dashboard/tasks/{shown.images}", "dashboard/overview", "dashboard/health"):
        page.goto(f"{shown.running.url}/{path}")
        page.get_by_role("heading", level=1).wait_for()
        assert page.locator("[data-api], [data-bulk], tbody input").count() == 0, path
        assert page.locator('a[href*="hooks"]').count() == 0, path
        assert page.get_by_role("link", name="Run again").count() == (2 if role == "client" and "tasks/" in path else 0)
    page.goto(f"{shown.running.url}/dashboard/hooks")
    page.get_by_text("kling-receiver login-link --role admin").wait_for()
    refused = page.evaluate(
        "async id => Promise.all([['DELETE', `api/tasks/${id}?only=finished`],"
        " ['POST', `api/tasks/${id}/ask`], ['GET', 'api/hooks']]"
        ".map(([method, path]) => fetch('../' + path, {method}).then(answer => answer.status)))",
        shown.images,
    )
    assert refused == [403, 403, 403]


def test_no_text_becomes_markup_on_any_page(shown: Scene, visit: Visit) -> None:
    """In prompt, parameters, tags, model, ids, callbacks, errors, reasons and responses of hooks."""
    running = shown.running
    with host(lambda request: request.answer(503, MARKUP.encode())) as endpoint:
        hook(running, "", {"name": "ugly", "address": f"{endpoint.url}/{MARKUP}", "tags": [MARKUP[:60]]})
        task_id = new_id()
        request = {"prompt": MARKUP, MARKUP: MARKUP}
        assert register(running, task_id, model=MARKUP[:60], tags=[MARKUP[:60]], request=request).is_success
        failure = {"task_id": MARKUP[:60], "task_status": "failed", "task_status_msg": MARKUP}
        assert post(running, task_id, failure).is_success
        endpoint.wait_for(2)
        hook(running, "/ugly/pause", {"reason": MARKUP})
    visitor = visit(running)
    page = visitor.sign_in()
    ugly = (f"dashboard/tasks/{task_id}", f"dashboard/create?from={task_id}", "dashboard/hooks/ugly")
    for path in (*ugly, "", "dashboard/hooks", "dashboard/hooks/ugly/edit", "dashboard/overview", "dashboard/health"):
        page.goto(f"{running.url}/{path}")
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        if path in (*ugly, "", "dashboard/hooks"):
            assert "{{7*7}}" in page.content(), path
        assert page.locator("script:not([src]), img[src=x], [onerror]").count() == 0, path
        assert page.title() != "owned", path
    assert visitor.problems == []


def hook(running: Running, path: str, document: dict[str, object]) -> None:
    """Send one change of hooks."""
    url = f"{running.url}/api/hooks{path}"
    web.post(url, json=document, headers=running.headers("admin")).raise_for_status()

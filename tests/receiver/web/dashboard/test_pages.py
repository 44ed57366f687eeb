"""The pages: headers, static files, addresses under prefixes and behind proxies, errors, escaping."""

import html
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_receiver.cli.access import new_login_link
from kling_receiver.store.errors import Unavailable
from kling_receiver.web.dashboard import pages
from kling_receiver.web.dashboard.pages import urls_from
from tests.support.pages import Browser
from tests.support.receiver import Running, Start
from tools.harness.submitting import register

NO_KLING = "http://127.0.0.1:9"
ADDRESS = re.compile(r'\b(?:href|src|action|sse-connect)="([^"]*)"')


@pytest.fixture
def browser(shared: Running) -> Iterator[Browser]:
    """A browser that is signed in as admin, at the module's receiver."""
    with Browser(shared) as browser:
        yield browser.sign_in()


def addresses(page: httpx.Response, seen_at: str) -> set[str]:
    """The addresses in a page, as a browser resolves them that sees the page at this one."""
    return {urljoin(seen_at, html.unescape(found)) for found in ADDRESS.findall(page.text) if found[:1] != "#"}


@pytest.mark.parametrize("path", ["/", "/dashboard/login", "/dashboard/nothing"])
def test_the_headers_of_a_page(browser: Browser, path: str) -> None:
    """Nothing but the receiver's own files may run or be loaded, and no copy is kept."""
    if path == "/dashboard/login":
        browser.http.cookies.clear()
    answer = browser.get(path)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(part.partition(" ")[::2] for part in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    own = ("script-src", "style-src", "connect-src", "form-action", "media-src")
    assert {policy[name] for name in own} == {"'self'"}
    assert "unsafe" not in str(policy)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] == "no-store"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=", answer.text)
    assert "http://" not in re.sub(r'href="(\./|\.\./)', "", answer.text).replace(browser.base, "")


def test_the_stylesheet_has_one_rule_for_each_selector_and_none_that_is_not_used() -> None:
    """Sections of several pages do not give one class two meanings."""
    folder = Path(pages.__file__).parent
    sheet = re.sub(r"/\*.*?\*/", "", (folder / "static/style.css").read_text(), flags=re.DOTALL)
    plain = sheet.partition("@media (max-width")[0]
    selectors = Counter(line.partition("{")[0].strip() for line in plain.splitlines() if line[:1] in (".", "#"))
    assert [each for each, count in selectors.items() if count > 1] == []
    used = [path.read_text() for path in (*folder.glob("templates/*.html"), *folder.glob("static/*.js"))]
    words = set(re.findall(r"[\w-]+", " ".join(used)))
    heads = re.findall(r"([^{}]+)\{", sheet)
    assert {name for head in heads for name in re.findall(r"\.([a-z][\w-]*)", head)} - words == set()


def test_static_files_are_kept_by_their_content(browser: Browser) -> None:
    """Under the name of their content for a year, else they are asked for again; no session is needed."""
    page = browser.get()
    browser.http.cookies.clear()
    found = [each for each in addresses(page, f"{browser.base}/") if "/dashboard/static/" in each]
    assert {each.partition("?")[0].rpartition(".")[2] for each in found} == {"css", "js", "svg"}
    for address in found:
        answer = httpx.get(address)
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "public, max-age=31536000, immutable"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        again = httpx.get(address, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert httpx.get(address.partition("?")[0]).headers["Cache-Control"] == "no-cache"
    for name in ("nothing.css", "..%2fpages.py", "%2e%2e/pages.py", "vendor"):
        assert browser.get(f"/dashboard/static/{name}").status_code in (303, 404)


def test_the_licences_of_vendored_files_are_served(browser: Browser) -> None:
    """With the files."""
    for name in ("htmx-LICENSE.txt", "htmx-ext-sse-LICENSE.txt"):
        assert "permission" in browser.get(f"/dashboard/static/{name}").text.lower()


def test_addresses_are_relative() -> None:
    """So that they work below any prefix."""
    assert urls_from("/")("") == "./"
    assert urls_from("/")("dashboard/hooks", a="1 &", b="", c=None) == "./dashboard/hooks?a=1+%26"
    assert urls_from("/dashboard/hooks")("") == "../"
    assert urls_from("/dashboard/tasks/x")("api/tasks/a b#?") == "../../api/tasks/a%20b%23%3F"


@contextmanager
def served_below(start: Start, prefix: str, links: str = "", *, strips: bool) -> Iterator[tuple[Running, Browser]]:
    """A receiver behind a proxy that serves it below a prefix, and a browser there."""
    settings = {"links_url": f"https://pages.example{links}"} if links else {}
    running = start(api_base=NO_KLING, receiver_url=f"https://kling.example{prefix}", **settings)
    upstream = running.local_url.removesuffix(prefix)

    class Proxy(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            path = request.url.raw_path.decode()
            forwarded = path.removeprefix(links or prefix) if strips else path
            headers = [(name, value) for name, value in request.headers.multi_items() if name != "host"]
            content = request.read()
            return httpx.request(request.method, f"{upstream}{forwarded}", headers=headers, content=content)

    base = f"https://pages.example{links}" if links else f"https://kling.example{prefix}"
    with Browser(running, base=base, transport=Proxy()) as browser:
        yield running, browser


@pytest.mark.parametrize("strips", [True, False])
@pytest.mark.parametrize(
    ("prefix", "links"), [("", ""), ("/kling", ""), ("/a/b", ""), ("/kling", "/pages"), ("", "/p")]
)
def test_behind_a_proxy(start: Start, prefix: str, links: str, strips: bool) -> None:
    """That removes the prefix or keeps it, at the receiver's address or that of links: login, pages, API, sign-out."""
    with served_below(start, prefix, links, strips=strips) as (running, browser):
        below = links or prefix
        link = new_login_link(running.settings)
        assert link.startswith(f"{browser.base}/dashboard/login?link=")
        answer = browser.login(link)
        assert answer.status_code == 303, answer.text
        assert urljoin(f"{browser.base}/dashboard/login", answer.headers["Location"]) == f"{browser.base}/"
        cookie = answer.headers["Set-Cookie"].split("; ")
        assert f"Path={below}/" in cookie
        assert "Secure" in cookie
        page = browser.get()
        assert page.status_code == 200
        for address in addresses(page, f"{browser.base}/"):
            assert address.startswith(f"{browser.base}/"), address
        assert browser.send("POST", "/api/tasks/nothing/ask").status_code == 404
        assert browser.send("POST", "/dashboard/logout", page="/dashboard/nothing").status_code == 303
        assert browser.cookie == ""
        assert browser.get().status_code == 303


def test_the_prefix_alone_leads_to_the_first_page(start: Start) -> None:
    """Without the slash at its end, relative addresses would lead out of the prefix."""
    running = start(api_base=NO_KLING, path="/a/kling")
    for path, location in (("", "kling/"), ("?status=failed", "kling/?status=failed")):
        answer = httpx.get(f"{running.url}{path}")
        assert (answer.status_code, answer.headers["Location"]) == (307, location)
    assert httpx.get(f"{running.url}/").headers["Location"] == "./dashboard/login"


def test_plain_http_to_another_machine_is_refused(start: Start) -> None:
    """The browser would not keep the cookie; the page says what to do instead of showing itself again."""
    running = start(api_base=NO_KLING)
    link = new_login_link(running.settings)
    headers = {"Origin": "http://192.168.1.5:8000", "Sec-Fetch-Site": None, "Host": "192.168.1.5:8000"}
    with Browser(running) as browser:
        answer = browser.login(link, headers=headers)
        assert answer.status_code == 400
        assert "ssh -L" in answer.text
        assert browser.login(link).status_code == 303, "the link was not used up"


def test_klings_api_and_the_pages_do_not_collide(start: Start) -> None:
    """On or off, each has its own paths."""
    running = start(api_base=NO_KLING, compat_api="on")
    with Browser(running) as browser:
        browser.sign_in()
        assert "<h1>Tasks</h1>" in browser.get().text
        assert browser.get("/tasks?task_ids=x").status_code == 401
        assert browser.send("POST", "/dashboard/login").status_code == 401
        assert browser.send("POST", "/dashboard/nothing").status_code == 405


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/?stauts=failed", 422, "Did you mean `status`?"),
        ("/?status=nothing", 422, "`status` must be one of"),
        ("/?cursor=x", 422, "`cursor` must be"),
        ("/?status=failed&status=failed", 422, "2 times"),
        ("/dashboard/nothing", 404, "no such page"),
        ("/dashboard/login/x", 404, "no such page"),
    ],
)
def test_an_error_is_a_page_that_says_what_to_do(browser: Browser, path: str, status: int, text: str) -> None:
    """In HTML, with the navigation."""
    answer = browser.get(path)
    assert answer.status_code == status
    assert text in html.unescape(answer.text)
    assert 'aria-label="Pages"' in answer.text


def test_a_database_that_does_not_answer_is_a_page(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with a remedy, for people."""
    running = start(api_base=NO_KLING)
    with Browser(running) as browser:
        browser.sign_in()
        browser.get()

        def fail(*arguments: object) -> None:
            raise Unavailable("The database does not answer.")

        monkeypatch.setattr(running.receiver.store.reader, "read", fail)
        answer = browser.get()
        assert answer.status_code == 503
        assert "Reload the page" in answer.text


def test_an_unexpected_error_is_a_page(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not the API's JSON; the log has the traceback, and the page nothing of it."""
    running = start(api_base=NO_KLING)
    with Browser(running) as browser:
        browser.sign_in()
        browser.get()

        def fail(*arguments: object) -> None:
            raise KeyError("a column of ours")

        monkeypatch.setattr(running.receiver.store.reader, "read", fail)
        answer = browser.get()
    assert (answer.status_code, answer.headers["Content-Type"]) == (500, "text/html; charset=utf-8")
    assert "check the receiver&#39;s log" in answer.text
    assert "a column of ours" not in answer.text
    assert "a column of ours" in caplog.text


def test_every_text_of_a_task_is_escaped(browser: Browser, shared: Running) -> None:
    """Prompt, family, model and tags, in the row and in the filters."""
    text = "<script>alert(1)</script>\"'<img src=x onerror=alert(1)>"
    task_id = new_id()
    fields: dict[str, Any] = {"model": text[:50], "tags": [text[:50]], "request": {"prompt": text}}
    assert register(shared, task_id, **fields).status_code == 201
    for query in ({}, {"tag": text[:50]}, {"model": text[:50]}):
        page = browser.http.get(f"{browser.base}/", params=query)
        assert f'id="task-{task_id}"' in page.text
        assert "<script>alert" not in page.text
        assert "<img src=x" not in page.text
        assert text in html.unescape(page.text)

"""Sessions: login links, the password, the cookie, roles, the same origin, the end."""

import re
import time
from collections.abc import Iterator

import httpx
import pytest

from kling_callback.protocol.signing import Grant, api_token, sign_grant
from kling_receiver.cli.access import new_login_link
from kling_receiver.web.dashboard.signin.attempts import (
    MAX_ALL_FAILURES,
    MAX_FAILURES,
    WINDOW_SECONDS,
    PasswordAttempts,
)
from kling_receiver.web.dashboard.signin.session import MAX_COOKIES, SESSION_SECONDS
from tests.support.pages import Browser, link_token
from tests.support.receiver import SECRET, Running, Start
from tools.harness.submitting import register

PASSWORD = "correct horse battery"
OTHER_SECRET = "another-secret-that-is-32-characters!"
NO_KLING = "http://127.0.0.1:9"


@pytest.fixture
def running(start: Start) -> Running:
    """A receiver of this test's own, with a password."""
    return start(api_base=NO_KLING, dashboard_password=PASSWORD)


@pytest.fixture
def browser(shared: Running) -> Iterator[Browser]:
    """A browser without a session, at the module's receiver."""
    with Browser(shared) as browser:
        yield browser


def audit(running: Running) -> list[tuple[str, str, str]]:
    """Who, what and the result, newest first."""
    page = httpx.get(f"{running.url}/api/audit", headers=running.headers("admin")).json()
    return [(entry["actor"], entry["action"], entry["result"]) for entry in page["entries"]]


@pytest.mark.parametrize("path", ["/", "/dashboard/nothing", "/?status=failed", "/dashboard/live/tasks"])
def test_without_a_session_only_the_login_page_is_visible(browser: Browser, path: str) -> None:
    """Every page leads there, and says where it came from; a stream and a part of a page are refused."""
    answer = browser.get(path)
    assert answer.status_code == 303
    login = answer.next_request
    assert login
    assert login.url.path == "/dashboard/login"
    assert login.url.params.get("next", "") == path.lstrip("/")
    assert browser.get(path, headers={"Accept": "text/event-stream"}).status_code == 401
    part = browser.get(path, headers={"HX-Request": "true", "HX-Current-URL": f"{browser.base}/dashboard/hooks?a=b"})
    assert part.status_code == 401
    assert part.headers["HX-Redirect"] == "/dashboard/login?next=dashboard%2Fhooks%3Fa%3Db"
    page = browser.get("/dashboard/login")
    assert page.status_code == 200
    assert "kling-receiver login-link" in page.text
    assert "<nav" not in page.text


@pytest.mark.parametrize(
    ("current", "leads_to"),
    [
        ("https://evil.example//evil.example/dashboard/hooks", "/dashboard/login"),
        ("https://a.example/kling/dashboard/tasks/x", "/kling/dashboard/login?next=dashboard%2Ftasks%2Fx"),
        ("https://a.example/kling/", "/kling/dashboard/login"),
        ("javascript:alert(1)", "/dashboard/login"),
        ("", "/dashboard/login"),
    ],
)
def test_a_part_of_a_page_leads_to_no_other_site(browser: Browser, current: str, leads_to: str) -> None:
    """The redirect is a path of the page's own site."""
    part = browser.get("/", headers={"HX-Request": "true", "HX-Current-URL": current})
    assert part.headers["HX-Redirect"] == leads_to


def test_a_login_link_works_once_and_only_by_its_button(start: Start, running: Running) -> None:
    """Programs that preview the link do not use it up; a second use is refused, also after a restart."""
    link = new_login_link(running.settings)
    with Browser(running) as browser:
        for _ in range(2):
            shown = browser.get(f"/dashboard/login?link={link_token(link)}")
            assert "works once" in shown.text
        assert browser.get().status_code == 303
        answer = browser.login(link, "dashboard/hooks?x=1")
        assert (answer.status_code, answer.headers["Location"]) == (303, "../dashboard/hooks?x=1")
        assert browser.get().status_code == 200
        cookie = answer.headers["Set-Cookie"]
        assert {"HttpOnly", "Path=/", "SameSite=lax", f"Max-Age={SESSION_SECONDS}"} <= set(cookie.split("; "))
        assert "Secure" not in cookie
        running.stop()
        again = start(api_base=NO_KLING, port=int(running.url.rpartition(":")[2]))
        assert browser.get().status_code == 200, "the session outlives the process"
        with Browser(again) as other:
            refused = other.login(link)
            assert refused.status_code == 401
            assert "was used before" in refused.text
            assert "kling-receiver login-link" in refused.text
            assert other.get().status_code == 303
        assert [(action, result) for _, action, result in audit(again)] == [("login", "done")]


def test_links_and_cookies_of_other_kinds_are_refused(browser: Browser, shared: Running) -> None:
    """Expired ones, those of another secret or purpose, bearer tokens; and no cookie is a bearer token."""
    now = int(time.time())
    for secret, purpose, expires in (
        (SECRET, "login", now - 1),
        (OTHER_SECRET, "login", now + 60),
        (SECRET, "session", now + 60),
    ):
        text = sign_grant([secret], purpose, Grant("admin", expires, "id"))  # type: ignore[arg-type]
        assert browser.get(f"/dashboard/login?link={text}").status_code == 401
        assert browser.login(f"x?link={text}").status_code == 401
    name = _cookie_name(shared)
    bearer = api_token([SECRET], "admin", 300)
    values = [
        sign_grant([SECRET], "session", Grant("admin", now - 1, "id")),
        sign_grant([OTHER_SECRET], "session", Grant("admin", now + 60, "id")),
        sign_grant([SECRET], "login", Grant("admin", now + 60, "id")),
        bearer,
        "x",
        "",
    ]
    for value in values:
        assert browser.get("/api/tasks", headers={"Cookie": f"{name}={value}"}).status_code == 401
        assert browser.get("/", headers={"Cookie": f"{name}={value}"}).status_code == 303
    valid = sign_grant([SECRET], "session", Grant("admin", now + 60, "id"))
    assert browser.get("/api/tasks", headers={"Cookie": f"{name}={valid}"}).status_code == 200
    both = f"{name}=x; other=y; {name}={valid}"
    assert browser.get("/api/tasks", headers={"Cookie": both}).status_code == 200, "one of another path comes first"
    assert browser.get("/api/tasks", headers={"Authorization": f"Bearer {valid}"}).status_code == 401
    bad = {"Authorization": "Bearer x", "Cookie": f"{name}={valid}"}
    assert browser.get("/api/tasks", headers=bad).status_code == 401, "a wrong token is not ignored"


def test_few_cookies_of_one_request_are_verified(browser: Browser, shared: Running) -> None:
    """Each costs a signature, also of those who have no session."""
    valid = sign_grant([SECRET], "session", Grant("admin", int(time.time()) + 60, "id"))
    name = _cookie_name(shared)
    for number, status in ((MAX_COOKIES - 1, 200), (MAX_COOKIES, 401)):
        header = "; ".join([f"{name}=a.b"] * number + [f"{name}={valid}"])
        assert browser.get("/api/tasks", headers={"Cookie": header}).status_code == status


@pytest.mark.parametrize("address", ["http://[::1", "http://[x]/dashboard/login", "http://a[b]:x"])
def test_an_address_in_a_header_may_be_wrong(browser: Browser, shared: Running, address: str) -> None:
    """It is ignored: nobody fills the log with tracebacks."""
    part = browser.get("/", headers={"HX-Request": "true", "HX-Current-URL": address})
    assert (part.status_code, part.headers["HX-Redirect"]) == (401, "/dashboard/login")
    answer = browser.login(new_login_link(shared.settings), headers={"Referer": address})
    assert (answer.status_code, "Path=/;" in answer.headers["Set-Cookie"]) == (303, True)
    link = new_login_link(shared.settings)
    assert browser.login(link, headers={"Origin": address}).status_code == 400, "plain http to another machine"
    assert browser.login(link).status_code == 303


def test_a_long_address_is_not_repeated(browser: Browser) -> None:
    """In the redirect to the login page: a proxy refuses a response with such a header."""
    answer = browser.get("/?text=" + "x" * 30_000)
    assert answer.headers["Location"] == "./dashboard/login"


def _cookie_name(running: Running) -> str:
    with Browser(running) as browser:
        return browser.sign_in().cookie.partition("=")[0]


def test_a_cookie_authorizes_neither_callbacks_nor_klings_api(start: Start) -> None:
    """Only `/api` and the pages."""
    running = start(api_base=NO_KLING, compat_api="on")
    with Browser(running) as browser:
        browser.sign_in()
        assert browser.get("/api/tasks").status_code == 200
        assert browser.send("POST", "/callbacks/x", json={}).status_code == 401
        assert browser.send("POST", "/v1/images/generations", json={"prompt": "x"}).status_code == 401
        assert browser.get("/v1/images/generations").status_code == 401
        assert browser.get("/dashboard/nothing").status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": None, "Sec-Fetch-Site": None},
        {"Origin": "null", "Sec-Fetch-Site": None},
        {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": None},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": None},
    ],
)
def test_a_change_comes_from_a_page_of_the_receiver(
    browser: Browser, shared: Running, headers: dict[str, str | None]
) -> None:
    """Else it is refused, with a remedy: API, login and sign-out. A bearer token needs none of it."""
    browser.sign_in()
    answer = browser.send("POST", "/api/tasks/nothing/ask", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "other_origin")
    assert "reload" in answer.json()["error"]["hint"]
    assert browser.send("POST", "/dashboard/logout", headers=headers).status_code == 403
    with Browser(shared) as other:
        link = new_login_link(shared.settings)
        assert other.login(link, headers=headers).status_code == 403
        assert other.login(link).status_code == 303, "the link was not used up"
    with_token = {**headers, **shared.headers("admin")}
    assert browser.send("POST", "/api/tasks/nothing/ask", headers=with_token).status_code == 404
    assert browser.send("POST", "/api/tasks/nothing/ask").status_code == 404, "the session is still there"


def test_older_browsers_name_the_origin_alone(browser: Browser) -> None:
    """Without Sec-Fetch-Site, the origin must be that of the address that was asked for."""
    browser.sign_in()
    plain = {"Sec-Fetch-Site": None}
    assert browser.send("POST", "/api/tasks/nothing/ask", headers=plain).status_code == 404


def test_the_audit_log_names_the_session(running: Running) -> None:
    """Its actions, login and sign-out all have the same short id."""
    with Browser(running) as browser:
        browser.sign_in()
        browser.send("POST", "/api/tasks/nothing/ask")
        browser.send("POST", "/dashboard/logout")
    entries = audit(running)
    assert [entry[1:] for entry in entries] == [("logout", "done"), ("tasks ask", "unknown_task"), ("login", "done")]
    (actor,) = {entry[0] for entry in entries}
    assert re.fullmatch(r"dashboard [\w-]{8}", actor)


def test_a_session_may_do_what_its_role_may(shared: Running) -> None:
    """As bearer tokens: read sees, admin acts; the page offers no more than that."""
    for role, asked, registered in (("read", 403, 403), ("client", 403, 200), ("admin", 404, 200)):
        with Browser(shared) as browser:
            browser.sign_in(role)  # type: ignore[arg-type]
            assert browser.get("/api/tasks").status_code == 200
            answer = browser.send("POST", "/api/tasks/nothing/ask")
            assert answer.status_code == asked
            if asked == 403:
                assert "--role admin" in answer.json()["error"]["hint"]
            body = {"family": "images/generations", "attempt": "one"}
            assert browser.send("PUT", "/api/tasks/a-task-of-roles", json=body).status_code in (registered, 201)
            page = browser.get().text
            assert ("all-tasks" in page) is (role == "admin")


def test_what_a_session_reads_is_not_kept(browser: Browser, shared: Running) -> None:
    """By a browser after the sign-out, or a proxy: for a cookie alone, it might be. A file may be kept, and says so."""
    browser.sign_in()
    for path in ("/api/tasks", "/api/hooks", "/metrics"):
        headers = browser.get(path).headers
        assert (headers["Cache-Control"], headers["X-Content-Type-Options"]) == ("no-store", "nosniff")
    answer = browser.send("POST", "/api/hooks", json={"name": "kept", "address": "https://hooks.example/"})
    assert (answer.status_code, answer.headers["Cache-Control"]) == (201, "no-store")
    assert browser.send("DELETE", "/api/hooks/kept").status_code == 200
    assert "Cache-Control" not in httpx.get(f"{shared.url}/api/tasks", headers=shared.headers("read")).headers


def test_sign_out_ends_the_session_everywhere(start: Start, running: Running) -> None:
    """Also a copy of its cookie, at once and after a restart; other sessions stay."""
    with Browser(running) as browser, Browser(running) as other:
        browser.sign_in()
        other.sign_in()
        copied = browser.cookie
        answer = browser.send("POST", "/dashboard/logout", page="/dashboard/hooks")
        assert (answer.status_code, answer.headers["Location"]) == (303, "../dashboard/login")
        assert "Max-Age=0" in answer.headers["Set-Cookie"]
        assert browser.cookie == ""
        assert browser.get("/api/tasks", headers={"Cookie": copied}).status_code == 401
        assert other.get().status_code == 200
        running.stop()
        start(api_base=NO_KLING, port=int(running.url.rpartition(":")[2]))
        assert browser.get("/api/tasks", headers={"Cookie": copied}).status_code == 401
        assert other.get().status_code == 200


def test_rotated_secrets_sign_everyone_out(start: Start) -> None:
    """A secret that still verifies keeps sessions; once it is removed, none is left."""
    running = start(api_base=NO_KLING)
    port = int(running.url.rpartition(":")[2])
    with Browser(running) as browser:
        browser.sign_in()
        running.stop()
        running = start(api_base=NO_KLING, port=port, signing_secrets=(OTHER_SECRET, SECRET))
        assert browser.get().status_code == 200
        running.stop()
        start(api_base=NO_KLING, port=port, signing_secrets=(OTHER_SECRET,))
        assert browser.get().status_code == 303


def test_the_password(running: Running) -> None:
    """The right one signs in as admin; a wrong one is refused and does not appear anywhere."""
    with Browser(running) as browser:
        assert 'type="password"' in browser.get("/dashboard/login").text
        wrong = browser.password("a wrong password")
        assert wrong.status_code == 401
        assert "a wrong password" not in wrong.text
        assert browser.password("").status_code == 401
        assert browser.password(PASSWORD, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert browser.password(PASSWORD).status_code == 303
        assert 'data-bulk="POST' in browser.get().text


def test_without_a_password_none_is_accepted(browser: Browser) -> None:
    """The page does not ask for one."""
    assert 'type="password"' not in browser.get("/dashboard/login").text
    for text in ("", "x" * 20):
        assert browser.password(text).status_code == 401
    assert browser.get().status_code == 303


def test_attempts_to_guess_the_password_are_limited(running: Running) -> None:
    """With 429 and the time to wait, also for the right one; a login link works all the same."""
    with Browser(running) as browser:
        for _ in range(MAX_FAILURES):
            assert browser.password("a wrong password").status_code == 401
        limited = browser.password(PASSWORD)
        assert limited.status_code == 429
        assert 0 < int(limited.headers["Retry-After"]) <= 60
        assert "kling-receiver login-link" in limited.text
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with Browser(running, transport=transport) as owner:
            assert owner.password(PASSWORD).status_code == 303, "another address is not limited"
        browser.sign_in()
        assert browser.get().status_code == 200


def test_the_limit_of_all_addresses() -> None:
    """Many addresses together are limited too, but not the one from which the right password came."""
    now = 0.0
    attempts = PasswordAttempts(clock=lambda: now)
    attempts.record_success("192.0.2.1")
    for number in range(MAX_ALL_FAILURES):
        address = f"198.51.{number // 250}.{number % 250}"
        assert not attempts.seconds_blocked(address)
        attempts.record_failure(address)
    assert attempts.seconds_blocked("203.0.113.1") == WINDOW_SECONDS
    assert not attempts.seconds_blocked("192.0.2.1")
    now = WINDOW_SECONDS + 1
    assert not attempts.seconds_blocked("203.0.113.1")


@pytest.mark.parametrize(
    "wanted",
    [
        *("https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "evil.example"),
        *("dashboard/../../x", "dashboard/login", "dashboard/logout", "api/tasks", "dashboard/x\r\nSet-Cookie: a=b"),
        *("dashboard/%2e%2e/%2E./x", "dashboard/hooks/.%2e/.."),
        *("dashboard/x y", "dashboard/" + "x" * 3000, '?a="b"', "dashboard/@evil.example"),
    ],
)
def test_the_login_leads_to_no_other_site(browser: Browser, shared: Running, wanted: str) -> None:
    """Only to a page of this receiver; anything else is ignored."""
    answer = browser.login(new_login_link(shared.settings), wanted)
    assert (answer.status_code, answer.headers["Location"]) == (303, "../")
    shown = browser.http.get(f"{browser.base}/dashboard/login", params={"next": wanted})
    assert (shown.status_code, shown.headers["Location"]) == (303, "../")


@pytest.mark.parametrize(
    "wanted", ["", "?status=failed&tag=a%20b", "/dashboard/hooks", "dashboard/tasks/a-b_c.d~1?x=1"]
)
def test_the_login_leads_back_to_the_page(browser: Browser, shared: Running, wanted: str) -> None:
    """That was asked for."""
    answer = browser.login(new_login_link(shared.settings), wanted)
    assert answer.headers["Location"] == f"../{wanted.lstrip('/')}"


def test_a_form_is_read_within_limits(browser: Browser) -> None:
    """Bodies that are too large, no form, or no text: an error page, no failure."""
    for content, status in ((b"password=" + b"x" * 20_000, 413), (b"a=1&" * 60, 422), (b"\xff=\xff", 422), (b"", 401)):
        answer = browser.send(
            "POST",
            "/dashboard/login",
            content=content,
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )
        assert answer.status_code == status, content[:20]


def test_a_session_ends_its_streams(running: Running) -> None:
    """Signed out elsewhere: the page's stream says so and ends."""
    with Browser(running) as browser:
        browser.sign_in()
        with browser.http.stream("GET", f"{browser.base}/dashboard/live/tasks?state=x") as answer:
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            lines = answer.iter_lines()
            assert next(line for line in lines if line.startswith("event:")) == "event: update"
            cookie = browser.cookie
            assert browser.send("POST", "/dashboard/logout").status_code == 303
            assert [line for line in lines if line.startswith("event:")] == ["event: session-ended"]
        register(running, "a-task-after-it")
        browser.sign_in()
        with browser.http.stream("GET", f"{browser.base}/api/events?after=latest") as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith(":")
            assert browser.send("POST", "/dashboard/logout").status_code == 303
            assert not any(line.startswith("data") for line in lines), "the API's streams end as well"
        refused = browser.get("/dashboard/live/tasks", headers={"Cookie": cookie, "Accept": "text/event-stream"})
        assert refused.status_code == 401

"""The pages of hooks over HTTP: what they show of each state, who sees them, and their live updates."""

import html
from collections.abc import Iterator
from typing import Any

import pytest

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import Role
from kling_callback.protocol.webhooks import new_secret
from kling_receiver.web.dashboard.display import plain_number, seconds_text, share_text
from kling_receiver.web.dashboard.hooks import DELIVERIES, FORM_LIMITS
from tests.receiver.web.dashboard.test_live import listening, wait_for
from tests.support.pages import Browser
from tests.support.receiver import Running, Start
from tests.support.web import Host, Visit, host
from tools.harness.submitting import Json, poll_until, register

SECRET = new_secret()
NO_KLING = "http://127.0.0.1:9"
UGLY = "<script>alert(1)</script>\"'<img src=x onerror=alert(1)>"
PAGES = ("/dashboard/hooks", "/dashboard/hooks/one", "/dashboard/hooks/one/edit", "/dashboard/add-hook")


@pytest.fixture
def running(start: Start) -> Running:
    """A receiver; no Kling answers its queries."""
    return start(api_base=NO_KLING)


@pytest.fixture
def browser(running: Running) -> Iterator[Browser]:
    """A browser that is signed in as admin."""
    with Browser(running) as browser:
        yield browser.sign_in()


@pytest.fixture
def endpoint() -> Iterator[Host]:
    """A hook whose address decides how it answers: by the status in its path."""
    with host(lambda visit: visit.answer(int(visit.path[1:4]), UGLY.encode())) as endpoint:
        yield endpoint


def api(browser: Browser, method: str, path: str, body: Any = None, *, status: int = 200) -> Json:
    """What a button of a page sends."""
    answer = browser.send(method, f"/api/{path}", **({} if body is None else {"json": body}))
    assert answer.status_code == status, answer.text
    document: Json = answer.json()
    return document


def add(browser: Browser, name: str, address: str, **fields: Any) -> Json:
    """Add a hook."""
    return api(browser, "POST", "hooks", {"name": name, "address": address, **fields}, status=201)


def shown(browser: Browser, path: str) -> str:
    """The text of a page, without markup."""
    answer = browser.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


def dead_letters(browser: Browser, name: str, count: int) -> None:
    """Wait until a hook has so many."""
    poll_until(lambda: api(browser, "GET", f"hooks/{name}")["dead"] == count)


def test_without_hooks_the_page_says_what_one_is(browser: Browser) -> None:
    """With the shortest ways to events: a form, a command, and one that needs no hook."""
    page = shown(browser, "/dashboard/hooks")
    assert "No hooks yet" in page
    assert "kling-receiver hooks add" in page
    assert "kling listen --forward" in page
    assert 'href="../dashboard/add-hook"' in page


@pytest.mark.parametrize("role", ["read", "client"])
def test_a_lower_role_sees_nothing_of_hooks(browser: Browser, running: Running, endpoint: Host, role: Role) -> None:
    """No link, no page, no stream; and its requests to the API are refused."""
    add(browser, "one", f"{endpoint.url}/200")
    with Browser(running) as other:
        other.sign_in(role)
        assert "dashboard/hooks" not in other.get().text
        for path in (*PAGES, "/dashboard/live/hooks", "/dashboard/live/hooks/one"):
            answer = other.get(path)
            assert answer.status_code == 403, path
            assert "login-link --role admin" in answer.text
            assert endpoint.url not in answer.text
        for method, path in (("POST", "hooks/one/pause"), ("PATCH", "hooks/one"), ("DELETE", "hooks/one")):
            assert other.send(method, f"/api/{path}", json={}).status_code == 403
    assert 'href="./dashboard/hooks"' in browser.get().text


def test_each_state_is_shown_with_what_happens_next(browser: Browser, running: Running, endpoint: Host) -> None:
    """Active, paused with the reason, failing, circuit open with the next attempt: by words, numbers and icons."""
    add(browser, "good", f"{endpoint.url}/200", events=["task.created"])
    add(browser, "failing", f"{endpoint.url}/500", retry_schedule=[3600])
    add(browser, "idle", f"{endpoint.url}/200", tags=["never"])
    add(browser, "stopped", f"{endpoint.url}/200")
    api(browser, "POST", "hooks/stopped/pause", {"reason": "their maintenance"})
    register(running, new_id())
    endpoint.wait_for(2)
    poll_until(lambda: api(browser, "GET", "hooks/failing")["pending"] == 1)
    poll_until(lambda: "100 %" in shown(browser, "/dashboard/hooks/good"))
    rows = {row.split('"')[0]: row for row in shown(browser, "/dashboard/hooks").split('<tr id="hook-')[1:]}
    assert list(rows) == ["failing", "good", "idle", "stopped"]
    assert ("active" in rows["good"], "✓" in rows["good"], "200" in rows["good"]) == (True, True, True)
    assert "of 1 attempt<" in rows["good"]
    assert "none yet" in rows["idle"]
    assert "their maintenance" in rows["stopped"]
    assert "up to 1 event<" in rows["stopped"]
    assert "circuit open" not in rows["failing"]
    assert "next attempt" in rows["failing"]
    assert "1 to retry" in rows["failing"]
    assert "0 %" in rows["failing"]
    for _ in range(4):
        register(running, new_id())
    poll_until(lambda: api(browser, "GET", "hooks/failing")["circuit"] == "open")
    hook = poll_until(lambda: (found := api(browser, "GET", "hooks/failing"))["next_attempt_at"] and found)
    page = shown(browser, "/dashboard/hooks/failing")
    assert "circuit open" in page
    assert "Try now" in page
    assert hook["next_attempt_at"][:19] in page
    page = shown(browser, "/dashboard/hooks/stopped")
    assert "Resume" in page
    assert 'data-open-dialog="pause-dialog"' not in page


def test_dead_letters_are_retried_alone_or_all(browser: Browser, running: Running) -> None:
    """Each with its attempts: status, error, and the start of the body, escaped."""
    accepts = False

    def respond(visit: Visit) -> None:
        visit.answer(200 if accepts else 503, UGLY.encode())

    with host(respond) as endpoint:
        add(browser, "one", endpoint.url, retry_schedule=[])
        tasks = [new_id(), new_id()]
        for task_id in tasks:
            register(running, task_id)
        dead_letters(browser, "one", 2)
        for path in ("/dashboard/hooks/one", "/dashboard/hooks/one?state=dead"):
            page = shown(browser, path)
            assert "2 dead letters:" in page
            assert 'data-api="POST /api/deliveries/retry" data-done' in page
            assert html.unescape(page).count(UGLY) >= 2
            assert "<script>alert" not in page
            assert "<img src=x" not in page
            assert "the hook answered 503" in page
            for task_id in tasks:
                assert f'href="../../dashboard/tasks/{task_id}"' in page
        assert "None is delivered" in shown(browser, "/dashboard/hooks/one?state=delivered")
        accepts = True
        [action] = [line.split('"')[0] for line in page.split('data-api="POST /api/deliveries/1/')[1:]]
        assert action == "one/retry"
        api(browser, "POST", "deliveries/1/one/retry")
        dead_letters(browser, "one", 1)
        api(browser, "POST", "deliveries/retry", {"hook": "one"})
        dead_letters(browser, "one", 0)
        poll_until(lambda: shown(browser, "/dashboard/hooks/one").count("2 attempts") == 2)
        assert "dead letters:" not in shown(browser, "/dashboard/hooks/one")


def test_no_secret_is_in_a_page(browser: Browser, endpoint: Host) -> None:
    """Neither the hook's, nor one in its address; also not in the form that changes it."""
    made = add(browser, "one", f"{endpoint.url}/200?token=hush-hush", tags=[UGLY])
    rotated = api(browser, "POST", "hooks/one/rotate", {})
    for path in PAGES:
        page = shown(browser, path)
        for secret in (made["secret"], rotated["secret"], "hush-hush"):
            assert secret not in page
        assert "<script>alert" not in page
    assert 'data-initial="' + f'{endpoint.url}/200?***"' in shown(browser, "/dashboard/hooks/one/edit")
    assert UGLY in html.unescape(shown(browser, "/dashboard/hooks/one"))


def test_a_hook_of_the_settings_is_only_shown(start: Start, endpoint: Host) -> None:
    """With where it is kept; what the API refuses has no button."""
    running = start(api_base=NO_KLING, hook_url=f"{endpoint.url}/200", hook_secret=SECRET)
    with Browser(running) as browser:
        page = shown(browser.sign_in(), "/dashboard/hooks/default")
        assert "kept in KLING_HOOK_URL" in page
        for absent in ("Rotate secret", ">Remove<", ">Change<"):
            assert absent not in page
        assert 'data-open-dialog="pause-dialog"' in page
        answer = browser.get("/dashboard/hooks/default/edit")
        assert answer.status_code == 409
        assert "Change it there" in answer.text
        assert browser.send("DELETE", "/api/hooks/default").status_code == 409


def test_hooks_of_a_file_are_not_added_here(start: Start, tmp_path: Any, endpoint: Host) -> None:
    """The page says where they are."""
    file = tmp_path / "hooks.toml"
    file.write_text(f'[hooks.filed]\naddress = "{endpoint.url}/200"\nsecret = "{SECRET}"\n')
    running = start(api_base=NO_KLING, hooks_file=str(file))
    with Browser(running) as browser:
        page = shown(browser.sign_in(), "/dashboard/hooks")
        assert "filed" in page
        assert "KLING_HOOKS_FILE" in page
        assert "add-hook" not in page
        answer = browser.get("/dashboard/add-hook")
        assert (answer.status_code, "Change the file" in answer.text) == (409, True)


def test_the_hook_of_a_task_has_a_page(browser: Browser, running: Running, endpoint: Host) -> None:
    """By its name, with what may be done with it."""
    task_id = new_id()
    assert register(running, task_id, hook=f"{endpoint.url}/200").status_code == 201
    page = shown(browser, f"/dashboard/hooks/task:{task_id}")
    assert f'href="../../dashboard/tasks/{task_id}"' in page
    assert ">Change<" not in page
    assert "Rotate secret" not in page
    answer = browser.get(f"/dashboard/hooks/task:{task_id}/edit")
    assert (answer.status_code, "Pause or remove it" in answer.text) == (409, True)
    assert f"task:{task_id}" not in shown(browser, "/dashboard/hooks")


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/dashboard/hooks/nothing", 404, "There is no such hook."),
        ("/dashboard/hooks/nothing/edit", 404, "There is no such hook."),
        ("/dashboard/live/hooks/nothing", 404, "There is no such hook."),
        ("/dashboard/hooks/one?state=lost", 422, "`state` must be one of pending, delivered, dead."),
        ("/dashboard/hooks/one?cursor=x", 422, "`cursor` must be"),
        ("/dashboard/hooks/one?page=2", 422, "`page` is not a parameter"),
    ],
)
def test_an_error_says_what_to_do(browser: Browser, endpoint: Host, path: str, status: int, text: str) -> None:
    """As a page."""
    add(browser, "one", f"{endpoint.url}/200")
    answer = browser.get(path)
    assert answer.status_code == status
    assert text in html.unescape(answer.text)


def test_older_deliveries_are_on_further_pages(browser: Browser, running: Running, endpoint: Host) -> None:
    """Each once; only the first page is live."""
    add(browser, "one", f"{endpoint.url}/200")
    for _ in range(DELIVERIES + 3):
        register(running, new_id())
    endpoint.wait_for(DELIVERIES + 3)
    poll_until(lambda: "None is waiting" in shown(browser, "/dashboard/hooks/one?state=pending"))
    path, found = "/dashboard/hooks/one", []
    for is_first in (True, False):
        page = shown(browser, path)
        assert ("sse-connect" in page) == is_first
        found += [row.split('"')[0] for row in page.split('id="delivery-')[1:]]
        if is_first:
            address = html.unescape(page.split('rel="next"')[0].rpartition('href="')[2].split('"')[0])
            path = "/" + address.removeprefix("../../")
    assert found == [str(number) for number in range(DELIVERIES + 3, 0, -1)]
    assert "« Newest" in page


def test_an_attempt_alone_updates_open_pages(browser: Browser, running: Running, endpoint: Host) -> None:
    """A retry adds no event to the log; the list and the hook's page show it all the same."""
    add(browser, "one", f"{endpoint.url}/503", retry_schedule=[])
    register(running, new_id())
    dead_letters(browser, "one", 1)
    for path in ("/dashboard/hooks", "/dashboard/hooks/one", "/dashboard/hooks/one?state=dead"):
        page = shown(browser, path)
        stream = html.unescape(page.split('sse-connect="')[1].split('"')[0])
        before = len(endpoint.visits)
        with listening(browser, "/" + stream.replace("../", "")) as lines:
            api(browser, "POST", "deliveries/1/one/retry")
            endpoint.wait_for(before + 1)
            wait_for(
                lambda before=before, lines=lines: any(
                    f"of {before + 1} attempts" in each or f"newest {before + 1} attempts" in each for each in lines
                )
            )
        dead_letters(browser, "one", 1)


def test_a_hook_that_is_removed_says_so(browser: Browser, endpoint: Host) -> None:
    """On its page, if that is open; it leaves the list."""
    add(browser, "one", f"{endpoint.url}/200")
    with listening(browser, "/dashboard/live/hooks/one") as page, listening(browser, "/dashboard/live/hooks") as rows:
        wait_for(lambda: any("hook-state" in line for line in page) and any("hook-one" in line for line in rows))
        api(browser, "DELETE", "hooks/one")
        wait_for(lambda: any("This hook was removed." in line for line in page))
        wait_for(lambda: any('id="rows" hx-swap-oob="innerHTML"></tbody>' in line for line in rows))


def test_the_form_has_the_checks_of_the_api(browser: Browser) -> None:
    """They come from the model that validates; its other checks are the API's, in words for each field."""
    assert FORM_LIMITS["concurrency"] == {"min": 1, "max": 256}
    assert FORM_LIMITS["rate_limit"] == {"min": 0.01, "max": 100_000}
    assert FORM_LIMITS["address"] == {"minlength": 1, "maxlength": 2000}
    assert FORM_LIMITS["name"]["pattern"] == r"[a-z0-9][a-z0-9_\-]{0,62}"
    page = shown(browser, "/dashboard/add-hook")
    for field in FORM_LIMITS:
        assert f'data-field="{field}"' in page
    assert 'min="1" max="256"' in page
    assert 'value="5, 30, 120, 900, 3600, 10800, 28800, 86400"' in page


def test_numbers_for_people() -> None:
    """A share is never rounded to all or nothing."""
    assert [
        share_text(part, whole) for part, whole in ((0, 0), (0, 5), (5, 5), (1, 3), (9_999, 10_000), (1, 9_999))
    ] == [
        "–",
        "0 %",
        "100 %",
        "33.3 %",
        "99.9 %",
        "0.1 %",
    ]
    assert [seconds_text(seconds) for seconds in (0.2, 5, 30, 900, 86_400)] == [
        "200 ms",
        "5 s",
        "30 s",
        "15 min",
        "1 d",
    ]
    assert [plain_number(number) for number in (5.0, 0.5, 2_592_000.0)] == ["5", "0.5", "2592000"]

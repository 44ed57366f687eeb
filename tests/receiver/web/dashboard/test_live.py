"""Live updates: what is sent for which change, one renderer for all pages that show the same, nothing while idle."""

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_receiver.events.bus import EventBus
from kling_receiver.store.errors import Unavailable
from kling_receiver.web.dashboard import live
from kling_receiver.web.dashboard.live import (
    INTERVAL_SECONDS,
    KEPT_MESSAGES,
    MAX_SHARE,
    REPLACED_WEIGHT,
    Fragment,
    Turns,
    View,
    changes,
)
from tests.support.database import statements
from tests.support.pages import Browser
from tests.support.receiver import Running, Start
from tools.harness.submitting import register

NO_KLING = "http://127.0.0.1:9"


def row(name: str, text: str) -> str:
    """A row of a list."""
    return f'<tr id="{name}"><td>{text}</td></tr>'


def rows(**texts: str) -> Fragment:
    """A list of rows."""
    return Fragment(rows={name: row(name, text) for name, text in texts.items()})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (rows(a="1"), rows(a="1"), ""),
        (rows(a="1", b="1"), rows(a="2", b="1"), '<tr hx-swap-oob="true" id="a"><td>2</td></tr>'),
        (
            rows(a="1", b="1"),
            rows(c="1", a="1"),
            f'<tr id="b" hx-swap-oob="delete"></tr><tbody hx-swap-oob="afterbegin:#rows">{row("c", "1")}</tbody>',
        ),
        (rows(a="1", b="1"), rows(b="1"), '<tr id="a" hx-swap-oob="delete"></tr>'),
        (rows(a="1"), rows(), '<tbody id="rows" hx-swap-oob="innerHTML"></tbody>'),
        (rows(), rows(a="1"), '<tbody id="rows" hx-swap-oob="innerHTML"><tr id="a"><td>1</td></tr></tbody>'),
        (
            rows(a="1", b="1"),
            rows(b="1", a="1"),
            '<tbody id="rows" hx-swap-oob="innerHTML"><tr id="b"><td>1</td></tr><tr id="a"><td>1</td></tr></tbody>',
        ),
        (rows(a="1"), rows(b="1"), f'<tbody id="rows" hx-swap-oob="innerHTML">{row("b", "1")}</tbody>'),
        (
            rows(b="1"),
            rows(b="1", c="1"),
            f'<tbody hx-swap-oob="beforeend:#rows">{row("c", "1")}</tbody>',
        ),
        (
            Fragment(parts={"x": '<p id="x">1</p>', "y": '<p id="y">1</p>'}),
            Fragment(parts={"x": '<p id="x">1</p>', "y": '<p id="y">2</p>'}),
            '<p hx-swap-oob="true" id="y">2</p>',
        ),
        (
            None,
            Fragment(parts={"x": '<p id="x">1</p>'}, rows={"a": row("a", "1")}),
            f'<p hx-swap-oob="true" id="x">1</p><tbody id="rows" hx-swap-oob="innerHTML">{row("a", "1")}</tbody>',
        ),
    ],
)
def test_only_what_changed_is_sent(old: Fragment | None, new: Fragment, message: str) -> None:
    """New rows at the front or the end are added, others replaced by their id; any other order replaces the list."""
    sent = changes(old, new)
    assert sent.replace("<template>", "").replace("</template>", "") == message
    assert sent.count("<template>") == sent.count("hx-swap-oob"), "each is in a template of its own"


def test_fragments_without_rows_send_none() -> None:
    """A page of parts has no element for rows."""
    new = Fragment(parts={"x": '<p id="x">1</p>'})
    assert changes(None, new) == '<template><p hx-swap-oob="true" id="x">1</p></template>'


def test_the_state_tells_contents_apart() -> None:
    """Also where only the border between two texts differs."""
    states = {
        each.state
        for each in (
            rows(),
            rows(a="1"),
            rows(a="2"),
            rows(b="1"),
            Fragment(parts={"a": row("a", "1")}),
            Fragment(rows={"a": "bc"}),
            Fragment(rows={"ab": "c"}),
        )
    }
    assert len(states) == 7
    assert rows(a="1").state == rows(a="1").state


@pytest.mark.anyio
async def test_every_line_of_a_text_arrives() -> None:
    """As a browser puts the lines of a message together, also with other ends of lines and empty lines."""
    text = "<pre>one\r\n\r\ntwo\rthree \u2028 \x0b four\n\n</pre>"

    async def render() -> Fragment:
        return Fragment(parts={"a": f'<div id="a">{text}</div>'})

    view = View(bus(), None, render, Turns())
    await view._update()
    ((_, (frame,)),) = [view.since("another")]
    assert frame.endswith(b"\n\n")
    lines = frame.decode().removesuffix("\n\n").split("\n")
    assert not any("\r" in line for line in lines)
    sent = "\n".join(line.removeprefix("data: ") for line in lines if line.startswith("data: "))
    assert text.replace("\r\n", "\n").replace("\r", "\n") in sent


class Source:
    """What a view renders: a number that counts up, or a failure."""

    def __init__(self) -> None:
        self.number, self.rendered, self.fails = 0, 0, False

    async def render(self) -> Fragment:
        self.rendered += 1
        if self.fails:
            raise Unavailable("The database does not answer.")
        return rows(a=str(self.number))


def bus() -> EventBus:
    """A bus whose streams read nothing."""
    return EventBus(None)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_a_view_renders_once_for_all_pages_and_only_after_events() -> None:
    """At once for a change after a pause, and at most once in each interval."""
    events, source = bus(), Source()
    view = View(events, None, source.render, Turns())
    first, second = asyncio.Event(), asyncio.Event()
    with view.open_page(first), view.open_page(second):
        await asyncio.wait_for(first.wait(), 5)
        assert second.is_set()
        state = view.since("")[0]
        await asyncio.sleep(INTERVAL_SECONDS * 1.5)
        assert source.rendered == 1
        first.clear()
        for _ in range(5):
            source.number += 1
            events.notify({"a-task"})
            await asyncio.sleep(0.02)
        assert first.is_set(), "the first of them is shown at once"
        assert source.rendered == 2
        await asyncio.sleep(INTERVAL_SECONDS)
        assert source.rendered == 3
        state, messages = view.since(state)
        assert [re.findall(rb"<td>(\d+)", message) for message in messages] == [[b"1"], [b"5"]]
        assert view.since(state) == (state, [])
    await asyncio.sleep(0)
    events.notify({"a-task"})
    await asyncio.sleep(INTERVAL_SECONDS * 1.2)
    assert source.rendered == 3, "the view ended with its last page"


@pytest.mark.anyio
async def test_a_slow_page_is_sent_everything_anew() -> None:
    """It keeps no messages for a page that does not read them."""
    events, source = bus(), Source()
    view = View(events, None, source.render, Turns())
    woken = asyncio.Event()
    with view.open_page(woken):
        await asyncio.wait_for(woken.wait(), 5)
        state, _ = view.since("")
        for _ in range(KEPT_MESSAGES + 2):
            source.number += 1
            await view._update()
        _, messages = view.since(state)
        assert len(messages) == 1
        assert b'hx-swap-oob="innerHTML"' in messages[0]


@pytest.mark.anyio
async def test_a_message_that_replaces_a_list_counts_more() -> None:
    """So that a flood of tasks, which nobody can follow, leaves the processor to callbacks."""
    shown = iter([rows(a="1"), rows(a="2"), rows(b="2")])

    async def render() -> Fragment:
        return next(shown)

    view = View(bus(), None, render, Turns())
    view._waiting |= {asyncio.Event(), asyncio.Event()}
    counted = []
    for _ in range(3):
        await view._update()
        counted.append(view._sent_bytes)
    first, second = (len(message) for _, message in view._messages)
    assert counted == [0, first * 2, second * 2 * REPLACED_WEIGHT]


@pytest.mark.anyio
async def test_a_view_that_cannot_be_read_goes_on_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage ends no page."""
    monkeypatch.setattr("kling_receiver.web.dashboard.live.RETRY_SECONDS", 0.05)
    events, source = bus(), Source()
    source.fails = True
    view = View(events, None, source.render, Turns())
    woken = asyncio.Event()
    with view.open_page(woken):
        await asyncio.sleep(0.2)
        assert source.rendered > 1
        assert not woken.is_set()
        source.fails = False
        await asyncio.wait_for(woken.wait(), 5)


@pytest.mark.anyio
async def test_views_share_the_time() -> None:
    """Many views together are rendered for a part of the time only, one after the other."""
    turns = Turns()
    running = most = 0

    async def one() -> None:
        nonlocal running, most
        async with turns.turn():
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.02)
            running -= 1

    started = time.monotonic()
    await asyncio.gather(*(one() for _ in range(4)))
    assert most == 1
    assert time.monotonic() - started >= 3 * 0.02 / MAX_SHARE
    waiting = asyncio.create_task(one())
    await asyncio.sleep(0.01)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(one(), 5)


@contextmanager
def listening(browser: Browser, path: str = "/dashboard/live/tasks", **headers: str) -> Iterator[list[str]]:
    """The lines of a page's stream, as they arrive in a thread."""
    lines: list[str] = []

    def read(coming: Iterator[str]) -> None:
        with suppress(httpx.HTTPError):
            while (line := next(coming, None)) is not None:
                lines.append(line)

    with browser.http.stream("GET", f"{browser.base}{path}", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        thread = threading.Thread(target=read, args=(answer.iter_lines(),), daemon=True)
        thread.start()
        yield lines
        # Closing alone would end nothing while the thread reads.
        with suppress(OSError):  # the server has closed it
            answer.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        thread.join(10)


def wait_for(condition: Any, seconds: float = 10) -> None:
    """Wait until a condition is true."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


@pytest.fixture
def running(start: Start) -> Running:
    """A receiver of this test's own."""
    return start(api_base=NO_KLING)


def state_of(page: httpx.Response) -> str:
    """The state that a page names when it connects."""
    found = re.search(r"state=(\w+)", page.text)
    assert found
    return found[1]


def test_a_page_is_told_what_it_lacks(running: Running) -> None:
    """Nothing if it has everything; all of it if it has something else; then each change, with the state after it."""
    register(running, new_id(), request={"prompt": "the first"})
    with Browser(running) as browser:
        page = browser.sign_in().get()
        state = state_of(page)
        with listening(browser, f"/dashboard/live/tasks?state={state}") as lines:
            task_id = new_id()
            time.sleep(INTERVAL_SECONDS)
            assert [line for line in lines if line.startswith("data:")] == []
            register(running, task_id, request={"prompt": "the second"})
            wait_for(lambda: any("the second" in line for line in lines))
            assert not any("the first" in line for line in lines)
        last = next(line.removeprefix("id: ") for line in reversed(lines) if line.startswith("id: "))
        assert last == state_of(browser.get())
        with listening(browser, "/dashboard/live/tasks?state=x") as lines:
            wait_for(lambda: any("the first" in line for line in lines))
        with listening(browser, f"/dashboard/live/tasks?state={state}", **{"Last-Event-ID": last}) as lines:
            time.sleep(INTERVAL_SECONDS)
            assert not any(line.startswith("data:") for line in lines)


def test_the_filter_counts(running: Running) -> None:
    """A page is told only of the tasks that it shows."""
    with Browser(running) as browser:
        browser.sign_in()
        with listening(browser, "/dashboard/live/tasks?tag=wanted&state=x") as lines:
            wait_for(lambda: any(line.startswith("id:") for line in lines))
            register(running, other := new_id(), tags=["other"])
            register(running, wanted := new_id(), tags=["wanted"])
            wait_for(lambda: any(wanted in line for line in lines))
            assert not any(other in line for line in lines)


def test_open_pages_cost_nothing_while_nothing_happens(running: Running) -> None:
    """No statement runs, however many pages are open."""
    with Browser(running) as browser, Browser(running) as other:
        browser.sign_in()
        other.sign_in("read")
        with listening(browser) as lines, listening(other) as more:
            wait_for(lambda: any("data" in line for line in lines) and any("data" in line for line in more))
            time.sleep(INTERVAL_SECONDS * 1.2)
            with statements(running.receiver.store.database) as seen:
                time.sleep(0.3)
            assert seen == []


def test_open_pages_count_as_streams(running: Running) -> None:
    """Beyond the limit a page is refused with a remedy, and keeps trying."""
    running.receiver.store.bus.max_streams = 1
    with Browser(running) as browser:
        browser.sign_in()
        with listening(browser):
            refused = browser.get("/dashboard/live/tasks")
            assert refused.status_code == 503
            assert refused.headers["Retry-After"] == "30"
            assert "Close some pages" in refused.text
        wait_for(lambda: not running.receiver.store.bus.is_full)


def test_a_session_has_few_streams(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """One session cannot take all of them: it is refused, another one is not; a page that is closed makes room."""
    monkeypatch.setattr(live, "MAX_SESSION_STREAMS", 2)
    with Browser(running) as browser, Browser(running) as other:
        browser.sign_in("read")
        other.sign_in("read")
        with listening(browser), listening(browser, "/dashboard/live/tasks?tag=a"):
            refused = browser.get("/dashboard/live/tasks?tag=b")
            assert refused.status_code == 429
            assert "Close some pages" in refused.text
            with listening(other):
                pass
        wait_for(lambda: not running.receiver.store.bus._streams)
        with listening(browser):
            pass


def test_a_shutdown_ends_the_streams_at_once(running: Running) -> None:
    """Without waiting for the next heartbeat."""
    with Browser(running) as browser:
        browser.sign_in()
        with listening(browser) as lines:
            wait_for(lambda: any("data" in line for line in lines))
            started = time.monotonic()
            running.stop()
            assert time.monotonic() - started < 3
            assert not any("session-ended" in line for line in lines)

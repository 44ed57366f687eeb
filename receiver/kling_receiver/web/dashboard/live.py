"""Live pages over SSE: pages that show the same share one renderer, which sends only the elements that changed.

A view renders nothing while no event of its tasks is committed, and ends with its last page.
"""

import asyncio
import hashlib
import logging
import re
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from starlette.responses import Response, StreamingResponse

from kling_receiver.events.bus import HOOKS, EventBus, work_of
from kling_receiver.store.errors import Unavailable
from kling_receiver.web.dashboard.pages import Visit
from kling_receiver.web.errors import ApiError

log = logging.getLogger("kling_receiver.web")

INTERVAL_SECONDS = 0.5
"""Seconds between two messages of a view."""
MAX_SHARE = 0.1
"""The largest share of the time in which views are rendered: under load they are updated less often."""
MAX_BYTES_PER_SECOND = 8_000_000
"""Bytes that all pages are sent: where each update replaces a whole list, many pages are updated less often."""
REPLACED_WEIGHT = 2
"""A message that leaves no row of a list counts as so many: nobody can follow that, and callbacks come first."""
RETRY_SECONDS = 5.0
"""Seconds after which a view that could not be read is rendered again."""
KEPT_MESSAGES = 8
"""Messages that a page may lag behind; a page that is slower is sent everything anew."""
MAX_SESSION_STREAMS = 50
"""Streams of one session: pages that are hidden have none, and each filter of a list is a view with its own memory."""
NO_TASK = ""
"""The id of no task."""
FIRST_TAG = re.compile(r"\s*<([a-z0-9-]+)")


@dataclass(frozen=True, slots=True)
class Fragment:
    """What a page shows live: HTML elements by their `id` attribute.

    `parts`: elements that the page always has. `rows`: the children of the element `rows_id`, in order, which may come
    and go; None for a page without a list. Each text is one element whose `id` attribute is its key. Equal content must
    give equal text, so it contains no age and no signed link.
    """

    parts: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, str] | None = None
    rows_id: str = "rows"
    rows_tag: str = "tbody"

    @property
    def state(self) -> str:
        """A digest of the content. A page names the one that it has when it connects."""
        digest = hashlib.sha256()
        for name, html in (*self.parts.items(), ("", ""), *(self.rows or {}).items()):
            digest.update(f"{len(name)} {name} {len(html)} {html}".encode())
        return digest.hexdigest()[:16]


def changes(old: Fragment | None, new: Fragment) -> str:
    """The HTML that turns a page with one fragment into a page with another: elements for htmx, swapped by id."""
    if old is None:
        return "".join(_oob(html, "true") for html in new.parts.values()) + _replace_rows(new)
    message = [_oob(html, "true") for name, html in new.parts.items() if old.parts.get(name) != html]
    before, after = old.rows or {}, new.rows or {}
    kept, added = [name for name in before if name in after], [name for name in after if name not in before]
    place = "beforeend" if [*kept, *added] == list(after) else "afterbegin"
    if (place == "afterbegin" and [*added, *kept] != list(after)) or (not kept and before != after):
        return "".join(message) + _replace_rows(new)
    for name, html in before.items():
        if name not in after:
            message.append(_alone(f'<{_tag(html)} id="{name}" hx-swap-oob="delete"></{_tag(html)}>'))
    if added:
        html = "".join(after[name] for name in added)
        message.append(_alone(f'<{new.rows_tag} hx-swap-oob="{place}:#{new.rows_id}">{html}</{new.rows_tag}>'))
    message += [_oob(after[name], "true") for name in kept if before[name] != after[name]]
    return "".join(message)


def _common_rows(old: Fragment, new: Fragment) -> set[str]:
    return (old.rows or {}).keys() & (new.rows or {}).keys()


def _replace_rows(fragment: Fragment) -> str:
    if fragment.rows is None:
        return ""
    tag = fragment.rows_tag
    html = "".join(fragment.rows.values())
    return _alone(f'<{tag} id="{fragment.rows_id}" hx-swap-oob="innerHTML">{html}</{tag}>')


def _tag(html: str) -> str:
    match = FIRST_TAG.match(html)
    assert match, "a part is one HTML element"
    return match[1]


def _oob(html: str, how: str) -> str:
    """The element, with htmx's attribute to swap it in at its id."""
    return _alone(FIRST_TAG.sub(rf'<\1 hx-swap-oob="{how}"', html, count=1))


def _alone(html: str) -> str:
    """An element in a template of its own: a parser would drop a <tbody> that follows a <tr>."""
    return f"<template>{html}</template>"


Render = Callable[[], Awaitable[Fragment]]


class View:
    """What some open pages show.

    `task_id`: the only task whose events, jobs and deliveries change it; None: any task's events do.
    `hooks`: changes of hooks, and attempts at deliveries, change it too.
    """

    def __init__(
        self, bus: EventBus, task_id: str | None, render: Render, turns: "Turns", *, hooks: bool = False
    ) -> None:
        self._bus, self._task_id, self._render, self._turns = bus, task_id, render, turns
        self._hooks = hooks
        self._messages: deque[tuple[str, bytes]] = deque(maxlen=KEPT_MESSAGES)
        """The states before each of the last messages, and the messages."""
        self._fragment: Fragment | None = None
        self._state = ""
        self._sent_bytes = 0
        """Of the last message, to all pages; more where it replaced a list."""
        self._waiting: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def open_page(self, woken: asyncio.Event) -> Iterator[None]:
        """Set an event when there may be a message; the view is rendered while any page is open."""
        self._waiting.add(woken)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="dashboard view")
        try:
            yield
        finally:
            self._waiting.discard(woken)
            if not self._waiting:
                self._task.cancel()

    @property
    def is_open(self) -> bool:
        """Whether any page shows it."""
        return bool(self._waiting)

    def since(self, state: str) -> tuple[str, list[bytes]]:
        """The state now, and the messages that lead to it from the state of a page."""
        if self._fragment is None or state == self._state:
            return state, []
        known = [before for before, _ in self._messages]
        if state in known:
            messages = [message for _, message in self._messages]
            return self._state, messages[known.index(state) :]
        return self._state, [_frame(changes(None, self._fragment), self._state)]

    async def _run(self) -> None:
        """Render after each commit that concerns the view: at once, unless the last message was just sent."""
        causes = [self._task_id]
        if self._task_id is not None:
            causes.append(work_of(self._task_id))
        if self._hooks:
            causes.append(HOOKS)
        with self._bus.subscribe(*causes) as woken:
            while not self._bus.closed:
                woken.clear()
                async with self._turns.turn() as turn:
                    problem = await self._update()
                    turn.sent_bytes = self._sent_bytes
                await asyncio.sleep(RETRY_SECONDS if problem else INTERVAL_SECONDS)
                if not problem:
                    await woken.wait()

    async def _update(self) -> bool:
        """Render, and tell the pages what changed. Returns whether that failed."""
        self._sent_bytes = 0
        try:
            fragment = await self._render()
        except (Unavailable, ApiError) as error:
            log.warning("a view of the dashboard could not be rendered: %s", error)
            return True
        except Exception:
            log.exception("a view of the dashboard could not be rendered")
            return True
        if self._fragment is None:
            self._fragment, self._state = fragment, fragment.state
            self._wake()
        elif message := changes(self._fragment, fragment):
            weight = REPLACED_WEIGHT if self._fragment.rows and not _common_rows(self._fragment, fragment) else 1
            before, self._fragment, self._state = self._state, fragment, fragment.state
            self._messages.append((before, _frame(message, self._state)))
            self._sent_bytes = len(self._messages[-1][1]) * len(self._waiting) * weight
            self._wake()
        return False

    def _wake(self) -> None:
        for woken in self._waiting:
            woken.set()


class Turns:
    """Lets one view render at a time, and all of them for at most MAX_SHARE of the time, and MAX_BYTES_PER_SECOND."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._free_at = 0.0

    def turn(self) -> "_Turn":
        """A context in which one view renders."""
        return _Turn(self)


class _Turn:
    def __init__(self, turns: Turns) -> None:
        self._turns, self._started = turns, 0.0
        self.sent_bytes = 0

    async def __aenter__(self) -> Self:
        await self._turns._lock.acquire()
        try:
            await asyncio.sleep(max(self._turns._free_at - time.monotonic(), 0.0))
        except BaseException:
            self._turns._lock.release()
            raise
        self._started = time.monotonic()
        return self

    async def __aexit__(self, *exception: object) -> None:
        now = time.monotonic()
        pause = max((now - self._started) * (1 / MAX_SHARE - 1), self.sent_bytes / MAX_BYTES_PER_SECOND)
        self._turns._free_at = now + pause
        self._turns._lock.release()


class LiveViews:
    """The views that pages have open."""

    def __init__(self, bus: EventBus) -> None:
        self._bus, self._turns = bus, Turns()
        self._views: dict[Hashable, View] = {}
        self._sessions = Counter[str]()
        """Open streams by the session's id."""

    def respond(
        self, visit: Visit, key: Hashable, render: Render, *, task_id: str | None = None, hooks: bool = False
    ) -> Response:
        """The stream of a page. `key`: the same for pages that show the same, so it includes the role and the filter.

        `task_id`, `hooks`: what changes the page, as for a `View`.

        The page says what it has by `?state=`, and after a broken connection by `Last-Event-ID`. The stream ends with
        the session. Raises ApiError when too many streams are open.
        """
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "X-Content-Type-Options": "nosniff"}
        if visit.request.method == "HEAD":
            return Response(media_type="text/event-stream", headers=headers)
        if self._bus.is_full:
            hint = "Close some pages, then reload this one."
            raise ApiError(503, "too_many_streams", "Too many pages and streams are open.", hint, Retry_After="30")
        if self._sessions[visit.session.grant.id] >= MAX_SESSION_STREAMS:
            message = f"This session has {MAX_SESSION_STREAMS} pages open already."
            raise ApiError(429, "too_many_pages", message, "Close some pages, then reload this one.", Retry_After="30")
        state = visit.request.headers.get("Last-Event-ID") or visit.request.query_params.get("state", "")
        frames = self._frames(visit, key, View(self._bus, task_id, render, self._turns, hooks=hooks), state)
        return StreamingResponse(frames, media_type="text/event-stream", headers=headers)

    async def _frames(self, visit: Visit, key: Hashable, new: View, state: str) -> AsyncIterator[bytes]:
        seconds_left = visit.session.seconds_left
        # The end of a session or of the receiver wakes every stream. A commit wakes the view, which wakes its pages.
        with (
            self._bus.subscribe(NO_TASK) as woken,
            self._view(key, new) as view,
            view.open_page(woken),
            self._bus.count_stream(),
            self._count_page(visit.session.grant.id),
        ):
            yield b"retry: 2000\n\n"
            while not self._bus.closed and (left := seconds_left()) > 0:
                woken.clear()
                state, messages = view.since(state)
                for message in messages:
                    yield message
                try:
                    async with asyncio.timeout(min(self._bus.heartbeat, left)):
                        await woken.wait()
                except TimeoutError:
                    yield b":\n\n"
            if not self._bus.closed:
                yield b"event: session-ended\ndata: \n\n"

    @contextmanager
    def _count_page(self, session_id: str) -> Iterator[None]:
        self._sessions[session_id] += 1
        try:
            yield
        finally:
            self._sessions[session_id] -= 1
            if not self._sessions[session_id]:
                del self._sessions[session_id]

    @contextmanager
    def _view(self, key: Hashable, new: View) -> Iterator[View]:
        view = self._views.setdefault(key, new)
        try:
            yield view
        finally:
            if not view.is_open:
                del self._views[key]


def _frame(html: str, state: str) -> bytes:
    lines = html.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # what ends a line of a stream
    data = "".join(f"data: {line}\n" for line in lines)
    return f"id: {state}\nevent: update\n{data}\n".encode()

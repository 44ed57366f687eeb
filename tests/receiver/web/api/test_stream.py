"""Event streams of one task and of all tasks."""

import asyncio
import functools
import math
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from kling_callback.protocol.events import LogPosition
from kling_callback.protocol.ids import new_id
from kling_receiver.app import Receiver, create_app
from kling_receiver.events.bus import EventBus
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import EventRow
from kling_sandbox import Sandbox
from tests.support.api import error_of, get
from tests.support.receiver import Running, make_settings
from tools.harness.submitting import cursor, events, post, register, stream, submit, types


def test_a_stream_has_past_events_then_live_events_until_the_task_is_done(running: Running, gateway: Sandbox) -> None:
    """Each event has an increasing id and its task, and the stream ends after `task.done`."""
    gateway.hold()
    task, kling_id = submit(running, gateway)
    gateway.wait_for(lambda: gateway.tasks[kling_id].posted)
    with stream(running, f"/api/tasks/{task}/events") as coming:
        received = [next(coming) for _ in range(3)]
        gateway.release()
        received += list(coming)
    assert types(received)[0] == "task.created"
    assert types(received)[-1] == "task.done"
    assert types(received).count("callback.received") == 3
    ids = [event["id"] for event in received]
    assert ids == sorted(set(ids))
    assert {event["task"]["id"] for event in received} == {task}
    assert received[-1].keys() == {"id", "log_id", "type", "at", "data", "task"}


def test_a_stream_resumes_after_an_event(running: Running, gateway: Sandbox) -> None:
    """After `Last-Event-ID` or `?after=` it has every later event once, and no earlier one."""
    task, _ = submit(running, gateway)
    all_events = events(running, task)
    for place in (0, 2, len(all_events) - 2):
        last = cursor(all_events[place])
        with stream(running, f"/api/tasks/{task}/events", last) as coming:
            assert [event["id"] for event in coming] == [event["id"] for event in all_events[place + 1 :]]
        with stream(running, f"/api/tasks/{task}/events?after={last}") as coming:
            assert [event["id"] for event in coming] == [event["id"] for event in all_events[place + 1 :]]
    with stream(running, f"/api/tasks/{task}/events", cursor(all_events[-1])) as coming:
        assert list(coming) == []


def test_the_stream_of_all_tasks_has_every_task(running: Running) -> None:
    """Also tasks that are registered after its beginning; `latest` skips past events."""
    old, new = new_id(), new_id()
    register(running, old)
    with stream(running, "/api/events") as all_, stream(running, "/api/events?after=latest") as latest:
        assert next(all_)["task"]["id"] == old
        register(running, new)
        assert next(all_)["task"]["id"] == next(latest)["task"]["id"] == new


def test_many_streams_of_one_task(running: Running) -> None:
    """All are woken. The first id of a stream is where it begins, the others are those of its events."""

    async def follow(http: httpx.AsyncClient, task: str, ready: asyncio.Semaphore) -> list[str]:
        values: list[str] = []
        url = f"{running.url}/api/tasks/{task}/events"
        async with http.stream("GET", url, headers=running.headers()) as response:
            async for line in response.aiter_lines():
                values += re.findall(r"^(?:id|event): (.*)", line)
                if len(values) == 3:
                    ready.release()
                if "task.processing" in line:
                    break
        return values

    async def follow_all() -> list[list[str]]:
        task, ready = new_id(), asyncio.Semaphore(0)
        await asyncio.to_thread(register, running, task)
        async with httpx.AsyncClient(timeout=20) as http:
            streams = [asyncio.create_task(follow(http, task, ready)) for _ in range(40)]
            for _ in streams:
                await ready.acquire()
            await asyncio.to_thread(post, running, task, {"task_status": "processing"})
            return await asyncio.gather(*streams)

    received = asyncio.run(follow_all())
    assert all(values == received[0] for values in received)
    log_id = received[0][0].removesuffix("-0")
    ids = [LogPosition.parse(value) for value in (received[0][0], *received[0][1::2])]
    assert [(each.log_id, each.event_id) for each in ids] == [(log_id, number) for number in range(4)]
    assert received[0][2::2] == ["task.created", "callback.received", "task.processing"]


NO_CURSORS = ["x", "17", "-1", "1.5", "9" * 19, "\u0663".encode().decode("latin-1"), " 1 1 "]
NO_CURSORS += [
    "-17",
    "log-",
    "log-x",
    "LOG-17",
    "log-17-",
    "log-17-x",
    "log-17-1-1",
    f"log-{'9' * 19}",
    f"{'l' * 33}-1",
]


@pytest.mark.parametrize("text", NO_CURSORS)
def test_what_is_no_cursor_is_refused(shared: Running, text: str) -> None:
    """With 422, before a stream begins. The number of an event names no log."""
    assert error_of(get(shared, "/api/events", params={"after": text})) == (422, "bad_event_id")
    with httpx.Client(headers={"Last-Event-ID": "17"}) as http:
        assert error_of(http.get(f"{shared.url}/api/events", headers=shared.headers())) == (422, "bad_event_id")


def test_the_cursor_of_another_log_is_refused(
    running: Running, gateway: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """With 409 and what to do, before a stream begins: of another log, beyond the end, of an event of another time.

    The last two show a restore that was not noticed. The operator's log says so, once, and nothing else changes: any
    client may send such a cursor.
    """
    task, _ = submit(running, gateway)
    happened = events(running, task)
    log_id, last = happened[-1]["log_id"], LogPosition.parse(cursor(happened[-1]))
    assert last.at
    lost = [
        f"{log_id}-{last.event_id + 1}",
        f"{log_id}-{'9' * 18}",
        str(replace(last, at=last.at + 1)),
        f"{log_id}-1-{last.at + 5}",
    ]
    for after in (*lost, f"another{log_id[7:]}-1", "0-0", str(replace(last, log_id="x"))):
        for path in ("/api/events", f"/api/tasks/{task}/events"):
            for answer in (
                get(running, path, params={"after": after}),
                httpx.get(f"{running.url}{path}", headers={**running.headers(), "Last-Event-ID": after}),
            ):
                assert error_of(answer) == (409, "other_log")
                assert "?after=0" in answer.json()["error"]["hint"]
    assert caplog.text.count("run: kling-receiver restored") == 1
    assert events(running, task)[-1]["log_id"] == log_id


def test_each_form_of_a_cursor_is_known(running: Running, gateway: Sandbox) -> None:
    """With and without the time of its event, and the beginning of the log."""
    task, _ = submit(running, gateway)
    happened = events(running, task)
    log_id = happened[0]["log_id"]
    for after, place in (
        ("0", 0),
        (f"{log_id}-0", 0),
        (f"{log_id}-{happened[1]['id']}", 2),
        (cursor(happened[1]), 2),
        ("latest", len(happened)),
    ):
        with stream(running, f"/api/tasks/{task}/events?after={after}") as coming:
            assert [event["id"] for event in coming] == [event["id"] for event in happened[place:]]


def test_head_of_a_stream_ends_at_once(shared: Running) -> None:
    """The connection serves the next request."""
    with httpx.Client(headers=shared.headers(), timeout=5) as http:
        assert http.head(f"{shared.url}/api/events").headers["Content-Type"].startswith("text/event-stream")
        assert http.get(f"{shared.url}/healthz").status_code == 200


@pytest.mark.anyio
async def test_a_silent_stream_sends_comments(tmp_path: Path) -> None:
    """An empty batch is a comment line, which keeps proxies from closing the connection."""

    class SilentBus(EventBus):
        async def follow(
            self, task_id: str | None, after: int, *, seconds_left: Callable[[], float] = lambda: math.inf
        ) -> AsyncIterator[list[EventRow]]:
            yield []

    response = await _follow(tmp_path, SilentBus)
    assert response.text.endswith("\n\n:\n\n")
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.anyio
async def test_a_stream_past_the_limit_is_refused(tmp_path: Path) -> None:
    """With 503 and Retry-After."""
    response = await _follow(tmp_path, functools.partial(EventBus, max_streams=0))
    assert (response.status_code, response.headers["Retry-After"]) == (503, "30")
    assert response.json()["error"]["code"] == "too_many_streams"


async def _follow(tmp_path: Path, new_bus: Callable[[Reader], EventBus]) -> httpx.Response:
    """The response of `/api/events` by a receiver with this event bus."""
    receiver = Receiver(make_settings(tmp_path))
    receiver.store = replace(receiver.store, bus=new_bus(receiver.store.reader))
    receiver.prepare()
    await receiver.start()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(receiver))) as http:
        headers = {"Authorization": Running.headers(receiver)["Authorization"]}  # type: ignore[arg-type]
        response = await http.get("http://receiver/api/events", headers=headers)
    await receiver.stop()
    return response

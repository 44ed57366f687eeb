"""Following a task: one event stream, resumed when it breaks, refused when it is not a receiver's."""

import json
from typing import Any

import anyio
import httpx
import pytest

from kling_callback import AsyncKling, RetryPolicy
from kling_callback.errors import ParameterError, ReceiverError
from kling_callback.protocol.events import MAX_EVENT_BYTES, Event
from tests.support.kling import LOG, Stage, Step, cursor, event, refusal, stream, task_json
from tests.support.wire import Wire, reply

pytestmark = pytest.mark.anyio

RUNNING = task_json("mine", "processing")
DONE = task_json("mine", "succeed", done=True)
BEGIN = event(1, "task.created", RUNNING)
MIDDLE = event(5, "task.processing", RUNNING)
END = event(9, "task.done", DONE)
DOCUMENT = {"id": 1, "log_id": LOG, "type": "task.created", "at": "2026-01-01T00:00:00Z", "task": RUNNING}
NO_IDS: tuple[Any, ...] = (-1, 1.5, True, None, "٣", 10**18, "9" * 5000, float("inf"), float("nan"))
CUT = httpx.ReadError("cut")


async def received(stage: Stage) -> list[Event]:
    async with stage.kling() as kling:
        return [each async for each in kling.attach("mine").events()]


async def test_past_events_come_first_then_live_ones_until_the_last() -> None:
    """All events in order; the stream ends with the last one of the task."""
    stage = Stage(events=[stream(BEGIN, ": heartbeat\n\n", MIDDLE, END, event(10, "more", DONE))])
    events = await received(stage)
    assert [(each.id, each.type, each.ends) for each in events] == [
        (1, "task.created", False),
        (5, "task.processing", False),
        (9, "task.done", True),
    ]
    assert (events[0].at, events[0].data, events[0].task) == ("2026-01-01T00:00:00Z", {}, RUNNING)
    assert stage.order == ["events"]


@pytest.mark.parametrize("name", ["task_id", "external_task_id"])
async def test_a_task_may_be_followed_by_another_of_its_ids(name: str) -> None:
    """The stream is resumed by ours, which never changes; another task's event is refused."""
    alias, end = task_json("ours", **{name: "mine"}), task_json("ours", "succeed", done=True)
    stage = Stage(events=[stream(event(1, "task.created", alias), CUT), stream(event(9, "task.done", end))])
    assert [each.id for each in await received(stage)] == [1, 9]
    paths = [request.url.path for request in stage.requests["events"]]
    assert paths == ["/api/tasks/mine/events", "/api/tasks/ours/events"]
    other = task_json("other", "succeed", done=True, **{name: "ours"})
    with pytest.raises(ReceiverError, match="cannot be read"):
        await received(Stage(events=[stream(event(9, "task.done", other))]))


async def test_events_may_come_in_any_pieces() -> None:
    """Split anywhere by the network, an event is the same."""
    text = (BEGIN + END).encode()
    stage = Stage(events=[stream(*(text[place : place + 7] for place in range(0, len(text), 7)))])
    assert len(await received(stage)) == 2


@pytest.mark.parametrize(
    "trouble",
    [
        [],
        [httpx.ConnectError("restarting")],
        [httpx.ReadTimeout("silent"), refusal(503), httpx.Response(502, content=b"<html>")],
        [stream(), stream(": only a heartbeat\n\n")],
    ],
)
async def test_a_broken_stream_is_resumed(trouble: list[Step]) -> None:
    """Whatever breaks it, the next connection begins after the last event, and no event is repeated."""
    stage = Stage(events=[stream(BEGIN, MIDDLE, CUT), *trouble, stream(MIDDLE, END)])
    assert [each.id for each in await received(stage)] == [1, 5, 9]
    asked = [request.headers.get("Last-Event-ID") for request in stage.requests["events"]]
    assert asked == [None, *[cursor(5)] * (1 + len(trouble))]
    assert set(stage.order) == {"events"}


async def test_an_early_end_is_not_the_end() -> None:
    """After a `task.done` that a later report of Kling replaced, the stream continues."""
    stage = Stage(events=[stream(event(3, "task.done", RUNNING)), stream(END)])
    assert [each.id for each in await received(stage)] == [3, 9]


async def test_a_stream_that_closes_after_the_task_is_done_has_ended() -> None:
    """Even without the last event, no wait is endless."""
    stage = Stage(events=[stream(event(3, "result.stored", DONE))])
    assert [each.id for each in await received(stage)] == [3]


@pytest.mark.parametrize("status", [401, 403, 404, 422])
async def test_a_refusal_is_raised_at_once(status: int) -> None:
    """There is no retry: the token or the id is wrong; the error has the receiver's hint."""
    stage = Stage(events=[refusal(status, "nope", "Look there.")])
    with pytest.raises(ReceiverError) as error:
        await received(stage)
    assert (error.value.http_status, error.value.code, error.value.hint) == (status, "nope", "Look there.")
    assert stage.order == ["events"]


@pytest.mark.parametrize("status", [401, 403, 404, 302])
async def test_a_refusal_by_a_proxy_has_a_hint(status: int) -> None:
    """For a proxy's page, or an empty answer, the message says what to check."""
    stage = Stage(events=[httpx.Response(status, content=b"<html>", headers={"Location": "https://other.test/x"})])
    with pytest.raises(ReceiverError) as error:
        await received(stage)
    assert "KLING_RECEIVER_INTERNAL_URL" in (error.value.hint or "")
    assert ("other.test" in error.value.message) == (status == 302)


@pytest.mark.parametrize(
    "content",
    [
        "data: no json\n\n",
        "data: []\n\n",
        "data: {}\n\n",
        'id: x\ndata: {"task": {"id": "mine", "status": "created"}}\n\n',
        event(1, "task.created", task_json("other")),
        event(1, "task.created", {"id": "mine"}),
        event(1, "task.created", {"id": "mine", "status": "failed", "results": "x"}),
        "data: " + "[" * 100_000 + "\n\n",
        *(f"data: {json.dumps({**DOCUMENT, 'id': wrong})}\n\n" for wrong in NO_IDS),
        *(f"data: {json.dumps({**DOCUMENT, 'log_id': wrong})}\n\n" for wrong in (None, "", "LOG", "a-b", "a" * 33)),
        *(
            f"data: {json.dumps({**DOCUMENT, 'at': wrong})}\n\n"
            for wrong in (None, "", "yesterday", "2026-01-01T00:00:00", "1969-01-01T00:00:00Z", 5)
        ),
        f'data: {json.dumps(DOCUMENT)[:-1]}, "data": {"[" * 400 + "]" * 400}}}\n\n',
    ],
)
async def test_an_answer_that_is_not_an_event_is_an_error(content: str) -> None:
    """Another task's event, or invalid JSON, is not a receiver's; there is no retry."""
    stage = Stage(events=[stream(content)])
    with pytest.raises(ReceiverError) as error:
        await received(stage)
    assert error.value.code == "unreadable"


async def test_an_answer_that_is_not_a_stream_is_an_error() -> None:
    """For a web page at the address, the hint is to check KLING_RECEIVER_URL."""
    with pytest.raises(ReceiverError, match="KLING_RECEIVER_URL"):
        await received(Stage(events=[httpx.Response(200, content=b"<html>")]))


async def test_an_endless_event_is_cut_off() -> None:
    """An event without an end does not fill the memory."""
    piece = b"x" * (MAX_EVENT_BYTES // 8)
    with pytest.raises(ReceiverError) as error:
        await received(Stage(events=[stream("data: ", *[piece] * 9)]))
    assert error.value.code == "unreadable"


async def test_many_events_are_not_an_endless_one() -> None:
    """The limit is per event, not per stream."""
    padded = task_json("mine", "processing", request={"prompt": "x" * (MAX_EVENT_BYTES // 4)})
    stage = Stage(events=[stream(*(event(number, "task.processing", padded) for number in range(1, 7)), END)])
    assert len(await received(stage)) == 7


async def test_a_receiver_that_was_never_reached_ends_the_wait() -> None:
    """Without a timeout, an address that never answered is an error."""
    stage = Stage(events=[httpx.ConnectError("refused")] * 2)
    with pytest.raises(ReceiverError, match="cannot be reached"):
        await received(stage)


async def test_a_receiver_that_answered_before_is_waited_for() -> None:
    """After any successful answer, an unreachable receiver is only away."""
    stage = Stage(events=[*[httpx.ConnectError("refused")] * 20, stream(END)])
    async with stage.kling() as kling:
        task = await kling.task("mine")
        assert [each.id async for each in task.events()] == [9]


async def test_silence_breaks_a_stream() -> None:
    """Without even a heartbeat the connection is dead, and another one is opened."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    whole = reply(200, END.encode(), Content_Type="text/event-stream")
    with Wire(head + BEGIN.encode(), whole, hold=1) as wire:
        retry = RetryPolicy(initial_wait=0, max_wait=0, stream_timeout=0.05)
        async with AsyncKling(api_key="k", receiver_token="t", receiver_url=wire.url, retry=retry) as kling:
            with anyio.fail_after(10):
                assert [each.id async for each in kling.attach("mine").events()] == [1, 9]
    assert f"last-event-id: {cursor(1)}".encode() in wire.requests[1].lower()


async def test_a_task_of_a_restored_database_is_followed_anew() -> None:
    """The receiver refuses the old cursor: the task's events come from the first on, and the wait goes on."""
    restored = "restored10g"
    events = (event(1, "task.created", RUNNING, restored), event(2, "task.done", DONE, restored))
    stage = Stage(events=[stream(BEGIN, MIDDLE, CUT), refusal(409, "other_log"), stream(*events)])
    assert [(each.id, each.log_id) for each in await received(stage)] == [
        (1, LOG),
        (5, LOG),
        (1, restored),
        (2, restored),
    ]
    asked = [request.headers.get("Last-Event-ID") for request in stage.requests["events"]]
    assert asked == [None, cursor(5), None]


async def test_another_conflict_ends_a_wait() -> None:
    """Also one of the same code without a cursor: the wait does not begin anew without end."""
    for stage in (
        Stage(events=[stream(BEGIN, CUT), refusal(409, "conflict")]),
        Stage(events=[stream(BEGIN, CUT), refusal(409, "other_log"), refusal(409, "other_log")]),
    ):
        with pytest.raises(ReceiverError):
            await received(stage)


async def test_the_events_of_all_tasks_end_with_an_error_when_the_log_is_another() -> None:
    """The application decides whether to handle all events again."""
    stage = Stage(all=[stream(event(5, "task.created", RUNNING), CUT), refusal(409, "other_log")])
    async with stage.kling() as kling:
        events = kling.events(after=cursor(4))
        assert (await anext(events)).cursor == cursor(5)
        with pytest.raises(ReceiverError) as error:
            await anext(events)
        with pytest.raises(ParameterError, match="after"):
            await anext(kling.events(after="17"))
    assert error.value.code == "other_log"
    assert [request.headers["Last-Event-ID"] for request in stage.requests["all"]] == [cursor(4), cursor(5)]


async def test_each_connection_has_a_fresh_token() -> None:
    """A token is valid for minutes, a wait may take hours."""
    stage = Stage(events=[stream(BEGIN), stream(END)])
    await received(stage)
    assert all(request.headers["Authorization"] for request in stage.requests["events"])

"""Following a task: one event stream, resumed when it breaks, refused when it is not a receiver's."""

import json
import threading
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio import to_thread

from kling_callback import AsyncKling, Kling, RetryPolicy, TaskFailed
from kling_callback.api.receiver import ReceiverApi
from kling_callback.errors import ParameterError, ReceiverError
from kling_callback.listen.cursor import Cursor
from kling_callback.listen.listener import EventFilter, HandlerResult, listen
from kling_callback.protocol.events import MAX_EVENT_BYTES, Event, LogPosition
from kling_callback.protocol.signing import api_token
from kling_receiver.web import auth
from tests.support.kling import LOG, Stage, Step, cursor, event, refusal, stream, task_json
from tests.support.receiver import KEY, SECRET, Running, Start
from tests.support.wire import Wire, reply
from tools.harness.submitting import poll_until, post, register

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


async def test_a_task_that_was_removed_while_the_stream_was_broken_ends_the_wait() -> None:
    """The receiver refuses the next connection, in its words."""
    stage = Stage(events=[stream(BEGIN, CUT), refusal(404, "unknown_task")])
    async with stage.kling() as kling:
        with anyio.fail_after(10), pytest.raises(ReceiverError, match="It said no") as error:
            await kling.attach("mine").wait()
    assert (error.value.http_status, len(stage.requests["events"])) == (404, 2)


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


def short_lived(kling: AsyncKling, running: Running) -> list[int]:
    """Let a client make tokens that are valid for a second; the list has one item for each that it makes."""
    made: list[int] = []

    def token() -> str:
        made.append(len(made))
        return api_token([SECRET], "client", 1)

    receiver = ReceiverApi(kling._http, running.url, token, RetryPolicy(initial_wait=0.01))
    kling._receiver = receiver
    return made


@pytest.fixture
def receiver(start: Start, monkeypatch: pytest.MonkeyPatch) -> Running:
    """A receiver that also ends the stream of a token which expired on its way, as on a busy machine."""
    monkeypatch.setattr(auth, "LEEWAY_SECONDS", 0)
    return start(api_base="http://127.0.0.1:9")


def settings(running: Running) -> dict[str, Any]:
    """Of a client of this receiver."""
    return {"api_base": "http://127.0.0.1:9", "api_key": KEY, "signing_secrets": SECRET, "receiver_url": running.url}


async def happen(running: Running, made: list[int]) -> None:
    """Events of the task `t`, each once its waiter has made two more of the tokens `made`."""
    await to_thread.run_sync(register, running, "t")
    for count, status in ((2, "submitted"), (4, "processing")):
        await to_thread.run_sync(lambda count=count: poll_until(lambda: len(made) >= count))  # type: ignore[misc]
        await to_thread.run_sync(post, running, "t", {"task_status": status})
    end = {"outcome": "not_created", "reason": "no"}
    await to_thread.run_sync(lambda: register(running, "u", **end))


async def test_a_wait_outlives_its_tokens_without_loss(receiver: Running) -> None:
    """The receiver ends a stream with its token; each event arrives once, in order, by as many streams as it takes."""
    async with AsyncKling(**settings(receiver)) as kling, anyio.create_task_group() as group:
        made = short_lived(kling, receiver)
        group.start_soon(happen, receiver, made)
        seen = []
        async for each in kling.events():
            seen.append((each.id, each.type, each.task["id"]))
            if each.task["id"] == "u" and each.type == "task.done":
                break
    assert [number for number, _, _ in seen] == list(range(1, len(seen) + 1))
    assert [kind for _, kind, task in seen if task == "t" and kind.startswith("task.")] == [
        "task.created",
        "task.submitted",
        "task.processing",
    ]


def test_a_blocking_wait_outlives_its_tokens(receiver: Running) -> None:
    """As the asynchronous one: `wait` returns when the task ends, whatever became of its tokens."""
    register(receiver, "t")
    with Kling(**settings(receiver)) as kling:
        made = short_lived(kling.asynchronous, receiver)

        def end() -> None:
            poll_until(lambda: len(made) >= 3)
            register(receiver, "t", outcome="not_created", reason="no")

        ending = threading.Thread(target=end)
        ending.start()
        with pytest.raises(TaskFailed, match="no"):
            kling.task("t").wait(timeout=30)
        ending.join()


async def test_a_listener_outlives_its_tokens(receiver: Running, tmp_path: Path) -> None:
    """`kling listen` handles each event once, and its cursor is at the last one."""
    cursor = Cursor(tmp_path, receiver.url, "")
    handled: list[int] = []
    warnings: list[str] = []

    async def handle(event: Event) -> HandlerResult:
        handled.append(event.id)
        if event.task["id"] == "u" and event.type == "task.done":
            group.cancel_scope.cancel()
        return HandlerResult()

    async with AsyncKling(**settings(receiver)) as kling, anyio.create_task_group() as group:
        cursor.advance(LogPosition.parse(await kling.last_event()))
        made = short_lived(kling, receiver)
        group.start_soon(happen, receiver, made)
        await listen(
            kling,
            cursor,
            handle,
            event_filter=EventFilter(),
            report=lambda event, result: None,
            warn=warnings.append,
        )
    assert not warnings
    assert handled == list(range(1, len(handled) + 1))


async def test_a_wait_whose_token_cannot_be_renewed_ends(receiver: Running) -> None:
    """With KLING_RECEIVER_TOKEN: revoked while the client waits, it says so and what to do; the task continues."""
    token = api_token([SECRET], "client", 300, name="ci", token_id="1")
    admin = receiver.headers("admin")
    register(receiver, "t")

    async def revoke() -> None:
        async with httpx.AsyncClient() as http:
            await http.delete(f"{receiver.url}/api/tokens/ci", headers=admin)

    async with httpx.AsyncClient() as http:
        added = await http.post(f"{receiver.url}/api/tokens", json={"token": token}, headers=admin)
        assert added.status_code == 201
    given = {**settings(receiver), "receiver_token": token}
    async with AsyncKling(**given, retry=RetryPolicy(initial_wait=0.01)) as kling:
        task = await kling.task("t")
        with pytest.raises(ReceiverError, match="was revoked") as raised:
            await task.wait(timeout=60, on_event=lambda event: revoke())
    assert (raised.value.code, raised.value.http_status) == ("bad_token", 401)
    assert "KLING_RECEIVER_TOKEN" in str(raised.value.hint)


async def test_a_long_stream_is_renewed_at_once() -> None:
    """A stream that ends with its token is no failure: an event that happens meanwhile waits for no backoff."""
    stage = Stage(events=[stream(BEGIN), stream(), stream(), stream(END)])
    policy = RetryPolicy(initial_wait=60, max_wait=0)  # every stream is longer than `max_wait`
    async with stage.kling(retry=policy) as kling:
        with anyio.fail_after(20):
            assert [each.id async for each in kling.attach("mine").events()] == [1, 9]

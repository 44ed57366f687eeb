"""The parts of `kling listen`: its start, the cursor, the POST with retries, the command."""

import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from kling_callback import AsyncKling, KlingError, ReceiverError, verify_hook
from kling_callback.listen.cursor import Cursor
from kling_callback.listen.exec import ExecHandler
from kling_callback.listen.forward import ForwardHandler
from kling_callback.listen.listener import EventFilter, HandlerResult, listen, position_cursor, print_only
from kling_callback.protocol.events import Event, LogPosition
from tests.support.kling import LOG, QUICK, Stage, Step, event, refusal, stream, task_json
from tests.support.kling import cursor as position

pytestmark = pytest.mark.anyio

SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
NOW = 1_800_000_000
HAPPENED = Event(17, "task.done", "2027-01-15T08:00:00.123Z", {"status": "succeed"}, task_json("mine", "succeed"), LOG)


@pytest.fixture
def cursor(tmp_path: Path) -> Cursor:
    return Cursor(tmp_path, "https://receiver.test", "")


def at(number: int) -> LogPosition:
    """The position after an event of the receiver's log."""
    return LogPosition.parse(position(number))


def latest(number: int) -> httpx.Response:
    """The beginning of a stream after this event."""
    return stream(f": hello\nid: {position(number)}\n\n")


@pytest.mark.parametrize(
    ("kept", "first", "begins"),
    [(None, None, 40), (None, 0, 40), (None, 1, 0), (30, None, 30), (30, 0, 40), (30, 17, 16), (40, None, 40)],
)
async def test_the_start_of_a_run(cursor: Cursor, kept: int | None, first: int | None, begins: int) -> None:
    """After the newest event in the first run, then at the cursor, or at the given event."""
    if kept is not None:
        cursor.advance(at(kept))
    messages: list[str] = []
    async with Stage(all=[latest(40)]).kling() as kling:
        await position_cursor(kling, cursor, first, messages.append)
    assert cursor.after
    assert (cursor.after.log_id, cursor.after.event_id, messages) == (LOG, begins, [])


@pytest.mark.parametrize("kept", [position(41), position(1, "another1og"), f"{LOG}-50"])
async def test_the_cursor_of_another_log_starts_over(cursor: Cursor, kept: str) -> None:
    """The receiver's log is read from its first event, with one message."""
    cursor.advance(LogPosition.parse(kept))
    messages: list[str] = []
    async with Stage(all=[latest(40)]).kling() as kling:
        await position_cursor(kling, cursor, None, messages.append)
    assert (cursor.after, len(messages)) == (LogPosition(LOG, 0), 1)


async def test_a_cursor_that_the_receiver_refuses_starts_over(cursor: Cursor) -> None:
    """Its database was restored while the listener ran: each event comes again, after one message."""
    cursor.advance(at(4))
    restored = "restored10g"
    stage = Stage(
        all=[
            stream(event(5, "task.created", task_json())),
            refusal(409, "other_log"),
            stream(f"id: {restored}-2\n\n"),
            stream(*(event(number, "task.created", task_json(), restored) for number in (1, 2))),
            refusal(401),
        ]
    )
    messages: list[str] = []
    seen: list[int] = []
    async with stage.kling() as kling:
        with pytest.raises(ReceiverError):
            await listen(
                kling,
                cursor,
                print_only,
                event_filter=EventFilter(),
                report=lambda each, how: seen.append(each.id),
                warn=messages.append,
            )
    assert (seen, len(messages)) == ([5, 1, 2], 1)
    assert cursor.after == LogPosition.parse(position(2, restored))


async def test_a_receiver_that_refuses_every_cursor_ends_the_listener(cursor: Cursor) -> None:
    """Otherwise it would ask and warn without end and without a pause."""
    cursor.advance(at(4))
    stage = Stage(all=[refusal(409, "other_log"), latest(2), refusal(409, "other_log"), latest(2), refusal(401)])
    messages: list[str] = []
    async with stage.kling() as kling:
        with pytest.raises(ReceiverError) as raised:
            await listen(
                kling,
                cursor,
                print_only,
                event_filter=EventFilter(),
                report=lambda each, how: None,
                warn=messages.append,
            )
    assert (raised.value.code, len(messages)) == ("other_log", 1)


async def test_a_run_cannot_begin_with_an_event_that_does_not_exist(cursor: Cursor) -> None:
    """The receiver would refuse the cursor."""
    async with Stage(all=[latest(40)]).kling() as kling:
        await position_cursor(kling, cursor, 41, print)
    async with Stage(all=[latest(40)]).kling() as kling:
        with pytest.raises(KlingError, match="no event 42"):
            await position_cursor(kling, cursor, 42, print)


@pytest.mark.parametrize("trouble", [[], [refusal(503)], [httpx.ConnectError("restarting")]])
async def test_the_newest_event_s_id(trouble: list[Step]) -> None:
    """Retried while the receiver is busy; the stream is closed."""
    stage = Stage(all=[*trouble, latest(40)])
    async with stage.kling() as kling:
        assert await kling.last_event() == position(40)
    assert {request.url.query for request in stage.requests["all"]} == {b"after=latest"}


async def test_the_stream_of_all_events_is_resumed(cursor: Cursor) -> None:
    """Also after a task is done; no event is repeated, and a stream that closes is not the end."""
    ended = task_json("mine", "succeed", done=True)
    stage = Stage(
        all=[
            stream(event(5, "task.created", task_json("other")), event(6, "task.done", ended)),
            stream(event(6, "task.done", ended), httpx.ReadError("cut")),
            httpx.ConnectError("restarting"),
            stream(event(7, "task.created", task_json("third"))),
            refusal(401),
        ]
    )
    cursor.advance(at(4))
    async with stage.kling() as kling:
        assert [number for number, _ in await listened(kling, cursor, print_only, EventFilter())] == [5, 6, 7]
    asked = [request.headers["Last-Event-ID"] for request in stage.requests["all"]]
    assert asked == [position(number) for number in (4, 6, 6, 6, 7)]


async def listened(
    kling: AsyncKling, cursor: Cursor, handle: Any, event_filter: EventFilter
) -> list[tuple[int, HandlerResult]]:
    """The reported events, until the receiver refuses."""
    reported: list[tuple[int, HandlerResult]] = []
    with pytest.raises(ReceiverError):
        await listen(
            kling,
            cursor,
            handle,
            event_filter=event_filter,
            report=lambda each, how: reported.append((each.id, how)),
            warn=lambda message: None,
        )
    return reported


async def test_the_cursor_advances_after_an_event_is_handled(cursor: Cursor) -> None:
    """Or filtered out; after an error, the next run begins with the same event."""
    tagged = task_json("mine", tags=["spring"])
    happened = [
        event(5, "task.created", tagged),
        event(6, "task.created", task_json()),
        event(7, "task.created", task_json("other", tags=["springs"])),
    ]
    cursor.advance(at(4))
    async with Stage(all=[stream(*happened), refusal(401)]).kling() as kling:
        assert await listened(kling, cursor, print_only, EventFilter(["task.created"], "spring")) == [
            (5, HandlerResult())
        ]
    assert cursor.after == at(7)

    async def fails(_: Event) -> HandlerResult:
        raise KlingError("no")

    async with Stage(all=[stream(event(8, "task.done", tagged))]).kling() as kling:
        with pytest.raises(KlingError):
            await listen(kling, cursor, fails, event_filter=EventFilter(), report=lambda *_: None, warn=print)
    assert cursor.after == at(7)


def test_a_cursor_is_kept(tmp_path: Path) -> None:
    """For each receiver and destination; with its secret, if it has one."""
    one, other = (Cursor(tmp_path, "https://receiver.test", to) for to in ("", "http://localhost:3000"))
    assert (one.after, one.secret(lambda: "first"), one.secret(lambda: "second")) == (None, "first", "first")
    one.advance(at(17))
    again = Cursor(tmp_path, "https://receiver.test", "")
    assert (again.after, again.secret(lambda: "second")) == (at(17), "first")
    assert (other.after, other.secret(lambda: "other")) == (None, "other")
    assert Cursor(tmp_path, "https://another.test", "").after is None
    assert not [path for path in one.path.parent.iterdir() if path.suffix != ".json"]
    assert one.path.parent.stat().st_mode & 0o077 == one.path.stat().st_mode & 0o077 == 0


def test_each_filter_has_a_cursor(tmp_path: Path) -> None:
    """A listener with another filter misses nothing; the order of the types does not matter."""

    def path(*types: str, tag: str | None = None) -> Path:
        return Cursor(tmp_path, "https://receiver.test", "", only=EventFilter(types, tag).key).path

    assert path("task.done", "task.created") == path("task.created", "task.done", "task.done")
    assert path() == Cursor(tmp_path, "https://receiver.test", "").path
    different = [path(), path("task.done"), path(tag="task.done"), path("task.done", tag="x"), path(tag="")]
    assert len(set(different)) == len(different)


def test_a_cursor_has_one_listener(tmp_path: Path) -> None:
    """The other gets an error; after the first has ended, it continues from there."""
    one, other = (Cursor(tmp_path, "https://receiver.test", "") for _ in range(2))
    with one.lock():
        one.advance(at(17))
        with pytest.raises(KlingError, match="--state") as refused, other.lock():
            pass
    assert refused.value.code == "held"
    with other.lock():
        assert other.after == at(17)


@pytest.mark.parametrize(
    "kept", [b"", b"\xff", b"[]", b'{"after": 17}', b'{"after": "17"}', b'{"after": null}', b"[" * 100_000]
)
def test_an_unreadable_cursor_is_an_error(cursor: Cursor, tmp_path: Path, kept: bytes) -> None:
    """Beginning elsewhere instead would miss events."""
    cursor.path.write_bytes(kept)
    with pytest.raises(KlingError, match="--from") as error:
        Cursor(tmp_path, "https://receiver.test", "")
    assert str(cursor.path) in error.value.message


class Target:
    """An application by script; the last answer is repeated."""

    def __init__(self, *steps: int | Exception) -> None:
        self._steps = list(steps)
        self.requests: list[httpx.Request] = []
        self.messages: list[str] = []
        self.now = NOW

    def forward(self) -> Callable[[Event], Any]:
        """The handler that POSTs to it."""
        http = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        return ForwardHandler(
            http, "http://a.test/in", SECRET, report=self.messages.append, retry=QUICK, clock=lambda: self.now
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.now += 60
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        if isinstance(step, Exception):
            raise step
        return httpx.Response(step, headers={"Location": "/elsewhere"})


@pytest.mark.parametrize("status", [200, 202, 204])
async def test_what_is_forwarded(status: int) -> None:
    """The event, signed now; any 2xx is success."""
    target = Target(status)
    assert await target.forward()(HAPPENED) == HandlerResult(str(status))
    (request,) = target.requests
    taken = verify_hook(request.content, request.headers, SECRET, clock=lambda: NOW)
    assert (taken.document, taken.webhook_id) == (HAPPENED.document, f"default_{LOG}-17-1800000000123")


@pytest.mark.parametrize("status", [100, 301, 308, 404, 410, 503])
async def test_any_other_answer_is_a_problem_and_ends_the_event(status: int) -> None:
    """It is sent once; a redirect is not followed."""
    target = Target(status)
    handled = await target.forward()(HAPPENED)
    assert (handled.label, str(status) in handled.problem, len(target.requests)) == (str(status), True, 1)


async def test_a_missing_connection_is_retried() -> None:
    """Without end, with the same id, signed anew each time; reported once."""
    broken = (httpx.ConnectError("refused."), httpx.ConnectTimeout(""), httpx.RemoteProtocolError("x"))
    target = Target(*broken * 10, 200)
    assert await target.forward()(HAPPENED) == HandlerResult("200")
    assert target.messages == ["No answer from http://a.test/in: refused. Event 17 is retried."]
    assert len(target.requests) == 31
    assert len({request.headers["webhook-id"] for request in target.requests}) == 1
    stamps = [int(request.headers["webhook-timestamp"]) for request in target.requests]
    assert stamps == [NOW + 60 * number for number in range(31)]


async def test_an_application_that_answers_too_late_gets_the_event_once() -> None:
    """It has the event, perhaps at a breakpoint: another POST would not help."""
    target = Target(httpx.ReadTimeout(""), 200)
    handled = await target.forward()(HAPPENED)
    assert handled == HandlerResult("no answer", "http://a.test/in did not answer within 15 seconds")
    assert (len(target.requests), target.messages) == (1, [])


@pytest.mark.parametrize("at", ["", "None", "yesterday", "2027-01-15T08:00:00", "9" * 5000])
async def test_an_event_without_a_time_is_an_error(at: str) -> None:
    """Without a time it has no webhook id."""
    target = Target(200)
    with pytest.raises(ReceiverError):
        await target.forward()(Event(17, "task.done", at, {}, task_json(), LOG))
    assert target.requests == []


async def test_a_command_that_is_gone_is_an_error() -> None:
    """It existed when the listener started."""
    with pytest.raises(KlingError, match="no-such-command cannot be run"):
        await ExecHandler(["no-such-command"])(HAPPENED)


async def test_a_command_gets_any_event(tmp_path: Path) -> None:
    """Characters that no environment can hold are removed from it, not from the event; our variables are inherited."""
    odd: dict[str, Any] = {"index": 0, "status": "stored", "href": "a\0b\ud800c", "source_url": "https://x/y?z"}
    results: list[Any] = [odd, {**odd, "index": 1, "href": None}, {"index": 2}]
    happened = Event(1, "x\0", "", {}, task_json("mine", "succeed", results=results), LOG)
    out = tmp_path / "out"
    script = (
        "import json, os, sys; from pathlib import Path; about = {**os.environ}; event = json.load(sys.stdin);"
        f"Path({str(out)!r}).write_text(json.dumps([event, about])); sys.exit(4)"
    )
    handled = await ExecHandler([sys.executable, "-c", script])(happened)
    assert (handled.label, "exit code 4" in handled.problem) == ("exit code 4", True)
    got, about = json.loads(out.read_text())
    assert about.keys() >= os.environ.keys()
    assert (about["KLING_TASK_ID"], about["KLING_EVENT"], about["KLING_FILES"]) == ("mine", "x", "ab?c\n")
    assert got["type"] == "x\0"
    assert got["task"]["results"] == [
        {**odd, "source_url": "https://x/y"},
        {**results[1], "source_url": "https://x/y"},
        *results[2:],
    ]

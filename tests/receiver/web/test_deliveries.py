"""What became of events on their way: lists, retries and replays over the API, on both databases."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from kling_callback.protocol.signing import api_token
from kling_receiver.app import create_app
from kling_receiver.hooks import records as hook_records
from kling_receiver.jobs.queue import NEVER
from kling_receiver.sinks import Delivered, Message, NotDelivered
from tests.support.outgoing import SCHEME, Outgoing, install, outgoing, refusing, taking
from tests.support.receiver import SECRET, make_settings
from tools.harness.submitting import Json

pytestmark = pytest.mark.anyio


class Office(Outgoing):
    """A way out with its API."""

    http: httpx.AsyncClient

    async def call(self, path: str, body: Any = None, *, status: int = 200) -> Json:
        """One request by an admin."""
        given: dict[str, Any] = {} if body is None else {"json": body}
        answer = await self.http.request("GET" if body is None else "POST", f"deliveries{path}", **given)
        assert answer.status_code == status, answer.text
        document: Json = answer.json()
        return document

    async def listed(self, **filters: Any) -> list[tuple[int, str, str]]:
        """Event, hook and state of all deliveries, page by page."""
        found: list[tuple[int, str, str]] = []
        cursor = ""
        while True:
            query = httpx.QueryParams({**filters, "cursor": cursor})
            page = await self.call(f"?{query}")
            found += [(each["event"], each["hook"], each["state"]) for each in page["deliveries"]]
            cursor = page["next"]
            if not cursor:
                return found


@asynccontextmanager
async def opened(way: Outgoing) -> AsyncIterator[Office]:
    """The API of a receiver, without a server."""
    office = Office.__new__(Office)
    office.__dict__ = way.__dict__
    headers = {"Authorization": f"Bearer {api_token((SECRET,), 'admin', 300)}"}
    transport = httpx.ASGITransport(create_app(way.receiver))
    base = "http://127.0.0.1:8000/api"
    async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers) as http:
        office.http = http
        yield office


@pytest.fixture
async def office(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Office]:
    """A receiver that works, and its API."""
    monkeypatch.syspath_prepend(install(tmp_path / "site", SCHEME, "tests.outgoing:open_scripted"))
    async with outgoing(make_settings(tmp_path, database_url=database_url)) as way, opened(way) as office:
        yield office


async def of_all_kinds(office: Office) -> list[int]:
    """Events 1 to 4 and two hooks: `a` has taken 1 and 3, 2 waits, 4 is dead; `b` is paused behind them all."""
    there = office.endpoint("a")
    await office.add(there, schedule=[1000])
    await office.add(office.endpoint("b"))
    await office.change(lambda tx: hook_records.pause(tx, "b", "for a test"))
    ids = await office.happen("one")
    await office.until(lambda: len(there.taken) == 1 and len(office.attempts()) == 1)
    there.answer = refusing
    ids += await office.happen("two")
    await office.until(lambda: len(office.attempts()) == 2)
    await office.pass_(500)
    there.answer = taking
    ids += await office.happen("three")
    await office.until(lambda: len(office.attempts()) == 3)

    async def refused(message: Message) -> Delivered:
        raise NotDelivered("refused: for good", final=True)

    there.answer = refused
    ids += await office.happen("four", task="u")
    await office.until(lambda: len(office.attempts()) == 4)
    return ids


async def test_a_list_of_every_state(office: Office) -> None:
    """Newest event first; by hook, state and task; in pages of any size."""
    one, two, three, four = await of_all_kinds(office)
    everything = [
        (four, "a", "dead"),
        (four, "b", "waiting"),
        (three, "a", "delivered"),
        (three, "b", "waiting"),
        (two, "a", "waiting"),
        (two, "b", "waiting"),
        (one, "a", "delivered"),
        (one, "b", "waiting"),
    ]
    for limit in (1, 2, 3, 7, 8, 200):
        assert await office.listed(limit=limit) == everything
        for state in ("waiting", "delivered", "dead"):
            expected = [each for each in everything if each[2] == state]
            assert await office.listed(limit=limit, state=state) == expected, (limit, state)
        for hook in ("a", "b"):
            expected = [each for each in everything if each[1] == hook]
            assert await office.listed(limit=limit, hook=hook) == expected, (limit, hook)
        assert await office.listed(limit=limit, task="u") == everything[:2]
        assert await office.listed(limit=limit, task="u", hook="a", state="waiting") == []
    assert (await office.call("?hook=nobody", status=404))["error"]["code"] == "unknown_hook"


async def test_one_delivery_with_all_its_attempts(office: Office) -> None:
    """Each with its time, status, latency, and the first bytes of the answer."""
    _, two, three, four = await of_all_kinds(office)
    dead = await office.call(f"/{four}/a")
    [attempt] = dead.pop("attempts")
    assert dead.pop("last") == attempt
    assert dead == {
        "id": f"{four}/a",
        "event": four,
        "hook": "a",
        "type": "four",
        "task": "u",
        "state": "dead",
        "due_at": None,
    }
    assert attempt.pop("ms") >= 0
    assert attempt == {
        "at": attempt["at"],
        "taken": False,
        "status": None,
        "answer": None,
        "error": "refused: for good",
    }
    waiting = await office.call(f"/{two}/a")
    assert (waiting["state"], waiting["last"]["status"]) == ("waiting", 500)
    assert waiting["due_at"] is not None
    assert (await office.call(f"/{three}/a"))["last"]["answer"] == "ok"
    for path in (f"/{four}/nobody", "/99/a", "/x/a", "/-1/a", f"/{'9' * 30}/a", "/²/a"):
        assert (await office.call(path, status=404))["error"]["code"] == "unknown_delivery"


async def test_what_is_sent_again_now(office: Office) -> None:
    """A dead one, one that waits, one that was delivered; of a paused hook when it is resumed."""
    one, two, _, four = await of_all_kinds(office)
    there, paused = office.endpoint("a"), office.endpoint("b")
    await office.receiver.sender.close_hook("a")
    for event in (four, two, one):
        assert (await office.call(f"/{event}/a/retry", {}))["event"] == event
    await office.until(lambda: sorted(there.taken) == [one, two, four] and not office.jobs("hook"))
    await office.call(f"/{one}/b/retry", {})
    await office.until(lambda: [job["due_at"] for job in office.jobs("hook").values()] == [NEVER])
    assert (await office.call(f"/{one}/b"))["due_at"] is None
    assert paused.came == []
    for path in ("/99/a/retry", "/x/a/retry"):
        assert (await office.call(path, {}, status=404))["error"]["code"] == "unknown_delivery"
    assert (await office.call(f"/{one}/nobody/retry", {}, status=404))["error"]["code"] == "unknown_hook"


async def test_all_that_is_dead_is_sent_again(office: Office) -> None:
    """Of one hook, or of all; each has its whole schedule before it again."""
    *_, four = await of_all_kinds(office)
    assert await office.call("/retry", {"hook": "b"}) == {"deliveries": 0}
    there = office.endpoint("a")
    await office.receiver.sender.close_hook("a")
    assert await office.call("/retry", {"hook": "a"}) == {"deliveries": 1}
    await office.until(lambda: there.taken == [four])
    assert await office.call("/retry", {}) == {"deliveries": 0}


async def test_a_replay(office: Office) -> None:
    """From an event on, since a time, or of a task; to all hooks or to one, in order."""
    first = await office.happen("one", "two")
    await office.pass_(60)
    later = await office.happen("three", task="u")
    here, there = office.endpoint("here"), office.endpoint("there")
    await office.add(here, concurrency=1)
    await office.add(there, events=["task.done"])
    answer = await office.call("/replay", {"from": first[1]})
    assert answer == {"hooks": ["here", "there"], "events": 2}
    await office.until(lambda: here.taken == [first[1], *later])
    at = f"2026-09-21T{(office.now // 3_600_000) % 24:02d}:00:00Z"
    assert (await office.call("/replay", {"since": at, "hook": "here"}))["hooks"] == ["here"]
    await office.until(lambda: len(here.taken) == 5)
    assert (await office.call("/replay", {"task": "t"}))["events"] == 2
    await office.until(lambda: here.taken[5:] == first)
    nothing = {"since": "2036-01-01T00:00:00", "hook": "here"}
    assert (await office.call("/replay", nothing)) == {"hooks": ["here"], "events": 0}
    assert (await office.call("/replay", {"from": later[-1] + 1}))["events"] == 0
    await office.until(lambda: not office.jobs("replay"))
    assert there.came == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"from": 1, "task": "t"},
        {"from": 0},
        {"from": "x"},
        {"from": 1 << 70},
        {"since": "yesterday"},
        {"since": ""},
        {"task": "no id"},
        {"task": ""},
        {"from_": 1},
        {"from": 1, "more": 1},
        [],
        "x",
    ],
)
async def test_a_replay_that_cannot_be(office: Office, body: Any) -> None:
    """Is refused with the reason."""
    assert (await office.call("/replay", body, status=422))["error"]["code"] == "bad_order"
    assert office.jobs("replay") == {}


async def test_a_replay_to_nobody(office: Office) -> None:
    """A hook that there is not is said; without any hook, nothing is owed."""
    await office.happen("one")
    assert (await office.call("/replay", {"from": 1, "hook": "x"}, status=404))["error"]["code"] == "unknown_hook"
    assert await office.call("/replay", {"from": 1}) == {"hooks": [], "events": 1}
    assert office.jobs("replay") == {}


@pytest.mark.parametrize("query", ["state=gone", "limit=0", "limit=201", "limit=x", "task=no%20id", "cursor=x"])
async def test_a_filter_that_cannot_be(office: Office, query: str) -> None:
    """Is refused with the reason; several are told at once."""
    said = (await office.call(f"?{query}", status=422))["error"]
    assert (said["code"], query.partition("=")[0] in said["message"]) == ("bad_filter", True)
    both = (await office.call("?state=x&limit=-1", status=422))["error"]["message"]
    assert "`state`" in both
    assert "`limit`" in both


async def test_the_attempts_of_a_removed_hook_stay_on_record(office: Office) -> None:
    """What it had not taken is dropped, and waits no more."""
    one, two, _, four = await of_all_kinds(office)
    await office.change(lambda tx: hook_records.remove(tx, "a"))
    assert await office.listed(hook="a", state="waiting") == await office.listed(hook="a", state="dead") == []
    states = {event: state for event, _, state in await office.listed(hook="a")}
    assert (states[one], states[two], states[four]) == ("delivered", "dropped", "dropped")
    assert await office.listed(hook="a", state="delivered") == [
        each for each in await office.listed(hook="a") if each[2] == "delivered"
    ]

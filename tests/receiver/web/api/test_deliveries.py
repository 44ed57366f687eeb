"""Deliveries over the API: lists, retries and replays."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from kling_callback.protocol.signing import api_token
from kling_receiver.app import create_app
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.deliveries import enqueue_delivery
from kling_receiver.jobs.kinds import Kind
from kling_receiver.jobs.queue import NEVER
from kling_receiver.sinks import Delivered, Message, NotDelivered
from kling_receiver.store.transaction import Transaction
from kling_receiver.web.api.paging import encode_cursor
from tests.support.api import error_of
from tests.support.database import statements
from tests.support.outgoing import Outgoing, accept, install_scripted, outgoing, refuse
from tests.support.receiver import SECRET, Running, make_settings
from tools.harness.submitting import Json, rows

pytestmark = pytest.mark.anyio


class DeliveryApi(Outgoing):
    """A receiver that delivers to scripted endpoints, with its API for role admin."""

    http: httpx.AsyncClient

    async def call(self, path: str, body: Any = None, *, status: int = 200) -> Json:
        """One request: a GET, or a POST if it has a body."""
        content: dict[str, Any] = {} if body is None else {"json": body}
        response = await self.http.request("GET" if body is None else "POST", f"deliveries{path}", **content)
        assert response.status_code == status, response.text
        document: Json = response.json()
        return document

    async def listed(self, **filters: Any) -> list[tuple[int, str, str]]:
        """Event, hook and state of all deliveries, page by page."""
        keys: list[tuple[int, str, str]] = []
        cursor = ""
        while True:
            query = httpx.QueryParams({**filters, "cursor": cursor})
            page = await self.call(f"?{query}")
            keys += [(row["event"], row["hook"], row["state"]) for row in page["deliveries"]]
            cursor = page["next"]
            if not cursor:
                return keys


@asynccontextmanager
async def opened(way: Outgoing) -> AsyncIterator[DeliveryApi]:
    """The API of a receiver, without a server."""
    api = DeliveryApi.__new__(DeliveryApi)
    api.__dict__ = way.__dict__
    headers = {"Authorization": f"Bearer {api_token((SECRET,), 'admin', 300)}"}
    transport = httpx.ASGITransport(create_app(way.receiver))
    base = "http://127.0.0.1:8000/api"
    async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers) as http:
        api.http = http
        yield api


@pytest.fixture
async def api(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DeliveryApi]:
    """A receiver with its worker, and its API."""
    monkeypatch.syspath_prepend(install_scripted(tmp_path / "site"))
    async with outgoing(make_settings(tmp_path, database_url=database_url)) as way, opened(way) as api:
        yield api


async def of_all_states(api: DeliveryApi) -> list[int]:
    """Events 1 to 4 and two hooks: `a` accepted 1 and 3, 2 is pending, 4 is dead; `b` is paused before all of them."""
    endpoint = api.endpoint("a")
    await api.add(endpoint, retry_schedule=[1000])
    await api.add(api.endpoint("b"))
    await api.change(lambda tx: hook_records.pause(tx, "b", "for a test"))
    ids = await api.add_events("one")
    await api.until(lambda: len(endpoint.accepted) == 1 and len(api.attempts()) == 1)
    endpoint.answer = refuse
    ids += await api.add_events("two")
    await api.until(lambda: len(api.attempts()) == 2)
    await api.advance(500)
    endpoint.answer = accept
    ids += await api.add_events("three")
    await api.until(lambda: len(api.attempts()) == 3)

    async def refuse_finally(message: Message) -> Delivered:
        raise NotDelivered("refused: for good", final=True)

    endpoint.answer = refuse_finally
    ids += await api.add_events("four", task="u")
    await api.until(lambda: len(api.attempts()) == 4)
    return ids


async def test_a_list_of_every_state(api: DeliveryApi) -> None:
    """Newest event first; by hook, state and task; in pages of any size."""
    one, two, three, four = await of_all_states(api)
    everything = [
        (four, "a", "dead"),
        (four, "b", "pending"),
        (three, "a", "delivered"),
        (three, "b", "pending"),
        (two, "a", "pending"),
        (two, "b", "pending"),
        (one, "a", "delivered"),
        (one, "b", "pending"),
    ]
    for limit in (1, 2, 3, 7, 8, 200):
        assert await api.listed(limit=limit) == everything
        for state in ("pending", "delivered", "dead"):
            expected = [key for key in everything if key[2] == state]
            assert await api.listed(limit=limit, state=state) == expected, (limit, state)
        for hook in ("a", "b"):
            expected = [key for key in everything if key[1] == hook]
            assert await api.listed(limit=limit, hook=hook) == expected, (limit, hook)
        assert await api.listed(limit=limit, task="u") == everything[:2]
        assert await api.listed(limit=limit, task="u", hook="a", state="pending") == []
    assert (await api.call("?hook=nobody", status=404))["error"]["code"] == "unknown_hook"


async def test_dead_letters_with_ids_of_any_length(api: DeliveryApi) -> None:
    """Newest event first, although 9 is a later text than 10; with a cursor of another hook's list, too."""
    await api.add(api.endpoint("a"), retry_schedule=[])
    await api.change(lambda tx: hook_records.pause(tx, "a", "for a test"))
    events = [event for _ in range(12) for event in await api.add_events("one")]
    row = api.hook("a")

    def give_up(tx: Transaction) -> None:
        for event in events:
            enqueue_delivery(tx, event, row, "t", state="dead", error="for a test")

    await api.change(give_up)
    expected = [(event, "a", "dead") for event in reversed(events)]
    for limit in (1, 5, 11, 12, 200):
        assert await api.listed(limit=limit, hook="a", state="dead") == expected
    for name, first in (("A", 9), ("b", 8)):  # the cursor's own event follows a hook that is listed earlier
        page = await api.call(f"?hook=a&state=dead&limit=2&cursor={encode_cursor((9, name))}")
        assert [each["event"] for each in page["deliveries"]] == [first, first - 1]


async def test_the_attempts_of_a_list_are_found_by_an_index(api: DeliveryApi) -> None:
    """There may be millions of them."""
    await of_all_states(api)
    database = api.receiver.store.database
    with statements(database) as seen:
        await api.listed(hook="a")
    (query,) = {each for each in seen if "FROM delivery_attempt WHERE event_id" in each}
    assert "hook_name) IN" not in query
    if database.is_sqlite:
        with database.read() as connection:
            plan = "; ".join(row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"))
        assert "SEARCH delivery_attempt USING INDEX" in plan


async def test_an_event_is_delivered_to_one_hook_and_dead_at_another(api: DeliveryApi) -> None:
    """The state at one hook does not hide the delivery to the other."""
    good, bad = api.endpoint("a"), api.endpoint("b")
    await api.add(good)
    await api.add(bad, retry_schedule=[])
    bad.answer = refuse
    [event] = await api.add_events("one")
    await api.until(lambda: len(api.attempts()) == 2)
    assert await api.listed(state="delivered") == [(event, "a", "delivered")]
    assert await api.listed(state="dead") == [(event, "b", "dead")]


async def test_one_delivery_with_all_its_attempts(api: DeliveryApi) -> None:
    """Each attempt has its time, duration, status, error, and the first bytes of the response."""
    _, two, three, four = await of_all_states(api)
    dead = await api.call(f"/{four}/a")
    [attempt] = dead.pop("attempts")
    assert dead.pop("last_attempt") == attempt
    assert dead == {
        "id": f"{four}/a",
        "event": four,
        "hook": "a",
        "type": "four",
        "task": "u",
        "state": "dead",
        "next_attempt_at": None,
    }
    assert attempt.pop("duration_ms") >= 0
    assert attempt == {
        "attempted_at": attempt["attempted_at"],
        "delivered": False,
        "response_status": None,
        "response_body": None,
        "error": "refused: for good",
    }
    pending = await api.call(f"/{two}/a")
    assert (pending["state"], pending["last_attempt"]["response_status"]) == ("pending", 500)
    assert pending["next_attempt_at"] is not None
    assert (await api.call(f"/{three}/a"))["last_attempt"]["response_body"] == "ok"
    for path in (f"/{four}/nobody", "/99/a", "/x/a", "/-1/a", f"/{'9' * 30}/a", "/²/a"):
        assert (await api.call(path, status=404))["error"]["code"] == "unknown_delivery"


async def test_one_delivery_is_retried(api: DeliveryApi) -> None:
    """A dead letter, a pending one and a delivered one at once; one to a paused hook when the hook is resumed."""
    one, two, _, four = await of_all_states(api)
    endpoint, paused = api.endpoint("a"), api.endpoint("b")
    await api.receiver.work.sender.close_hook("a")
    for event in (four, two, one):
        assert (await api.call(f"/{event}/a/retry", {}))["event"] == event
    await api.until(lambda: sorted(endpoint.accepted) == [one, two, four] and not api.jobs(Kind.DELIVERY))
    await api.call(f"/{one}/b/retry", {})
    await api.until(lambda: [job["due_at"] for job in api.jobs(Kind.DELIVERY).values()] == [NEVER])
    assert (await api.call(f"/{one}/b"))["next_attempt_at"] is None
    assert paused.received == []
    for path in ("/99/a/retry", "/x/a/retry"):
        assert (await api.call(path, {}, status=404))["error"]["code"] == "unknown_delivery"
    assert (await api.call(f"/{one}/nobody/retry", {}, status=404))["error"]["code"] == "unknown_hook"


async def test_all_dead_letters_are_retried(api: DeliveryApi) -> None:
    """Those of one hook, or of all hooks; each begins its retry schedule again."""
    *_, four = await of_all_states(api)
    assert await api.call("/retry", {"hook": "b"}) == {"deliveries": 0}
    endpoint = api.endpoint("a")
    await api.receiver.work.sender.close_hook("a")
    assert await api.call("/retry", {"hook": "a"}) == {"deliveries": 1}
    await api.until(lambda: endpoint.accepted == [four])
    assert await api.call("/retry", {}) == {"deliveries": 0}


async def test_a_replay(api: DeliveryApi) -> None:
    """From an event on, since a time, or of a task; to all hooks or to one, in order."""
    first = await api.add_events("one", "two")
    await api.advance(60)
    later = await api.add_events("three", task="u")
    all_events, done_only = api.endpoint("all-events"), api.endpoint("done-only")
    await api.add(all_events, concurrency=1)
    await api.add(done_only, events=["task.done"])
    answer = await api.call("/replay", {"from": first[1]})
    assert answer == {"hooks": ["all-events", "done-only"], "events": 2}
    await api.until(lambda: all_events.accepted == [first[1], *later])
    at = f"2026-09-21T{(api.now // 3_600_000) % 24:02d}:00:00Z"
    assert (await api.call("/replay", {"since": at, "hook": "all-events"}))["hooks"] == ["all-events"]
    await api.until(lambda: len(all_events.accepted) == 5)
    assert (await api.call("/replay", {"task": "t"}))["events"] == 2
    await api.until(lambda: all_events.accepted[5:] == first)
    future = {"since": "2036-01-01T00:00:00", "hook": "all-events"}
    assert (await api.call("/replay", future)) == {"hooks": ["all-events"], "events": 0}
    assert (await api.call("/replay", {"from": later[-1] + 1}))["events"] == 0
    await api.until(lambda: not api.jobs(Kind.REPLAY))
    assert done_only.received == []


def call(running: Running, method: str, path: str, **content: Any) -> httpx.Response:
    """One request with role admin."""
    return httpx.request(method, f"{running.url}/api/deliveries{path}", headers=running.headers("admin"), **content)


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
def test_an_invalid_replay_is_refused(shared: Running, body: Any) -> None:
    """With the reason, and nothing is enqueued."""
    assert error_of(call(shared, "POST", "/replay", json=body)) == (422, "bad_request")
    assert rows(shared, "SELECT * FROM job WHERE kind = :kind", kind=Kind.REPLAY) == []


async def test_a_replay_to_an_unknown_hook_is_refused(api: DeliveryApi) -> None:
    """If there are no hooks at all, the replay enqueues nothing."""
    await api.add_events("one")
    assert (await api.call("/replay", {"from": 1, "hook": "x"}, status=404))["error"]["code"] == "unknown_hook"
    assert await api.call("/replay", {"from": 1}) == {"hooks": [], "events": 1}
    assert api.jobs(Kind.REPLAY) == {}


@pytest.mark.parametrize("query", ["state=gone", "limit=0", "limit=201", "limit=x", "task=no%20id", "cursor=x"])
def test_an_invalid_filter_is_refused(shared: Running, query: str) -> None:
    """With the reason; several problems are reported at once."""
    response = call(shared, "GET", f"?{query}")
    assert error_of(response) == (422, "bad_filter")
    assert query.partition("=")[0] in response.json()["error"]["message"]
    both = call(shared, "GET", "?state=x&limit=-1").json()["error"]["message"]
    assert "`state`" in both
    assert "`limit`" in both


async def test_the_attempts_of_a_removed_hook_stay_on_record(api: DeliveryApi) -> None:
    """Deliveries that it did not accept are dropped, and are no longer pending."""
    one, two, _, four = await of_all_states(api)
    await api.change(lambda tx: hook_records.remove(tx, "a"))
    assert await api.listed(hook="a", state="pending") == await api.listed(hook="a", state="dead") == []
    states = {event: state for event, _, state in await api.listed(hook="a")}
    assert (states[one], states[two], states[four]) == ("delivered", "dropped", "dropped")
    assert await api.listed(hook="a", state="delivered") == [
        key for key in await api.listed(hook="a") if key[2] == "delivered"
    ]

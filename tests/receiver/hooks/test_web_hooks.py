"""Hooks on the web: every event is POSTed, signed, until it is taken or dead."""

import base64
import itertools
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

from kling_callback.protocol.webhooks import sign
from kling_receiver.hooks import deliveries
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import DEFAULT_SCHEDULE
from kling_receiver.hooks.deliveries import DeliveryAttempt
from kling_receiver.hooks.sender import Sender
from kling_receiver.net.client import GuardedClient
from kling_receiver.net.guard import Allowlist
from kling_receiver.sinks import Message, NotDelivered
from kling_receiver.sinks.http import HttpSink
from kling_receiver.store.rows import EventRow
from kling_sandbox import Sandbox
from tests.support.outgoing import PATIENCE, Outgoing, outgoing
from tests.support.receiver import Start, make_settings
from tests.support.web import Host, Visit, host
from tools.harness.submitting import events, metric, register, submit

HOOK_SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
NEXT_SECRET = "whsec_" + base64.b64encode(b"the-next-secret-for-these-tests.").decode()


@pytest.fixture
def endpoint() -> Iterator[Host]:
    """A hook that takes everything."""
    with host(lambda visit: visit.answer(204)) as there:
        yield there


def test_every_event_reaches_the_hook(start: Start, gateway: Sandbox, endpoint: Host) -> None:
    """Signed so that the standard's own package verifies it, in the shape that the API shows."""
    running = start(api_base=gateway.url, hook_url=f"{endpoint.url}/in?token=1", hook_secret=HOOK_SECRET)
    task, _ = submit(running, gateway)
    happened = {event["id"]: event for event in events(running, task)}
    visits = endpoint.wait_for(len(happened))
    told = [Webhook(HOOK_SECRET).verify(visit.body, dict(visit.headers)) for visit in visits]
    assert {each["id"] for each in told} == happened.keys()
    for each, visit in zip(told, visits, strict=True):
        assert each.keys() == {"id", "type", "at", "data", "task"}
        assert (each["type"], each["data"]) == (happened[each["id"]]["type"], happened[each["id"]]["data"])
        assert each["task"]["id"] == task
        at = datetime.fromisoformat(each["at"]) - datetime.fromtimestamp(0, UTC)
        name = f"default_{each['id']}_{at // timedelta(milliseconds=1)}"
        assert visit.headers["webhook-id"] == name
        assert visit.headers["User-Agent"] == f"kling-callback/{version('kling-callback')}"
        assert (visit.method, visit.path) == ("POST", "/in?token=1")
        assert visit.headers["Content-Type"] == "application/json"
    assert metric(running, 'kling_deliveries_total{outcome="delivered"}') >= len(happened) - 1


def test_an_event_that_was_not_taken_comes_again(start: Start, gateway: Sandbox) -> None:
    """The second attempt has the same id and body; others do not wait for it."""
    refused: list[str] = []

    def respond(visit: Visit) -> None:
        name = visit.headers["webhook-id"]
        visit.answer(204 if (refused and name != refused[0]) or visit.count > 3 else 500)
        refused.append(name)

    with host(respond) as there:
        running = start(api_base=gateway.url, hook_url=there.url, hook_secret=HOOK_SECRET)
        task, _ = submit(running, gateway)
        happened = events(running, task)
        visits = there.wait_for(len(happened) + 1)
        again = [visit for visit in visits if visit.headers["webhook-id"] == refused[0]]
        assert len(again) == 2
        first, second = (json.loads(visit.body) for visit in again)
        assert (first["id"], first["type"], first["data"]) == (second["id"], second["type"], second["data"])


def test_a_hook_for_one_task(start: Start, gateway: Sandbox, endpoint: Host) -> None:
    """Named when the task is registered, signed with the receiver's own secret; others are not told there."""
    running = start(api_base=gateway.url, hook_secret=HOOK_SECRET)
    task, _ = submit(running, gateway, hook=endpoint.url)
    assert register(running, task, hook=endpoint.url).status_code == 200
    other, _ = submit(running, gateway)
    events(running, other)
    happened = events(running, task)
    visits = endpoint.wait_for(len(happened))
    told = [Webhook(HOOK_SECRET).verify(visit.body, dict(visit.headers)) for visit in visits]
    assert sorted(each["id"] for each in told) == [each["id"] for each in happened]


@pytest.mark.parametrize(
    ("given", "secret", "said"),
    [
        ({"hook": "http://10.0.0.1/"}, HOOK_SECRET, "is not a public address"),
        ({"hook": "command:ls"}, HOOK_SECRET, "only http and https"),
        ({"hook": "https://x.example/"}, "", "no secret to sign with"),
        ({"hook": "x" * 2001}, HOOK_SECRET, "hook: "),
    ],
)
def test_a_hook_for_one_task_is_refused(start: Start, given: dict[str, Any], secret: str, said: str) -> None:
    """When the task is registered, with the reason; the task is not."""
    running = start(api_base="http://127.0.0.1:9", hook_secret=secret)
    answer = register(running, "t", **given)
    assert answer.status_code == 422
    assert said in answer.json()["error"]["message"]
    assert register(running, "t").status_code == 201


class Delivery:
    """A hook without a worker; attempts are made by hand."""

    def __init__(self, way: Outgoing, event: EventRow) -> None:
        self.way, self.event = way, event

    async def attempt(
        self, url: str, count: int = 1, *, allowed: str = "127.0.0.1", name: str = "hook", **given: Any
    ) -> DeliveryAttempt:
        """One attempt."""
        receiver, outbound = self.way.receiver, GuardedClient(Allowlist.parse([allowed]))
        sender = Sender(
            outbound,
            outbound,
            receiver.storage,
            receiver.payloads,
            receiver.metrics,
            source="https://receiver.test",
            secret=HOOK_SECRET,
            clock=lambda: self.way.now / 1000,
        )
        if not given.pop("known", False):
            await self.way.change(lambda tx: hook_records.remove(tx, name))
            await self.way.add(url, name=name, **{"secret": HOOK_SECRET, **given})
        hook = self.way.hook(name)
        attempt = await sender.attempt(
            await sender.acquire_slot(hook), hook, self.event, await self.way.detail(), count=count
        )
        await sender.close()
        await outbound.close()
        return attempt

    async def rotate(self, secret: str, overlap: float, *, name: str = "hook") -> str | None:
        """Give the hook another secret."""
        return await self.way.change(lambda tx: hook_records.rotate(tx, name, secret, overlap=overlap))


@pytest.fixture
async def delivery(tmp_path: Path) -> AsyncIterator[Delivery]:
    """A receiver with one event to deliver."""
    async with outgoing(make_settings(tmp_path), work=False) as way:
        await way.add_events("task.created")
        event = await way.receiver.reader.event(1)
        assert event
        yield Delivery(way, event)


@pytest.mark.anyio
@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_2xx_takes_the_event(delivery: Delivery, status: int) -> None:
    """Whatever its body; the first bytes of it are kept."""
    body = b"" if status == 204 else b"\xff\0" * 999
    with host(lambda visit: visit.answer(status, body)) as there:
        attempt = await delivery.attempt(there.url)
        assert (attempt.delivered, attempt.response_status, attempt.retry_at) == (True, status, None)
        assert attempt.response_body == ("" if status == 204 else "\ufffd\0" * 500)
        assert there.visits[0].headers["webhook-timestamp"] == "1790000000"
    await delivery.way.change(lambda tx: deliveries.save_attempts(tx, [attempt]))
    [kept] = delivery.way.attempts()
    assert "\0" not in kept["response_body"]


@pytest.mark.anyio
@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 408, 429, 500, 503])
async def test_anything_else_is_a_failure(delivery: Delivery, status: int) -> None:
    """A redirect too: it is not followed. After the last attempt the event is dead."""
    with host(lambda visit: visit.answer(status, Location=f"{there.url}/elsewhere")) as there:
        for count, step in enumerate(DEFAULT_SCHEDULE, 1):
            attempt = await delivery.attempt(there.url, count)
            assert attempt.retry_at
            wait = (attempt.retry_at - attempt.attempted_at - attempt.duration_ms) / 1000
            assert step / 2 - 0.001 <= wait <= step
        last = await delivery.attempt(there.url, len(DEFAULT_SCHEDULE) + 1)
        assert (last.delivered, last.response_status, last.retry_at, last.gone) == (False, status, None, False)
        assert {visit.path for visit in there.visits} == {"/"}
        assert there.url not in last.error


@pytest.mark.anyio
async def test_the_hooks_own_schedule(delivery: Delivery) -> None:
    """In the place of the usual one; an empty one tries once."""
    with host(lambda visit: visit.answer(500)) as there:
        attempt = await delivery.attempt(there.url, 2, retry_schedule=[1, 1000])
        assert attempt.retry_at
        assert 499 <= (attempt.retry_at - attempt.attempted_at - attempt.duration_ms) / 1000 <= 1000
        assert (await delivery.attempt(there.url, 3, retry_schedule=[1, 1000])).retry_at is None
        assert (await delivery.attempt(there.url, 1, retry_schedule=[])).retry_at is None


@pytest.mark.anyio
async def test_a_hook_that_is_gone_keeps_the_event(delivery: Delivery) -> None:
    """410 says that nobody will ever be there; the event waits for whoever knows better."""
    with host(lambda visit: visit.answer(410)) as there:
        attempt = await delivery.attempt(there.url, len(DEFAULT_SCHEDULE) + 1)
    assert (attempt.delivered, attempt.gone, attempt.retry_at) == (False, True, attempt.attempted_at)


@pytest.mark.anyio
@pytest.mark.parametrize(("said", "least"), [("120", 120), ("999999", 3600), ("soon", 2.5), ("-5", 2.5)])
async def test_retry_after_is_respected(delivery: Delivery, said: str, least: float) -> None:
    """In seconds, up to an hour; nonsense is as if nothing were said."""
    with host(lambda visit: visit.answer(503, Retry_After=said)) as there:
        attempt = await delivery.attempt(there.url)
    assert attempt.retry_at
    wait = (attempt.retry_at - attempt.attempted_at - attempt.duration_ms) / 1000
    assert least - 0.001 <= wait <= max(least, DEFAULT_SCHEDULE[0])


@pytest.mark.anyio
@pytest.mark.parametrize("allowed", ["10.0.0.0/8", "127.0.0.1:1"])
async def test_a_forbidden_address_is_dead_at_once(delivery: Delivery, endpoint: Host, allowed: str) -> None:
    """Nothing is sent, and trying again would not help."""
    attempt = await delivery.attempt(endpoint.url, allowed=allowed)
    assert (attempt.delivered, attempt.retry_at) == (False, None)
    assert "is not a public address" in attempt.error
    assert endpoint.visits == []


def silent(visit: Visit) -> None:
    """Closes without an answer."""


def garbage(visit: Visit) -> None:
    """Answers something that is not HTTP."""
    visit.send(b"\0\1\2\r\n\r\n")


def half(visit: Visit) -> None:
    """Closes amid the head of its answer."""
    visit.send(b"HTTP/1.1 200 OK\r\nX-Half: ")


@pytest.mark.anyio
@pytest.mark.parametrize("respond", [silent, garbage, half])
async def test_a_hook_that_speaks_no_http(delivery: Delivery, respond: Callable[[Visit], Any]) -> None:
    """Is tried again like one that is down."""
    with host(respond) as there:
        attempt = await delivery.attempt(there.url)
    assert (attempt.delivered, attempt.response_status) == (False, None)
    assert attempt.retry_at


@pytest.mark.anyio
async def test_only_the_hook_s_time_limit_says_how_long_it_may_be_silent() -> None:
    """Not the client's own; as it is at each attempt."""
    over = threading.Event()
    outbound, limits = GuardedClient(Allowlist.parse(["127.0.0.1"])), iter([0.05, PATIENCE])
    message = Message("hook_1_1", {}, b"{}", "https://receiver.test")

    def respond(visit: Visit) -> None:
        if visit.count == 0:
            assert over.wait(PATIENCE)
        else:
            visit.answer(200)

    with host(respond) as there:
        sink = HttpSink(there.url, list, outbound, timeout=lambda: next(limits))
        with pytest.raises(NotDelivered, match=r"^the host sent nothing for 0\.05 s$"):
            await sink.send(message)
        assert (await sink.send(message)).status == 200
        over.set()
    await outbound.close()


@pytest.mark.anyio
async def test_a_head_without_end_is_cut_off(delivery: Delivery) -> None:
    """By the hook's time limit, however much keeps coming."""
    stop = threading.Event()

    def respond(visit: Visit) -> None:
        visit.send(b"HTTP/1.1 200 OK\r\n")
        for n in itertools.count():
            if stop.wait(0.01):
                return
            visit.send(f"X-{n}: x\r\n".encode())

    with host(respond) as there:
        attempt = await delivery.attempt(there.url, timeout=0.3)
        stop.set()
    assert (attempt.delivered, attempt.error) == (False, "the hook did not answer within 0.3 s")


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1, 100_000])
async def test_a_body_without_end_does_not_matter(delivery: Delivery, size: int) -> None:
    """The status has said it all: slow or fast, the rest is not waited for."""
    stop = threading.Event()

    def respond(visit: Visit) -> None:
        visit.begin(200)
        while not stop.wait(0.01):
            visit.send(b"x" * size)

    with host(respond) as there:
        attempt = await delivery.attempt(there.url)
        stop.set()
    assert (attempt.delivered, attempt.response_status) == (True, 200)
    assert len(attempt.response_body) <= 1000


@pytest.mark.anyio
async def test_the_old_secret_signs_too_until_the_overlap_ends(delivery: Delivery, endpoint: Host) -> None:
    """Whoever verifies by either takes the event; afterwards by the new one only."""
    way = delivery.way
    await delivery.attempt(endpoint.url)
    assert await delivery.rotate(NEXT_SECRET, 60) == NEXT_SECRET
    await delivery.attempt(endpoint.url, known=True)
    way.now += 60_000
    await delivery.attempt(endpoint.url, known=True)
    signatures = [signed_by(visit) for visit in endpoint.visits]
    assert signatures == [[HOOK_SECRET], [NEXT_SECRET, HOOK_SECRET], [NEXT_SECRET]]
    assert len({visit.headers["webhook-id"] for visit in endpoint.visits}) == 1


def signed_by(visit: Visit) -> list[str]:
    """The secrets by which a message is signed, in the order of its signatures."""
    name, at = visit.headers["webhook-id"], int(visit.headers["webhook-timestamp"])
    known = {sign(secret, name, at, visit.body): secret for secret in (HOOK_SECRET, NEXT_SECRET)}
    return [known[each] for each in visit.headers["webhook-signature"].split()]


@pytest.mark.anyio
async def test_secrets_that_follow_each_other_fast(delivery: Delivery, endpoint: Host) -> None:
    """Each ends when it was to end, none later; the same one again changes nothing."""
    way = delivery.way
    await delivery.attempt(endpoint.url)
    for secret, overlap in ((NEXT_SECRET, 10), (NEXT_SECRET, 99), (HOOK_SECRET, 60)):
        await delivery.rotate(secret, overlap)
    assert way.hook("hook")["secrets"] == [[HOOK_SECRET, None], [NEXT_SECRET, way.now + 60_000]]
    made = await delivery.rotate("", 0)
    assert made is not None
    assert hook_records.active_secrets(way.hook("hook"), way.now) == [made]


@pytest.mark.anyio
async def test_a_hook_without_a_secret_has_none_to_rotate(delivery: Delivery) -> None:
    """A command's, and one that there is not."""
    await delivery.way.add("command:true", name="command")
    for name in ("command", "nobody"):
        assert await delivery.rotate("", 0, name=name) is None

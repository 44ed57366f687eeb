"""The way out: every event is POSTed, signed, until it is taken or dead."""

import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from gateway import Sandbox
from standardwebhooks.webhooks import Webhook

from client.ids import new_id
from receiver.app import Receiver
from receiver.creates import Registration, register
from receiver.outbound import Allowed, Outbound
from receiver.outbox import Claimed, Done, GiveUp, Outcome, RetryAt
from tests.conftest import Start, make_settings
from tests.hosts import Host, Visit, host
from tests.submitting import counted, events, submit

HOOK_SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()


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
        assert visit.headers["webhook-id"] == f"hook_{each['id']}_{at // timedelta(milliseconds=1)}"
        assert visit.headers["User-Agent"] == f"kling-callback/{version('kling-callback')}"
        assert (visit.method, visit.path) == ("POST", "/in?token=1")
        assert visit.headers["Content-Type"] == "application/json"
    assert counted(running, 'kling_deliveries_total{outcome="delivered"}') >= len(happened) - 1


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


class Delivery:
    """A hook without a worker; attempts are made by hand."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver, self.now = receiver, 1_800_000_000.0

    async def attempt(
        self, url: str, attempts: int = 1, *, event: int = 1, allowed: str = "127.0.0.1"
    ) -> Outcome:
        """What one attempt comes to."""
        outbound = Outbound(Allowed.parse([allowed]))
        hook = Hook(
            url,
            HOOK_SECRET,
            outbound=outbound,
            reader=self.receiver.reader,
            views=self.receiver.views,
            metrics=self.receiver.metrics,
            clock=lambda: self.now,
        )
        decide = await hook.deliver(Claimed(1, f"hook/{event}", "hook", "", "hook", None, attempts, "claim"))
        await outbound.close()
        outcome: Outcome = await self.receiver.writer.run(lambda tx: decide(tx))
        return outcome


@pytest.fixture
async def delivery(tmp_path: Path) -> AsyncIterator[Delivery]:
    """A receiver with one event to deliver."""
    receiver = Receiver(make_settings(tmp_path))
    receiver.prepare()
    await receiver.start()
    await receiver.writer.run(lambda tx: register(tx, Registration(new_id(), "x", attempt="one")))
    yield Delivery(receiver)
    await receiver.stop()


@pytest.mark.anyio
@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_2xx_takes_the_event(delivery: Delivery, status: int) -> None:
    """Whatever its body."""
    with host(lambda visit: visit.answer(status, b"" if status == 204 else b"\xff" * 99)) as there:
        assert isinstance(await delivery.attempt(there.url), Done)
        assert there.visits[0].headers["webhook-timestamp"] == "1800000000"


@pytest.mark.anyio
@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 408, 429, 500, 503])
async def test_anything_else_is_a_failure(delivery: Delivery, status: int) -> None:
    """A redirect too: it is not followed. After the last attempt the event is dead."""
    with host(lambda visit: visit.answer(status, Location=f"{there.url}/elsewhere")) as there:
        for attempts in range(1, len(AGAIN.steps) + 1):
            outcome = await delivery.attempt(there.url, attempts)
            assert isinstance(outcome, RetryAt)
            wait, step = outcome.due_at / 1000 - delivery.now, AGAIN.steps[attempts - 1]
            assert step / 2 <= wait <= step
        last = await delivery.attempt(there.url, len(AGAIN.steps) + 1)
        assert isinstance(last, GiveUp)
        assert {visit.path for visit in there.visits} == {"/"}
        assert there.url not in last.error


@pytest.mark.anyio
async def test_a_hook_that_is_gone_is_not_tried_again(delivery: Delivery) -> None:
    """410 says that nobody will ever be there."""
    with host(lambda visit: visit.answer(410)) as there:
        assert isinstance(await delivery.attempt(there.url), GiveUp)


@pytest.mark.anyio
@pytest.mark.parametrize(("said", "least"), [("120", 120), ("999999", 3600), ("soon", 2.5), ("-5", 2.5)])
async def test_retry_after_is_respected(delivery: Delivery, said: str, least: float) -> None:
    """In seconds, up to an hour; nonsense is as if nothing were said."""
    with host(lambda visit: visit.answer(503, Retry_After=said)) as there:
        outcome = await delivery.attempt(there.url)
    assert isinstance(outcome, RetryAt)
    assert least <= outcome.due_at / 1000 - delivery.now <= max(least, AGAIN.steps[0])


@pytest.mark.anyio
@pytest.mark.parametrize("allowed", ["10.0.0.0/8", "127.0.0.1:1"])
async def test_a_forbidden_address_is_dead_at_once(delivery: Delivery, endpoint: Host, allowed: str) -> None:
    """Nothing is sent, and trying again would not help."""
    outcome = await delivery.attempt(endpoint.url, allowed=allowed)
    assert isinstance(outcome, GiveUp)
    assert endpoint.visits == []


def silent(visit: Visit) -> None:
    """Closes without an answer."""


def garbage(visit: Visit) -> None:
    """Answers something that is not HTTP."""
    visit.send(b"\0\1\2\r\n\r\n")


@pytest.mark.anyio
@pytest.mark.parametrize("respond", [silent, garbage])
async def test_a_hook_that_speaks_no_http(delivery: Delivery, respond: Callable[[Visit], Any]) -> None:
    """Is tried again like one that is down."""
    with host(respond) as there:
        assert isinstance(await delivery.attempt(there.url), RetryAt)


@pytest.mark.anyio
async def test_an_event_that_is_no_more_is_not_owed(delivery: Delivery, endpoint: Host) -> None:
    """There is nothing to tell."""
    assert isinstance(await delivery.attempt(endpoint.url, event=99), Done)
    assert endpoint.visits == []

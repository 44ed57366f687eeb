"""Hooks that are web addresses: each event is POSTed, signed, until it is delivered or dead."""

import base64
import itertools
import json
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
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
from tools.harness.submitting import events, metric, submit

HOOK_SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
NEXT_SECRET = "whsec_" + base64.b64encode(b"the-next-secret-for-these-tests.").decode()


@pytest.fixture
def endpoint() -> Iterator[Host]:
    """A hook that accepts every event."""
    with host(lambda visit: visit.answer(204)) as server:
        yield server


def test_every_event_reaches_the_hook(start: Start, gateway: Sandbox, endpoint: Host) -> None:
    """Signed so that the package of Standard Webhooks verifies it, with the JSON of the API."""
    running = start(api_base=gateway.url, hook_url=f"{endpoint.url}/in?token=1", hook_secret=HOOK_SECRET)
    task, _ = submit(running, gateway)
    logged = {event["id"]: event for event in events(running, task)}
    visits = endpoint.wait_for(len(logged))
    documents = [Webhook(HOOK_SECRET).verify(visit.body, dict(visit.headers)) for visit in visits]
    assert {each["id"] for each in documents} == logged.keys()
    for each, visit in zip(documents, visits, strict=True):
        assert each.keys() == {"id", "log_id", "type", "at", "data", "task"}
        assert (each["type"], each["data"]) == (logged[each["id"]]["type"], logged[each["id"]]["data"])
        assert each["task"]["id"] == task
        at = datetime.fromisoformat(each["at"]) - datetime.fromtimestamp(0, UTC)
        name = f"default_{each['log_id']}-{each['id']}-{at // timedelta(milliseconds=1)}"
        assert visit.headers["webhook-id"] == name
        assert visit.headers["User-Agent"] == f"kling-callback/{version('kling-callback')}"
        assert (visit.method, visit.path) == ("POST", "/in?token=1")
        assert visit.headers["Content-Type"] == "application/json"
    assert metric(running, 'kling_deliveries_total{outcome="delivered"}') >= len(logged) - 1


def test_a_failed_delivery_is_retried(start: Start, gateway: Sandbox) -> None:
    """The second attempt has the same id and body; other events do not wait for it."""
    refused: list[str] = []

    def respond(visit: Visit) -> None:
        name = visit.headers["webhook-id"]
        visit.answer(204 if (refused and name != refused[0]) or visit.count > 3 else 500)
        refused.append(name)

    with host(respond) as server:
        running = start(api_base=gateway.url)
        document = {"address": server.url, "retry_schedule": [0.2]}
        httpx.post(f"{running.url}/api/hooks", headers=running.headers("admin"), json=document).raise_for_status()
        task, _ = submit(running, gateway)
        logged = events(running, task)
        visits = server.wait_for(len(logged) + 1)
        attempts = [visit for visit in visits if visit.headers["webhook-id"] == refused[0]]
        assert len(attempts) == 2
        first, second = (json.loads(visit.body) for visit in attempts)
        assert (first["id"], first["type"], first["data"]) == (second["id"], second["type"], second["data"])


def test_the_address_of_a_hook_is_requested_byte_for_byte(start: Start, gateway: Sandbox, endpoint: Host) -> None:
    """Of each kind of hook; blanks around it are removed."""
    target = "/in/a%40b%3Ac(1)//x/../y?t=%7E%2f&s=it's"
    hook = f"  {endpoint.url}{target}\n"
    running = start(api_base=gateway.url, hook_url=f"{endpoint.url}{target}", hook_secret=HOOK_SECRET)
    added = httpx.post(f"{running.url}/api/hooks", headers=running.headers("admin"), json={"address": hook})
    assert added.status_code == 201, added.text
    task, _ = submit(running, gateway, hook=hook)
    visits = endpoint.wait_for(3 * len(events(running, task)))
    assert {visit.path for visit in visits} == {target}


class Delivery:
    """One event, without a worker: tests make each attempt themselves."""

    def __init__(self, stage: Outgoing, event: EventRow) -> None:
        self.stage, self.event = stage, event

    async def attempt(
        self, url: str, count: int = 1, *, allowed: str = "127.0.0.1", name: str = "hook", **fields: Any
    ) -> DeliveryAttempt:
        """Make one attempt. `existing`: by the hook as it is; else it is added anew."""
        receiver, outbound = self.stage.receiver, GuardedClient(Allowlist.parse([allowed]))
        sender = Sender(
            outbound,
            outbound,
            receiver.store.storage,
            receiver.store.payloads,
            receiver.store.metrics,
            source="https://receiver.test",
            task_secrets=(),
            clock=lambda: self.stage.now / 1000,
        )
        if not fields.pop("existing", False):
            await self.stage.change(lambda tx: hook_records.remove(tx, name))
            await self.stage.add(url, name=name, **{"secret": HOOK_SECRET, **fields})
        hook = self.stage.hook(name)
        attempt = await sender.attempt(
            await sender.acquire_slot(hook), hook, self.event, await self.stage.detail(), count=count
        )
        await sender.close()
        await outbound.close()
        return attempt

    async def rotate(self, secret: str, overlap: float, *, name: str = "hook") -> str | None:
        """Rotate the hook's secret."""
        return await self.stage.change(lambda tx: hook_records.rotate(tx, name, secret, overlap=overlap))


@pytest.fixture
async def delivery(tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Delivery]:
    """A receiver without a worker, and one event."""
    database = shutil.copyfile(sqlite_template, tmp_path / "kling.db")
    async with outgoing(make_settings(tmp_path, database_url=f"sqlite:///{database}"), work=False) as stage:
        await stage.add_events("task.created")
        event = await stage.receiver.store.reader.event(1)
        assert event
        yield Delivery(stage, event)


@pytest.mark.anyio
@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_any_2xx_delivers_the_event(delivery: Delivery, status: int) -> None:
    """Whatever its body, of which the first bytes are recorded."""
    body = b"" if status == 204 else b"\xff\0" * 999
    with host(lambda visit: visit.answer(status, body)) as server:
        attempt = await delivery.attempt(server.url)
        assert (attempt.delivered, attempt.response_status, attempt.retry_in_ms) == (True, status, None)
        assert attempt.response_body == ("" if status == 204 else "\ufffd\0" * 500)
        assert server.visits[0].headers["webhook-timestamp"] == "1790000000"
    await delivery.stage.change(lambda tx: deliveries.save_attempts(tx, [attempt]))
    [recorded] = delivery.stage.attempts()
    assert "\0" not in recorded["response_body"]


@pytest.mark.anyio
@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 408, 429, 500, 503])
async def test_any_other_status_is_a_failure(delivery: Delivery, status: int) -> None:
    """Also a redirect, which is not followed. After the last attempt there is no retry."""
    with host(lambda visit: visit.answer(status, Location=f"{server.url}/elsewhere")) as server:
        for count, step in enumerate(DEFAULT_SCHEDULE, 1):
            attempt = await delivery.attempt(server.url, count)
            assert attempt.retry_in_ms
            wait = attempt.retry_in_ms / 1000
            assert step / 2 - 0.001 <= wait <= step
        last = await delivery.attempt(server.url, len(DEFAULT_SCHEDULE) + 1)
        assert (last.delivered, last.response_status, last.retry_in_ms, last.gone) == (False, status, None, False)
        assert {visit.path for visit in server.visits} == {"/"}
        assert server.url not in last.error


@pytest.mark.anyio
async def test_the_hooks_own_schedule(delivery: Delivery) -> None:
    """It replaces the default one; an empty schedule allows one attempt."""
    with host(lambda visit: visit.answer(500)) as server:
        attempt = await delivery.attempt(server.url, 2, retry_schedule=[1, 1000])
        assert attempt.retry_in_ms
        assert 499 <= attempt.retry_in_ms / 1000 <= 1000
        assert (await delivery.attempt(server.url, 3, retry_schedule=[1, 1000])).retry_in_ms is None
        assert (await delivery.attempt(server.url, 1, retry_schedule=[])).retry_in_ms is None


@pytest.mark.anyio
async def test_the_event_of_a_hook_that_is_gone_stays_due(delivery: Delivery) -> None:
    """After HTTP 410 the event waits until an operator resumes the hook."""
    with host(lambda visit: visit.answer(410)) as server:
        attempt = await delivery.attempt(server.url, len(DEFAULT_SCHEDULE) + 1)
    assert (attempt.delivered, attempt.gone, attempt.retry_in_ms) == (False, True, 0)


@pytest.mark.anyio
@pytest.mark.parametrize(("header", "least"), [("120", 120), ("999999", 3600), ("soon", 2.5), ("-5", 2.5)])
async def test_retry_after_is_respected(delivery: Delivery, header: str, least: float) -> None:
    """In seconds, up to an hour; an invalid value is ignored."""
    with host(lambda visit: visit.answer(503, Retry_After=header)) as server:
        attempt = await delivery.attempt(server.url)
    assert attempt.retry_in_ms
    wait = attempt.retry_in_ms / 1000
    assert least - 0.001 <= wait <= max(least, DEFAULT_SCHEDULE[0])


@pytest.mark.anyio
@pytest.mark.parametrize("allowed", ["10.0.0.0/8", "127.0.0.1:1"])
async def test_a_forbidden_address_is_dead_at_once(delivery: Delivery, endpoint: Host, allowed: str) -> None:
    """No request is sent, and no retry would help."""
    attempt = await delivery.attempt(endpoint.url, allowed=allowed)
    assert (attempt.delivered, attempt.retry_in_ms) == (False, None)
    assert "is not a public address" in attempt.error
    assert endpoint.visits == []


def silent(visit: Visit) -> None:
    """Close without a response."""


def garbage(visit: Visit) -> None:
    """Answer with bytes that are not HTTP."""
    visit.send(b"\0\1\2\r\n\r\n")


def half(visit: Visit) -> None:
    """Close within the head of the response."""
    visit.send(b"HTTP/1.1 200 OK\r\nX-Half: ")


@pytest.mark.anyio
@pytest.mark.parametrize("respond", [silent, garbage, half])
async def test_a_response_that_is_not_http(delivery: Delivery, respond: Callable[[Visit], Any]) -> None:
    """It is a failure that is retried."""
    with host(respond) as server:
        attempt = await delivery.attempt(server.url)
    assert (attempt.delivered, attempt.response_status) == (False, None)
    assert attempt.retry_in_ms


@pytest.mark.anyio
async def test_the_time_limit_of_a_hook_is_read_at_each_attempt() -> None:
    """The client's own limit does not apply."""
    end = threading.Event()
    outbound, limits = GuardedClient(Allowlist.parse(["127.0.0.1"])), iter([0.05, PATIENCE])
    message = Message("hook_1_1", {}, b"{}", "https://receiver.test")

    def respond(visit: Visit) -> None:
        if visit.count == 0:
            assert end.wait(PATIENCE)
        else:
            visit.answer(200)

    with host(respond) as server:
        sink = HttpSink(server.url, list, outbound, timeout=lambda: next(limits))
        with pytest.raises(NotDelivered, match=r"^the host sent nothing for 0\.05 s$"):
            await sink.send(message)
        assert (await sink.send(message)).status == 200
        end.set()
    await outbound.close()


@pytest.mark.anyio
async def test_an_endless_head_ends_at_the_time_limit(delivery: Delivery) -> None:
    """However many headers keep arriving."""
    stop = threading.Event()

    def respond(visit: Visit) -> None:
        visit.send(b"HTTP/1.1 200 OK\r\n")
        for n in itertools.count():
            if stop.wait(0.01):
                return
            visit.send(f"X-{n}: x\r\n".encode())

    with host(respond) as server:
        attempt = await delivery.attempt(server.url, timeout=0.3)
        stop.set()
    assert (attempt.delivered, attempt.error) == (False, "the hook did not answer within 0.3 s")


@pytest.mark.anyio
@pytest.mark.parametrize("size", [1, 100_000])
async def test_an_endless_body_is_not_read_to_its_end(size: int) -> None:
    """The status decides: whether slow or fast, the rest of the body is dropped."""
    stop = threading.Event()

    def respond(visit: Visit) -> None:
        visit.begin(200)
        while not stop.wait(0.01):
            visit.send(b"x" * size)

    client = GuardedClient(Allowlist.parse(["127.0.0.1"]))
    with host(respond) as server:
        sink = HttpSink(server.url, list, client, timeout=lambda: PATIENCE, response_seconds=0.1)
        delivered = await sink.send(Message("hook_1_1", {}, b"{}", "https://receiver.test"))
        stop.set()
    await client.close()
    assert delivered.status == 200
    assert 0 < len(delivered.response) <= 1000


@pytest.mark.anyio
async def test_the_old_secret_signs_too_until_the_overlap_ends(delivery: Delivery, endpoint: Host) -> None:
    """A recipient may verify with either secret; afterwards only with the new one."""
    stage = delivery.stage
    await delivery.attempt(endpoint.url)
    assert await delivery.rotate(NEXT_SECRET, 60) == NEXT_SECRET
    await delivery.attempt(endpoint.url, existing=True)
    stage.now += 60_000
    await delivery.attempt(endpoint.url, existing=True)
    signatures = [signed_by(visit) for visit in endpoint.visits]
    assert signatures == [[HOOK_SECRET], [NEXT_SECRET, HOOK_SECRET], [NEXT_SECRET]]
    assert len({visit.headers["webhook-id"] for visit in endpoint.visits}) == 1


def signed_by(visit: Visit) -> list[str]:
    """The secrets that signed a message, in the order of its signatures."""
    name, at = visit.headers["webhook-id"], int(visit.headers["webhook-timestamp"])
    by_signature = {sign(secret, name, at, visit.body): secret for secret in (HOOK_SECRET, NEXT_SECRET)}
    return [by_signature[each] for each in visit.headers["webhook-signature"].split()]


@pytest.mark.anyio
async def test_several_rotations_within_an_overlap(delivery: Delivery, endpoint: Host) -> None:
    """Each secret ends at its own time, not later; rotating to the current one changes nothing."""
    stage = delivery.stage
    await delivery.attempt(endpoint.url)
    for secret, overlap in ((NEXT_SECRET, 10), (NEXT_SECRET, 99), (HOOK_SECRET, 60)):
        await delivery.rotate(secret, overlap)
    assert stage.hook("hook")["secrets"] == [[HOOK_SECRET, None], [NEXT_SECRET, stage.now + 60_000]]
    generated = await delivery.rotate("", 0)
    assert generated is not None
    assert hook_records.active_secrets(stage.hook("hook"), stage.now) == [generated]


@pytest.mark.anyio
async def test_a_hook_without_a_secret_is_not_rotated(delivery: Delivery) -> None:
    """A command has none, and an unknown hook neither."""
    await delivery.stage.add("command:true", name="command")
    for name in ("command", "unknown"):
        assert await delivery.rotate("", 0, name=name) is None

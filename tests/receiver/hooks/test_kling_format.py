"""Hooks in Kling's format: what Kling itself posts, once for each change of the status that its caller sees."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.reports import parse_callback
from kling_callback.protocol.signing import task_hook_secrets
from kling_callback.protocol.webhooks import verify
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import InvalidHook, parse_hook
from kling_receiver.hooks.config_file import load_hooks
from kling_receiver.hooks.matching import matches
from kling_receiver.hooks.sync import sync
from kling_receiver.net.guard import Allowlist
from kling_receiver.store.database import Database
from kling_receiver.store.reader import Reader
from kling_sandbox import Sandbox
from kling_sandbox.receiver import API_KEY as KEY
from tests.support.database import FILE, Ledger, callback, says
from tests.support.receiver import SECRET, Running, Start
from tests.support.web import Host, Visit, host
from tools.harness.submitting import create, finished, poll_until, register, submit

HOOK_SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
NEW = "/text-to-video/kling-3.0"
NO_KLING = "http://127.0.0.1:9"


@pytest.fixture
def endpoint() -> Iterator[Host]:
    """A handler of Kling's callbacks."""
    with host(lambda visit: visit.answer(200)) as server:
        yield server


def call(running: Running, method: str, path: str, **document: Any) -> httpx.Response:
    """One request of an operator."""
    url = f"{running.url}/api/{path}"
    return httpx.request(method, url, json=document, headers=running.headers("admin"), timeout=30)


def add(running: Running, address: str, **fields: Any) -> None:
    """Add a hook in Kling's format."""
    document = {"name": "mine", "address": address, "secret": HOOK_SECRET, "format": "kling", **fields}
    call(running, "POST", "hooks", **document).raise_for_status()


def statuses(visits: list[Visit]) -> list[str]:
    """The statuses of deliveries, in either standard."""
    records = [json.loads(visit.body) for visit in visits]
    return [str(record.get("task_status") or record.get("status")) for record in records]


def settled(running: Running, name: str = "mine") -> None:
    """Wait until a hook has received everything that it will."""
    poll_until(lambda: call(running, "GET", f"hooks/{name}").json()["behind"] == 0)
    assert call(running, "GET", f"hooks/{name}").json()["pending"] == 0


def test_a_handler_receives_what_kling_posts(start: Start, gateway: Sandbox, endpoint: Host) -> None:
    """Each status once and in order, signed as Kling signs, with links of ours that open without a token."""
    running = start(api_base=gateway.url)
    add(running, endpoint.url, concurrency=1)
    task, kling_id = submit(running, gateway, n=2)
    finished(running, task)
    settled(running)
    assert statuses(endpoint.visits) == ["submitted", "processing", "succeed"]
    for visit in endpoint.visits:
        record = Webhook(HOOK_SECRET).verify(visit.body, dict(visit.headers))
        assert (
            verify([HOOK_SECRET], {k.lower(): v for k, v in visit.headers.items()}, visit.body, time.time()) == "good"
        )
        assert (record["task_id"], record["task_info"]) == (kling_id, {"external_task_id": task})
        fields = {"task_id", "task_status", "task_status_msg", "task_info", "task_result", "created_at", "updated_at"}
        assert record.keys() - {"final_unit_deduction"} == fields
    assert len({visit.headers["webhook-id"] for visit in endpoint.visits}) == 3
    first, *_, last = (json.loads(visit.body) for visit in endpoint.visits)
    assert (first["task_result"], last["final_unit_deduction"]) == ({}, "2")
    theirs = parse_callback(gateway.callbacks[-1].body)
    ours = parse_callback(endpoint.visits[-1].body)
    assert theirs
    assert ours
    for mine, kling_s in zip(ours.outputs, theirs.outputs, strict=True):
        assert mine.url.startswith(f"{running.url}/api/tasks/{task}/results/")
        assert httpx.get(mine.url).raise_for_status().content == httpx.get(kling_s.url).content


def test_a_handler_of_the_new_standard_receives_its_record(start: Start, gateway: Sandbox, endpoint: Host) -> None:
    """By the family of the task."""
    running = start(api_base=gateway.url)
    add(running, endpoint.url, concurrency=1)
    task = new_id()
    assert register(running, task, NEW).json()["create"]
    options = {"callback_url": running.callback_url(task, NEW), "external_task_id": task}
    headers = {"Authorization": f"Bearer {KEY}"}
    response = httpx.post(f"{gateway.url}{NEW}", json={"prompt": "x", "options": options}, headers=headers)
    kling_id = response.json()["data"]["id"]
    register(running, task, NEW, outcome="created", task_id=kling_id)
    finished(running, task)
    settled(running)
    assert statuses(endpoint.visits) == ["submitted", "processing", "succeeded"]
    last = json.loads(endpoint.visits[-1].body)
    assert (last["id"], last["external_id"], last["outputs"][0]["type"]) == (kling_id, task, "video")
    assert httpx.get(last["outputs"][0]["url"]).status_code == 200
    assert last["billing"]


def test_a_failed_task_has_kling_s_reason(start: Start, gateway: Sandbox, endpoint: Host) -> None:
    """Its failure is one delivery."""
    running = start(api_base=gateway.url)
    add(running, endpoint.url, concurrency=1, statuses=["failed"])
    task, _ = submit(running, gateway, "failed")
    finished(running, task)
    settled(running)
    (visit,) = endpoint.visits
    record = json.loads(visit.body)
    assert (record["task_status"], record["task_status_msg"]) == ("failed", "The sandbox was asked to fail this task")
    assert record["task_result"] == {}


def test_a_file_that_could_not_be_stored_keeps_kling_s_whole_address(
    start: Start, gateway: Sandbox, endpoint: Host
) -> None:
    """Its query authorizes the download, which the handler would have received from Kling."""
    running = start(api_base=gateway.url)
    add(running, endpoint.url, concurrency=1, statuses=["succeed"])
    task, _ = submit(running, gateway, "file-html")
    finished(running, task)
    settled(running)
    (visit,) = endpoint.visits
    (image,) = json.loads(visit.body)["task_result"]["images"]
    assert image["url"].startswith(f"{gateway.url}/files/")
    assert "?ksTime=" in image["url"]


def test_the_hook_of_a_task_in_kling_s_format(start: Start, gateway: Sandbox, endpoint: Host) -> None:
    """It is signed by the derived secret, as every hook that a client names; another format is another hook."""
    running = start(api_base=gateway.url)
    task, fields = new_id(), {"hook": endpoint.url, "hook_format": "kling"}
    assert register(running, task, **fields).json()["create"]
    create(running, gateway, task)
    finished(running, task)
    settled(running, f"task:{task}")
    assert sorted(statuses(endpoint.visits)) == ["processing", "submitted", "succeed"]
    for visit in endpoint.visits:
        Webhook(task_hook_secrets([SECRET])[0]).verify(visit.body, dict(visit.headers))
    assert call(running, "GET", f"hooks/task:{task}").json()["format"] == "kling"
    assert register(running, task, **fields).status_code == 200
    for other in ({"hook": endpoint.url}, {**fields, "hook_format": "event"}):
        answer = register(running, task, **other)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hook_format": "kling"}, "hook_format: it is of the task's hook. Set `hook`, or remove it."),
        ({"hook_format": "cloud", "hook": "https://x.example/"}, "hook_format"),
        (
            {"hook_format": "kling", "hook": "https://x.example/", "hook_events": ["task.done"]},
            "hook_format: a hook with the format kling receives each change of the status. Remove `hook_events`.",
        ),
    ],
)
def test_an_impossible_hook_of_a_task_is_refused(start: Start, fields: dict[str, Any], message: str) -> None:
    """Before anything is registered."""
    running = start(api_base=NO_KLING)
    answer = register(running, "t", **fields)
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]
    assert call(running, "GET", "tasks/t").status_code == 404


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"address": "nats://127.0.0.1/events"}, "The format kling is for web addresses only"),
        ({"address": "redis://127.0.0.1/events"}, "The format kling is for web addresses only"),
        ({"address": 'command:["true"]'}, "The format kling is for web addresses only"),
        (
            {"events": ["task.done"]},
            "receives each change of the status. Remove its events",
        ),
        ({"statuses": ["created"]}, "Kling reports no task as created"),
        ({"format": "Kling"}, "format"),
    ],
)
def test_an_impossible_hook_is_refused(document: dict[str, Any], problem: str) -> None:
    """With what to do instead."""
    with pytest.raises(InvalidHook, match=problem):
        parse_hook({"address": "https://x.example/", "format": "kling", **document}, Allowlist())


EVERY_STATUS = {
    "task.created": False,
    "task.submitted": True,
    "callback.received": False,
    "task.processing": True,
    "task.succeed": False,
    "result.stored": False,
    "task.done": True,
}


@pytest.mark.anyio
async def test_only_the_changes_that_a_caller_sees_are_delivered(any_database: Database) -> None:
    """`task.succeed` alone is no end: the files are being stored. `statuses` may select some of them."""
    ledger = Ledger(any_database)
    ledger.put_hook("all", format="kling")
    ledger.put_hook("ends", format="kling", statuses=["succeed", "failed"])
    ledger.register()
    ledger.register(outcome="created", kling_id="k")
    ledger.record(callback())
    ledger.apply_report("t", says("succeed", FILE))
    ledger.store()
    reader = Reader(any_database)
    detail = (await reader.details(["t"]))["t"]
    with any_database.read() as connection:
        rows = [hook_records.hook(connection, name) for name in ("all", "ends")]
    logged = await reader.events(0)
    sent = [[event["type"] for event in logged if row and matches(row, event, detail)] for row in rows]
    assert sent == [[name for name, is_sent in EVERY_STATUS.items() if is_sent], ["task.done"]]


def test_a_retry_has_the_same_id_and_the_state_of_its_moment(start: Start, gateway: Sandbox) -> None:
    """A handler that only remembers the last status is not set back by a delivery that failed before."""
    refused: list[str] = []

    def respond(visit: Visit) -> None:
        name, is_first = visit.headers["webhook-id"], not refused
        if is_first:
            refused.append(name)
        visit.answer(500 if is_first else 200)

    with host(respond) as server:
        running = start(api_base=gateway.url)
        add(running, server.url, concurrency=1, retry_schedule=[600])
        task, _ = submit(running, gateway)
        finished(running, task)
        poll_until(lambda: len(server.visits) == 3)
        call(running, "POST", "hooks/mine/resume")
        server.wait_for(4)
        last = server.visits[-1]
        assert last.headers["webhook-id"] == refused[0]
        assert statuses(server.visits) == ["submitted", "processing", "succeed", "succeed"]


def test_the_statuses_of_a_task_arrive_in_order(start: Start, gateway: Sandbox) -> None:
    """Also when several attempts run at once and the first ones are slow: a handler may keep the last status."""
    answered: list[tuple[str, str]] = []

    def respond(visit: Visit) -> None:
        record = json.loads(visit.body)
        time.sleep({"submitted": 0.4, "processing": 0.2}.get(record["task_status"], 0))
        answered.append((record["task_id"], record["task_status"]))
        visit.answer(200)

    with host(respond) as server:
        running = start(api_base=gateway.url)
        add(running, server.url)
        call(running, "POST", "hooks/mine/pause")
        tasks = [submit(running, gateway) for _ in range(2)]
        for task, _ in tasks:
            finished(running, task)
        call(running, "POST", "hooks/mine/resume")
        server.wait_for(6)
        poll_until(lambda: len(answered) == 6)
    for _, kling_id in tasks:
        of_task = [status for each, status in answered if each == kling_id]
        assert of_task == ["submitted", "processing", "succeed"]


def test_a_replay_sends_the_same_deliveries(start: Start, gateway: Sandbox, endpoint: Host) -> None:
    """With the same ids, each with its status."""
    running = start(api_base=gateway.url)
    add(running, endpoint.url, concurrency=1)
    task, _ = submit(running, gateway)
    finished(running, task)
    settled(running)
    call(running, "POST", "deliveries/replay", **{"from": 1}).raise_for_status()
    visits = endpoint.wait_for(6)
    assert statuses(visits) == ["submitted", "processing", "succeed"] * 2
    names = [visit.headers["webhook-id"] for visit in visits]
    assert names[:3] == names[3:]


def test_a_test_is_that_of_kling_s_console(start: Start, endpoint: Host) -> None:
    """In the new standard, with the status `submitted` and an id that nobody knows."""
    running = start(api_base=NO_KLING)
    add(running, endpoint.url)
    assert call(running, "POST", "hooks/mine/test").json()["delivered"]
    (visit,) = endpoint.wait_for(1)
    record = Webhook(HOOK_SECRET).verify(visit.body, dict(visit.headers))
    assert record.keys() == {"id", "status", "message", "create_time", "update_time"}
    assert record["status"] == "submitted"
    assert call(running, "GET", f"tasks/{record['id']}").status_code == 404


def test_a_hooks_file_may_change_the_format(any_database: Database, tmp_path: Path) -> None:
    """At the next start; the hook keeps its cursor."""
    ledger = Ledger(any_database)
    file = tmp_path / "hooks.toml"
    table = f'[hooks.mine]\naddress = "https://x.example/"\nsecret = "{HOOK_SECRET}"\n'
    for line, expected in (("", "event"), ('format = "kling"\n', "kling"), ("", "event")):
        file.write_text(table + line)
        ledger.change(lambda tx: sync(tx, "file", load_hooks(file, Allowlist(), {})))
        with any_database.read() as connection:
            row = hook_records.hook(connection, "mine")
        assert row
        assert row["format"] == expected
    file.write_text(f'{table}format = "kling"\nevents = ["task.done"]\n')
    with pytest.raises(InvalidHook, match=r"hooks\.mine: A hook with the format kling"):
        load_hooks(file, Allowlist(), {})

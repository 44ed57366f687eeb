"""Creates at Kling's API of the receiver: answered as Kling answers, and never paid twice."""

import json
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from kling_receiver.store.errors import Unavailable
from kling_receiver.web.api import submission as api_submission
from kling_sandbox import Sandbox
from tests.support.compat import KEY, code, data
from tests.support.receiver import Running, Start
from tests.support.sandbox import picture
from tests.support.submitting import QUICK_CREATES
from tests.support.web import host
from tools.harness.submitting import finished, poll_until, register, rows, show

IMAGES, VIDEOS, NEW = "images/generations", "videos/text2video", "/text-to-video/kling-3.0-turbo"


def create(
    api: httpx.Client, mark: str = "", path: str = f"/v1/{IMAGES}", key: str = "", **body: Any
) -> httpx.Response:
    """Send a create. `mark`: switches of the sandbox for this task."""
    prompt = f"a kangaroo [sandbox: {mark}]" if mark else "a kangaroo"
    headers = {"Idempotency-Key": key} if key else {}
    return api.post(path, json={"prompt": prompt, **body}, headers=headers)


def ours(door: Running, kling_id: str) -> str:
    """Our id of a task."""
    return str(show(door, kling_id)["id"])


@pytest.mark.parametrize("prefix", ["", "/kling"])
def test_a_create_is_answered_with_kling_s_answer(
    door: Running, door_gateway: Sandbox, api: httpx.Client, prefix: str
) -> None:
    """Kling's id of the task, and its request id; empty texts are absent; the task is found by each id."""
    empty = {"callback_url": "", "external_task_id": "", "negative_prompt": ""}
    answer = create(api, path=f"{prefix}/v1/{IMAGES}?=null", **empty)
    record = data(answer)
    assert record.keys() == {"task_id", "task_status", "task_info", "created_at", "updated_at"}
    assert record["task_status"] == "submitted"
    assert record["task_id"] in door_gateway.tasks
    task = finished(door, ours(door, record["task_id"]))
    for any_id in (record["task_id"], task["id"]):
        assert data(api.get(f"{prefix}/v1/{IMAGES}/{any_id}"))["task_status"] == "succeed"
    sent = door_gateway.creates[-1]
    assert sent["external_task_id"] == task["id"]
    assert sent["callback_url"].startswith(f"{door.url}/callbacks/")


def test_a_create_of_the_new_standard(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """In its own spelling."""
    record = data(create(api, path=NEW, settings={"resolution": "720p"}, options={"external_task_id": "new-1"}))
    assert record.keys() == {"id", "status", "create_time", "update_time", "external_id"}
    assert (record["status"], record["external_id"]) == ("submitted", "new-1")
    finished(door, "new-1")
    for path in (f"{NEW}/{record['id']}", f"{NEW}/new-1"):
        assert data(api.get(path))["status"] == "succeeded"
    assert data(api.get("/tasks?external_task_ids=new-1"))[0]["id"] == record["id"]


@pytest.mark.parametrize(
    ("mark", "expected"),
    [("arrears", (429, 1101)), ("used-up", (429, 1102)), ("discontinued", (404, 1203)), ("not-allowed", (429, 1304))],
)
def test_a_refusal_is_passed_on(
    door: Running, door_gateway: Sandbox, api: httpx.Client, mark: str, expected: tuple[int, int]
) -> None:
    """With Kling's HTTP status, code, message and request id; a repeat by its key gets the same answer."""
    sent = len(door_gateway.creates)
    answer = create(api, mark, key=f"refused-{mark}")
    assert code(answer) == expected
    assert answer.json()["message"].rstrip(".")[-9:] in ("n arrears", "consumed", " consumed", "available", "llow-list")
    again = create(api, mark, key=f"refused-{mark}")
    assert (again.status_code, again.content) == (answer.status_code, answer.content)
    assert len(door_gateway.creates) == sent + 1
    task = rows(door, "SELECT * FROM task ORDER BY created_at DESC, id DESC LIMIT 1")[0]
    assert (task["status"], task["request_id"]) == ("failed", answer.json()["request_id"])


def test_bad_parameters_are_refused(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """By Kling with its code; by us, before anything is sent, where the client refuses it, too."""
    theirs = httpx.post(f"{door_gateway.url}/v1/{IMAGES}", json={"n": 1}, headers={"Authorization": f"Bearer {KEY}"})
    assert code(api.post(f"/v1/{IMAGES}", json={"n": 1})) == code(theirs) == (400, 1200)
    sent = len(door_gateway.creates)
    for path, content, expected, words in (
        (f"/v1/{IMAGES}", b"no JSON", (400, 1200), "JSON object"),
        (f"/v1/{IMAGES}", b"[]", (400, 1200), "JSON object"),
        (f"/v1/{IMAGES}", b"[" * 100_000, (400, 1200), "JSON object"),
        (f"/v1/{IMAGES}", b'{"prompt": "x", "image": "/home/me/cat.png"}', (400, 1201), "Send base64 or a URL"),
        (f"/v1/{IMAGES}", b'{"prompt": "x", "external_task_id": 7}', (400, 1201), "external_task_id"),
        (f"/v1/{IMAGES}", b'{"prompt": "x", "external_task_id": "a/b"}', (400, 1201), "external_task_id"),
        (f"/v1/{IMAGES}", b'{"prompt": "x", "callback_url": "nowhere"}', (400, 1201), "callback_url"),
        (f"/v1/{IMAGES}", b'{"prompt": "x", "callback_url": "http://10.0.0.1/"}', (400, 1201), "callback_url"),
        ("/v1/videos/text-to-video", b"{}", (404, 1202), "Did you mean"),
        ("/v1/images", b"{}", (404, 1202), "must be"),
        ("/v1/", b"{}", (404, 1202), "must be"),
        ("/v1/videos/../account", b"{}", (404, 1202), "must be"),
    ):
        answer = api.post(path, content=content)
        assert code(answer) == expected, path
        assert words in answer.json()["message"], answer.text
    assert len(door_gateway.creates) == sent
    assert code(api.post("/v1/videos/no-such-family", json={"prompt": "x"})) == (404, 1202)


def test_an_unknown_outcome_is_answered_with_our_id(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """A 504 would make the caller pay twice. The task is found, and its id stays valid."""
    made = len(door_gateway.tasks)
    for mark in ("drop-after-create", "create-5002", "create-504", "create-garbage"):
        record = data(create(api, mark))
        assert record["task_status"] == "submitted"
        task = finished(door, record["task_id"])
        assert task["id"] == record["task_id"] != task["task_id"]
        query = data(api.get(f"/v1/{IMAGES}/{record['task_id']}"))
        assert (query["task_id"], query["task_status"]) == (record["task_id"], "succeed")
        assert data(api.get(f"/tasks?task_ids={record['task_id']}"))[0]["id"] == record["task_id"]
        assert data(api.get(f"/v1/{IMAGES}/{task['task_id']}"))["task_id"] == record["task_id"]
        assert data(api.get(f"/v1/{IMAGES}?pageSize=1"))[0]["task_id"] == record["task_id"]
    assert len(door_gateway.tasks) == made + 4


def test_a_callback_url_becomes_a_hook_in_kling_s_format(door: Running, api: httpx.Client) -> None:
    """The program gets Kling's own bodies, signed by us; Kling gets our address."""
    with host(lambda visit: visit.answer(200)) as handler:
        record = data(create(api, callback_url=handler.url, external_task_id="with-callback"))
        finished(door, "with-callback")
        poll_until(lambda: "succeed" in [json.loads(visit.body)["task_status"] for visit in handler.visits])
        last = handler.visits[-1]
        body = Webhook(door.task_hook_secret).verify(last.body, dict(last.headers))
        assert (body["task_id"], body["task_info"]) == (record["task_id"], {"external_task_id": "with-callback"})
        assert body["task_result"]["images"][0]["url"].startswith(f"{door.url}/api/tasks/")


def test_the_external_task_id_is_unique(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """As at Kling: a repeat is 1201, and makes no second task; also one that cannot be our id."""
    for external_id in ("order-42", "订单 42".replace(" ", "-"), "-order", "x" * 200):
        made = len(door_gateway.tasks)
        record = data(create(api, external_task_id=external_id))
        assert record["task_info"] == {"external_task_id": external_id}
        again = create(api, external_task_id=external_id)
        assert code(again) == (400, 1201)
        assert "already exists" in again.json()["message"]
        assert code(create(api, path=f"/v1/{VIDEOS}", external_task_id=external_id)) == (400, 1201)
        query = data(api.get(f"/v1/{IMAGES}/{external_id}"))
        assert query["task_id"] == record["task_id"]
        assert query["task_info"] == {"external_task_id": external_id}
        assert data(api.get("/tasks", params={"external_task_ids": external_id}))[0]["id"] == record["task_id"]
        assert len(door_gateway.tasks) == made + 1


def test_an_external_task_id_of_another_program(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """A task that the receiver knows from Kling has it already."""
    made = len(door_gateway.tasks)
    register(door, "of-another", outcome="created", task_id="k-of-another")
    assert code(create(api, external_task_id="of-another")) == (400, 1201)
    with door.receiver.store.database.write() as connection:
        connection.exec_driver_sql("UPDATE task SET external_task_id = 'theirs' WHERE id = 'of-another'")
    assert code(create(api, external_task_id="theirs")) == (400, 1201)
    assert len(door_gateway.tasks) == made


def test_a_refused_external_task_id_may_be_used_again(door: Running, api: httpx.Client) -> None:
    """No task has it at Kling."""
    assert code(create(api, "arrears", external_task_id="second-try")) == (429, 1101)
    assert data(create(api, external_task_id="second-try"))["task_id"]


def test_an_idempotency_key(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """A repeat returns the same task; with other parameters it is refused; with an external id, too."""
    made = len(door_gateway.tasks)
    for more in ({}, {"external_task_id": "keyed"}):
        key = f"key {more}"
        first = data(create(api, key=key, **more))
        assert data(create(api, key=key, **more))["task_id"] == first["task_id"]
        assert code(create(api, key=key, n=2, **more)) == (400, 1201)
    assert code(create(api, key="another key", external_task_id="keyed")) == (400, 1201)
    assert code(create(api, key="x" * 300)) == (400, 1201)
    assert len(door_gateway.tasks) == made + 2


@pytest.mark.parametrize("first", ["", "mine"])
def test_an_idempotency_key_counts_whatever_the_external_task_id_is(
    door: Running, door_gateway: Sandbox, api: httpx.Client, first: str
) -> None:
    """A program may make a new id for each attempt: its key tells that it is one intent."""
    made = len(door_gateway.creates)
    key = f"attempts-{first}"
    ids = [first and f"{first}-0", "attempt-1" + first, "attempt 2".replace(" ", "!") + first, ""]
    answers = [data(create(api, key=key, external_task_id=each)) for each in ids]
    assert len({answer["task_id"] for answer in answers}) == 1
    headers = {**door.headers(), "Idempotency-Key": key}
    document = {"family": IMAGES, "body": {"prompt": "a kangaroo"}, "external_task_id": "attempt-3" + first}
    again = httpx.post(f"{door.url}/api/tasks", json=document, headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, ours(door, answers[0]["task_id"]))
    assert code(create(api, key=key, external_task_id="other" + first, n=2)) == (400, 1201)
    assert len(door_gateway.creates) == made + 1


def test_a_queued_create_is_answered_at_once(start: Start) -> None:
    """With our id, which stays valid; it is sent when a slot is free, never before."""
    with Sandbox() as gateway:
        gateway.hold()
        running = start(api_base=gateway.url, compat_api="on", concurrency="2", delays=QUICK_CREATES)
        with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=20) as api:
            first = data(create(api, n=2))
            assert first["task_id"] in gateway.tasks
            queued = data(create(api, external_task_id="waits"))
            assert (queued["task_id"], queued["task_status"]) == ("waits", "submitted")
            assert data(api.get(f"/v1/{IMAGES}/waits"))["task_status"] == "submitted"
            assert code(create(api, n=3)) == (400, 1201)
            assert len(gateway.tasks) == 1
            cancelled = data(create(api))["task_id"]
            assert httpx.delete(f"{running.url}/api/tasks/{cancelled}", headers=running.headers()).status_code == 200
            assert data(api.get(f"/v1/{IMAGES}/{cancelled}"))["task_status"] == "failed"
            gateway.release()
            held = api.get(f"/v1/{IMAGES}/waits", headers={"Prefer": "wait=20"})
            record = data(held)
            assert (record["task_id"], record["task_status"]) == ("waits", "succeed")
            assert len(gateway.tasks) == 2


def test_a_queue_that_is_full(start: Start, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer says what to do; nothing is sent, nothing is lost."""
    monkeypatch.setattr("kling_receiver.tasks.submission.MAX_QUEUED", 1)
    gateway.hold()
    running = start(api_base=gateway.url, compat_api="on", concurrency="1")
    with httpx.Client(base_url=running.url, headers=running.headers(), timeout=20) as api:
        data(create(api))
        waits = data(create(api))["task_id"]
        full = create(api)
        assert code(full) == (429, 1303)
        assert int(full.headers["Retry-After"]) > 0
        assert "Nothing was sent" in full.json()["message"]
        gateway.release()
        assert finished(running, waits)["status"] == "succeed"
        assert len(gateway.tasks) == 2


def test_1303_and_1302_are_not_passed_on(start: Start, gateway: Sandbox) -> None:
    """Slots apply: the create is answered, and sent again by us."""
    running = start(api_base=gateway.url, compat_api="on", delays=QUICK_CREATES)
    with httpx.Client(base_url=running.url, headers=running.headers(), timeout=20) as api:
        record = data(create(api, "busy-once"))
        assert record["task_id"] in gateway.tasks
        gateway.concurrency = 1
        gateway.hold()
        data(create(api))
        waits = data(create(api))["task_id"]
        assert waits not in gateway.tasks
        gateway.release()
        assert finished(running, waits)["status"] == "succeed"


def test_large_bodies(door: Running, door_gateway: Sandbox, api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image is sent as it came; 16 MB are too many for a legacy create, and for a call."""
    image = picture(1200, 900, "PNG")
    record = data(create(api, image="data:image/png;base64," + image))
    assert door_gateway.creates[-1]["image"] == image
    assert ours(door, record["task_id"])
    monkeypatch.setattr(api_submission, "MAX_BYTES", 1000)
    large = create(api, image=image)
    assert code(large) == (413, 1201)
    assert "as URLs" in large.json()["message"]
    monkeypatch.setattr("kling_receiver.web.compat.forward.MAX_BYTES", 1000)
    assert code(api.post("/v1/videos/image-recognize", json={"image": image})) == (413, 1201)


def test_a_create_is_never_lost_after_its_commit(
    door: Running, door_gateway: Sandbox, api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the task cannot be read then, the answer is a success, too: an error would make the caller pay twice."""

    async def unreadable(*_: object) -> None:
        raise Unavailable("The database does not answer.")

    made = len(door_gateway.tasks)
    with monkeypatch.context() as patch:
        patch.setattr(door.receiver.store.reader, "details", unreadable)
        record = data(create(api, external_task_id="unread"))
    assert record == {"task_id": "unread", "task_status": "submitted"}
    finished(door, "unread")
    assert data(api.get(f"/v1/{IMAGES}/unread"))["task_id"] == "unread"
    assert len(door_gateway.tasks) == made + 1


def test_a_path_below_v1_reaches_no_other(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """`/v1//a/b` is no way to `/a/b` at the gateway, which may be an administrator's."""
    made = len(door_gateway.creates)
    for path in ("/v1//user/token", "/kling/v1//text-to-video/kling-v3", "/v1/%2Fuser/token"):
        assert code(api.post(path, json={"prompt": "x"})) == (404, 1202), path
    assert len(door_gateway.creates) == made


def test_a_commit_that_nobody_can_see(
    door: Running, door_gateway: Sandbox, api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database restarts, neither its answer nor the task can be read: it is waited for, then answered."""
    writer, reader = door.receiver.store.writer, door.receiver.store.reader
    run, read = writer.run, reader.task
    reads = 0

    async def committed(change: Any, **options: Any) -> Any:
        commit.undo()
        await run(change, **options)
        raise Unavailable("The database cannot be used.")

    async def unreadable(task_id: str) -> Any:
        nonlocal reads
        reads += 1
        if reads <= outage:
            raise Unavailable("The database cannot be used.")
        return await read(task_id)

    made = len(door_gateway.creates)
    monkeypatch.setattr("kling_receiver.web.api.committer.CONFIRM_SECONDS", 1)
    for outage in (2, 1000):
        reads = 0
        with monkeypatch.context() as patch, monkeypatch.context() as commit:
            patch.setattr(reader, "task", unreadable)
            commit.setattr(writer, "run", committed)
            answered = data(create(api, prompt=f"outage {outage}"))
        assert answered["task_status"] == "submitted", "the caller must not send it again"
        poll_until(lambda: json.dumps(door_gateway.creates[made:]).count(f"outage {outage}") == 1)  # noqa: B023
        finished(door, data(api.get(f"/v1/{IMAGES}/{answered['task_id']}"))["task_id"])


def test_a_commit_whose_answer_is_lost(
    door: Running, door_gateway: Sandbox, api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is registered: the caller must not send it again. Without it, nothing is sent."""
    writer = door.receiver.store.writer
    run = writer.run

    async def committed(change: Any, **options: Any) -> Any:
        patch.undo()
        await run(change, **options)
        raise Unavailable("The database does not answer.")

    async def never(change: Any, **options: Any) -> Any:
        raise Unavailable("The database does not answer.")

    made = len(door_gateway.creates)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "run", committed)
        answer = create(api, external_task_id="answer-lost")
        assert data(answer)["task_info"] == {"external_task_id": "answer-lost"}
    poll_until(lambda: len(door_gateway.creates) == made + 1)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "run", never)
        assert code(create(api, external_task_id="never-committed")) == (503, 5001)
    assert code(api.get(f"/v1/{IMAGES}/never-committed")) == (400, 1201)
    assert len(door_gateway.creates) == made + 1
    assert json.dumps(door_gateway.creates[-1]).count("answer-lost") == 1


def test_each_engine(start: Start, gateway: Sandbox, database_url: str) -> None:
    """The statements of creates, refusals, queries and lists, on SQLite and PostgreSQL."""
    running = start(api_base=gateway.url, compat_api="on", database_url=database_url)
    with httpx.Client(base_url=running.url, headers=running.headers(), timeout=20) as api:
        record = data(create(api, external_task_id="-first"))
        assert code(create(api, external_task_id="-first")) == (400, 1201)
        assert code(create(api, "arrears")) == (429, 1101)
        finished(running, ours(running, record["task_id"]))
        assert data(api.get(f"/v1/{IMAGES}/-first"))["task_status"] == "succeed"
        assert [each["id"] for each in data(api.get("/tasks?external_task_ids=-first"))] == [record["task_id"]]
        assert record["task_id"] in [each["task_id"] for each in data(api.get(f"/v1/{IMAGES}?pageSize=2"))]
        assert data(api.get(f"/v1/{IMAGES}?pageNum=2&pageSize=2")) == []
        assert code(create(api, model_name="\0")) == (404, 1203)
        assert code(create(api, callback_url="https://example.com/\0")) == (400, 1201)
        assert code(api.get("/v1/%00")) == (404, 1202)

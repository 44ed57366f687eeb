"""The callback routes: 200 only once durable, 401 without storing anything, and no body refused for its content."""

import asyncio
import base64
import hashlib
import json
import socket
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import create_engine
from sqlalchemy import text as sql

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner, api_token, sign_link
from kling_callback.protocol.webhooks import sign
from kling_receiver.app import Receiver, create_app
from kling_receiver.web.body import MAX_DROPPED_BYTES, MAX_KEPT_BYTES
from kling_sandbox import Sandbox
from tests.support.receiver import SECRET, Running, Start, make_settings
from tools.harness.submitting import (
    IMAGES,
    Json,
    create,
    events,
    eventually,
    finished,
    metric,
    post,
    raw,
    register,
    rows,
    show,
    submit,
    types,
)

WEBHOOK = "whsec_" + base64.b64encode(b"a-webhook-secret-for-these-tests").decode()
KLINGS_SECRET = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI="
KLINGS_HEADERS = {
    "webhook-id": "9876543210",
    "webhook-timestamp": "1781080794",
    "webhook-signature": "v1,UsKlJP00XoQyOn410NM9xv34sP+Gl0jnOO9Lcpr7NJ4=",
}
KLINGS_BODY = (
    b'{"id":"1234567890","status":"succeeded","message":"","create_time":1781080778802,"update_time":1781080794151}'
)
"""Kling's own example of a signed callback."""


def tables(running: Running) -> dict[str, int]:
    """The number of rows in each table."""
    names = ("task", "event", "job", "result", "tag")
    return {name: rows(running, f"SELECT count(*) AS n FROM {name}")[0]["n"] for name in names}


def record(status: str, **more: object) -> Json:
    """A legacy callback body."""
    return {"task_id": "123456789012345678", "task_status": status, **more}


def signed(body: bytes, *, secret: str = WEBHOOK, at: float | None = None, name: str = "msg_1") -> dict[str, str]:
    """The headers with which Kling signs a body."""
    stamp = int(time.time() if at is None else at)
    return {
        "webhook-id": name,
        "webhook-timestamp": str(stamp),
        "webhook-signature": sign(secret, name, stamp, body),
    }


def test_a_callback_is_on_disk_when_200_is_answered(running: Running) -> None:
    """The task, its status and the exact bytes of the callback are in the database file by then."""
    task, body = new_id(), json.dumps(record("processing")).encode()
    assert post(running, task, body).json() == {"ok": True}
    engine = create_engine(running.settings.database)  # another connection reads only what is committed
    with engine.connect() as connection:
        status = connection.execute(sql("SELECT status FROM task WHERE id = :id"), {"id": task}).scalar_one()
        kept = connection.execute(sql("SELECT body, body_sha256 FROM event WHERE body_sha256 IS NOT NULL")).one()
    engine.dispose()
    assert status == "processing"
    assert bytes(kept.body) == body
    assert kept.body_sha256 == hashlib.sha256(body).hexdigest()
    assert metric(running, 'kling_callbacks_total{outcome="accepted"}') == 1


def forgeries(running: Running) -> list[str]:
    """Tokens that must be refused."""
    task = new_id()
    good = CallbackSigner([SECRET]).token(task, IMAGES)
    payload, stamp, signature = good.rsplit(".", 2)
    other = CallbackSigner([SECRET]).token(new_id(), IMAGES).rsplit(".", 2)
    month = 31 * 86_400
    return [
        "x",
        "%00",
        "%FF%FE",
        "a" * 30_000,
        "%2E%2E/%2E%2E/etc/passwd",
        f"{payload}.{stamp}",
        f"{payload}.{stamp}.",
        f"{payload}.{stamp}.{signature}x",
        f"{payload}.{stamp}.{signature.swapcase()}",
        f"{other[0]}.{stamp}.{signature}",
        f"{payload}.{other[1][:-1]}z.{signature}",
        f"{good}/more",
        CallbackSigner(["another-secret-that-is-32-characters!"]).token(task, IMAGES),
        CallbackSigner([SECRET], clock=lambda: time.time() - month).token(task, IMAGES),
        running.headers("admin")["Authorization"].partition(" ")[2],
    ]


def test_an_invalid_token_is_only_counted(running: Running) -> None:
    """Forged, altered, expired, of another receiver or for another purpose: 401, and no row."""
    tokens = forgeries(running)
    for token in tokens:
        answer = httpx.post(f"{running.url}/callbacks/{token}", json=record("succeed"))
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "bad_token"), token[:60]
        assert answer.json()["error"]["hint"]
    assert set(tables(running).values()) == {0}
    assert metric(running, 'kling_callbacks_total{outcome="bad_token"}') == len(tokens)


def test_a_token_has_a_minute_of_clock_leeway(running: Running) -> None:
    """An address signed by a machine whose clock is 50 seconds ahead is valid, and so is one 50 seconds too old."""
    age = running.settings.callback_max_age
    for clock in (time.time() + 50, time.time() - age - 50):
        address = CallbackSigner([SECRET], clock=lambda at=clock: at).url(running.url, new_id(), IMAGES)  # type: ignore[misc]
        assert httpx.post(address, json=record("submitted")).status_code == 200


@pytest.mark.parametrize("ahead", [300, 86_400, 20 * 365 * 86_400])
def test_a_token_from_the_future_has_age_0(running: Running, caplog: pytest.LogCaptureFixture, ahead: float) -> None:
    """The clock of the machine that signed it was ahead. Its callbacks are stored, and the log names it once."""
    for _ in range(2):
        address = CallbackSigner([SECRET], clock=lambda: time.time() + ahead).url(running.url, new_id(), IMAGES)
        assert httpx.post(address, json=record("submitted")).status_code == 200
    assert caplog.text.count("s in the future, and is accepted; check the clocks") == 1


def test_a_rotation_of_the_signing_secret_keeps_old_tokens_valid(start: Start) -> None:
    """Addresses, bearer tokens and links of the previous secret are accepted; new ones are signed by the newest."""
    old, removed = "the-secret-before-the-rotation-012345", "the-one-before-that-which-is-no-more-"
    running = start(api_base="http://127.0.0.1:9", signing_secrets=(SECRET, old))
    for secret, valid in ((SECRET, True), (old, True), (removed, False)):
        task = new_id()
        called = httpx.post(CallbackSigner([secret]).url(running.url, task, IMAGES), json={})
        bearer = {"Authorization": f"Bearer {api_token([secret], 'client', 60)}"}
        shown = httpx.get(f"{running.url}/api/tasks", headers=bearer)
        linked = httpx.get(sign_link([secret], running.url, task, 0, 1 << 40))
        expected = [200, 200, 404] if valid else [401] * 3
        assert [response.status_code for response in (called, shown, linked)] == expected
    task = new_id()
    token = register(running, task).json()["callback_url"].rpartition("/")[2]
    assert CallbackSigner([SECRET]).verify(token, 60).task_id == task


@pytest.mark.parametrize("seconds", [-5, 5])
def test_clocks_may_be_five_seconds_apart(start: Start, seconds: int) -> None:
    """Addresses, bearer tokens and Kling's signatures of a machine that is ahead or behind are valid."""
    running = start(webhook_secrets=(WEBHOOK,), webhook_signature="required")
    remote = time.time() + seconds
    signer = CallbackSigner([SECRET], clock=lambda: remote)
    body = json.dumps(record("processing")).encode()
    url = signer.url(running.url, new_id(), IMAGES)
    assert httpx.post(url, content=body, headers=signed(body, at=remote)).status_code == 200
    bearer = {"Authorization": f"Bearer {api_token([SECRET], 'client', 1, now=remote)}"}
    assert httpx.get(f"{running.url}/api/tasks", headers=bearer).status_code == 200


def test_a_token_with_an_invalid_family_is_refused(running: Running) -> None:
    """Kling could not be queried for it."""
    for family in ("a\0b", "videos/../secrets", "?x=1", "x" * 300, "\ud800"):
        answer = httpx.post(CallbackSigner([SECRET]).url(running.url, new_id(), family), json={})
        assert answer.status_code == 401, family
    assert set(tables(running).values()) == {0}


DEEP = b"[" * 100_000 + b"]" * 100_000
HOSTILE = {
    "empty": b"",
    "not json": b"succeed",
    "cut json": b'{"task_id":"1","task_sta',
    "json null": b"null",
    "a number": b"17",
    "a list": b"[]",
    "deeply nested lists": DEEP,
    "deeply nested objects": b'{"data":' * 20_000 + b"{}" + b"}" * 20_000,
    "not utf-8": b'{"task_id":"\xff\xfe","task_status":"succeed"}',
    "utf-16": json.dumps(record("succeed")).encode("utf-16"),
    "utf-8 with a mark": b"\xef\xbb\xbf" + json.dumps(record("succeed")).encode(),
    "nan": b'{"task_id":"1","task_status":"succeed","final_unit_deduction":NaN,"created_at":NaN}',
    "infinity": b'{"task_id":"1","task_status":"succeed","billing":[{"amount":Infinity}]}',
    "huge integer": b'{"task_id":' + b"9" * 4000 + b',"task_status":"succeed","created_at":' + b"9" * 4000 + b"}",
    "endless integer": b'{"task_id":' + b"9" * 100_000 + b',"task_status":"succeed"}',
    "huge exponent": b'{"task_id":"1","task_status":"succeed","task_result":{"videos":[{"duration":1e999}]}}',
    "duplicate keys": b'{"task_id":"1","task_status":"failed","task_status":"succeed"}',
    "lone surrogate": b'{"task_id":"\\ud800","task_status":"succeed","task_status_msg":"\\udfff"}',
    "nul": b'{"task_id":"a\\u0000b","task_status":"succeed","task_status_msg":"\\u0000"}',
    "nul in the status": b'{"task_id":"1","task_status":"succeed\\u0000"}',
    "bytes that are no text": bytes(range(256)),
    "unknown status": b'{"task_id":"1","task_status":"cancelled"}',
    "status of another type": b'{"task_id":{},"task_status":["succeed"]}',
    "everything of another type": json.dumps(
        {
            "task_id": [1],
            "task_status": "succeed",
            "task_info": "x",
            "task_result": {"videos": {"a": 1}, "images": [None, 1, {"url": 5}], "": [{"url": "x"}]},
            "data": {"data": [[[]]]},
            "outputs": "none",
            "billing": {"a": {"b": []}},
        }
    ).encode(),
    "a thousand results": json.dumps(
        record("succeed", task_result={"images": [{"index": n, "url": f"http://x/{n}"} for n in range(1000)]})
    ).encode(),
    "form": b"task_id=1&task_status=succeed",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
def test_no_body_is_refused(shared: Running, shared_gateway: Sandbox, body: bytes) -> None:
    """With a valid token every body is answered 200 and stored as it is, and Kling is queried."""
    task = new_id()
    assert post(shared, task, body).status_code == 200
    shared_gateway.wait_for(lambda: any(task in query.ids for query in shared_gateway.queries))
    [kept] = rows(shared, "SELECT body FROM event WHERE task_id = :task AND body_sha256 IS NOT NULL", task=task)
    assert bytes(kept["body"]) == body
    shown = show(shared, task)
    assert (shown["status"], shown["done"]) == ("created", False)


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json; charset=utf-16"},
        {"Content-Type": "multipart/form-data"},
        {"Content-Encoding": "gzip"},
        {"Expect": "100-continue"},
        {"X-Forwarded-For": "' OR 1=1", "X-Forwarded-Proto": "gopher", "Host": "elsewhere"},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_headers_are_ignored(shared: Running, headers: dict[str, str]) -> None:
    """The body is read as JSON, whatever its content type or encoding."""
    task = new_id()
    assert post(shared, task, record("processing"), headers=headers).status_code == 200
    assert show(shared, task)["status"] == "processing"


@pytest.mark.parametrize(
    "size", [MAX_KEPT_BYTES, MAX_KEPT_BYTES + 1, 5_000_000, MAX_KEPT_BYTES + MAX_DROPPED_BYTES + 1_000_000]
)
def test_the_first_megabyte_of_an_oversized_body_is_kept(running: Running, gateway: Sandbox, size: int) -> None:
    """Up to 16 MB more is read for the digest; a longer body is answered too."""
    task = new_id()
    body = b'{"task_status":"processing","padding":"' + b"x" * (size - 41) + b'"}'
    assert len(body) == size
    assert post(running, task, body).status_code == 200
    [kept] = rows(running, "SELECT body, body_sha256, data FROM event WHERE body_sha256 IS NOT NULL")
    data = json.loads(kept["data"])
    assert bytes(kept["body"]) == body[:MAX_KEPT_BYTES]
    if size <= MAX_KEPT_BYTES + MAX_DROPPED_BYTES:
        assert (kept["body_sha256"], data["size"]) == (hashlib.sha256(body).hexdigest(), size)
    if size > MAX_KEPT_BYTES:
        assert data["trouble"] == "oversized"
        assert show(running, task)["status"] == "created"
        gateway.wait_for(lambda: any(task in query.ids for query in gateway.queries))


def test_a_cut_body_is_a_hint(running: Running, gateway: Sandbox) -> None:
    """The sender disconnects in the middle of the body: what arrived is stored, and Kling is queried."""
    task = new_id()
    path = urlsplit(running.callback_url(task)).path
    parts = urlsplit(running.url)
    with closing(socket.create_connection((parts.hostname or "", parts.port or 80))) as connection:
        connection.sendall(f'POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{{"task_id"'.encode())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    gateway.wait_for(lambda: any(task in query.ids for query in gateway.queries))
    [kept] = rows(running, "SELECT body, data FROM event WHERE body_sha256 IS NOT NULL")
    assert bytes(kept["body"]) == b'{"task_id"'
    assert json.loads(kept["data"])["trouble"] == "cut off"


def test_a_body_may_come_byte_by_byte(running: Running) -> None:
    """A slow, chunked body is read like any other, while other callbacks are answered."""
    task = new_id()
    path = urlsplit(running.callback_url(task)).path
    parts = urlsplit(running.url)
    body = json.dumps(record("processing")).encode()
    with closing(socket.create_connection((parts.hostname or "", parts.port or 80), timeout=20)) as slow:
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        slow.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for byte in body:
            slow.sendall(b"1\r\n%c\r\n" % byte)
            if byte == ord(":"):
                assert post(running, new_id(), record("submitted")).status_code == 200
        slow.sendall(b"0\r\n\r\n")
        assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert show(running, task)["status"] == "processing"


@pytest.mark.parametrize(
    "request_line",
    [
        b"POST /callbacks/\xff\xfe HTTP/1.1",
        b"POST /callbacks/a b HTTP/1.1",
        b"\0\0\0\0",
        b"POST * HTTP/9.9",
        b"GET",
    ],
)
def test_invalid_http_is_refused(shared: Running, request_line: bytes) -> None:
    """Or ignored, and the next callback is answered."""
    answer = raw(shared.url, request_line + b"\r\nHost: x\r\nContent-Length: 0\r\n\r\n", end=True)
    assert not answer or answer.split()[1] in (b"400", b"401", b"404", b"405"), answer
    assert post(shared, new_id(), {}).status_code == 200


def test_a_trailing_slash_is_ignored(running: Running) -> None:
    """A proxy or a person that adds a slash gets no redirect and no 404."""
    task = new_id()
    answer = httpx.post(running.callback_url(task) + "/", json=record("processing"))
    assert answer.status_code == 200
    assert show(running, task)["status"] == "processing"
    assert httpx.post(f"{running.url}/callbacks/", json={}).json()["error"]["code"] == "bad_signature"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_only_post_is_allowed(shared: Running, method: str) -> None:
    """Any other method is answered 405 with the allowed one, and changes nothing."""
    before = tables(shared)
    for url in (shared.callback_url(new_id()), f"{shared.url}/callbacks"):
        answer = httpx.request(method, url)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert tables(shared) == before


@pytest.mark.parametrize("prefix", ["/hooks/kling", "/callbacks", "/api"])
def test_a_path_prefix_works_whether_or_not_a_proxy_removes_it(start: Start, prefix: str) -> None:
    """Also if the prefix begins like a route."""
    running = start(path=prefix)
    bare = running.url.removesuffix(prefix)
    for base in (running.url, bare):
        task = new_id()
        address = running.callback_url(task).replace(running.url, base)
        assert httpx.post(address, json=record("processing")).status_code == 200
        for path in ("/healthz", "/readyz", "/openapi.json"):
            assert httpx.get(f"{base}{path}", headers=running.headers("admin")).status_code == 200
        shown = httpx.get(f"{base}/api/tasks/{task}", headers=running.headers())
        assert shown.json()["status"] == "processing"


def test_a_database_that_cannot_be_written_is_answered_503(running: Running) -> None:
    """Nothing is stored, the sender gets Retry-After, and after the repair the callback is accepted."""
    task, engine = new_id(), create_engine(running.settings.database)
    with engine.begin() as connection:
        connection.execute(sql("ALTER TABLE event RENAME TO gone"))
    answer = post(running, task, record("processing"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert metric(running, 'kling_callbacks_total{outcome="unavailable"}') == 1
    with engine.begin() as connection:
        connection.execute(sql("ALTER TABLE gone RENAME TO event"))
    engine.dispose()
    assert rows(running, "SELECT * FROM task") == []
    assert post(running, task, record("processing")).status_code == 200
    assert show(running, task)["status"] == "processing"


def test_a_repeat_is_counted_on_the_first_event(running: Running) -> None:
    """The same bytes again add no event."""
    task = new_id()
    for _ in range(5):
        assert post(running, task, record("processing")).status_code == 200
    [kept] = rows(running, "SELECT repeat_count FROM event WHERE body_sha256 IS NOT NULL")
    assert kept["repeat_count"] == 4
    assert rows(running, "SELECT callback_count FROM task") == [{"callback_count": 5}]


def test_a_token_authenticates_the_task_and_not_its_final_status(running: Running, gateway: Sandbox) -> None:
    """A `succeed` that Kling does not confirm changes no status, and its addresses are never downloaded."""
    gateway.hold()
    task, _ = submit(running, gateway)
    trap = f"{gateway.url}/files/forged/0.png"
    forged = record("succeed", task_result={"images": [{"index": 0, "url": trap}]})
    assert post(running, task, forged).status_code == 200
    gateway.wait_for(lambda: gateway.queries)
    assert show(running, task)["status"] in ("submitted", "processing")
    gateway.release()
    done = finished(running, task)
    assert (done["status"], done["origin"]) == ("succeed", "kling")
    assert all("forged" not in str(result["source_url"]) for result in done["results"])
    assert {download.task_id for download in gateway.downloads} == {done["task_id"]}


# --- callbacks without a token, and Kling's own signature -----------------------------------------------


def test_without_webhook_secrets_a_token_is_required(running: Running) -> None:
    """`POST /callbacks` is refused, because no signature can be verified."""
    body = json.dumps(record("succeed")).encode()
    answer = httpx.post(f"{running.url}/callbacks", content=body, headers=signed(body))
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "bad_signature")
    assert "none of Kling's secrets" in answer.json()["error"]["message"]
    assert "KLING_WEBHOOK_SECRETS" in answer.json()["error"]["hint"]
    assert set(tables(running).values()) == {0}


def test_a_signed_callback_of_an_unknown_task_is_answered_and_not_stored(start: Start) -> None:
    """Kling's console expects 200 for its test; no task is created."""
    running = start(webhook_secrets=(WEBHOOK,))
    body = b'{"id":"1","status":"submitted","message":"test"}'
    for content in (
        body,
        b"{}",
        b"\xff",
        b'{"status":"succeeded"}',
        b'{"status":"failed","external_id":"../x"}',
    ):
        answer = httpx.post(f"{running.url}/callbacks", content=content, headers=signed(content))
        assert answer.status_code == 200, content
    assert set(tables(running).values()) == {0}
    assert metric(running, 'kling_callbacks_total{outcome="unknown_task"}') == 5


@pytest.mark.parametrize("by", ["external_id", "task_id"])
def test_a_signed_callback_of_a_known_task_needs_no_query(start: Start, gateway: Sandbox, by: str) -> None:
    """Kling's signature makes it authoritative. The task is found by our id or by Kling's."""
    running = start(api_base=gateway.url, webhook_secrets=(WEBHOOK,))
    task, kling_id = submit(running, gateway, "no-callback")
    gateway.wait_for(lambda: gateway.tasks[kling_id].finished_at)
    callback: Json = {
        "id": kling_id if by == "task_id" else "another",
        "status": "succeeded",
        "outputs": [{"type": "image", "url": gateway.tasks[kling_id].file_url("0.png")}],
        **({"external_id": task} if by == "external_id" else {}),
    }
    body = json.dumps(callback).encode()
    assert httpx.post(f"{running.url}/callbacks", content=body, headers=signed(body)).status_code == 200
    done = finished(running, task)
    assert (done["origin"], done["results"][0]["status"]) == ("kling", "stored")
    assert gateway.queries == []


def test_a_signed_callback_with_a_token_needs_no_query(start: Start) -> None:
    """The sandbox signs as Kling does, and is never queried."""
    with Sandbox(webhook_secret=WEBHOOK) as gateway:
        running = start(api_base=gateway.url, webhook_secrets=(WEBHOOK,), webhook_signature="required")
        task, _ = submit(running, gateway)
        done = finished(running, task)
        assert (done["status"], done["origin"], gateway.queries) == ("succeed", "kling", [])


def test_a_signed_succeed_without_files_needs_one_query(start: Start, gateway: Sandbox) -> None:
    """The answer names the files."""
    running = start(api_base=gateway.url, webhook_secrets=(WEBHOOK,))
    task, kling_id = submit(running, gateway, "no-callback")
    gateway.wait_for(lambda: gateway.tasks[kling_id].finished_at)
    body = json.dumps(record("succeed")).encode()
    assert post(running, task, body, headers=signed(body)).status_code == 200
    assert [result["status"] for result in finished(running, task)["results"]] == ["stored"]
    assert gateway.tasks[kling_id].queries == 1


BODY = json.dumps(record("succeed", task_result={"images": [{"url": "http://127.0.0.1:1/x"}]})).encode()


def hostile_headers() -> dict[str, dict[str, bytes]]:
    """Signature headers that are not valid, or are incomplete."""
    good = {name: value.encode() for name, value in signed(BODY).items()}
    foreign = sign("whsec_" + base64.b64encode(b"y" * 32).decode(), "msg_1", int(time.time()), BODY).encode()
    return {
        "another's signature": {**good, "webhook-signature": foreign},
        "another message": {**good, "webhook-id": b"msg_2"},
        "too old": {name: value.encode() for name, value in signed(BODY, at=time.time() - 400).items()},
        "too new": {name: value.encode() for name, value in signed(BODY, at=time.time() + 400).items()},
        "no signature": {**good, "webhook-signature": b""},
        "no id": {"webhook-timestamp": good["webhook-timestamp"], "webhook-signature": b"v1,x"},
        "only an id": {"webhook-id": b"x"},
        "only a time": {"webhook-timestamp": good["webhook-timestamp"]},
        "no base64": {**good, "webhook-signature": b"v1,!!!! v1 , ,, v1,"},
        "no utf-8": {**good, "webhook-signature": b"v1,\xff\xfe\xfd"},
        "id of odd letters": {**good, "webhook-id": b"\xff\xc3\x28"},
        "another version": {**good, "webhook-signature": b"v1a" + good["webhook-signature"][2:]},
        "hex": {**good, "webhook-signature": b"v1," + b"0f" * 32},
        "ten thousand": {**good, "webhook-signature": b" ".join([b"v1,eA=="] * 7000)},
        **{
            f"time {stamp!r}": {**good, "webhook-timestamp": stamp}
            for stamp in (b"", b"now", b"NaN", b"-1", b"1e9", b"\xb2\xb3", b"0x10", b"9" * 400, b"1 1", b"1.5")
        },
    }


def test_a_callback_with_an_invalid_signature_is_a_hint(start: Start, gateway: Sandbox) -> None:
    """By default it is stored and answered 200, its status and files are ignored, and Kling is queried."""
    running = start(api_base=gateway.url, webhook_secrets=(WEBHOOK,))
    for name, headers in hostile_headers().items():
        task = new_id()
        assert post(running, task, BODY, headers=headers).status_code == 200, name
        [kept] = rows(running, "SELECT data FROM event WHERE task_id = :t AND body_sha256 IS NOT NULL", t=task)
        assert json.loads(kept["data"])["trouble"] == "wrongly signed", name
        assert (show(running, task)["status"], show(running, task)["results"]) == ("created", []), name
        gateway.wait_for(lambda: any(task in query.ids for query in gateway.queries))  # noqa: B023


def test_a_required_signature_must_be_valid(start: Start) -> None:
    """Under `required`, invalid and missing signatures are answered 401, and nothing is stored."""
    running = start(webhook_secrets=(WEBHOOK,), webhook_signature="required")
    for name, headers in {**hostile_headers(), "none": {}}.items():
        answer = post(running, new_id(), BODY, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "bad_signature"), name
    for name, headers in {**hostile_headers(), "none": {}}.items():
        answer = httpx.post(
            f"{running.url}/callbacks",
            content=BODY,
            headers={name.encode(): value for name, value in headers.items()},
        )
        assert answer.status_code == 401, name
    assert set(tables(running).values()) == {0}
    assert post(running, new_id(), BODY, headers=signed(BODY)).status_code == 200


def test_several_signatures_and_several_secrets(start: Start) -> None:
    """One valid signature and one matching secret are enough during a rotation."""
    old = "whsec_" + base64.b64encode(b"z" * 32).decode()
    running = start(webhook_secrets=(WEBHOOK, old), webhook_signature="required")
    headers = signed(BODY, secret=old)
    headers["webhook-signature"] = "v1,eA== v2,foo " + headers["webhook-signature"]
    assert post(running, new_id(), BODY, headers=headers).status_code == 200


def test_without_webhook_secrets_signature_headers_are_ignored(running: Running) -> None:
    """The callback is handled like one without them."""
    task = new_id()
    headers = {"webhook-id": "1", "webhook-timestamp": "x", "webhook-signature": "y"}
    assert post(running, task, record("processing"), headers=headers).status_code == 200
    assert show(running, task)["status"] == "processing"


@pytest.mark.anyio
@pytest.mark.parametrize(("ahead", "status"), [(0, 200), (299, 200), (-299, 200), (301, 401), (-301, 401)])
async def test_klings_official_vector(tmp_path: Path, ahead: int, status: int) -> None:
    """Kling's own example is valid within five minutes of its time, by the receiver's clock."""
    settings = make_settings(
        tmp_path,
        webhook_secrets=(KLINGS_SECRET,),
        webhook_signature="required",
        api_base="http://127.0.0.1:9",
    )

    def clock() -> float:
        return 1781080794 + ahead

    receiver = Receiver(settings, clock=clock)
    receiver.prepare()
    await receiver.start()
    try:
        task = new_id()
        address = CallbackSigner([SECRET], clock=clock).url(settings.receiver_url, task, "/text-to-video/kling-3.0")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(receiver))) as http:
            answer = await http.post(address, content=KLINGS_BODY, headers=KLINGS_HEADERS)
        assert answer.status_code == status
        row = await receiver.store.reader.task(task)
        assert (row and (row["status"], row["origin"])) == (("succeed", "kling") if status == 200 else None)
    finally:
        await receiver.stop()


# --- ordering ----------------------------------------------------------------------------------------------


def test_the_first_callback_may_arrive_before_the_registration(running: Running, gateway: Sandbox) -> None:
    """The callback creates the task; Kling is queried by our id, and the files are stored."""
    task = new_id()
    create(running, gateway, task)
    logged = events(running_with(running, task), task)
    assert types(logged)[0] == "task.created"
    assert logged[0]["data"] == {"by": "callback"}
    assert logged[-1]["task"]["results"][0]["status"] == "stored"


def running_with(running: Running, task: str) -> Running:
    """The same receiver, once it knows the task."""
    eventually(lambda: "error" not in show(running, task), running)
    return running


def test_a_late_callback_changes_nothing(running: Running, gateway: Sandbox) -> None:
    """After the final status, an earlier status and a contradiction are only logged as ignored."""
    task, _ = submit(running, gateway)
    before = finished(running, task)
    assert post(running, task, record("processing", late=True)).status_code == 200
    assert post(running, task, record("failed", task_status_msg="no")).status_code == 200
    assert show(running, task)["status"] == before["status"]
    ignored = [event["data"] for event in events(running, task, "never") if event["type"] == "callback.ignored"]
    assert [data["reason"] for data in ignored] == ["late", "contradictory"]


def test_a_registration_after_the_callback_fills_the_gaps(running: Running) -> None:
    """The client's fields are added to the task that the callback created; its status stays."""
    task = new_id()
    assert post(running, task, record("processing")).status_code == 200
    answer = register(running, task, model="kling-v2", tags=["a"])
    assert answer.status_code == 200
    assert answer.json()["task"]["status"] == "processing"
    assert (answer.json()["task"]["model"], answer.json()["task"]["tags"]) == ("kling-v2", ["a"])


def test_a_hundred_concurrent_callbacks_are_durable(running: Running) -> None:
    """Each of them when its 200 is answered."""

    async def send() -> list[int]:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=50), timeout=30) as http:
            addresses = [running.callback_url(f"task-{n % 20}") for n in range(100)]
            answers = [http.post(url, json=record("processing", n=n)) for n, url in enumerate(addresses)]
            return [answer.status_code for answer in await asyncio.gather(*answers)]

    assert asyncio.run(send()) == [200] * 100
    assert rows(running, "SELECT count(*) AS n FROM event WHERE body_sha256 IS NOT NULL") == [{"n": 100}]
    assert rows(running, "SELECT DISTINCT status FROM task") == [{"status": "processing"}]

"""Hostile requests: their cost is limited, they leave no trace in log or metrics, and other requests go on."""

import asyncio
import base64
import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.webhooks import TOLERANCE_SECONDS, sign
from kling_receiver.app import Receiver
from kling_receiver.jobs import worker
from kling_receiver.jobs.kinds import MAX_PER_POOL
from kling_receiver.tasks.ingest import MAX_KEPT_BYTES, MAX_KEPT_CALLBACKS
from kling_receiver.web.body import LARGE_BYTES, MAX_UNAUTHENTICATED
from kling_sandbox import Sandbox
from tests.support.database import statements
from tests.support.receiver import Start, make_settings
from tests.support.web import host
from tools.harness.process import Process
from tools.harness.submitting import metric, poll_until, post, raw, rows, show

HEADER_SECONDS = 2
WEBHOOK = "whsec_" + base64.b64encode(b"a-webhook-secret-for-these-tests").decode()
DEEP = b"[" * 100_000 + b"]" * 100_000
LIST, SEND = b"GET /api/tasks HTTP/1.1", b"POST /callbacks HTTP/1.1"
CHUNKED = b"Transfer-Encoding: chunked"
IMPATIENT = f"""
from functools import partial
from kling_receiver import server
server.create_server = partial(server.create_server, header_seconds={HEADER_SECONDS})
from kling_receiver.cli.main import main
main()
"""
"""`kling-receiver` with less time for the head of a request."""


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A receiver in a process of its own, for the whole table of requests."""
    settings = {"KLING_API_BASE": "http://127.0.0.1:9", "KLING_WEBHOOK_SECRETS": WEBHOOK}
    process = Process(tmp_path_factory.mktemp("abuse") / "data", **settings)
    process.command[:1] = [sys.executable, "-c", IMPATIENT]
    with process:
        yield process


def request(line: bytes, *headers: bytes, body: bytes = b"", length: bytes | None = None) -> bytes:
    """The bytes of a request, well formed or not."""
    lengths = [] if length == b"" else [b"Content-Length: " + (length or str(len(body)).encode())]
    return b"\r\n".join([line, b"Host: x", *lengths, *headers, b"", body])


def signed() -> tuple[bytes, bytes, bytes]:
    """The headers of a false signature of this second: one of minutes ago is refused before its body is read."""
    return b"webhook-id: m", b"webhook-timestamp: %d" % time.time(), b"webhook-signature: v1,AAAA"


ABUSES = {
    "nothing": (b"", b""),
    "a blank line": (b"\r\n\r\n", b""),
    "zeros": (bytes(1000), b"400"),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"400"),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400 404 405"),
    "http/0.9": (b"GET /\r\n\r\n", b"303 400"),
    "http/1.0": (b"GET /healthz HTTP/1.0\r\n\r\n", b"200"),
    "head": (request(b"HEAD /healthz HTTP/1.1"), b"200"),
    "options": (request(b"OPTIONS * HTTP/1.1"), b"400 404 405"),
    "trace": (request(b"TRACE /healthz HTTP/1.1"), b"405"),
    "an unknown method": (request(b"FETCH /healthz HTTP/1.1"), b"400 405"),
    "connect": (request(b"CONNECT 127.0.0.1:22 HTTP/1.1"), b"400 404 405"),
    "an absolute address": (request(b"GET http://169.254.169.254/latest HTTP/1.1"), b"404"),
    "an absolute address without a path": (request(b"GET http://x HTTP/1.1"), b"400 404"),
    "a websocket": (
        request(b"GET /api/events HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket",
                b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
        b"401",
    ),
    "nul in the path": (request(b"GET /api/tasks/%00 HTTP/1.1"), b"401"),
    "slashes in the path": (request(b"GET /api/tasks/..%2f..%2fetc%2fpasswd HTTP/1.1"), b"401 404"),
    "dots in the path": (request(b"GET /api/tasks/x/results/../../../../etc/passwd HTTP/1.1"), b"404"),
    "half an escape": (request(b"POST /callbacks/%f HTTP/1.1"), b"401"),
    "bytes that are no text": (request(b"POST /callbacks/%ff%fe%80 HTTP/1.1"), b"401"),
    "an endless path": (request(b"GET /" + b"a/" * 30_000 + b" HTTP/1.1"), b"404"),
    "an endless query": (request(b"GET /api/tasks?" + b"a=1&" * 15_000 + b" HTTP/1.1"), b"401"),
    "many headers": (request(b"GET /healthz HTTP/1.1", *[b"a: b"] * 10_000), b"400"),
    "headers twice": (request(b"GET /healthz HTTP/1.1", b"Host: y", b"Authorization: a", b"Authorization: b"),
                      b"200"),
    "a header without a name": (request(b"GET /healthz HTTP/1.1", b": x"), b"400"),
    "a header with a nul": (request(b"GET /healthz HTTP/1.1", b"a: \0"), b"400"),
    "a folded header": (request(b"GET /healthz HTTP/1.1", b"a: b", b" c"), b"200 400"),
    "a bearer that is no text": (request(LIST, b"Authorization: Bearer \xff\xfe"), b"401"),
    "an endless bearer": (request(LIST, b"Authorization: Bearer " + b"a" * 60_000), b"401"),
    "a session": (request(LIST, b"Cookie: session=" + b"a" * 9000), b"401"),
    "two lengths": (request(SEND, b"Content-Length: 5"), b"400"),
    "a negative length": (request(SEND, length=b"-1"), b"400"),
    "a length past counting": (request(SEND, length=b"9" * 40), b"400"),
    "a length and chunks": (request(SEND, CHUNKED, length=b"5"), b"400"),
    "chunks of garbage": (request(SEND, CHUNKED, body=b"zz\r\n", length=b""), b"400 401"),
    "a chunk past counting": (
        request(SEND, CHUNKED, body=b"f" * 40 + b"\r\n", length=b""), b"400 401"),
    "an unread body": (request(b"POST /callbacks/x HTTP/1.1", body=bytes(1_000_000)), b"401"),
    "an expectation": (request(b"POST /callbacks/x HTTP/1.1", b"Expect: 100-continue", length=b"5"), b"401"),
    "another expectation": (request(b"POST /callbacks/x HTTP/1.1", b"Expect: rain"), b"401"),
    "another encoding": (request(b"POST /callbacks/x HTTP/1.1", b"Content-Encoding: br"), b"401"),
    "a put without a token": (request(b"PUT /api/tasks/x HTTP/1.1", body=DEEP), b"401"),
    "a delete": (request(b"DELETE /api/tasks/x HTTP/1.1"), b"401"),
    "a submission": (request(b"POST /api/tasks HTTP/1.1", body=DEEP), b"401"),
    "no signature": (request(SEND, body=b"{}"), b"401"),
    "a false signature": (request(SEND, *signed(), body=b"{}"), b"401"),
    "a false signature of much": (request(SEND, *signed(), body=bytes(1_100_000)), b"401"),
    "a link": (request(b"GET /api/tasks/x/results/0?expires=9e9&signature=%00 HTTP/1.1"), b"401"),
    "a number": (request(b"GET /api/tasks/x/results/" + b"9" * 5000 + b" HTTP/1.1"), b"404"),
    "a file": (request(b"GET /.env HTTP/1.1"), b"404"),
}  # fmt: skip
"""What is sent, and the statuses that are right; `b""`: the connection is closed without a response."""


@pytest.mark.parametrize(("sent", "right"), ABUSES.values(), ids=ABUSES.keys())
def test_an_unauthenticated_request_is_refused_and_leaves_nothing(receiver: Process, sent: bytes, right: bytes) -> None:
    """No failure and no line in the log; the next callback is accepted."""
    before = receiver.log_text()
    started = time.monotonic()
    answer = raw(receiver.url, sent, end=not sent)
    assert time.monotonic() - started < 5 * HEADER_SECONDS
    assert answer[9:12] in right.split() or not (answer or right), answer
    assert post(receiver, new_id(), {"task_status": "processing"}).status_code == 200
    assert receiver.log_text() == before


def document(**fields: object) -> bytes:
    """A registration."""
    return json.dumps({"family": "images/generations", "attempt": "a", **fields}).encode()


BODIES = {
    "nothing": b"",
    "deep": DEEP,
    "deep within": b'{"family":"images/generations","attempt":"a","request":' + DEEP + b"}",
    "huge integers": document(request=0).replace(b"0", b"9" * 4000),
    "endless integers": document(request=0).replace(b"0", b"9" * 200_000),
    "no numbers": document(request=[float("nan"), float("-inf")]),
    "lone surrogates": document(request={"\ud800": "\udfff"}, model="\ud800", tags=["\udc00"]),
    "nuls": document(request={"\0": "\0"}, model="\0", tags=["\0"], reason="\0"),
    "another type": document(request=1, model={}, tags={"a": 1}, attempt=[]),
    "keys twice": document()[:-1] + b',"family":"videos/effects","family":1}',
    "bytes that are no text": bytes(range(256)),
    "as much as there may be": document(request=["x" * 100] * 9000),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_an_authenticated_body_may_contain_anything(receiver: Process, body: bytes) -> None:
    """As a callback it is accepted, as a registration accepted or refused; neither fails, and both can be read."""
    task, other = new_id(), new_id()
    assert post(receiver, task, body).status_code == 200
    answer = httpx.put(f"{receiver.url}/api/tasks/{other}", content=body, headers=receiver.headers(), timeout=20)
    assert answer.status_code in (201, 422), answer.text
    assert show(receiver, task)["status"] == "created"
    assert httpx.get(f"{receiver.url}/api/tasks", headers=receiver.headers("read")).status_code == 200
    assert "Traceback" not in receiver.log_text()


def test_no_label_of_the_metrics_comes_from_a_request(receiver: Process) -> None:
    """The number of lines does not grow with callbacks, accepted or refused."""

    def names() -> set[str]:
        text = httpx.get(f"{receiver.url}/metrics", headers=receiver.headers("read")).text
        return {line.rpartition(" ")[0] for line in text.splitlines()}

    post(receiver, new_id(), {})
    httpx.post(f"{receiver.url}/callbacks/x")
    before = names()
    for n in range(20):
        httpx.post(f"{receiver.url}/callbacks/{n}", headers={"User-Agent": f"x{n}"})
        post(receiver, new_id(), {"task_status": f"x{n}"}, family=f"videos/x{n}")
    assert names() == before


def test_idle_connections_are_evicted(tmp_path: Path) -> None:
    """With more connections than file descriptors, the longest waiting are closed, and callbacks are accepted."""
    cramped = Process(tmp_path / "data", KLING_API_BASE="http://127.0.0.1:9")
    cramped.command[:0] = ["sh", "-c", 'ulimit -n 200; exec "$0" "$@"']
    with cramped as receiver:
        with ExitStack() as stack:
            idle = []
            for n in range(300):
                idle.append(stack.enter_context(socket.create_connection(("127.0.0.1", receiver.port), 20)))
                idle[-1].sendall(b"POST /callbacks/x HTTP/1.1\r\nHo"[: n % 30])
                if n % 25 == 0:
                    assert post(receiver, new_id(), {"task_status": "processing"}).status_code == 200
            assert post(receiver, new_id(), {"task_status": "processing"}).status_code == 200
            with pytest.raises(ConnectionError):
                _answer(idle[0])
        assert len(receiver.log_text().splitlines()) == 3  # its address, its data, and a login link


def _answer(connection: socket.socket) -> bytes:
    """The bytes received. Raises ConnectionError if the connection was closed."""
    if not (received := connection.recv(65536)):
        raise ConnectionError
    return received


def test_large_unauthenticated_bodies_are_limited(start: Start) -> None:
    """While the limit is reached, others are answered 503; small bodies and callbacks with a token are accepted."""
    running = start(webhook_secrets=(WEBHOOK,))
    head = request(SEND, *signed(), b"Expect: 100-continue", length=b"%d" % (2 * LARGE_BYTES))
    with ExitStack() as stack:

        def begin() -> socket.socket:
            port = urlsplit(running.url).port or 0
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", port), 20))
            slow.sendall(head)
            assert _answer(slow).startswith(b"HTTP/1.1 100 ")
            slow.sendall(bytes(LARGE_BYTES + 1))
            assert httpx.get(f"{running.url}/healthz").status_code == 200  # the body was read before this request
            return slow

        first, *_ = [begin() for _ in range(MAX_UNAUTHENTICATED)]
        refused = _answer(begin())
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 5" in refused
        assert raw(running.url, request(SEND, *signed(), length=b"2") + b"{}").startswith(b"HTTP/1.1 401 ")
        assert post(running, new_id(), {"task_status": "processing"}).status_code == 200
        first.sendall(bytes(LARGE_BYTES - 1))
        assert _answer(first).startswith(b"HTTP/1.1 401 ")
    assert metric(running, 'kling_callbacks_total{outcome="unavailable"}') == 1


@pytest.mark.parametrize("late", [-TOLERANCE_SECONDS - 5, TOLERANCE_SECONDS + 60])
def test_a_signature_of_another_time_is_refused_before_its_body_is_read(start: Start, late: int) -> None:
    """So is a signature without a time, or a time without a signature."""
    running = start(webhook_secrets=(WEBHOOK,))
    stamp = b"webhook-timestamp: %d" % (time.time() + late)
    for headers in ((stamp, signed()[2]), (signed()[1],), (signed()[2],)):
        sent = request(SEND, *headers, b"Expect: 100-continue", length=b"2")
        assert raw(running.url, sent).startswith(b"HTTP/1.1 401 ")


def test_a_leaked_callback_url_cannot_fill_the_disk(start: Start, gateway: Sandbox) -> None:
    """Thousands of different bodies for one task, 36 MB: all are answered 200, and few are stored."""
    running, task = start(api_base=gateway.url), new_id()
    url = urlsplit(running.callback_url(task))
    sizes = [10_000] * 2000 + [800_000] * 20
    with closing(HTTPConnection(url.netloc, timeout=20)) as http:  # uses less CPU than httpx
        for n, size in enumerate(sizes):
            http.request("POST", url.path, b'{"task_status":"processing","n":%d,"x":"%s"}' % (n, b"x" * size))
            response = http.getresponse()
            response.read()
            assert response.status == 200
    [task_row] = rows(running, "SELECT callback_count, kept_callbacks, kept_bytes FROM task")
    [kept] = rows(running, "SELECT count(*) AS events, sum(length(body)) AS bytes FROM event")
    assert task_row["callback_count"] == len(sizes)
    assert kept["events"] <= MAX_KEPT_CALLBACKS + 10
    assert kept["bytes"] < 2 * MAX_KEPT_BYTES
    files = list(running.settings.data_dir.glob("kling.db*"))
    assert sum(file.stat().st_size for file in files) < 10_000_000


def test_many_slow_hosts_delay_neither_queries_nor_hooks(
    start: Start, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the pool of downloads is full of silent hosts, a query is sent, and the event is delivered."""
    monkeypatch.setattr(worker, "MAX_PER_KEY", MAX_PER_POOL["downloads"])  # loopback stands for several hosts
    with host(lambda visit: visit.answer(204)) as hook, ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(MAX_PER_POOL["downloads"] + 5)
        ]
        running = start(
            api_base=gateway.url,
            webhook_secrets=(WEBHOOK,),
            hook_url=hook.url,
            hook_secret=WEBHOOK,
        )
        for n, each in enumerate(slow):
            _succeed(running.callback_url(new_id()), f"http://127.0.0.1:{each.getsockname()[1]}/{n}.png")
        query = "SELECT count(*) AS n FROM job WHERE kind = 'download' AND state = 'running'"
        poll_until(lambda: rows(running, query)[0]["n"] == MAX_PER_POOL["downloads"])
        task = new_id()
        assert post(running, task, {"task_status": "succeed"}).status_code == 200
        gateway.wait_for(lambda: any(task in query.ids for query in gateway.queries))
        with hook.changed:
            assert hook.changed.wait_for(lambda: any(task.encode() in visit.body for visit in hook.visits), 20)
        assert rows(running, query)[0]["n"] == MAX_PER_POOL["downloads"]


def test_a_slow_host_has_few_places_on_all_its_ports(start: Start) -> None:
    """A file of another host is downloaded meanwhile."""
    with ExitStack() as stack:
        slow = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        good = stack.enter_context(host(lambda visit: visit.answer(404)))
        running = start(webhook_secrets=(WEBHOOK,), private_result_hosts=("127.0.0.1", "localhost"))
        urls = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in slow]
        _succeed(running.callback_url(new_id()), *(f"{url}/{n}.png" for n in range(worker.MAX_PER_KEY) for url in urls))
        query = "SELECT count(*) AS n FROM job WHERE kind = 'download' AND state = 'running'"
        poll_until(lambda: rows(running, query)[0]["n"] == worker.MAX_PER_KEY)
        _succeed(running.callback_url(new_id()), good.url.replace("127.0.0.1", "localhost"))
        good.wait_for(1)
        assert rows(running, query)[0]["n"] <= worker.MAX_PER_KEY + 1


def _succeed(url: str, *files: str) -> None:
    """Send a callback that Kling signed, with these files."""
    images = [{"index": n, "url": file} for n, file in enumerate(files)]
    body = json.dumps({"task_status": "succeed", "task_result": {"images": images}}).encode()
    now = int(time.time())
    headers = {"webhook-id": "m", "webhook-timestamp": str(now)}
    headers["webhook-signature"] = sign(WEBHOOK, "m", now, body)
    assert httpx.post(url, content=body, headers=headers, timeout=20).status_code == 200


@pytest.mark.anyio
async def test_concurrent_readiness_requests_share_one_check(tmp_path: Path) -> None:
    """Many requests at once cause one commit; a later request causes another."""
    receiver = Receiver(make_settings(tmp_path))
    receiver.prepare()
    await receiver.start()
    with statements(receiver.store.database) as seen:
        assert await asyncio.gather(*(receiver.ready() for _ in range(50))) == [None] * 50
        assert len([each for each in seen if "user_version" in each]) == 1
        assert await receiver.ready() is None
        assert len([each for each in seen if "user_version" in each]) == 2
    await receiver.stop()

"""Named tokens and the audit log over HTTP: forged tokens, roles, open streams, requests during a revocation."""

import base64
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import Role, api_token, verify_api_token
from kling_receiver.web.openapi.paths import OPERATIONS
from tests.receiver.web.test_openapi import SCHEMAS, problems
from tests.support.api import error_of
from tests.support.database import statements
from tests.support.receiver import SECRET, Running, Start
from tests.support.web import host
from tools.harness.submitting import register, stream

NO_KLING = "http://127.0.0.1:9"
OTHER_SECRET = "another-secret-that-is-32-characters!"


@pytest.fixture
def running(start: Start) -> Running:
    """A receiver of this test's own."""
    return start(api_base=NO_KLING)


def signed(name: str = "ci", role: Role = "client", lifetime: float = 300, *, secret: str = SECRET) -> str:
    """A token as the command signs it, which no receiver knows yet."""
    return api_token([secret], role, lifetime, name=name, token_id=secrets.token_urlsafe(12))


def call(running: Running, method: str, path: str, token: str | None = None, **options: Any) -> httpx.Response:
    """One request, by default with an unnamed token of role admin."""
    headers = running.headers("admin") if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.request(method, f"{running.url}{path}", headers=headers, timeout=20, **options)


def add(running: Running, token: str, by: str | None = None) -> httpx.Response:
    """Add a named token."""
    return call(running, "POST", "/api/tokens", by, json={"token": token})


def added(running: Running, *arguments: Any) -> str:
    """A named token that the receiver accepts."""
    token = signed(*arguments)
    assert add(running, token).status_code == 201
    return token


def status(running: Running, token: str, path: str = "/api/tasks") -> int:
    """The status of a request with this token."""
    return call(running, "GET", path, token).status_code


def entries(running: Running, **query: Any) -> list[dict[str, Any]]:
    """The audit log, newest first."""
    page = call(running, "GET", "/api/audit", params=query).json()
    assert problems(page, SCHEMAS["AuditPage"]) == []
    found: list[dict[str, Any]] = page["entries"]
    return found


def test_a_named_token_is_accepted_until_it_is_revoked(start: Start, running: Running) -> None:
    """By this receiver and by the next one on its database; without an addition it is refused."""
    token = signed()
    assert status(running, token) == 401
    answer = add(running, token)
    assert problems(answer.json(), SCHEMAS["Token"]) == []
    assert token not in answer.text
    assert status(running, token) == 200
    listed = call(running, "GET", "/api/tokens").json()
    assert problems(listed, SCHEMAS["TokenList"]) == []
    [row] = listed["tokens"]
    assert (row["name"], row["role"]) == ("ci", "client")
    assert not any(part in json.dumps(listed) for part in token.split("."))
    running.stop()
    running = start(api_base=NO_KLING)
    assert status(running, token) == 200
    assert call(running, "DELETE", "/api/tokens/ci").json() == {"revoked": "ci"}
    assert status(running, token) == 401
    assert error_of(call(running, "GET", "/api/tasks", token)) == (401, "bad_token")
    assert error_of(call(running, "DELETE", "/api/tokens/ci")) == (404, "unknown_token")
    assert error_of(add(running, token)) == (409, "name_taken")
    assert status(running, token) == 401
    running.stop()
    assert status(start(api_base=NO_KLING), token) == 401


def test_a_named_token_has_its_role_and_no_other(running: Running) -> None:
    """As any token. It makes and revokes no token unless it is of role admin."""
    for role, rank in (("read", 0), ("client", 1), ("admin", 2)):
        token = added(running, role, role)
        assert status(running, token) == 200
        put = call(running, "PUT", "/api/tasks/t", token, json={"family": "images/generations", "attempt": "x"})
        assert (put.status_code < 400) == (rank >= 1)
        for path in ("/api/tokens", "/api/audit", "/api/hooks"):
            assert status(running, token, path) == (200 if rank == 2 else 403)
        assert add(running, signed("more"), token).status_code == (201 if rank == 2 else 403)
    assert call(running, "DELETE", "/api/tokens/more", token).status_code == 200


FORGED: dict[str, Callable[[], str]] = {
    "another secret": lambda: signed(secret=OTHER_SECRET),
    "no id": lambda: api_token([SECRET], "admin", 300),
    "a command's": lambda: api_token([SECRET], "admin", 300, name="local command"),
    "expired": lambda: api_token([SECRET], "admin", 300, now=1000, name="ci", token_id="1"),
    "more than ten years": lambda: signed(lifetime=4000 * 86_400),
    "beyond every calendar": lambda: signed(lifetime=1e15),
    "no token": lambda: "x",
    "empty": lambda: "",
    "long": lambda: "x" * 3000,
    **{
        f"the name {name!r}": lambda name=name: signed(name)  # type: ignore[misc]
        for name in ("A", "a b", "a\n", "\n", "a\x1b[2J", "../x", "-", "x" * 64, "\u0430", "local command", "a\0")
    },
}


@pytest.mark.parametrize("make", FORGED.values(), ids=FORGED)
def test_no_other_token_is_added(shared: Running, make: Callable[[], str]) -> None:
    """Only one that the secrets signed, with a name that every terminal and log can show."""
    answer = add(shared, make())
    assert error_of(answer)[0] == 422
    assert call(shared, "GET", "/api/tokens").json() == {"tokens": []}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"token":1}', b'{"name":"x"}', b'{"token":"x","role":"admin"}'])
def test_another_body_is_refused(shared: Running, body: bytes) -> None:
    """Name, role and age are those that were signed."""
    assert error_of(call(shared, "POST", "/api/tokens", content=body))[0] == 422


def test_a_changed_token_is_another(running: Running) -> None:
    """Neither its role, its name, its id nor its age can be changed, and the parts of two tokens do not combine."""
    token = added(running)
    payload, _, signature = token.rpartition(".")
    content = json.loads(base64.urlsafe_b64decode(payload + "=="))
    assert content[0] == "client"
    for place, value in ((0, "admin"), (1, content[1] + 1), (2, "x"), (3, ""), (3, "x")):
        changed = [*content[:place], value, *content[place + 1 :]]
        forged = base64.urlsafe_b64encode(json.dumps(changed, separators=(",", ":")).encode()).decode().rstrip("=")
        assert status(running, f"{forged}.{signature}") == 401
    other, _, other_signature = signed("other").rpartition(".")
    for forged in (f"{payload}.{other_signature}", f"{other}.{signature}", payload, f"{payload}."):
        assert status(running, forged) == 401
    assert status(running, token) == 200


def test_an_unnamed_token_reads_no_table_of_tokens(running: Running) -> None:
    """Its check costs no statement; a named one costs one in the life of a receiver."""
    token = added(running)
    with statements(running.receiver.store.database) as seen:
        for _ in range(3):
            assert status(running, api_token([SECRET], "read", 300)) == 200
            assert status(running, token) == 200
        assert [each for each in seen if each.startswith("SELECT") and "api_token" in each] == []


def test_the_streams_of_a_revoked_token_end_at_once(running: Running) -> None:
    """Those of all tasks and those of one; the streams of other tokens go on."""
    revoked, kept = added(running, "a", "read"), added(running, "b", "read")
    register(running, "t")
    ends: list[str] = []

    def follow(path: str, token: str, ready: threading.Semaphore) -> None:
        with httpx.stream("GET", f"{running.url}{path}", headers={"Authorization": f"Bearer {token}"}) as response:
            for line in response.iter_lines():
                if line.startswith("id: "):
                    ready.release()
        ends.append(path)

    ready = threading.Semaphore(0)
    paths = ("/api/events?after=latest", "/api/tasks/t/events?after=latest")
    threads = [threading.Thread(target=follow, args=(path, revoked, ready), daemon=True) for path in paths]
    for thread in threads:
        thread.start()
    with httpx.stream(
        "GET", f"{running.url}/api/events?after=latest", headers={"Authorization": f"Bearer {kept}"}
    ) as on:
        lines = on.iter_lines()
        assert next(lines).startswith(":")
        for _ in threads:
            assert ready.acquire(timeout=20)
        assert call(running, "DELETE", "/api/tokens/a").status_code == 200
        for thread in threads:
            thread.join(10)  # a heartbeat would come after 15
        assert sorted(ends) == sorted(paths)
        register(running, "u")
        assert any("task.created" in line for line in lines)
    assert status(running, revoked, "/api/events") == 401


def test_a_request_whose_token_is_revoked_while_its_body_arrives_changes_nothing(running: Running) -> None:
    """Otherwise many slow requests, begun before, could be kept for afterwards."""
    token = added(running, "slow", "client")
    body = json.dumps({"family": "images/generations", "attempt": "x"}).encode()
    port = int(running.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        lines = ("PUT /api/tasks/late HTTP/1.1", "Host: x", f"Authorization: Bearer {token}")
        head = "\r\n".join((*lines, f"Content-Length: {len(body)}", "", ""))
        connection.sendall(head.encode() + body[:10])
        wait_for(lambda: call(running, "GET", "/api/tokens").json()["tokens"][0]["last_used_at"])
        assert call(running, "DELETE", "/api/tokens/slow").status_code == 200
        connection.sendall(body[10:])
        assert connection.recv(20).startswith(b"HTTP/1.1 401")
    assert call(running, "GET", "/api/tasks/late").status_code == 404


def wait_for(condition: Callable[[], Any]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_tokens_that_are_added_and_revoked_at_once(running: Running) -> None:
    """Whatever the order: no token is accepted whose revocation was answered."""
    for round_ in range(5):
        token = signed(f"race-{round_}")
        answers: list[int] = []

        def run(method: Callable[[], httpx.Response], answers: list[int] = answers) -> None:
            answers.append(method().status_code)

        threads = [
            threading.Thread(target=run, args=(call_,))
            for call_ in (
                lambda token=token: add(running, token),
                lambda name=round_: call(running, "DELETE", f"/api/tokens/race-{name}"),
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        names = {row["name"] for row in call(running, "GET", "/api/tokens").json()["tokens"]}
        assert (status(running, token) == 200) == (f"race-{round_}" in names)


AUDITED = [
    operation for operation, each in OPERATIONS.items() if each.role == "admin" and not operation.startswith("GET")
]


@pytest.mark.parametrize("operation", AUDITED)
def test_each_administrative_action_has_an_entry(shared: Running, operation: str) -> None:
    """Every route of role admin that changes something, also when it fails: who, what, and the result."""
    method, path = operation.split()
    filled = path.format(id=new_id(), name="nobody", event=1, n=0)
    token = added(shared, f"who-{new_id()[-12:].lower()}", "admin")
    name = verify_api_token([SECRET], token).name
    answer = call(shared, method, filled, token, json={} if method == "POST" else None)
    newest = entries(shared, limit=1)[0]
    assert newest["actor"] == f"token {name}"
    code = "done" if answer.status_code < 400 else answer.json()["error"]["code"]
    assert newest["result"] == code
    assert newest["action"].split()[0] in ("hooks", "deliveries", "doctor", "replay", "tasks", "tokens")
    if "{" in path:
        assert newest["target"] == "/".join(filled.split("/")[3:]).removesuffix(f"/{path.rpartition('/')[2]}")


def test_the_log_says_who_did_what_to_what(running: Running) -> None:
    """Newest first, in pages; without the secret, and without the path of an address, which may be one."""
    with host(lambda visit: visit.answer(204)) as endpoint:
        document = {
            "name": "shop",
            "address": f"{endpoint.url}/hidden-path?token=hidden",
            "secret": "whsec_" + "aGlkZGVu" * 4,
        }
        assert call(running, "POST", "/api/hooks", json=document).status_code == 201
        assert call(running, "POST", "/api/hooks", json=document).status_code == 409
        for action in ("test", "pause", "resume", "rotate"):
            assert call(running, "POST", f"/api/hooks/shop/{action}").status_code == 200
        assert call(running, "DELETE", "/api/hooks/shop").status_code == 200
    token = added(running, "ci", "read")
    call(running, "POST", "/api/deliveries/replay", json={"from": 1, "hook": "shop"})
    call(running, "DELETE", "/api/tokens/ci")
    found = entries(running)
    assert [(each["action"], each["target"], each["result"]) for each in reversed(found)] == [
        ("hooks add", "shop", "done"),
        ("hooks add", "shop", "name_taken"),
        *((f"hooks {action}", "shop", "done") for action in ("test", "pause", "resume", "rotate", "remove")),
        ("tokens add", "ci", "done"),
        ("replay", "shop", "unknown_hook"),
        ("tokens revoke", "ci", "done"),
    ]
    assert {each["actor"] for each in found} == {"unnamed admin token"}
    text = json.dumps(found)
    assert not any(secret in text for secret in ("hidden", "aGlkZGVu", token, SECRET))
    page = call(running, "GET", "/api/audit?limit=3").json()
    rest = call(running, "GET", f"/api/audit?limit=200&cursor={page['next']}").json()
    assert [*page["entries"], *rest["entries"]] == found
    assert rest["next"] is None


@pytest.mark.parametrize(("name", "target"), [("shop", "shop"), ("no name, but a secret", "(not a name)"), (7, "")])
def test_the_log_says_which_hook_was_refused(running: Running, name: Any, target: str) -> None:
    """Also one whose document is not valid. What cannot be a name may be a secret."""
    assert call(running, "POST", "/api/hooks", json={"name": name, "address": "https://x.example/"}).status_code in (
        201,
        422,
    )
    assert call(running, "POST", "/api/hooks", json={"name": name, "address": "ftp://x/"}).status_code == 422
    assert entries(running)[0]["target"] == target


def test_readers_and_refused_requests_leave_no_entry(running: Running) -> None:
    """Only administrators write the log: nobody else can fill it, and reading is no action."""
    for headers in ({}, running.headers("client"), running.headers("read"), {"Authorization": "Bearer x"}):
        for method, path in (("POST", "/api/hooks"), ("DELETE", "/api/tokens/x"), ("POST", "/api/tasks/t/ask")):
            assert httpx.request(method, running.url + path, headers=headers).status_code in (401, 403)
    for path in ("/api/hooks", "/api/tokens", "/api/audit", "/api/deliveries", "/openapi.json"):
        assert call(running, "GET", path).status_code == 200
    assert entries(running) == []


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "cursor=x", "before=1", "limit=1&limit=2"])
def test_a_wrong_query_of_the_log_is_refused(shared: Running, query: str) -> None:
    """With every problem, as in other lists."""
    assert error_of(call(shared, "GET", f"/api/audit?{query}")) == (422, "bad_query")


def test_a_name_with_control_characters_reaches_no_log(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """In a path it is not shown: no line of a log or terminal can be forged. Nor is a secret that was pasted there."""
    caplog.set_level("INFO", "kling_receiver.audit")
    call(running, "DELETE", "/api/tokens/a%0Aforged%1B%5B2J%E2%80%AE")
    [entry] = entries(running)
    assert (entry["result"], entry["target"]) == ("unknown_token", "(not a name)")
    lines = [record.getMessage() for record in caplog.records if record.name == "kling_receiver.audit"]
    assert len(lines) == 1
    assert lines[0].isprintable()
    token = signed()
    for method, path in (
        ("DELETE", f"/api/tokens/{token}"),
        ("POST", f"/api/hooks/whsec_{'aB' * 16}/pause"),
        ("POST", f"/api/tasks/{token}/ask"),
        ("POST", f"/api/deliveries/{token}/shop/retry"),
    ):
        assert call(running, method, path).status_code == 404
    shown = json.dumps(entries(running)) + caplog.text
    assert not any(secret in shown for secret in (token, token.partition(".")[2], "aBaB"))


def test_a_stream_ends_when_its_token_expires(running: Running) -> None:
    """Of all tasks and of one, with the events until then. One that is accepted although expired has its leeway."""
    register(running, "t")
    for path in ("/api/events", "/api/tasks/t/events"):
        headers = {"Authorization": f"Bearer {api_token([SECRET], 'read', 2)}"}
        with httpx.stream("GET", running.url + path, headers=headers, timeout=12) as response:
            assert "task.created" in response.read().decode()  # until the end, before a heartbeat would come
    late = {"Authorization": f"Bearer {api_token([SECRET], 'read', -10)}"}
    with httpx.stream("GET", f"{running.url}/api/events", headers=late, timeout=12) as response:
        assert any("task.created" in line for line in response.iter_lines())
    with stream(running, "/api/events") as coming:
        assert next(coming)["type"] == "task.created"

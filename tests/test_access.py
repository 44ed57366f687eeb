"""Who may do what: a token opens what its role says, and nothing opens more than it was made for."""

import time

import httpx
import pytest

from client.ids import new_id
from client.signing import CallbackSigner, Role, api_token, link
from tests.conftest import SECRET, Running, Start
from tests.submitting import IMAGES

READING = [
    "/api/tasks",
    "/api/tasks/{task}",
    "/api/tasks/{task}/events",
    "/api/tasks/{task}/results/0",
    "/metrics",
]


@pytest.fixture
def running(start: Start) -> Running:
    """A receiver."""
    return start()


def ask(running: Running, path: str, authorization: str | None, *, method: str = "GET") -> int:
    """The status of one request."""
    headers = {} if authorization is None else {b"Authorization": authorization.encode("latin-1")}
    content = b'{"family":"images/generations","attempt":"x"}'
    url = running.url + path.format(task="nobody")
    return httpx.request(method, url, headers=headers, content=content if method == "PUT" else None).status_code


@pytest.mark.parametrize(
    ("role", "reads", "writes"), [("read", True, False), ("client", True, True), ("admin", True, True)]
)
def test_roles_hold(running: Running, role: Role, reads: bool, writes: bool) -> None:
    """Readers read, clients register too, and an admin may do what a client may."""
    bearer = running.headers(role)["Authorization"]
    for path in READING:
        assert (ask(running, path, bearer) in (200, 404)) == reads, path
    assert ask(running, f"/api/tasks/{new_id()}", bearer, method="PUT") == (201 if writes else 403)


def strangers(running: Running) -> list[str | None]:
    """What opens nothing under `/api`."""
    month = time.time() - 31 * 86_400
    good = api_token([SECRET], "admin", 300)
    payload, _, signature = good.rpartition(".")
    return [
        None,
        "",
        "Bearer",
        f"Basic {good}",
        good,
        f"Bearer {good}x",
        f"Bearer {payload}.{signature[:-1]}",
        f"Bearer {payload}",
        f"Bearer x{good}",
        f"Bearer {good} {good}",
        "Bearer \u00e9\u00ff".encode().decode("latin-1"),
        "Bearer " + "." * 5000,
        f"Bearer {SECRET}",
        f"Bearer {running.settings.api_key}",
        f"Bearer {api_token([SECRET], 'admin', 300, now=month)}",
        f"Bearer {api_token([SECRET], 'root', 300)}",  # type: ignore[arg-type]
        f"Bearer {api_token(['another-secret-that-is-32-characters!'], 'admin', 300)}",
        f"Bearer {CallbackSigner([SECRET]).token('nobody', IMAGES)}",
        f"Bearer {link([SECRET], running.url, 'nobody', 0, 9_999_999_999).rpartition('=')[2]}",
    ]


def test_nothing_else_opens_anything(running: Running) -> None:
    """No token, another kind of token, an altered or expired one: 401 with the scheme that is wanted."""
    for authorization in strangers(running):
        for path in (*READING, "/api/events"):
            assert ask(running, path, authorization) == 401, (authorization, path)
        assert ask(running, f"/api/tasks/{new_id()}", authorization, method="PUT") == 401
    assert httpx.get(f"{running.url}/api/tasks").headers["WWW-Authenticate"] == "Bearer"


def test_a_callback_token_opens_callbacks_only(running: Running) -> None:
    """Whoever sees a callback address can neither read the task nor fetch its files."""
    token = CallbackSigner([SECRET]).token("nobody", IMAGES)
    for path in (
        f"/api/tasks/{token}",
        f"/api/tasks/nobody?token={token}",
        f"/api/tasks/nobody/results/0?signature={token}",
    ):
        assert ask(running, path, None) == 401
    assert (
        ask(
            running,
            f"/api/tasks/nobody/results/0?expires=9999999999&signature={token.rpartition('.')[2]}",
            None,
        )
        == 401
    )


def test_no_other_token_opens_callbacks(running: Running) -> None:
    """Neither a bearer token nor a link's signature is a callback address."""
    for token in (
        api_token([SECRET], "admin", 300),
        link([SECRET], running.url, "x", 0, 9_999_999_999).rpartition("=")[2],
    ):
        assert httpx.post(f"{running.url}/callbacks/{token}", json={}).status_code == 401


def test_what_is_open_to_all(running: Running) -> None:
    """Whether it lives, whether it is ready, and what its interface is; no secret in any of them."""
    for path in ("/healthz", "/readyz", "/openapi.json"):
        answer = httpx.get(running.url + path)
        assert answer.status_code == 200
        assert SECRET not in answer.text
        assert running.settings.api_key not in answer.text


def test_the_scheme_is_written_in_any_letters(running: Running) -> None:
    """`bearer` is `Bearer`."""
    assert ask(running, "/api/tasks", f"bEARER  {api_token([SECRET], 'read', 300)}") == 200

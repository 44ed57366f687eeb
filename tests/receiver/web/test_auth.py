"""Who may do what: a token opens what its role says, and nothing opens more than it was made for."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import httpx
import pytest
from starlette.routing import Route

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner, Role, api_token, sign_link
from kling_receiver.app import create_app
from tests.support.receiver import SECRET, Running, Start
from tools.harness.submitting import IMAGES

READING = [
    "/api/tasks",
    "/api/tasks/{task}",
    "/api/tasks/{task}/events",
    "/api/tasks/{task}/results/0",
    "/metrics",
]


@pytest.fixture
def running(start: Start) -> Running:
    """A receiver; where Kling should be, nobody is."""
    return start(api_base="http://127.0.0.1:9")


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    """One client for the many requests of a table."""
    with httpx.Client() as http:
        yield http


def ask(
    running: Running,
    path: str,
    authorization: str | None,
    *,
    method: str = "GET",
    http: httpx.Client | None = None,
) -> int:
    """The status of one request."""
    headers = {} if authorization is None else {b"Authorization": authorization.encode("latin-1")}
    content = b'{"family":"images/generations","attempt":"x"}' if method == "PUT" else None
    url = running.url + path.format(task="nobody")
    return (
        (http or httpx).request(method, url, headers=headers, content=content if method == "PUT" else None).status_code
    )


ROLES = frozenset({"read", "client", "admin"})
NOBODY = frozenset({"none", "callback", "link", "expired", "other secret"})
TABLE: dict[tuple[str, str], frozenset[str]] = {
    ("POST", "/callbacks/{token:path}"): frozenset({"callback"}),
    ("POST", "/callbacks"): frozenset(),
    ("GET", "/api/tasks"): ROLES,
    ("GET", "/api/tasks/{id}"): ROLES,
    ("PUT", "/api/tasks/{id}"): ROLES - {"read"},
    ("POST", "/api/tasks/{id}/ask"): frozenset({"admin"}),
    ("POST", "/api/tasks/{id}/fetch"): frozenset({"admin"}),
    ("GET", "/api/tasks/{id}/events"): ROLES,
    ("GET", "/api/tasks/{id}/results/{n}"): ROLES | {"link"},
    ("GET", "/api/events"): ROLES,
    **{
        (method, f"/api/{path}"): frozenset({"admin"})
        for path, methods in {
            "hooks": "GET POST",
            "hooks/{name}": "GET DELETE",
            "hooks/{name}/test": "POST",
            "hooks/{name}/pause": "POST",
            "hooks/{name}/resume": "POST",
            "hooks/{name}/rotate": "POST",
            "deliveries": "GET",
            "deliveries/retry": "POST",
            "deliveries/replay": "POST",
            "deliveries/{event}/{name}": "GET",
            "deliveries/{event}/{name}/retry": "POST",
        }.items()
        for method in methods.split()
    },
    ("GET", "/healthz"): ROLES | NOBODY,
    ("GET", "/readyz"): ROLES | NOBODY,
    ("GET", "/metrics"): ROLES,
    ("GET", "/openapi.json"): frozenset({"admin"}),
}
"""Each route, and what opens it."""


@dataclass(frozen=True)
class Key:
    """One kind of proof, shown in every place that a proof may stand in: the path, a header, the query."""

    token: str
    bearer: str | None
    query: str = ""

    def turn(self, http: httpx.Client, url: str, method: str, path: str) -> int:
        """The status of a request that shows it."""
        filled = path.replace("{token:path}", self.token).format(
            id="made" if method == "PUT" else "nobody", n=0, name="nobody", event=1
        )
        headers = {} if self.bearer is None else {"Authorization": f"Bearer {self.bearer}"}
        content = b'{"family":"images/generations","attempt":"x"}' if method == "PUT" else None
        with http.stream(
            method, f"{url}{filled}{self.query}", headers=headers, content=content
        ) as answer:  # some have no end
            return answer.status_code


def keys(now: float) -> dict[str, Key]:
    """Every kind of proof; those of no use are of the highest role that there is."""

    def useless(secret: str, at: float) -> Key:
        token = CallbackSigner([secret], clock=lambda: at).token("called", IMAGES)
        return Key(token, api_token([secret], "admin", 300, now=at), linked(secret, at))

    def linked(secret: str, at: float) -> str:
        return "?" + sign_link([secret], "", "nobody", 0, int(at + 300)).partition("?")[2]

    token = CallbackSigner([SECRET]).token("called", IMAGES)
    query = linked(SECRET, now)
    signature = query.rpartition("=")[2]
    bearers = {role: api_token([SECRET], role, 300) for role in get_args(Role)}
    return {
        "none": Key("x", None),
        **{role: Key(bearer, bearer) for role, bearer in bearers.items()},
        "callback": Key(token, token, f"?token={token}"),
        "link": Key(signature, signature, query),
        "expired": useless(SECRET, now - 31 * 86_400),
        "other secret": useless("another-secret-that-is-32-characters!", now),
    }


def test_every_route_has_its_row(running: Running) -> None:
    """A new route is a new row here, before it is anything else."""
    routes = [route for route in create_app(running.receiver).routes if isinstance(route, Route)]
    assert {(method, route.path) for route in routes for method in (route.methods or set()) - {"HEAD"}} == set(TABLE)


def test_what_opens_what(running: Running, http: httpx.Client) -> None:
    """Every route by every kind of proof: taken, 403 for a role that is too low, else 401; HEAD is like GET."""
    shown = keys(time.time())
    assert set(shown) == ROLES | NOBODY
    for (method, path), opens in TABLE.items():
        for name, key in shown.items():
            for asked in ("GET", "HEAD") if method == "GET" else (method,):
                too_low = name in ROLES and not path.startswith("/callbacks")
                expected = (200, 201, 404, 422) if name in opens else (403,) if too_low else (401,)
                status = key.turn(http, running.url, asked, path)
                assert status in expected, (asked, path, name, status)


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
        f"Bearer {sign_link([SECRET], running.url, 'nobody', 0, 9_999_999_999).rpartition('=')[2]}",
    ]


def test_nothing_else_opens_anything(running: Running, http: httpx.Client) -> None:
    """No token, another kind of token, an altered or expired one: 401 with the scheme that is wanted."""
    for authorization in strangers(running):
        for path in (*READING, "/api/events"):
            assert ask(running, path, authorization, http=http) == 401, (authorization, path)
        assert ask(running, f"/api/tasks/{new_id()}", authorization, method="PUT", http=http) == 401
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
        sign_link([SECRET], running.url, "x", 0, 9_999_999_999).rpartition("=")[2],
    ):
        assert httpx.post(f"{running.url}/callbacks/{token}", json={}).status_code == 401


def test_what_is_open_to_all(running: Running) -> None:
    """Whether it lives, and whether it is ready; no secret in either."""
    for path in ("/healthz", "/readyz"):
        answer = httpx.get(running.url + path)
        assert answer.status_code == 200
        assert SECRET not in answer.text
        assert running.settings.api_key not in answer.text


def test_the_scheme_is_written_in_any_letters(running: Running) -> None:
    """`bearer` is `Bearer`."""
    assert ask(running, "/api/tasks", f"bEARER  {api_token([SECRET], 'read', 300)}") == 200

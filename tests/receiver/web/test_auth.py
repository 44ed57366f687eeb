"""Authorization: each route accepts the roles and tokens in a table, and no others."""

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
from tests.support.receiver import SECRET, Running
from tools.harness.submitting import IMAGES

READ_ROUTES = [
    "/api/tasks",
    "/api/tasks/{task}",
    "/api/tasks/{task}/events",
    "/api/tasks/{task}/results/0",
    "/metrics",
]


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    """One client for the many requests of a table."""
    with httpx.Client() as http:
        yield http


def ask(
    shared: Running,
    path: str,
    authorization: str | None,
    *,
    method: str = "GET",
    http: httpx.Client | None = None,
) -> int:
    """The status of one request."""
    headers = {} if authorization is None else {b"Authorization": authorization.encode("latin-1")}
    content = b'{"family":"images/generations","attempt":"x"}' if method == "PUT" else None
    url = shared.url + path.format(task="nobody")
    return (
        (http or httpx).request(method, url, headers=headers, content=content if method == "PUT" else None).status_code
    )


ROLES = frozenset({"read", "client", "admin"})
WITHOUT_ROLE = frozenset({"none", "callback", "link", "expired", "other secret"})
TABLE: dict[tuple[str, str], frozenset[str]] = {
    ("POST", "/callbacks/{token:path}"): frozenset({"callback"}),
    ("POST", "/callbacks"): frozenset(),
    ("GET", "/api/tasks"): ROLES,
    ("GET", "/api/tasks/{id}"): ROLES,
    ("PUT", "/api/tasks/{id}"): ROLES - {"read"},
    ("POST", "/api/tasks"): ROLES - {"read"},
    ("DELETE", "/api/tasks/{id}"): ROLES - {"read"},
    ("POST", "/api/tasks/adopt"): frozenset({"admin"}),
    ("POST", "/api/tasks/{id}/ask"): frozenset({"admin"}),
    ("POST", "/api/tasks/{id}/fetch"): frozenset({"admin"}),
    ("GET", "/api/tasks/{id}/events"): ROLES,
    ("GET", "/api/tasks/{id}/results/{n}"): ROLES | {"link"},
    ("OPTIONS", "/api/tasks/{id}/results/{n}"): frozenset({"link"}),
    ("GET", "/api/events"): ROLES,
    ("POST", "/api/doctor"): frozenset({"admin"}),
    **{
        (method, f"/api/{path}"): frozenset({"admin"})
        for path, methods in {
            "hooks": "GET POST",
            "hooks/{name}": "GET PATCH DELETE",
            "hooks/{name}/test": "POST",
            "hooks/{name}/pause": "POST",
            "hooks/{name}/resume": "POST",
            "hooks/{name}/rotate": "POST",
            "deliveries": "GET",
            "deliveries/retry": "POST",
            "deliveries/replay": "POST",
            "deliveries/{event}/{name}": "GET",
            "deliveries/{event}/{name}/retry": "POST",
            "tokens": "GET POST",
            "tokens/{name}": "DELETE",
            "audit": "GET",
        }.items()
        for method in methods.split()
    },
    ("GET", "/healthz"): ROLES | WITHOUT_ROLE,
    ("GET", "/readyz"): ROLES | WITHOUT_ROLE,
    ("GET", "/metrics"): ROLES,
    ("GET", "/openapi.json"): frozenset({"admin"}),
}
"""Each route, and the credentials that it accepts."""


@dataclass(frozen=True)
class Credential:
    """One kind of credential, sent in each place that may contain one: the path, a header, the query."""

    token: str
    bearer: str | None
    query: str = ""

    def status(self, http: httpx.Client, url: str, method: str, path: str) -> int:
        """The status of a request with this credential."""
        filled = path.replace("{token:path}", self.token).format(
            id="made" if method == "PUT" else "nobody", n=0, name="nobody", event=1
        )
        headers = {} if self.bearer is None else {"Authorization": f"Bearer {self.bearer}"}
        content = b'{"family":"images/generations","attempt":"x"}' if method == "PUT" else None
        with http.stream(
            method, f"{url}{filled}{self.query}", headers=headers, content=content
        ) as answer:  # a stream does not end
            return answer.status_code


def credentials(now: float) -> dict[str, Credential]:
    """Every kind of credential; the invalid ones are of the highest role."""

    def invalid(secret: str, at: float) -> Credential:
        token = CallbackSigner([secret], clock=lambda: at).token("called", IMAGES)
        return Credential(token, api_token([secret], "admin", 300, now=at), linked(secret, at))

    def linked(secret: str, at: float) -> str:
        return "?" + sign_link([secret], "", "nobody", 0, int(at + 300)).partition("?")[2]

    token = CallbackSigner([SECRET]).token("called", IMAGES)
    query = linked(SECRET, now)
    signature = query.rpartition("=")[2]
    bearers = {role: api_token([SECRET], role, 300) for role in get_args(Role)}
    return {
        "none": Credential("x", None),
        **{role: Credential(bearer, bearer) for role, bearer in bearers.items()},
        "callback": Credential(token, token, f"?token={token}"),
        "link": Credential(signature, signature, query),
        "expired": invalid(SECRET, now - 31 * 86_400),
        "other secret": invalid("another-secret-that-is-32-characters!", now),
    }


def test_every_route_has_its_row(shared: Running) -> None:
    """A new route needs a row in the table. The pages need a session: their tests are in `dashboard`."""
    routes = [
        route
        for route in create_app(shared.receiver).routes
        if isinstance(route, Route) and route.path != "/" and not route.path.startswith("/dashboard")
    ]
    assert {(method, route.path) for route in routes for method in (route.methods or set()) - {"HEAD"}} == set(TABLE)


def test_each_route_accepts_what_the_table_says(shared: Running, http: httpx.Client) -> None:
    """Every route with every credential: accepted, 403 for a role that is too low, else 401. HEAD is like GET."""
    by_name = credentials(time.time())
    assert set(by_name) == ROLES | WITHOUT_ROLE
    for (table_method, path), accepted in TABLE.items():
        for name, credential in by_name.items():
            for method in ("GET", "HEAD") if table_method == "GET" else (table_method,):
                too_low = name in ROLES and not path.startswith("/callbacks")
                refused = 403 if too_low and method != "OPTIONS" else 401  # a preflight never has a token
                expected = [200, 201, 204, 404, 422] if name in accepted else [refused]
                status = credential.status(http, shared.url, method, path)
                assert status in expected, (method, path, name, status)


def invalid_headers(shared: Running) -> list[str | None]:
    """Authorization headers that are refused under `/api`."""
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
        f"Bearer {shared.settings.api_key}",
        f"Bearer {api_token([SECRET], 'admin', 300, now=month)}",
        f"Bearer {api_token([SECRET], 'root', 300)}",  # type: ignore[arg-type]
        f"Bearer {api_token(['another-secret-that-is-32-characters!'], 'admin', 300)}",
        f"Bearer {CallbackSigner([SECRET]).token('nobody', IMAGES)}",
        f"Bearer {sign_link([SECRET], shared.url, 'nobody', 0, 9_999_999_999).rpartition('=')[2]}",
    ]


def test_any_other_header_is_refused(shared: Running, http: httpx.Client) -> None:
    """A missing, altered or expired token, and one of another kind: 401 with the required scheme."""
    for authorization in invalid_headers(shared):
        for path in (*READ_ROUTES, "/api/events"):
            assert ask(shared, path, authorization, http=http) == 401, (authorization, path)
        assert ask(shared, f"/api/tasks/{new_id()}", authorization, method="PUT", http=http) == 401
    assert httpx.get(f"{shared.url}/api/tasks").headers["WWW-Authenticate"] == "Bearer"


def test_a_callback_token_is_for_callbacks_only(shared: Running) -> None:
    """With a callback address a person can neither read the task nor download its files."""
    token = CallbackSigner([SECRET]).token("nobody", IMAGES)
    for path in (
        f"/api/tasks/{token}",
        f"/api/tasks/nobody?token={token}",
        f"/api/tasks/nobody/results/0?signature={token}",
    ):
        assert ask(shared, path, None) == 401
    assert (
        ask(
            shared,
            f"/api/tasks/nobody/results/0?expires=9999999999&signature={token.rpartition('.')[2]}",
            None,
        )
        == 401
    )


def test_no_other_token_is_a_callback_token(shared: Running) -> None:
    """Neither a bearer token nor the signature of a link."""
    for token in (
        api_token([SECRET], "admin", 300),
        sign_link([SECRET], shared.url, "x", 0, 9_999_999_999).rpartition("=")[2],
    ):
        assert httpx.post(f"{shared.url}/callbacks/{token}", json={}).status_code == 401


def test_health_checks_need_no_token(shared: Running) -> None:
    """`/healthz` and `/readyz` contain no secret."""
    for path in ("/healthz", "/readyz"):
        answer = httpx.get(shared.url + path)
        assert answer.status_code == 200
        assert SECRET not in answer.text
        assert shared.settings.api_key not in answer.text


def test_the_scheme_is_case_insensitive(shared: Running) -> None:
    """`bearer` is `Bearer`."""
    assert ask(shared, "/api/tasks", f"bEARER  {api_token([SECRET], 'read', 300)}") == 200

"""Query parameters: each route refuses those that it does not have, and says which is meant."""

import re

import httpx
import pytest

from kling_receiver.web.openapi.paths import OPERATIONS, Operation
from tests.support.api import error_of, get
from tests.support.receiver import Running

PLACES = {"id": "x", "n": "0", "name": "x", "event": "1"}
LENIENT = ("/metrics", "/openapi.json", "/healthz", "/readyz", "/api/tasks/{id}/results/{n}")
"""Scrapers add parameters of their own, and so do programs that pass on the link to a file."""


def request(running: Running, method: str, path: str, query: str) -> httpx.Response:
    """One request with role admin, without a body."""
    filled = re.sub(r"{(\w+)}", lambda match: PLACES[match[1]], path)
    return httpx.request(method, f"{running.url}{filled}?{query}", headers=running.headers("admin"))


API = [(*route.split(), operation) for route, operation in OPERATIONS.items() if "/api/" in route]


@pytest.mark.parametrize(("method", "path", "operation"), API, ids=lambda value: str(value)[:40])
def test_an_unknown_parameter_is_refused(shared: Running, method: str, path: str, operation: Operation) -> None:
    """By every route of the API, before anything is done."""
    answer = request(shared, method, path, "nonsense=1")
    if path in LENIENT:
        assert answer.status_code != 422
        return
    assert error_of(answer) in ((422, "bad_query"), (422, "bad_filter"))
    assert "`nonsense` is not a parameter." in answer.json()["error"]["message"]
    for parameter in operation.parameters:
        if parameter["in"] == "query":
            assert parameter["name"] in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", LENIENT)
def test_some_routes_ignore_what_others_add(shared: Running, path: str) -> None:
    """Scrapers and mail programs."""
    assert request(shared, "GET", path, "utm_source=mail").status_code != 422


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("stauts=failed", "Did you mean `status`?"),
        ("taskid=1", "Did you mean `task_id`?"),
        ("tag=a&tag=b", "`tag` is given 2 times."),
        ("x%00%1b=1", "is not a parameter"),
        ("=1", "is not a parameter"),
    ],
)
def test_the_message_says_what_is_meant(shared: Running, query: str, says: str) -> None:
    """By the closest name; a repeated parameter is as ambiguous as an unknown one."""
    assert says in get(shared, f"/api/tasks?{query}").json()["error"]["message"]


def test_unknown_names_and_bad_values_are_reported_together(shared: Running) -> None:
    """In one response."""
    message = get(shared, "/api/tasks?limit=x&stauts=failed&model=m&nonsense=1").json()["error"]["message"]
    assert all(text in message for text in ("`limit`", "`stauts`", "`nonsense`"))


def test_a_misspelt_parameter_retries_nothing(shared: Running) -> None:
    """POST /api/deliveries/retry would retry those of all hooks."""
    answer = request(shared, "POST", "/api/deliveries/retry", "hook=one")
    assert error_of(answer) == (422, "bad_query")
    assert "This route has none." in answer.json()["error"]["message"]


def test_a_role_is_checked_first(shared: Running) -> None:
    """Without a token, no route says what it has."""
    assert httpx.get(f"{shared.url}/api/tasks?nonsense=1").status_code == 401


def test_few_of_many_wrong_parameters_are_named(shared: Running) -> None:
    """The answer to a query of thousands of names is short: comparing each with all parameters would take a second."""
    query = "&".join(f"x{number}" for number in range(5_000))
    answer = get(shared, f"/api/tasks?{query}")
    assert error_of(answer) == (422, "bad_filter")
    message = answer.json()["error"]["message"]
    assert "`x9` is not a parameter." in message
    assert "More parameters are wrong." in message
    assert len(answer.content) < 3_000

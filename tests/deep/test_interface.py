"""The HTTP interface against its OpenAPI document: schemathesis sends valid and invalid requests.

The event streams are left out, because they do not end. `scripts/fuzz` does the same for longer.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.core.result import Ok

from kling_callback.protocol.signing import api_token
from kling_receiver.web.openapi.paths import PATHS
from kling_sandbox import Sandbox
from tests.support.receiver import SECRET
from tools.harness.process import Process
from tools.harness.submitting import finished, submit

bounded = settings(
    max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture
def running(tmp_path: Path, gateway: Sandbox) -> Iterator[Process]:
    """A receiver in a process of its own, because hypothesis controls `random` in this one."""
    with Process(tmp_path / "data", KLING_API_BASE=gateway.url) as running:
        yield running


UNDESCRIBED = {"secret", "families", "statuses", "hook", "hook_events", "hook_format", "format"}
"""Fields with rules that no schema describes: base64 of some length, paths, values that fit others or exist."""
QUERY_PARAMETERS = {"status", "family", "tag", "limit", "hook", "state", "task"}
"""The described query parameters of the routes under `/api`."""


def operations(running: Process) -> list[Any]:
    """Every operation of the document, except the streams."""
    document = httpx.get(f"{running.url}/openapi.json", headers=running.headers("admin")).json()
    schema = schemathesis.openapi.from_dict(document)
    described = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    finite = [operation for operation in described if not operation.path.endswith("/events")]
    assert len(described) == len(finite) + 2 == sum(map(len, PATHS.values()))
    return finite


def check(running: Process, operation: Any, mode: GenerationMode, prepare: Callable[[Case[Any]], object]) -> None:
    """Send many requests of one operation; each response has a status, a type and a shape from the document."""

    @bounded
    @given(case=operation.as_strategy(generation_mode=mode))
    def check_one(case: Case[Any]) -> None:
        prepare(case)
        case.call_and_validate(base_url=running.url, headers=running.headers("admin"), timeout=20)

    check_one()


def test_valid_requests_are_accepted(running: Process, gateway: Sandbox) -> None:
    """Values that no schema describes are set here: a token, a task, and no cursor."""
    task, _ = submit(running, gateway)
    finished(running, task)
    token = running.callback_url("t").rpartition("/")[2]

    def prepare(case: Case[Any]) -> None:
        if "token" in case.path_parameters:
            case.path_parameters["token"] = token
        if case.path.endswith("/results/{n}") and case.path_parameters["n"] < 2:
            case.path_parameters["id"] = task
        case.query.pop("cursor", None)
        body = case.body if isinstance(case.body, dict) else {}
        if case.path == "/api/hooks" and body:
            body["address"] = "http://127.0.0.1:9/"
        if case.path == "/api/tasks" and body:
            body["body"] = {"prompt": "x"}  # the parameters are Kling's
        if case.path == "/api/tokens" and body:
            body["token"] = api_token([SECRET], "read", 300, name="ci", token_id="1")
        for name in UNDESCRIBED & body.keys():
            del body[name]

    for operation in operations(running):
        check(running, operation, GenerationMode.POSITIVE, prepare)


def test_invalid_requests_are_refused(running: Process) -> None:
    """With an invalid path, query or body; unknown query parameters are ignored, as usual on the web."""

    def prepare(case: Case[Any]) -> None:
        assume("Authorization" in case.headers and set(case.query) <= QUERY_PARAMETERS)

    for operation in operations(running):
        if operation.path.startswith("/api/") and not operation.path.endswith("{n}"):
            check(running, operation, GenerationMode.NEGATIVE, prepare)

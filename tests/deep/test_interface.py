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
from schemathesis.specs.openapi.checks import ignored_auth

from kling_callback.protocol.signing import api_token
from kling_receiver.web.openapi import compat
from kling_receiver.web.openapi.paths import PATHS
from kling_sandbox import Sandbox
from tests.support.receiver import SECRET
from tools.harness.process import Process
from tools.harness.submitting import finished, submit

pytestmark = pytest.mark.no_cover  # the receiver is another process, which is not measured

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
    """Every operation of the document, except the streams, and those of Kling's own API."""
    document = httpx.get(f"{running.url}/openapi.json", headers=running.headers("admin")).json()
    described = [operation for operation in _all_operations(document) if operation.path not in compat.PATHS]
    finite = [operation for operation in described if not operation.path.endswith("/events")]
    assert len(described) == len(finite) + 2 == sum(map(len, PATHS.values()))
    return finite


def _all_operations(document: Any) -> list[Any]:
    schema = schemathesis.openapi.from_dict(document)
    return [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]


def check(
    running: Process, operation: Any, mode: GenerationMode, prepare: Callable[[Case[Any]], object], **options: Any
) -> None:
    """Send many requests of one operation; each response has a status, a type and a shape from the document.

    `options`: of schemathesis.
    """

    @bounded
    @given(case=operation.as_strategy(generation_mode=mode))
    def check_one(case: Case[Any]) -> None:
        prepare(case)
        case.call_and_validate(base_url=running.url, headers=running.headers("admin"), timeout=20, **options)

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


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_kling_s_own_api(tmp_path: Path, gateway: Sandbox, mode: GenerationMode) -> None:
    """Valid and invalid requests to Kling's own API: each answer has a status and a shape from the document.

    The document leaves paths and bodies to Kling; here they are those of a task that exists, or of a call. Failed
    attempts are limited, so that those of schemathesis would be answered 429.
    """
    values = {"product": "text-to-video", "model": "kling-3.0-turbo", "path": "images/generations"}
    with Process(tmp_path / "data", KLING_API_BASE=gateway.url, KLING_COMPAT_API="on") as running:
        created = {"prompt": "a kangaroo", "options": {"external_task_id": "made"}}
        path = "/text-to-video/kling-3.0-turbo"
        httpx.post(f"{running.url}{path}", json=created, headers=running.headers()).raise_for_status()
        finished(running, "made")
        document = httpx.get(f"{running.url}/openapi.json", headers=running.headers("admin")).json()

        def prepare(case: Case[Any]) -> None:
            if mode is GenerationMode.NEGATIVE:
                assume("Authorization" in case.headers and set(case.query) <= {"pageNum", "pageSize"})
                case.path_parameters.update({name: values[name] for name in values if name in case.path_parameters})
                return
            is_create, account = case.method == "POST", "/account/" in case.path
            path = ("billing/package" if is_create else "costs") if account else values["path"]
            for name, value in {**values, "path": path, "id": "made"}.items():
                if name in case.path_parameters:
                    case.path_parameters[name] = value
            if case.path == "/tasks":
                case.query = {"task_ids": "made"}
            if case.path == "/account/{path}" and not is_create:
                case.query = {"start_time": "1", "end_time": "2"}
            if is_create:
                case.body = {"start_time": 1, "end_time": 2} if account else {"prompt": "a kangaroo"}

        tested = [each for each in _all_operations(document) if each.path in compat.PATHS]
        assert len(tested) == sum(map(len, compat.PATHS.values()))
        for operation in tested:
            if not operation.path.startswith("/kling"):  # the same, below another prefix
                check(running, operation, mode, prepare, excluded_checks=[ignored_auth])

"""The interface against its own description: schemathesis makes requests of it, right ones and wrong ones.

Neither event stream is asked: it has no end. `scripts/fuzz` does the same for longer.
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

from kling_receiver.web.openapi.paths import PATHS
from kling_sandbox import Sandbox
from tools.harness.process import Process
from tools.harness.submitting import finished, submit

bounded = settings(
    max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture
def running(tmp_path: Path, gateway: Sandbox) -> Iterator[Process]:
    """A receiver in a process of its own: hypothesis wants this one's `random` for itself."""
    with Process(tmp_path / "data", KLING_API_BASE=gateway.url) as running:
        yield running


UNSAYABLE = {"secret", "families", "statuses", "hook"}
"""What has rules of its own: base64 of so many bytes, paths, what fits to events, what there is."""
KNOWN = {"status", "family", "tag", "limit", "hook", "state", "task"}
"""What a query may name."""


def operations(running: Process) -> list[Any]:
    """Every operation that is described, but for the streams."""
    document = httpx.get(f"{running.url}/openapi.json", headers=running.headers("admin")).json()
    schema = schemathesis.openapi.from_dict(document)
    found = [each.ok() for each in schema.get_all_operations() if isinstance(each, Ok)]
    asked = [each for each in found if not each.path.endswith("/events")]
    assert len(found) == len(asked) + 2 == sum(map(len, PATHS.values()))
    return asked


def ask(running: Process, operation: Any, mode: GenerationMode, prepare: Callable[[Case[Any]], object]) -> None:
    """Ask for one operation in many ways; each answer has a status, a type and a shape that are described."""

    @bounded
    @given(case=operation.as_strategy(generation_mode=mode))
    def each(case: Case[Any]) -> None:
        prepare(case)
        case.call_and_validate(base_url=running.url, headers=running.headers("admin"), timeout=20)

    each()


def test_right_requests_are_taken(running: Process, gateway: Sandbox) -> None:
    """By everything that answers once; what no schema can say is put in: a token, a task, and no cursor."""
    task, _ = submit(running, gateway)
    finished(running, task)
    token = running.callback_url("t").rpartition("/")[2]

    def prepare(case: Case[Any]) -> None:
        if "token" in case.path_parameters:
            case.path_parameters["token"] = token
        if case.path.endswith("/results/{n}") and case.path_parameters["n"] < 2:
            case.path_parameters["id"] = task
        case.query.pop("cursor", None)
        given = case.body if isinstance(case.body, dict) else {}
        if case.path == "/api/hooks" and given:
            given["address"] = "http://127.0.0.1:9/"
        for name in UNSAYABLE & given.keys():
            del given[name]

    for operation in operations(running):
        ask(running, operation, GenerationMode.POSITIVE, prepare)


def test_wrong_requests_are_refused(running: Process) -> None:
    """Each in its path, query or body; names that we do not know are passed over, as elsewhere on the web."""

    def prepare(case: Case[Any]) -> None:
        assume("Authorization" in case.headers and set(case.query) <= KNOWN)

    for operation in operations(running):
        if operation.path.startswith("/api/") and not operation.path.endswith("{n}"):
            ask(running, operation, GenerationMode.NEGATIVE, prepare)

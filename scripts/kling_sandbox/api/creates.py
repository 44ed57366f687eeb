"""Create calls: which are refused, which create a task, and the ways in which the answer is lost."""

import functools
import json
from typing import Any

from kling_sandbox.api.auth import authenticate
from kling_sandbox.api.families import FAMILIES, Family, check
from kling_sandbox.api.replies import ApiError, broken_json
from kling_sandbox.lifecycle import Lifecycle
from kling_sandbox.misbehaviour import Has, parse_marks
from kling_sandbox.state import State
from kling_sandbox.tasks import Task, task_record, wrap
from kling_sandbox.web.http import Hangup, Request, Response, html_response, json_response

NOT_IN_CREATE = ("task_status_msg", "task_result")
"""Fields of a task that the answer to a create does not have."""

REFUSALS = {
    "busy": (1302, "Too many requests"),
    "full": (1303, "Concurrency over the resource pack"),
    "arrears": (1101, "Account in arrears"),
    "not-allowed": (1304, "This address is not on the allow-list"),
}
"""Switches that refuse a create, with code and message."""


class Creates:
    """The route that creates tasks, for both standards."""

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self._state, self._lifecycle = state, lifecycle

    async def post(self, request: Request, path: str, model: str = "") -> Response:
        """Create a task. `path`: below /v1; or the first part of a new-standard path, in front of `model`."""
        body = _parse(request.body)
        self._state.record(self._state.creates, body)
        path, family = _family(request, path, model)
        has = self._state.switches(_marks(request.body))
        authenticate(request, self._state, has, new=family.new)
        if has("drop-before-create"):
            return Hangup()
        check(family, body)
        task = self._task(request, path, family, body, has)
        self._refuse(task)
        self._state.add(task)
        return await self._answer(task)

    def _task(self, request: Request, path: str, family: Family, body: dict[str, Any], has: Has) -> Task:
        state = self._state
        return Task(
            id=state.new_id(),
            alias=state.new_id(),
            result_id=state.new_id(),
            variant=state.random.randrange(100),
            path=path,
            family=family,
            body=body,
            has=has,
            base_url=f"{request.origin}{state.base_path}",
            result_seconds=state.result_seconds,
        )

    def _refuse(self, task: Task) -> None:
        """Raise ApiError if a switch, an external id in use or the concurrency limit refuses the task."""
        for name, (code, message) in REFUSALS.items():
            if task.has(name):
                raise ApiError(code, message)
        if task.has("busy-once") and self._state.is_first("busy-once", task.external_id or ""):
            raise ApiError(*REFUSALS["busy"])
        if task.external_id in self._state.external and not task.has("drop-external-id"):
            raise ApiError(1201, f"external_task_id {task.external_id} already exists")
        if self._state.concurrency and self._state.slots_in_use() + task.slots > self._state.concurrency:
            raise ApiError(*REFUSALS["full"])

    async def _answer(self, task: Task) -> Response:
        if task.path == "audio/tts":
            self._state.set_status(task, task.final_status)
            return json_response(wrap(task, task_record(task, new=False), "create"))
        submitted = task.has("early-callback") or task.has("early-final")
        if submitted:
            await self._lifecycle.submit(task)
        if task.has("early-final"):
            await self._lifecycle.finish(task)
            return _lost(task) or _created(task)
        response = _lost(task) or _created(task)
        response.background = functools.partial(self._lifecycle.start, task, submitted=submitted)
        return response


def _lost(task: Task) -> Response | None:
    """The response of a switch that hides that the task was created."""
    if task.has("drop-after-create"):
        return Hangup()
    if task.has("create-5002"):
        return ApiError(5002, "Service timed out").response()
    if task.has("create-504"):
        return html_response("<h1>504 Gateway Time-out</h1>", 504)
    return broken_json() if task.has("create-garbage") else None


def _created(task: Task) -> Response:
    fields = task_record(task, "submitted", new=task.family.new)
    fields = {name: value for name, value in fields.items() if name not in NOT_IN_CREATE}
    return json_response(wrap(task, fields, "create"))


def _parse(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("options", {}), dict):
        raise ApiError(1200, "The body must be a JSON object")
    return body


def _marks(content: bytes) -> frozenset[str]:
    try:
        return parse_marks(content.decode())
    except ValueError as error:
        raise ApiError(1201, str(error)) from None


def _family(request: Request, path: str, model: str) -> tuple[str, Family]:
    """Find the family by `images/generations`, or by `/text-to-video` in front of a model."""
    name = f"/{path}" if model else path
    if name not in FAMILIES:
        raise ApiError(1202, f"Nothing is made at {request.path}")
    if model and not model.startswith("kling-"):
        raise ApiError(1203, f"Model {model} does not exist")
    return (f"{name}/{model}" if model else path), FAMILIES[name]

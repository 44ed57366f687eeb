"""Create calls: which are refused, which create a task, and what is answered."""

import functools
from typing import Any

from kling_sandbox.api.auth import authenticate
from kling_sandbox.api.bodies import marks, parse
from kling_sandbox.api.families import FAMILIES, Family, check
from kling_sandbox.api.faults import KLING, error_response, lose, refuse
from kling_sandbox.api.parameters import without_empty
from kling_sandbox.api.replies import ApiError
from kling_sandbox.lifecycle import Lifecycle
from kling_sandbox.misbehaviour import Has
from kling_sandbox.records.kling import task_record
from kling_sandbox.records.relays import task_answer
from kling_sandbox.state import State
from kling_sandbox.tasks import Task
from kling_sandbox.web.http import Request, Response, json_response

NOT_IN_CREATE = ("task_status_msg", "task_result")
"""Fields of a task that the answer to a create does not have."""


class Creates:
    """The route that creates tasks, for both standards."""

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self._state, self._lifecycle = state, lifecycle

    async def post(self, request: Request, path: str, model: str = "") -> Response:
        """Create a task. `path`: below /v1; or the first part of a new-standard path, in front of `model`."""
        body = parse(request.body)
        self._state.record(self._state.creates, body)
        has = self._state.switches(marks(request.body))
        try:
            return await self._create(request, *_family(request, path, model), without_empty(body), has)
        except ApiError as error:
            return error_response(error, has)

    async def _create(self, request: Request, path: str, family: Family, body: dict[str, Any], has: Has) -> Response:
        authenticate(request, self._state, has, new=family.new)
        check(path, family, body)
        task = self._state.make(path, family, body, has, request.origin)
        if refusal := refuse(self._state, has, task.model, task.external_id or ""):
            return refusal
        self._check_limits(task)
        self._state.add(task)
        return await self._answer(task)

    def _check_limits(self, task: Task) -> None:
        """Raise ApiError if the external id is in use, or the concurrency would be exceeded."""
        if task.external_id in self._state.external and not task.has("drop-external-id"):
            raise ApiError(1201, f"external_task_id {task.external_id} already exists")
        if self._state.concurrency and self._state.slots_in_use() + task.slots > self._state.concurrency:
            raise ApiError(*KLING["full"])

    async def _answer(self, task: Task) -> Response:
        submitted = task.has("early-callback") or task.has("early-final")
        if submitted:
            await self._lifecycle.submit(task)
        if task.has("early-final"):
            await self._lifecycle.finish(task)
            return lose(task.has) or _created(task)
        response = lose(task.has) or _created(task)
        response.background = functools.partial(self._lifecycle.start, task, submitted=submitted)
        return response


def _created(task: Task) -> Response:
    fields = task_record(task, "submitted", new=task.family.new)
    fields = {name: value for name, value in fields.items() if name not in NOT_IN_CREATE}
    return json_response(task_answer(task, fields, "create"))


def _family(request: Request, path: str, model: str) -> tuple[str, Family]:
    """Find the family by `images/generations`, or by `/text-to-video` in front of a model. Raises ApiError."""
    name = f"/{path}" if model else path
    if name not in FAMILIES:
        raise ApiError(1202, f"Nothing is made at {request.path}")
    return (f"{name}/{model}" if model else path), FAMILIES[name]

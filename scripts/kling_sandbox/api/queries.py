"""Queries: one task by either id, the list of a family, and the new standard's batch."""

from typing import Any

from kling_sandbox.api.auth import authenticate
from kling_sandbox.api.families import FAMILIES
from kling_sandbox.api.faults import unknown_task
from kling_sandbox.api.replies import ApiError, broken_json, envelope
from kling_sandbox.records.kling import task_record
from kling_sandbox.records.relays import task_answer
from kling_sandbox.state import Query, State
from kling_sandbox.tasks import Task, now
from kling_sandbox.web.http import Request, Response, json_response


class Queries:
    """The routes that query tasks."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def one(self, request: Request, path: str) -> Response:
        """Answer a legacy query: one task by its id, or the list of a family."""
        authenticate(request, self._state, self._state.switches(), new=False)
        if path in FAMILIES:
            return self._list(request, path)
        family, _, task_id = path.rpartition("/")
        task = self._state.tasks.get(task_id) or self._state.external.get(task_id)
        tasks = [task] if task and task.path == family else []
        if problem := self._problem(request, tasks, [task_id]):
            return problem
        if not tasks and self._state.switches()("relay-task-not-exist"):
            return unknown_task()
        if not tasks:
            raise ApiError(1201, f"Task not found: {task_id}")
        return self._answer(tasks[0])

    def _answer(self, task: Task) -> Response:
        return json_response(task_answer(task, self._current(task, new=False), "query"))

    def _list(self, request: Request, family: str) -> Response:
        self._state.record(self._state.queries, Query(request.path, [], now()))
        page, size = page_of(request, 500)
        tasks = [task for task in self._state.tasks.values() if task.path == family]
        shown = tasks[::-1][(page - 1) * size : page * size]
        return json_response(envelope([task_record(task, new=False) for task in shown]))

    async def batch(self, request: Request) -> Response:
        """Answer a new-standard query of up to 20 tasks; those that are unknown are left out."""
        authenticate(request, self._state, self._state.switches(), new=True)
        ids, external_ids = _names(request, "task_ids"), _names(request, "external_task_ids")
        if not 1 <= len(ids + external_ids) <= 20:
            raise ApiError(1201, "Send 1 to 20 task_ids or external_task_ids")
        found = [*map(self._state.tasks.get, ids), *map(self._state.external.get, external_ids)]
        tasks = [task for task in found if task]
        problem = self._problem(request, tasks, ids + external_ids)
        return problem or json_response(envelope([self._current(task, new=True) for task in tasks]))

    def _problem(self, request: Request, tasks: list[Task], ids: list[str]) -> Response | None:
        """Count a query. Returns or raises the response of a switch."""
        for task in tasks:
            task.queries += 1
        self._state.record(self._state.queries, Query(request.path, ids, now()))
        if any(self._is_unavailable(task) for task in tasks):
            raise ApiError(5001, "Service unavailable")
        return broken_json() if any(task.has("query-garbage") for task in tasks) else None

    def _is_unavailable(self, task: Task) -> bool:
        once = task.has("query-5xx-once") and self._state.is_first("query-5xx-once", task.id)
        return once or task.has("query-5xx")

    def _current(self, task: Task, *, new: bool) -> dict[str, Any]:
        """The task as it is, or as it was just before its end (`query-lag`)."""
        late = task.finished_at and task.has("query-lag") and self._state.is_first("query-lag", task.id)
        return task_record(task, "processing" if late else task.status, new=new)


def page_of(request: Request, most: int) -> tuple[int, int]:
    """The number of a page of a list, and its size, up to `most`. Raises ApiError."""
    return _integer(request, "pageNum", 1, 1000), _integer(request, "pageSize", 30, most)


def _integer(request: Request, name: str, default: int, maximum: int) -> int:
    value = request.query.get(name) or str(default)
    if not value.isdecimal() or not 1 <= int(value) <= maximum:
        raise ApiError(1201, f"{name} must be 1 to {maximum}")
    return int(value)


def _names(request: Request, key: str) -> list[str]:
    return [name for name in request.query.get(key, "").split(",") if name]

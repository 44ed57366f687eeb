"""Queries: one task by either id, a family's list, and the new standard's batch."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kling_sandbox.families import FAMILIES
from kling_sandbox.keys import admit
from kling_sandbox.ledger import Ledger, Query
from kling_sandbox.replies import Refused, envelope, garbage
from kling_sandbox.tasks import Task, dressed, now, record


class Queries:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    async def one(self, request: Request) -> Response:
        admit(request, self.ledger, self.ledger.switches(), new=False)
        if request.path_params["path"] in FAMILIES:
            return self.family(request)
        path, _, number = request.path_params["path"].rpartition("/")
        task = self.ledger.tasks.get(number) or self.ledger.external.get(number)
        found = [task] if task and task.path == path else []
        return self.trouble(request, found, [number]) or self.answer(found[0])

    def answer(self, task: Task) -> Response:
        return JSONResponse(dressed(task, self.seen(task, new=False), "query"))

    def family(self, request: Request) -> Response:
        self.ledger.note(self.ledger.queries, Query(request.url.path, [], now()))
        page, size = bounded(request, "pageNum", 1, 1000), bounded(request, "pageSize", 30, 500)
        tasks = [task for task in self.ledger.tasks.values() if task.path == request.path_params["path"]]
        chosen = tasks[::-1][(page - 1) * size : page * size]
        return JSONResponse(envelope([record(task, new=False) for task in chosen]))

    async def batch(self, request: Request) -> Response:
        admit(request, self.ledger, self.ledger.switches(), new=True)
        ids, external_ids = names(request, "task_ids"), names(request, "external_task_ids")
        if not 1 <= len(ids + external_ids) <= 20:
            raise Refused(1201, "Send 1 to 20 task_ids or external_task_ids")
        tasks = [*map(self.ledger.tasks.get, ids), *map(self.ledger.external.get, external_ids)]
        found = [task for task in tasks if task]
        trouble = self.trouble(request, found, ids + external_ids)
        return trouble or JSONResponse(envelope([self.seen(task, new=True) for task in found]))

    def trouble(self, request: Request, found: list[Task], ids: list[str]) -> Response | None:
        """Count a query, and say what goes out in place of the answer, if anything."""
        for task in found:
            task.queries += 1
        self.ledger.note(self.ledger.queries, Query(request.url.path, ids, now()))
        if not found:
            raise Refused(1201, f"Task not found: {', '.join(ids)}")
        if any(self.unavailable(task) for task in found):
            raise Refused(5001, "Service unavailable")
        return garbage() if any(task.has("query-garbage") for task in found) else None

    def unavailable(self, task: Task) -> bool:
        once = task.has("query-5xx-once") and self.ledger.first("query-5xx-once", task.id)
        return once or task.has("query-5xx")

    def seen(self, task: Task, *, new: bool) -> dict[str, Any]:
        late = task.finished_at and task.has("query-lag") and self.ledger.first("query-lag", task.id)
        return record(task, "processing" if late else task.status, new=new)


def bounded(request: Request, name: str, default: int, most: int) -> int:
    value = request.query_params.get(name, str(default))
    if not value.isdecimal() or not 1 <= int(value) <= most:
        raise Refused(1201, f"{name} must be 1 to {most}")
    return int(value)


def names(request: Request, key: str) -> list[str]:
    return [name for name in request.query_params.get(key, "").split(",") if name]

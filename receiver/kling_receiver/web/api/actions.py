"""Actions on a task, for role admin: query Kling now, download lost files again, remove it, adopt one of elsewhere."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from pydantic import Field, field_validator
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import TypedDict

from kling_callback.errors import GatewayError
from kling_callback.protocol import families
from kling_callback.protocol.reports import Report
from kling_callback.protocol.values import IDENTIFIER
from kling_receiver.events.payloads import Payloads, TaskJson
from kling_receiver.results import records as result_records
from kling_receiver.results.removal import remove_task
from kling_receiver.results.storage import LocalStorage
from kling_receiver.states import Status
from kling_receiver.store.reader import Reader, TaskDetail
from kling_receiver.store.rows import ResultRow, TaskRow
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer
from kling_receiver.tasks.adoption import adopt
from kling_receiver.tasks.overdue import apply_answer
from kling_receiver.tasks.reconcile import Reconciler
from kling_receiver.tasks.registration import FAMILY_SCHEMA, KLING_ID_RULE, KLING_ID_SCHEMA
from kling_receiver.web.api.tasks import get_task_or_404, task_not_found
from kling_receiver.web.auth import Guard, RouteHandler, describe, route
from kling_receiver.web.body import BodyLimiter
from kling_receiver.web.errors import ApiError
from kling_receiver.web.requests import RequestModel, check_query, parse, read_json

Action = Callable[[TaskRow], Awaitable[Report]]


NEVER_ARRIVED = (409, "Check that its create reached Kling, and that Kling still keeps the task.")
NOT_FOUND = (404, "Check the id, and the family: a task is found only at the path that created it.")
"""Status and hint for a task that Kling does not know: for one that is known here, and for one that is not."""


ONLY = ("queued", "finished")
"""What DELETE may be limited to: cancel a task that waits in the queue, or remove one that has ended."""
UNFINISHED_HINT = "Wait until it is done; one that waits in the queue can be cancelled: kling-receiver tasks cancel ID"


class ActionJson(TypedDict):
    """Kling's status of a task, and the task after the action."""

    kling: Annotated[Status | None, Field(description="null if its answer has no known status")]
    task: TaskJson


class AdoptedJson(TypedDict):
    """Kling's status of an adopted task, and the task."""

    kling: Annotated[Status | None, Field(description="null if Kling was not queried, or its answer has no status")]
    queried: Annotated[bool, Field(description="whether Kling was queried: false for a task that was known before")]
    task: TaskJson


JOB_SCHEMA: dict[str, Any] = {
    **FAMILY_SCHEMA,
    "pattern": f"^{families.PATTERN.pattern.removesuffix('*')}+$",
    "not": {
        "anyOf": [
            {"enum": [f"{slash}{path}" for slash in ("", "/") for path in sorted(families.SYNCHRONOUS)]},
            {"pattern": "^/?(account|v[0-9]+)/"},
        ]
    },
}
"""A family that creates tasks, as `families.family_problems` checks it."""


class Adoption(RequestModel):
    """Which task of Kling's to adopt."""

    family: Annotated[str, Field(json_schema_extra=JOB_SCHEMA)]
    task_id: Annotated[str, Field(description="Kling's id", json_schema_extra=KLING_ID_SCHEMA)]

    @field_validator("family")
    @classmethod
    def _family(cls, value: str) -> str:
        if problems := families.family_problems(value):
            raise ValueError(problems[0].removeprefix("family: "))
        return value

    @field_validator("task_id")
    @classmethod
    def _task_id(cls, value: str) -> str:
        if not IDENTIFIER.fullmatch(value):
            raise ValueError(KLING_ID_RULE)
        return value


class TaskActions:
    """The routes of actions on a task. Each responds with Kling's status and the task after the action."""

    def __init__(
        self,
        guard: Guard,
        *,
        reconciler: Reconciler,
        writer: Writer,
        reader: Reader,
        storage: LocalStorage,
        payloads: Payloads,
        bodies: BodyLimiter,
        cancel: RouteHandler,
    ) -> None:
        """`cancel`: the endpoint of `web/api/submission`."""
        self._cancel, self._remove_audited = cancel, guard.audited("tasks remove", self._remove, query=("only",))
        self._guard, self._reconciler, self._storage, self._bodies = guard, reconciler, storage, bodies
        self._writer, self._reader, self._payloads = writer, reader, payloads

    def routes(self) -> list[Route]:
        """The routes of this module."""
        return [
            route("/api/tasks/adopt", POST=self._guard.audited("tasks adopt", self._adopt)),
            route("/api/tasks/{id}/ask", POST=self._guard.audited("tasks ask", self._action(self._ask))),
            route("/api/tasks/{id}/fetch", POST=self._guard.audited("tasks fetch", self._action(self._fetch))),
        ]

    def _action(self, action: Action) -> RouteHandler:
        async def endpoint(request: Request) -> Response:
            detail = await get_task_or_404(self._reader, request.path_params["id"])
            report = await action(detail.row)
            detail = await get_task_or_404(self._reader, detail.row["id"])
            return JSONResponse(ActionJson(kling=report.status, task=self._payloads.task(detail)))

        return endpoint

    async def delete(self, request: Request) -> Response:
        """Cancel a task that waits, for its client; remove one that has ended, for role admin.

        `only`: the one of the two that is meant, so that a task which ends meanwhile is not removed by its cancel.
        """
        token = await self._guard.check(request, "client")
        check_query(request, ("only",))
        only = request.query_params.get("only")
        if only not in (None, *ONLY):
            raise ApiError(422, "bad_query", f"`only` must be one of {', '.join(ONLY)}.", "Fix the query.")
        if only is None and token.role == "admin":
            detail = await get_task_or_404(self._reader, request.path_params["id"])
            only = "finished" if detail.row["done"] else "queued"
        return await (self._remove_audited if only == "finished" else self._cancel)(request)

    async def _remove(self, request: Request) -> Response:
        """Remove a task with its events, deliveries and files. Responds with the task as it was."""
        detail = await get_task_or_404(self._reader, request.path_params["id"])
        task_id = detail.row["id"]
        describe(request, target=task_id, detail=f"{detail.row['family']}, {len(detail.results)} files")
        result = await self._writer.run(lambda tx: remove_task(tx, task_id))
        if result == "unknown":  # removed meanwhile
            raise task_not_found()
        if result == "unfinished":
            message, hint = f"Task {task_id} has not ended, or a file of it is still to be stored.", UNFINISHED_HINT
            raise ApiError(409, "not_finished", message, hint)
        if result == "in_use":
            message = f"The receiver works on task {task_id} at the moment."
            raise ApiError(409, "in_use", message, "Remove it a moment later.")
        return JSONResponse(self._payloads.task(detail))

    async def _adopt(self, request: Request) -> Response:
        """Query Kling about a task that is not known here, and add it: nothing is added unless Kling knows it."""
        adoption = parse(Adoption, await read_json(request, self._bodies))
        describe(request, target=adoption.task_id, detail=adoption.family)
        if known := await self._find_known(adoption.task_id):
            return self._adopted(adoption, known)
        report = await self._answer(self._reconciler.query_kling_id(adoption.family, adoption.task_id), NOT_FOUND)
        # Behind a relay, the report may name another id than the one by which the relay knows the task.
        by_external_id = adoption.task_id == report.external_task_id
        kling_id = report.kling_id if by_external_id and report.kling_id else adoption.task_id
        adopted = await self._writer.run(lambda tx: adopt(tx, adoption.family, kling_id, report))
        task = await get_task_or_404(self._reader, adopted.task_id)
        return self._adopted(adoption, task, report, status=201 if adopted.created else 200)

    async def _find_known(self, task_id: str) -> TaskDetail | None:
        """A task by our id or Kling's. What a callback says about the caller's id is no reason not to ask Kling."""
        by_kling_id = await self._reader.find_by_kling_id(task_id)
        details = await self._reader.details([task_id, by_kling_id or task_id])
        return details.get(task_id) or next(iter(details.values()), None)

    def _adopted(
        self, adoption: Adoption, task: TaskDetail, report: Report | None = None, *, status: int = 200
    ) -> Response:
        if task.row["family"] != adoption.family:
            message = f"The task is known as {task.row['id']}, of the family {task.row['family']}."
            raise ApiError(409, "conflict", message, "Check the family.")
        content: AdoptedJson = {
            "kling": report.status if report else None,
            "queried": report is not None,
            "task": self._payloads.task(task),
        }
        return JSONResponse(content, status)

    async def _ask(self, task: TaskRow) -> Report:
        report = await self._answer(self._reconciler.query(task), NEVER_ARRIVED)
        await self._writer.run(lambda tx: apply_answer(tx, _task(tx, task["id"]), report, "operator"))
        return report

    async def _fetch(self, task: TaskRow) -> Report:
        report = await self._answer(self._reconciler.query_files(task), NEVER_ARRIVED)
        lost = [result["position"] for result in await self._reader.results(task["id"]) if await self._is_lost(result)]

        def change(tx: Transaction) -> bool:
            row = _task(tx, task["id"])
            for position in lost:
                result_records.mark_lost(tx, row, position, "It is no longer in the storage as it was stored.")
            apply_answer(tx, row, report, "operator")
            if row["status"] != "succeed" or report.status != "succeed":
                return False
            if report.outputs:
                result_records.refresh_downloads(tx, row, report.outputs)
            return report.has_results

        if not await self._writer.run(change):
            message = f"Kling names no file of this task. Its status at Kling is {report.status or 'not known'}."
            raise ApiError(409, "no_files", message, "Check the task's status.")
        return report

    async def _is_lost(self, result: ResultRow) -> bool:
        if result["status"] != "stored" or not result["path"]:
            return False
        return bool(await run_in_threadpool(self._storage.sha256, result["path"]) != result["sha256"])

    async def _answer(self, query: Awaitable[Report | None], unknown: tuple[int, str]) -> Report:
        """Kling's answer. Raises ApiError if it gives none, or does not know the task: with this status and hint."""
        try:
            report = await query
        except GatewayError as error:
            raise ApiError(502, "kling_failed", error.message, error.hint or "Run it again later.") from None
        if report is None:
            raise ApiError(unknown[0], "unknown_at_kling", "Kling does not know this task.", unknown[1])
        return report


def _task(tx: Transaction, task_id: str) -> TaskRow:
    """A task's row. Raises ApiError if it was removed while Kling was queried."""
    task = tx.task(task_id)
    if task is None:
        raise task_not_found()
    return task

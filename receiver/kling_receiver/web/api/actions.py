"""Actions on a task, for role admin: query Kling now, download lost files again."""

from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import TypedDict

from kling_callback.errors import GatewayError
from kling_callback.protocol.reports import Report
from kling_receiver.events.payloads import Payloads, TaskJson
from kling_receiver.results import records as result_records
from kling_receiver.results.storage import LocalStorage
from kling_receiver.settings import ReceiverSettings
from kling_receiver.states import Status
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import ResultRow, TaskRow
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer
from kling_receiver.tasks.overdue import apply_answer
from kling_receiver.tasks.reconcile import Reconciler
from kling_receiver.web.api.tasks import get_task_or_404
from kling_receiver.web.auth import Endpoint, require_role
from kling_receiver.web.errors import ApiError

Action = Callable[[TaskRow], Awaitable[Report]]


class ActionJson(TypedDict):
    """Kling's status of a task, and the task after the action."""

    kling: Status | None
    task: TaskJson


class TaskActions:
    """The routes of actions on a task. Each responds with Kling's status and the task after the action."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        reconciler: Reconciler,
        writer: Writer,
        reader: Reader,
        storage: LocalStorage,
        payloads: Payloads,
    ) -> None:
        self._settings, self._reconciler, self._storage = settings, reconciler, storage
        self._writer, self._reader, self._payloads = writer, reader, payloads

    def routes(self) -> list[Route]:
        """The routes of this module."""
        return [
            Route("/api/tasks/{id}/ask", self._action(self._ask), methods=["POST"]),
            Route("/api/tasks/{id}/fetch", self._action(self._fetch), methods=["POST"]),
        ]

    def _action(self, action: Action) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            detail = await get_task_or_404(self._reader, request.path_params["id"])
            report = await action(detail.row)
            detail = await get_task_or_404(self._reader, detail.row["id"])
            return JSONResponse(ActionJson(kling=report.status, task=self._payloads.task(detail)))

        return require_role(self._settings.signing_secrets, "admin", endpoint)

    async def _ask(self, task: TaskRow) -> Report:
        report = await self._query(task)
        await self._writer.run(lambda tx: apply_answer(tx, tx.require_task(task["id"]), report, "operator"))
        return report

    async def _fetch(self, task: TaskRow) -> Report:
        report = await self._query(task)
        lost = [result["position"] for result in await self._reader.results(task["id"]) if await self._is_lost(result)]

        def change(tx: Transaction) -> bool:
            row = tx.require_task(task["id"])
            for position in lost:
                result_records.mark_lost(tx, row, position, "It is no longer in the storage as it was stored.")
            apply_answer(tx, row, report, "operator")
            if row["status"] != "succeed" or report.status != "succeed":
                return False
            if report.outputs:
                result_records.refresh_downloads(tx, row, report.outputs)
            return report.has_results

        if not await self._writer.run(change):
            message = f"The task did not succeed with a result. Kling's status is {report.status}."
            raise ApiError(409, "no_files", message, "Check the task's status.")
        return report

    async def _is_lost(self, result: ResultRow) -> bool:
        if result["status"] != "stored" or not result["path"]:
            return False
        return bool(await run_in_threadpool(self._storage.sha256, result["path"]) != result["sha256"])

    async def _query(self, task: TaskRow) -> Report:
        try:
            report = await self._reconciler.query(task)
        except GatewayError as error:
            raise ApiError(502, "kling_failed", error.message, error.hint or "Run it again later.") from None
        if report is None:
            hint = "Check that its create reached Kling, and that Kling still keeps the task."
            raise ApiError(409, "unknown_at_kling", "Kling does not know this task.", hint)
        return report

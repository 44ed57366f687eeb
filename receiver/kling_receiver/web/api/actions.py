"""What an operator may order over `/api`, with a token of role admin: ask Kling now, fetch lost files again."""

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kling_callback.errors import GatewayError
from kling_callback.protocol.reports import Report
from kling_receiver.events.payloads import Views
from kling_receiver.results import records as result_records
from kling_receiver.results.storage import Folder
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.reader import Reader, in_thread
from kling_receiver.store.sql import Row
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer
from kling_receiver.tasks.overdue import learn
from kling_receiver.tasks.reconcile import Asker
from kling_receiver.web.api.tasks import known_task
from kling_receiver.web.auth import Endpoint, for_role
from kling_receiver.web.errors import ApiError

Order = Callable[[Row], Awaitable[Report]]


class Admin:
    """The routes of orders about a task; each answers `{"kling": status, "task": {...}}`."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        asker: Asker,
        writer: Writer,
        reader: Reader,
        folder: Folder,
        views: Views,
    ) -> None:
        self._settings, self._asker, self._folder = settings, asker, folder
        self._writer, self._reader, self._views = writer, reader, views

    def routes(self) -> list[Route]:
        """Every route."""
        return [
            Route("/api/tasks/{id}/ask", self._order(self._ask), methods=["POST"]),
            Route("/api/tasks/{id}/fetch", self._order(self._fetch), methods=["POST"]),
        ]

    def _order(self, order: Order) -> Endpoint:
        async def ordered(request: Request) -> Response:
            full = await known_task(self._reader, request.path_params["id"])
            report = await order(full.row)
            full = await known_task(self._reader, full.row["id"])
            return JSONResponse({"kling": report.status, "task": self._views.task(full)})

        return for_role(self._settings.signing_secrets, "admin", ordered)

    async def _ask(self, task: Row) -> Report:
        report = await self._question(task)
        await self._writer.run(lambda tx: learn(tx, tx.known(task["id"]), report, "operator"))
        return report

    async def _fetch(self, task: Row) -> Report:
        report = await self._question(task)
        lost = [result["n"] for result in await self._reader.results(task["id"]) if await self._is_lost(result)]

        def change(tx: Transaction) -> bool:
            row = tx.known(task["id"])
            for n in lost:
                result_records.lose(tx, row, n, "It is no longer in the storage as it was stored.")
            learn(tx, row, report, "operator")
            found = row["status"] == report.status == "succeed" and bool(report.outputs)
            if found:
                result_records.renew(tx, row, report.outputs)
            return found

        if not await self._writer.run(change):
            said = f"The task is not one that succeeded with files: Kling says {report.status}."
            raise ApiError(409, "no_files", said, "There is nothing to fetch.")
        return report

    async def _is_lost(self, result: Row) -> bool:
        if result["status"] != "stored":
            return False
        return bool(await in_thread(self._folder.sha256, result["name"]) != result["sha256"])

    async def _question(self, task: Row) -> Report:
        try:
            report = await self._asker.question(task)
        except GatewayError as error:
            raise ApiError(502, "kling_failed", error.message, error.hint or "Ask again later.") from None
        if report is None:
            hint = "Its create did not arrive, or Kling has forgotten it."
            raise ApiError(409, "unknown_at_kling", "Kling does not know this task.", hint)
        return report

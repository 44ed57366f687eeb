"""Answer queries from our database: one task by any of its ids, a batch, the list of a family."""

from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kling_callback.protocol import families
from kling_callback.protocol.ids import is_id
from kling_callback.protocol.values import IDENTIFIER
from kling_receiver.events.kling_record import kling_status
from kling_receiver.events.payloads import Payloads
from kling_receiver.states import FINAL
from kling_receiver.store.reader import Reader, TaskDetail
from kling_receiver.web.compat.holding import HEADERS, Holder, hold_seconds
from kling_receiver.web.compat.replies import BAD_PARAMETER, NO_PATH, CompatError, envelope

MAX_BATCH = 20
"""Tasks of one batch query, by ids of either kind: Kling's limit."""
DEFAULT_PAGE_SIZE = 30
MAX_PAGE, MAX_PAGE_SIZE = 1000, 500
SecondsLeft = Callable[[], float]


class Queries:
    """Answers about tasks, in either spelling. `hold_default`: seconds for which queries are held."""

    def __init__(self, reader: Reader, payloads: Payloads, holder: Holder, *, hold_default: float) -> None:
        self._reader, self._payloads, self._holder, self._hold_default = reader, payloads, holder, hold_default

    def record(self, detail: TaskDetail, *, asked: str = "", new: bool | None = None) -> dict[str, Any]:
        """Kling's record of a task. `asked`: the id by which a program knows it; `new`: the spelling, None: its own.

        Its id is the one that was asked for, if that is ours: it may be what the create answered. Otherwise Kling's.
        """
        record = self._payloads.kling(detail, new=new)
        if asked == detail.row["id"]:
            record["id" if "id" in record else "task_id"] = asked
        return record

    async def one(self, request: Request, family: str, any_id: str, seconds_left: SecondsLeft) -> Response:
        """Answer a query about one task of a family. Raises CompatError for an unknown id."""
        found = await self._find(any_id, family)
        if found is None:
            raise CompatError(BAD_PARAMETER, f"Task not found: {any_id[:256]}")
        task_id = found.row["id"]

        async def render() -> dict[str, Any]:
            return envelope(self.record(await self._require(task_id), asked=any_id))

        return await self._hold(request, render, [found], seconds_left)

    async def batch(self, request: Request, seconds_left: SecondsLeft) -> Response:
        """Answer a query of up to MAX_BATCH tasks, in the new standard's spelling; unknown ones are left out."""
        asked = [name for key in ("task_ids", "external_task_ids") for name in _names(request, key)]
        if not 1 <= len(asked) <= MAX_BATCH:
            raise CompatError(BAD_PARAMETER, f"Send 1 to {MAX_BATCH} ids in task_ids and external_task_ids.")
        by_kling_id = set(_names(request, "task_ids"))
        tasks = {name: task for name in dict.fromkeys(asked) if (task := await self._find(name))}

        async def render() -> dict[str, Any]:
            details = await self._reader.details([task.row["id"] for task in tasks.values()])
            return envelope(
                [
                    self.record(detail, asked=name if name in by_kling_id else "", new=True)
                    for name, task in tasks.items()
                    if (detail := details.get(task.row["id"]))
                ]
            )

        return await self._hold(request, render, list(tasks.values()), seconds_left)

    async def list_family(self, request: Request, family: str) -> Response:
        """Answer with a page of a family's tasks, newest first. Raises CompatError for a family that nobody knows."""
        page = _integer(request, "pageNum", 1, MAX_PAGE)
        size = _integer(request, "pageSize", DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        skip = (page - 1) * size
        records = await self._reader.render_family(family, self.record, skip=skip, limit=size)
        if not records and family not in families.ASYNCHRONOUS:
            raise CompatError(NO_PATH, f"No tasks are made at /v1/{family[:200]}. Check the path.")
        return JSONResponse(envelope(records), headers=HEADERS)

    async def _hold(self, request: Request, render: Any, tasks: Sequence[TaskDetail], left: SecondsLeft) -> Response:
        """Answer at once if a task has ended or none is known; else hold until the first of them ends."""
        ids = [task.row["id"] for task in tasks if not _has_ended(task)]

        async def is_over() -> bool:
            rows = await self._reader.tasks(ids)
            return any(kling_status(row) in FINAL for row in rows) or len(rows) < len(set(ids))

        seconds = hold_seconds(request, self._hold_default) if len(ids) == len(tasks) else 0
        return await self._holder.answer(render, is_over, ids, seconds=seconds, seconds_left=left)

    async def _find(self, any_id: str, family: str | None = None) -> TaskDetail | None:
        """A task by our id, Kling's or the caller's, of `family` if named. Raises CompatError if several match."""
        details = await self._reader.details([any_id]) if is_id(any_id) else {}
        if not details and IDENTIFIER.fullmatch(any_id):
            details = await self._reader.details(await self._reader.find_by_other_id(any_id))
        found = [detail for detail in details.values() if family in (None, detail.row["family"])]
        if len(found) > 1:
            ids = ", ".join(detail.row["id"] for detail in found)
            raise CompatError(BAD_PARAMETER, f"Several tasks have the id {any_id}. Use one of {ids}.")
        return found[0] if found else None

    async def _require(self, task_id: str) -> TaskDetail:
        details = await self._reader.details([task_id])
        if task_id not in details:
            raise CompatError(BAD_PARAMETER, f"Task not found: {task_id}")
        return details[task_id]


def _has_ended(detail: TaskDetail) -> bool:
    return kling_status(detail.row) in FINAL


def _names(request: Request, key: str) -> list[str]:
    return [name for text in request.query_params.getlist(key) for name in text.split(",") if name]


def _integer(request: Request, name: str, default: int, maximum: int) -> int:
    value = request.query_params.get(name) or str(default)
    if not (value.isascii() and value.isdecimal() and len(value) < 9 and 1 <= int(value) <= maximum):
        raise CompatError(BAD_PARAMETER, f"{name} must be 1 to {maximum}.")
    return int(value)

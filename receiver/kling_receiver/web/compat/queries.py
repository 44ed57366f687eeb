"""Answer queries from our database: one task by any of its ids, a batch, the list of a family."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kling_callback.protocol import families
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
NOT_FOUND_HINT = "Check the id and the path. A task that another program created: kling-receiver tasks adopt."
SecondsLeft = Callable[[], float]
Details = Mapping[str, TaskDetail]
Render = Callable[[Details], dict[str, Any]]
"""Makes an answer of the tasks, by our id."""


class Queries:
    """Answers about tasks, in either spelling. `hold_default`: seconds for which queries are held."""

    def __init__(self, reader: Reader, payloads: Payloads, holder: Holder, *, hold_default: float) -> None:
        self._reader, self._payloads, self._holder, self._hold_default = reader, payloads, holder, hold_default

    def record(self, detail: TaskDetail, *, asked: str = "", new: bool | None = None) -> dict[str, Any]:
        """Kling's record of a task. `new`: the spelling, None: its own.

        Its id is the one that the create answered: Kling's, or ours. `asked`: a `task_id` that was asked for: if it is
        ours, the program knows the task by that.
        """
        record = self._payloads.kling(detail, new=new)
        if asked == detail.row["id"]:
            record["id" if "id" in record else "task_id"] = asked
        return record

    async def one(self, request: Request, family: str, any_id: str, seconds_left: SecondsLeft) -> Response:
        """Answer a query about one task of a family. Raises CompatError for an unknown id."""
        task = _only((await self._reader.find([any_id]))[any_id], any_id, family)
        if task is None:
            raise CompatError(BAD_PARAMETER, f"Task not found: {any_id[:256]}. {NOT_FOUND_HINT}")

        def render(details: Details) -> dict[str, Any]:
            return envelope(self.record(details[task.row["id"]]))  # as at Kling, also by an external_task_id

        return await self._hold(request, render, [task], seconds_left)

    async def batch(self, request: Request, seconds_left: SecondsLeft) -> Response:
        """Answer a query of up to MAX_BATCH tasks, in the new standard's spelling; unknown ones are left out."""
        by_kling_id = _names(request, "task_ids")
        asked = [*by_kling_id, *_names(request, "external_task_ids")]
        if not 1 <= len(asked) <= MAX_BATCH:
            raise CompatError(BAD_PARAMETER, f"Send 1 to {MAX_BATCH} ids in task_ids and external_task_ids.")
        found = await self._reader.find(list(dict.fromkeys(asked)))
        tasks = {any_id: task for any_id, each in found.items() if (task := _only(each, any_id))}

        def render(details: Details) -> dict[str, Any]:
            return envelope(
                [
                    self.record(details[task.row["id"]], asked=name if name in by_kling_id else "", new=True)
                    for name, task in tasks.items()
                ]
            )

        return await self._hold(request, render, list(tasks.values()), seconds_left)

    async def list_family(self, request: Request, family: str) -> Response:
        """Answer with a page of a family's tasks, newest first. Raises CompatError for a family that nobody knows."""
        page = _integer(request, "pageNum", 1, MAX_PAGE)
        size = _integer(request, "pageSize", DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        skip = (page - 1) * size
        if "\0" in family:  # no database compares it
            raise CompatError(NO_PATH, f"No tasks are made at /v1/{family[:200]}. Check the path.")
        records = await self._reader.render_family(family, self.record, skip=skip, limit=size)
        if not records and family not in families.ASYNCHRONOUS:
            raise CompatError(NO_PATH, f"No tasks are made at /v1/{family[:200]}. Check the path.")
        return JSONResponse(envelope(records), headers=HEADERS)

    async def _hold(self, request: Request, render: Render, tasks: Sequence[TaskDetail], left: SecondsLeft) -> Response:
        """Answer at once if a task has ended or none is known; else hold until the first of them ends."""
        seconds = 0.0 if any(map(_has_ended, tasks)) else hold_seconds(request, self._hold_default)
        ids = [task.row["id"] for task in tasks]

        async def is_over() -> bool:
            rows = await self._reader.tasks(ids)
            return len(rows) < len(set(ids)) or any(kling_status(row) in FINAL for row in rows)  # one was removed

        async def render_later() -> dict[str, Any]:
            return render({task.row["id"]: task for task in tasks} | await self._reader.details(ids))

        held = self._holder.hold(render_later, is_over, ids, seconds=seconds, seconds_left=left)
        return held or JSONResponse(render({task.row["id"]: task for task in tasks}), headers=HEADERS)


def _only(found: list[TaskDetail], any_id: str, family: str | None = None) -> TaskDetail | None:
    """The one task of these, of `family` if it is named; None if there is none. Raises CompatError for several."""
    found = [detail for detail in found if family in (None, detail.row["family"])]
    if len(found) > 1:
        ids = ", ".join(detail.row["id"] for detail in found)
        raise CompatError(BAD_PARAMETER, f"Several tasks have the id {any_id}. Use one of {ids}.")
    return found[0] if found else None


def _has_ended(detail: TaskDetail) -> bool:
    return kling_status(detail.row) in FINAL


def _names(request: Request, key: str) -> list[str]:
    return [name for text in request.query_params.getlist(key) for name in text.split(",") if name]


def _integer(request: Request, name: str, default: int, maximum: int) -> int:
    value = request.query_params.get(name) or str(default)
    if not (value.isascii() and value.isdecimal() and len(value) < 9 and 1 <= int(value) <= maximum):
        raise CompatError(BAD_PARAMETER, f"{name} must be 1 to {maximum}.")
    return int(value)

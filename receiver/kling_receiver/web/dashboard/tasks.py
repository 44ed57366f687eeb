"""The list of tasks, at `/`: filters in the address, pages by cursor, live on the first page."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from kling_receiver.states import STATUSES
from kling_receiver.store.reader import Reader, TaskDetail
from kling_receiver.store.task_list import Position, TaskFilter
from kling_receiver.web.api.paging import encode_cursor
from kling_receiver.web.api.tasks import TASK_PARAMETERS, parse_filter
from kling_receiver.web.dashboard.live import Fragment, LiveViews
from kling_receiver.web.dashboard.pages import NavLink, Pages, Visit, urls_from

MAX_THUMBNAILS = 4
"""Files of one task that its row shows; a number stands for the others."""
FILTERS = tuple(name for name in TASK_PARAMETERS if name not in ("limit", "cursor"))
"""The parameters of the API's list that the form has."""

URL = urls_from("/")


class TasksPage:
    """The page of all tasks."""

    def __init__(self, pages: Pages, live: LiveViews, *, reader: Reader) -> None:
        self._pages, self._live, self._reader = pages, live, reader
        pages.links.append(NavLink("Tasks", "", "t"))

    def routes(self) -> list[Route]:
        """The routes of this module."""
        page = self._pages.page
        return [
            Route("/", page("read", self._show, query=None), methods=["GET"]),
            Route("/dashboard/live/tasks", page("read", self._follow, query=None), methods=["GET"]),
        ]

    async def _show(self, visit: Visit) -> Response:
        task_filter = parse_filter(visit.request)
        wanted = {name: visit.request.query_params.get(name, "") for name in FILTERS}
        fragment, last = await self._render(visit, task_filter)
        is_first = task_filter.before is None
        query = {name: value for name, value in visit.request.query_params.items() if name != "cursor"}
        return self._pages.render(
            visit,
            "tasks.html",
            title="Tasks",
            fragment=fragment,
            filters=wanted,
            is_filtered=any(wanted.values()),
            statuses=STATUSES,
            live_url=visit.url("dashboard/live/tasks", **query, state=fragment.state) if is_first else "",
            first_url=None if is_first else visit.url("", **query),
            next_url=visit.url("", **query, cursor=encode_cursor(last)) if last else None,
        )

    async def _follow(self, visit: Visit) -> Response:
        task_filter = parse_filter(visit.request, more=("state",))

        async def render() -> Fragment:
            fragment, _ = await self._render(visit, task_filter)
            return fragment

        return self._live.respond(visit, ("tasks", visit.role, task_filter), render)

    async def _render(self, visit: Visit, task_filter: TaskFilter) -> tuple[Fragment, Position | None]:
        """The rows of a page, and where the next one begins."""
        render_row = self._pages.macro("task_row.html", "task_row")
        ids: list[str] = []

        def render(detail: TaskDetail) -> bytes:
            ids.append(detail.row["id"])
            return str(render_row(URL, detail, row_context(detail), visit.may("admin"))).strip().encode()

        page = await self._reader.render_page(task_filter, render)
        rows = {f"task-{task_id}": item.decode() for task_id, item in zip(ids, page.items, strict=True)}
        return Fragment(rows=rows), page.last


def row_context(detail: TaskDetail) -> Mapping[str, Any]:
    """What the row of a task shows besides its columns."""
    stored = [result for result in detail.results if result["status"] == "stored"]
    shown = [result for result in stored if result["kind"] in ("image", "video")]
    status = "queued" if detail.queue_position else detail.row["status"]
    return {
        "status": status,
        "files": shown[:MAX_THUMBNAILS],
        "more_files": len(shown[MAX_THUMBNAILS:]),
        "problems": sum(result["status"] == "failed" for result in detail.results),
    }

"""The list of tasks, at `/`: filters in the address, pages by cursor, live on the first page."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.routing import Route

from kling_callback.protocol import families
from kling_receiver.states import FINAL, STATUSES
from kling_receiver.store.reader import Reader, TaskDetail
from kling_receiver.store.task_list import TaskFilter
from kling_receiver.web.api.paging import encode_cursor
from kling_receiver.web.api.tasks import TASK_PARAMETERS, parse_filter
from kling_receiver.web.dashboard.display import status_of
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
        query = _query(visit)
        fragment, next_url = await self._render(visit, task_filter, query)
        is_first = task_filter.before is None
        return self._pages.render(
            visit,
            "tasks.html",
            title="Tasks",
            fragment=fragment,
            filters={name: query.get(name, "") for name in FILTERS},
            is_filtered=any(query.get(name) for name in FILTERS),
            statuses=STATUSES,
            families=[*families.ASYNCHRONOUS],
            live_url=visit.url("dashboard/live/tasks", **query, state=fragment.state) if is_first else "",
            is_first=is_first,
            next_url=next_url,
        )

    async def _follow(self, visit: Visit) -> Response:
        task_filter = parse_filter(visit.request, more=("state",))
        query = _query(visit)

        async def render() -> Fragment:
            fragment, _ = await self._render(visit, task_filter, query)
            return fragment

        return self._live.respond(visit, ("tasks", visit.role, task_filter), render)

    async def _render(
        self, visit: Visit, task_filter: TaskFilter, query: Mapping[str, str]
    ) -> tuple[Fragment, str | None]:
        """The rows and the pager of a page, and the address of the next one."""
        render_row = self._pages.macro("task_row.html", "task_row")
        ids: list[str] = []

        def render(detail: TaskDetail, since: int) -> bytes:
            ids.append(detail.row["id"])
            return str(render_row(URL, detail, row_context(detail, since), visit.may("admin"))).strip().encode()

        page = await self._reader.render_list(task_filter, render)
        rows = {f"task-{task_id}": item.decode() for task_id, item in zip(ids, page.items, strict=True)}
        first_url = URL("", **query) if task_filter.before else None
        next_url = URL("", **query, cursor=encode_cursor(page.last)) if page.last else None
        pager = self._pages.macro("macros.html", "pager")(first_url, next_url)
        return Fragment(parts={"pager": str(pager)}, rows=rows), next_url


def _query(visit: Visit) -> dict[str, str]:
    """The filters and the limit in a request's query, in one order: pages with the same filter share a view."""
    given = visit.request.query_params
    return {name: given[name] for name in (*FILTERS, "limit") if given.get(name)}


def row_context(detail: TaskDetail, since: int) -> Mapping[str, Any]:
    """What the row of a task shows besides its columns. `since`: unix ms at which it came to its status."""
    stored = [result for result in detail.results if result["status"] == "stored"]
    shown = [result for result in stored if result["kind"] in ("image", "video")]
    return {
        "status": status_of(detail),
        "since": since,
        "took": since - detail.row["created_at"] if detail.row["status"] in FINAL else None,
        "files": shown[:MAX_THUMBNAILS],
        "more_files": len(shown[MAX_THUMBNAILS:]),
        "problems": sum(result["status"] == "failed" for result in detail.results),
    }

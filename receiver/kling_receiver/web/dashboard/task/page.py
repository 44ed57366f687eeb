"""The page of one task, at `/dashboard/tasks/{id}`: files, timeline, parameters, callbacks, deliveries, actions."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from kling_callback.protocol.signing import Role
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import ResultRow
from kling_receiver.web.api.hook_payloads import delivery_payload
from kling_receiver.web.api.tasks import get_task_or_404
from kling_receiver.web.auth import includes
from kling_receiver.web.dashboard.display import pretty, prompt_of, status_of
from kling_receiver.web.dashboard.live import Fragment, LiveViews
from kling_receiver.web.dashboard.pages import HEADERS, Pages, Visit, urls_from
from kling_receiver.web.dashboard.task import words
from kling_receiver.web.dashboard.task.reading import MAX_BODY_BYTES, CallbackRow, TaskHistory, load_history, neighbours
from kling_receiver.web.dashboard.task.timeline import timeline_of
from kling_receiver.web.errors import ApiError

PATH = "/dashboard/tasks/{id}"
PARTS = ("head", "problem", "next", "timeline", "facts", "callbacks", "deliveries")
"""The macros of `task_parts.html`; each renders the element `task-NAME`."""
MAX_TITLE_CHARS = 300
MAX_VALUE_CHARS = 6_000
"""Characters of one parameter that are shown."""
MEDIA = ("image", "video", "audio")
GONE_HINT = "It may have been removed, or the id is that of another receiver. Search the list for Kling's id or a tag."


class TaskPage:
    """The page of one task. `clock`: unix seconds."""

    def __init__(
        self, pages: Pages, live: LiveViews, *, reader: Reader, clock: Callable[[], float] = time.time
    ) -> None:
        self._pages, self._live, self._reader, self._clock = pages, live, reader, clock

    def routes(self) -> list[Route]:
        """The routes of this module."""
        page = self._pages.page
        return [
            Route(PATH, page("read", self._show), methods=["GET"]),
            Route("/dashboard/live/tasks/{id}", page("read", self._follow, query=("state",)), methods=["GET"]),
        ]

    async def _show(self, visit: Visit) -> Response:
        any_id = visit.request.path_params["id"]
        detail = await self._find(any_id)
        task_id = detail.row["id"]
        if task_id != any_id:  # one task has one address
            return RedirectResponse(visit.url(f"dashboard/tasks/{task_id}"), 303, headers=HEADERS)
        fragment = await self._render(visit.role, task_id)
        newer, older = await self._reader.read(partial(neighbours, task=detail.row))
        return self._pages.render(
            visit,
            "task.html",
            title=prompt_of(detail.row["request"])[:60] or f"Task {task_id}",
            nav="",
            task=detail.row,
            fragment=fragment,
            live_url=visit.url(f"dashboard/live/tasks/{task_id}", state=fragment.state),
            newer_url=visit.url(f"dashboard/tasks/{newer}") if newer else None,
            older_url=visit.url(f"dashboard/tasks/{older}") if older else None,
            parameters=_parameters(detail.row["request"]),
            may_run_again=visit.may("client") and words.may_run_again(detail.row),
        )

    async def _find(self, any_id: str) -> Any:
        try:
            return await get_task_or_404(self._reader, any_id)
        except ApiError as error:
            if error.status != 404:
                raise
            raise ApiError(404, error.code, error.message, GONE_HINT) from None

    async def _follow(self, visit: Visit) -> Response:
        task_id = (await self._find(visit.request.path_params["id"])).row["id"]
        render = partial(self._render, visit.role, task_id)
        return self._live.respond(visit, ("task", visit.role, task_id), render, task_id=task_id)

    async def _render(self, role: Role, task_id: str) -> Fragment:
        """What the page shows live, to sessions of a role."""
        is_admin = role == "admin"
        history = await self._reader.read(partial(load_history, task_id=task_id, with_deliveries=is_admin))
        return self._to_fragment(role, task_id, history)

    def _to_fragment(self, role: Role, task_id: str, history: TaskHistory | None) -> Fragment:
        url = urls_from(PATH.replace("{id}", task_id))
        if history is None:
            gone = {f"task-{name}": f'<div id="task-{name}"></div>' for name in PARTS}
            parts = gone | {"task-head": self._macro("removed")(url)}
            return Fragment(parts=parts, rows={}, rows_id="results", rows_tag="div")
        context = self._context(role, history)
        parts = {f"task-{name}": self._macro(name)(url, history, context) for name in PARTS}
        rows = {
            f"result-{result['position']}": self._macro("result_card")(url, history, context, _result(history, result))
            for result in history.detail.results
        }
        return Fragment(parts=parts, rows=rows, rows_id="results", rows_tag="div")

    def _macro(self, name: str) -> Callable[..., str]:
        macro = self._pages.macro("task_parts.html", name)
        return lambda *values: str(macro(*values)).strip()

    def _context(self, role: Role, history: TaskHistory) -> Mapping[str, Any]:
        now = int(self._clock() * 1000)
        task, results = history.task, history.detail.results
        return {
            "may": partial(includes, role),
            "status": status_of(history.detail),
            "title": _shortened(prompt_of(task["request"]) or task["id"], MAX_TITLE_CHARS),
            "problem": words.problem_of(task),
            "result_problems": {result["position"]: words.problem_of_result(task, result, now) for result in results},
            "next": words.next_of(history),
            "may_run_again": words.may_run_again(task),
            "timeline": timeline_of(history, now),
            "done_at": next((each["created_at"] for each in history.events[::-1] if each["type"] == "task.done"), None),
            "origins": words.ORIGINS,
            "creates": words.CREATES,
            "callbacks": [_callback(row) for row in history.callbacks],
            "ignored": [event for event in history.events if event["type"] == "callback.ignored"],
            "deliveries": [delivery_payload(each) for each in history.deliveries],
        }


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length].rstrip()}…"


def _parameters(request: Any) -> list[tuple[str, str, bool]]:
    """The name and the text of each parameter, and whether the text is JSON."""
    if not isinstance(request, dict):
        return []
    return [
        (
            name,
            _shortened(value if isinstance(value, str) else pretty(value), MAX_VALUE_CHARS),
            not isinstance(value, str),
        )
        for name, value in request.items()
    ]


def _result(history: TaskHistory, result: ResultRow) -> Mapping[str, Any]:
    """What the card of a file shows besides its columns. `version`: the same for the same card."""
    kind = (result["content_type"] or "").partition("/")[0]
    same_kind = [each["position"] for each in history.detail.results if each["kind"] == result["kind"]]
    number = f" {same_kind.index(result['position']) + 1} of {len(same_kind)}" if len(same_kind) > 1 else ""
    extension = (result["path"] or "").rpartition(".")[2] or "bin"
    content = json.dumps([result, number, history.task["status"]], default=str)
    return {
        "row": result,
        "media": kind if kind in MEDIA else "",
        "name": f"{(result['kind'] or 'file').capitalize()}{number}",
        "file_name": f"{result['task_id']}-{result['position']}.{extension}",
        "link": result["source_url"] if result["source_url"].startswith(("https://", "http://")) else "",
        "version": hashlib.sha256(content.encode()).hexdigest()[:12],
    }


def _callback(row: CallbackRow) -> Mapping[str, Any]:
    """A stored callback as it is shown. `text`: its body, pretty printed if all of it is JSON."""
    data = row["data"] if isinstance(row["data"], dict) else {}
    body = bytes(row["body"]).decode(errors="replace")
    is_cut = row["kept"] > MAX_BODY_BYTES
    try:
        text = body if is_cut else pretty(json.loads(body))
    except (ValueError, RecursionError):
        text = body
    return {
        "id": row["id"],
        "at": row["created_at"],
        "status": data.get("status"),
        "is_signed": bool(data.get("signed")),
        "size": data.get("size", row["kept"]),
        "trouble": data.get("trouble"),
        "repeats": row["repeat_count"],
        "text": text,
        "cut_at": MAX_BODY_BYTES if is_cut else None,
    }

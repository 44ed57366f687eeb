"""The pages of hooks, for role admin: the list, one hook with its deliveries, and the forms to add and change one."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from starlette.responses import Response
from starlette.routing import Route
from typing_extensions import TypedDict

from kling_callback.protocol.values import sanitize
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import DEFAULT_SCHEDULE, EVENT_STATUSES, KLING_EVENTS, WEB_SCHEMES, HookConfig
from kling_receiver.hooks.delivery_list import STATES, DeliveryFilter, list_deliveries
from kling_receiver.hooks.examples import TEST_TYPE
from kling_receiver.hooks.sender import Sender
from kling_receiver.settings import ReceiverSettings
from kling_receiver.sinks import scheme_of
from kling_receiver.states import STATUSES
from kling_receiver.statistics.hooks import HookHealth, hook_health
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import HookRow
from kling_receiver.web.api.hook_payloads import DeliveryJson, HookJson, delivery_payload, hook_payloads
from kling_receiver.web.api.hooks import MANAGED_BY, get_hook_or_404, hook_not_found
from kling_receiver.web.api.paging import decode_cursor, encode_cursor
from kling_receiver.web.dashboard.live import Fragment, LiveViews
from kling_receiver.web.dashboard.pages import NavLink, Pages, Visit, urls_from
from kling_receiver.web.errors import ApiError

LIST = "dashboard/hooks"
DELIVERIES = 25
"""Deliveries on one page."""
QUERY = ("state", "cursor")
"""The query parameters of a hook's page: those of the API's list of deliveries."""

Key = tuple[int, str]


class HookView(TypedDict):
    """What is shown of a hook, besides its deliveries."""

    hook: HookJson
    health: HookHealth


class HooksPage:
    """The pages of hooks."""

    def __init__(
        self, settings: ReceiverSettings, pages: Pages, live: LiveViews, *, reader: Reader, sender: Sender
    ) -> None:
        self._settings, self._pages, self._live, self._reader = settings, pages, live, reader
        self._sender = sender
        pages.links.append(NavLink("Hooks", LIST, "h", role="admin"))

    def routes(self) -> list[Route]:
        """The routes of this module."""
        page = partial(self._pages.page, "admin")
        return [
            Route("/dashboard/hooks", page(self._list), methods=["GET"]),
            Route("/dashboard/live/hooks", page(self._follow_list, query=("state",)), methods=["GET"]),
            Route("/dashboard/add-hook", page(self._add), methods=["GET"]),
            Route("/dashboard/hooks/{name}", page(self._show, query=QUERY), methods=["GET"]),
            Route("/dashboard/hooks/{name}/edit", page(self._edit), methods=["GET"]),
            Route("/dashboard/live/hooks/{name}", page(self._follow, query=("state", "shown")), methods=["GET"]),
        ]

    async def _list(self, visit: Visit) -> Response:
        fragment = await self._render_list()
        return self._pages.render(
            visit,
            "hooks.html",
            title="Hooks",
            fragment=fragment,
            live_url=visit.url("dashboard/live/hooks", state=fragment.state),
            kept_in_file=bool(self._settings.hooks_file),
        )

    async def _follow_list(self, visit: Visit) -> Response:
        return self._live.respond(visit, ("hooks", visit.role), self._render_list, hooks=True)

    async def _render_list(self) -> Fragment:
        """One row for each hook; those of single tasks are on the pages of their tasks."""
        url, render_row = urls_from(f"/{LIST}"), self._pages.macro("hook_parts.html", "row")

        def read(connection: Any) -> dict[str, str]:
            views = self._views(connection, hook_records.hooks(connection))
            return {f"hook-{view['hook']['name']}": str(render_row(url, view)).strip() for view in views}

        return Fragment(rows=await self._reader.read(read))

    def _views(self, connection: Any, rows: list[HookRow]) -> list[HookView]:
        health = hook_health(connection, [row["name"] for row in rows])
        hooks = hook_payloads(connection, rows, self._sender.circuit_is_open)
        return [{"hook": hook, "health": health[hook["name"]]} for hook in hooks if hook["name"] in health]

    async def _show(self, visit: Visit) -> Response:
        name, state, before = _name(visit), _state(visit, "state"), _cursor(visit)
        row = await get_hook_or_404(self._reader, name)
        fragment, view, last = await self._render(name, state, before)
        if view is None:
            raise hook_not_found()
        path = f"{LIST}/{name}"
        is_first = before is None
        live_url = visit.url(f"dashboard/live/hooks/{name}", shown=state, state=fragment.state) if is_first else ""
        return self._pages.render(
            visit,
            "hook.html",
            title=name,
            nav=LIST,
            view=view,
            fragment=fragment,
            live_url=live_url,
            managed_by=MANAGED_BY.get(row["source"]),
            is_signed=scheme_of(row["address"]) in WEB_SCHEMES,
            default_timeout=row["timeout"],
            tests=[TEST_TYPE, *EVENT_STATUSES],
            kling_tests=[TEST_TYPE, *KLING_EVENTS],
            states=STATES,
            shown=state,
            first_url=None if is_first else visit.url(path, state=state),
            next_url=visit.url(path, state=state, cursor=encode_cursor(last)) if last else None,
        )

    async def _follow(self, visit: Visit) -> Response:
        name, state = _name(visit), _state(visit, "shown")
        await get_hook_or_404(self._reader, name)

        async def render() -> Fragment:
            fragment, _, _ = await self._render(name, state, None)
            return fragment

        return self._live.respond(visit, ("hook", visit.role, name, state), render, hooks=True)

    async def _render(
        self, name: str, state: str | None, before: Key | None
    ) -> tuple[Fragment, HookView | None, Key | None]:
        """What a hook's page shows live, and where its next page begins. A removed hook has no view."""
        wanted = DeliveryFilter(hook_name=name, state=state, before=before, limit=DELIVERIES)

        def read(connection: Any) -> tuple[HookView | None, list[DeliveryJson]]:
            row = hook_records.hook(connection, name)
            views = self._views(connection, [row]) if row else []
            if not views:
                return None, []
            return views[0], [delivery_payload(each) for each in list_deliveries(connection, wanted)]

        view, found = await self._reader.read(read)
        shown, url = found[:DELIVERIES], urls_from(f"/{LIST}/{name}")
        render_row = self._pages.macro("hook_parts.html", "delivery")
        parts = {
            part: str(self._pages.macro("hook_parts.html", macro)(url, view)).strip()
            for part, macro in (("hook-actions", "actions"), ("hook-state", "state"))
        }
        rows = {f"delivery-{each['event']}": str(render_row(url, each)).strip() for each in shown}
        last = (shown[-1]["event"], name) if len(found) > len(shown) else None
        return Fragment(parts=parts, rows=rows), view, last

    async def _add(self, visit: Visit) -> Response:
        if self._settings.hooks_file:
            message = "The hooks are kept in KLING_HOOKS_FILE."
            raise ApiError(409, "kept_in_file", message, "Change the file and restart the receiver.")
        values = {**dict.fromkeys(HookConfig.model_fields, ""), "format": "event", "retry_schedule": DEFAULT_SCHEDULE}
        return self._form(visit, "Add a hook", "POST /api/hooks", values)

    async def _edit(self, visit: Visit) -> Response:
        name = _name(visit)
        row = await get_hook_or_404(self._reader, name)
        if setting := MANAGED_BY.get(row["source"]):
            message = f"This hook is kept in {setting}."
            raise ApiError(409, "kept_elsewhere", message, "Change it there, and restart the receiver.")
        if row["task_id"]:
            message = "The hook of a single task cannot be changed."
            raise ApiError(409, "hook_of_task", message, "Pause or remove it.")
        is_open = self._sender.circuit_is_open
        [hook] = await self._reader.read(lambda connection: hook_payloads(connection, [row], is_open))
        return self._form(visit, f"Change {name}", f"PATCH /api/hooks/{name}", hook, name=name)

    def _form(
        self, visit: Visit, title: str, action: str, values: Mapping[str, Any], *, name: str | None = None
    ) -> Response:
        """The form of a hook. `name`: of the hook that is changed; None: a new one."""
        return self._pages.render(
            visit,
            "hook_form.html",
            title=title,
            nav=LIST,
            action=action,
            hook_name=name,
            values=values,
            limits=FORM_LIMITS,
            event_types=list(EVENT_STATUSES),
            statuses=STATUSES,
            back=visit.url(f"{LIST}/{name}" if name else LIST),
        )


def _name(visit: Visit) -> str:
    return sanitize(visit.request.path_params["name"])


def _state(visit: Visit, parameter: str) -> str | None:
    """The state of the deliveries that a page shows; None for all. Raises ApiError."""
    state = visit.request.query_params.get(parameter) or None
    if state and state not in STATES:
        message = f"`{parameter}` must be one of {', '.join(STATES)}."
        raise ApiError(422, "bad_filter", message, "Follow a link of the page.")
    return state


def _cursor(visit: Visit) -> Key | None:
    problems: list[str] = []
    before = decode_cursor(visit.request.query_params.get("cursor"), problems)
    if problems:
        raise ApiError(422, "bad_filter", " ".join(problems), "Go back to the first page of the list.")
    return before


def _limits() -> dict[str, dict[str, Any]]:
    """The checks of the form's fields that a browser can do, from the model that the API validates with."""
    names = {"minLength": "minlength", "maxLength": "maxlength", "minimum": "min", "maximum": "max"}
    limits = {}
    for field, schema in HookConfig.model_json_schema()["properties"].items():
        kinds = [schema, *schema.get("anyOf", ())]
        limits[field] = {html: kind[name] for kind in kinds for name, html in names.items() if name in kind}
        if pattern := schema.get("pattern"):
            limits[field]["pattern"] = pattern.strip("^$").replace("-]", r"\-]")  # as browsers want it
    return limits


FORM_LIMITS = _limits()

"""GET and POST /api/tasks, GET, PUT and DELETE /api/tasks/{id}: list, show, register, submit, cancel, remove tasks."""

import json
import time
from collections.abc import Callable, Collection
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import TypedDict

from kling_callback.protocol import ids
from kling_callback.protocol.ids import is_id
from kling_callback.protocol.signing import CallbackSigner
from kling_callback.protocol.values import IDENTIFIER, sanitize
from kling_receiver.events.payloads import Payloads, TaskJson
from kling_receiver.settings import ReceiverSettings
from kling_receiver.states import STATUSES
from kling_receiver.store.reader import Reader, TaskDetail
from kling_receiver.store.removed import describe_removed, removed_tasks
from kling_receiver.store.rows import RemovedRow
from kling_receiver.store.task_list import TaskFilter
from kling_receiver.store.writer import Writer
from kling_receiver.tasks import registration as task_registration
from kling_receiver.web.api.paging import decode_cursor, encode_cursor, parse_limit
from kling_receiver.web.api.registration import check_account, read_registration
from kling_receiver.web.auth import Guard, RouteHandler, route
from kling_receiver.web.body import LARGE_BYTES, BodyLimiter, Reservation, read_body
from kling_receiver.web.errors import ApiError
from kling_receiver.web.requests import parse_time, query_problems


class TaskPageJson(TypedDict):
    """A page of tasks, newest first. `next`: the cursor of the next page, null on the last one.

    A page may have fewer tasks than its limit, or none, although more follow: a search is done in steps.
    """

    tasks: list[TaskJson]
    next: str | None


class RegisteredJson(TypedDict):
    """A registered task."""

    task: TaskJson
    callback_url: str
    create: Annotated[bool, Field(description="whether this attempt may send the create")]


PARSERS = 4
"""Large registrations that are parsed at once."""


class TaskRoutes:
    """The routes that list, show, register, submit, cancel and remove tasks."""

    def __init__(
        self,
        settings: ReceiverSettings,
        guard: Guard,
        *,
        writer: Writer,
        reader: Reader,
        bodies: BodyLimiter,
        payloads: Payloads,
        submit: RouteHandler,
        delete: RouteHandler,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`submit`: the endpoint of `web/api/submission`; `delete`: that of `web/api/actions`, which authorizes."""
        self._submit, self._delete = submit, delete
        self._settings, self._guard, self._writer, self._reader = settings, guard, writer, reader
        self._bodies, self._payloads = bodies, payloads
        self._signer = CallbackSigner(settings.signing_secrets, clock=clock)
        self._hook_hosts = settings.client_hook_hosts
        self._parsing = CapacityLimiter(PARSERS)  # not the threads of the downloads, which a disk may block

    def routes(self) -> list[Route]:
        """The routes of this module."""
        require = self._guard.require
        return [
            route("/api/tasks", GET=require("read", self._list, query=None), POST=require("client", self._submit)),
            route(
                "/api/tasks/{id}",
                GET=require("read", self._show),
                PUT=require("client", self._register),
                DELETE=self._delete,
            ),
        ]

    async def _register(self, request: Request) -> Response:
        task_id = request.path_params["id"]
        if not is_id(task_id):
            raise ApiError(422, "bad_id", "The task id is not valid.", ids.DESCRIPTION)
        with Reservation(self._bodies) as reservation:
            body = await read_body(request, reservation)
            if body.problem or body.size > len(body.content):
                raise ApiError(413, "too_large", "The registration is too long.", "Remove image bytes from `request`.")
            if body.size > LARGE_BYTES:  # parsed beside the event loop
                registration = await to_thread.run_sync(
                    read_registration, body.content, self._hook_hosts, limiter=self._parsing
                )
            else:
                registration = read_registration(body.content, self._hook_hosts)
            check_account(registration, self._settings)
            result = await self._writer.run(
                lambda tx: task_registration.register(tx, task_id, registration), size=body.size
            )
        if result.conflict:
            raise ApiError(
                409, "conflict", result.conflict, "Use another external_task_id, or the same parameters and hook."
            )
        detail = await get_task_or_404(self._reader, task_id)
        content: RegisteredJson = {
            "task": self._payloads.task(detail),
            "callback_url": self._signer.url(self._settings.receiver_url, task_id, detail.row["family"]),
            "create": result.may_create,
        }
        return JSONResponse(content, 201 if result.created else 200)

    async def _show(self, request: Request) -> Response:
        detail = await get_task_or_404(self._reader, request.path_params["id"])
        page = f'<{self._payloads.page(detail.row["id"])}>; rel="alternate"; type="text/html"'
        return JSONResponse(self._payloads.task(detail), headers={"Link": page})

    async def _list(self, request: Request) -> Response:
        page = await self._reader.render_page(parse_filter(request), lambda detail: _json(self._payloads.task(detail)))
        cursor = _json(encode_cursor(page.last) if page.last else None)
        body = b'{"tasks":[%s],"next":%s}' % (b",".join(page.items), cursor)  # a TaskPageJson
        return Response(body, media_type="application/json")


async def get_task_or_404(reader: Reader, any_id: str) -> TaskDetail:
    """A task with its results and tags, by our id, by Kling's, or by the caller's `external_task_id` at Kling.

    In this order: no value from elsewhere may hide a task. Raises ApiError for an unknown id, and for one of several
    tasks.
    """
    details = await reader.details([any_id]) if is_id(any_id) else {}
    if any_id not in details and IDENTIFIER.fullmatch(any_id):
        found = await reader.find_by_other_id(any_id)
        if len(found) > 1:
            hint = "Use the id of one of them."
            raise ApiError(409, "ambiguous_id", f"Several tasks have this id: {', '.join(found)}.", hint)
        details = await reader.details(found)
    if details:
        return next(iter(details.values()))
    if removed := await reader.read(lambda connection: removed_tasks(connection, [any_id] if is_id(any_id) else [])):
        raise task_not_found(removed[any_id])
    raise task_not_found()


def task_not_found(removed: RemovedRow | None = None) -> ApiError:
    """The error for an id without a task. `removed`: its task was removed."""
    message, hint = "There is no such task.", "Check the id with: kling-receiver tasks list"
    if removed:
        message = describe_removed(removed)
        if count := removed["callback_count"]:
            message += f" {count} {'callback' if count == 1 else 'callbacks'} of it came later and were not stored."
    return ApiError(404, "unknown_task", message, hint)


TASK_PARAMETERS = ("status", "family", "model", "tag", "task_id", "text", "since", "until", "limit", "cursor")
"""The query parameters of a list of tasks; `task_id` is Kling's id, `text` a part of the prompt."""
MAX_TEXT_CHARS = 200
"""Characters of a text that is searched for."""
MAX_PROBLEM_CHARS = 120
"""Characters of what is said about a time."""


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def parse_filter(request: Request, *, more: Collection[str] = ()) -> TaskFilter:
    """The filter of a list. Raises ApiError naming every problem. `more`: parameters that the route has besides."""
    query, problems = request.query_params, query_problems(request, (*TASK_PARAMETERS, *more))
    status = query.get("status")
    if status and status not in STATUSES:
        problems.append(f"`status` must be one of {', '.join(STATUSES)}.")
    limit, before = parse_limit(query.get("limit", "50"), problems), decode_cursor(query.get("cursor"), problems)
    since, until = (_time(name, query.get(name), problems) for name in ("since", "until"))
    text = _text(query.get("text"))
    if text and len(text) > MAX_TEXT_CHARS:
        problems.append(f"`text` must have at most {MAX_TEXT_CHARS} characters.")
    if problems:
        raise ApiError(422, "bad_filter", " ".join(problems), "Fix the query and send it again.")
    family, model, tag, kling_id = (_text(query.get(name)) for name in ("family", "model", "tag", "task_id"))
    return TaskFilter(
        status=status,
        family=family,
        model=model,
        tag=tag,
        kling_id=kling_id,
        text=text,
        since=since,
        until=until,
        before=before,
        limit=limit,
    )


def _time(name: str, value: str | None, problems: list[str]) -> int | None:
    """A time in unix ms; None without one. An invalid one is added to `problems`."""
    if not value:
        return None
    try:
        return int(parse_time(value).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        problems.append(f"`{name}`: {sanitize(str(error), MAX_PROBLEM_CHARS)}")
        return None


def _text(value: str | None) -> str | None:
    """A filter's text, made valid for the database. Characters that no row can contain match none."""
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode() if value else None

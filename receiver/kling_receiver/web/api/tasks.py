"""GET /api/tasks, GET and PUT /api/tasks/{id}: list, show and register tasks."""

import json
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kling_callback.protocol.ids import is_id
from kling_callback.protocol.signing import CallbackSigner, Role
from kling_receiver.events.payloads import Views
from kling_receiver.settings import ReceiverSettings
from kling_receiver.states import STATUSES
from kling_receiver.store.reader import Filter, Full, Reader, in_thread
from kling_receiver.store.writer import Writer
from kling_receiver.tasks import registration as task_registration
from kling_receiver.web.api.paging import cursor_of, limit_of, place_of
from kling_receiver.web.api.registration import check_account, check_hook, read_registration, registration
from kling_receiver.web.auth import Endpoint, for_role
from kling_receiver.web.body import LARGE, Bodies, Share, read_body
from kling_receiver.web.errors import ApiError


class TaskRoutes:
    """The routes that list, show and register tasks."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        writer: Writer,
        reader: Reader,
        bodies: Bodies,
        views: Views,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._writer, self._reader = settings, writer, reader
        self._bodies, self._views = bodies, views
        self._signer = CallbackSigner(settings.signing_secrets, clock=clock)

    def routes(self) -> list[Route]:
        """Every route."""
        return [
            Route("/api/tasks", self._for("read", self._list), methods=["GET"]),
            Route("/api/tasks/{id}", self._task, methods=["GET", "PUT"]),
        ]

    def _for(self, role: Role, endpoint: Endpoint) -> Endpoint:
        return for_role(self._settings.signing_secrets, role, endpoint)

    async def _task(self, request: Request) -> Response:
        register, show = self._for("client", self._register), self._for("read", self._show)
        return await (register if request.method == "PUT" else show)(request)

    async def _register(self, request: Request) -> Response:
        task = request.path_params["id"]
        if not is_id(task):
            hint = "Use 1 to 128 letters, digits and . _ - : @ =, beginning with a letter or digit."
            raise ApiError(422, "bad_id", "This cannot be a task's id.", hint)
        with Share(self._bodies) as share:
            body = await read_body(request, share)
            if body.trouble or body.size > len(body.kept):
                raise ApiError(
                    413, "too_large", "The registration is too long.", "Leave image bytes out of `request`."
                )
            large = body.size > LARGE  # looked through beside the event loop
            given = await in_thread(read_registration, body.kept) if large else read_registration(body.kept)
            check_account(given, self._settings)
            check_hook(given, self._settings)
            known = registration(task, given)
            done = await self._writer.run(lambda tx: task_registration.register(tx, known), size=body.size)
        if done.conflict:
            raise ApiError(409, "conflict", done.conflict, "Use another external_task_id.")
        full = await known_task(self._reader, task)
        answer = {
            "task": self._views.task(full),
            "callback_url": self._signer.url(self._settings.receiver_url, task, full.row["family"]),
            "create": done.create,
        }
        return JSONResponse(answer, 201 if done.new else 200)

    async def _show(self, request: Request) -> Response:
        return JSONResponse(self._views.task(await known_task(self._reader, request.path_params["id"])))

    async def _list(self, request: Request) -> Response:
        page = await self._reader.page(_filter(request), lambda full: _json(self._views.task(full)))
        cursor = _json(cursor_of(page.last) if page.last else None)
        body = b'{"tasks":[%s],"next":%s}' % (b",".join(page.shown), cursor)
        return Response(body, media_type="application/json")


async def known_task(reader: Reader, task: str) -> Full:
    """A task with all that is shown of it. Raises ApiError when there is none."""
    found = await reader.full([task]) if is_id(task) else {}
    if task not in found:
        raise ApiError(404, "unknown_task", "There is no such task.", "Look at GET /api/tasks.")
    return found[task]


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _filter(request: Request) -> Filter:
    """The filters of a list. Raises ApiError naming every problem."""
    asked, problems = request.query_params, []
    status, limit, cursor = asked.get("status"), asked.get("limit", "50"), asked.get("cursor")
    if status and status not in STATUSES:
        problems.append(f"`status` is one of {', '.join(STATUSES)}.")
    most, before = limit_of(limit, problems), place_of(cursor, problems)
    if problems:
        raise ApiError(422, "bad_filter", " ".join(problems), "Mend the address and send it again.")
    family, tag = (_text(asked.get(name)) for name in ("family", "tag"))
    return Filter(status=status, family=family, tag=tag, before=before, limit=most)


def _text(value: str | None) -> str | None:
    """A filter's text; what no row can hold finds none."""
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode() if value else None

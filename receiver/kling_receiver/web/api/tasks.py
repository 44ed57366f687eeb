"""GET /api/tasks, GET and PUT /api/tasks/{id}: list, show and register tasks."""

import json
import time
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kling_callback.protocol.ids import is_id
from kling_callback.protocol.signing import CallbackSigner, Role
from kling_receiver.events.payloads import Payloads
from kling_receiver.settings import ReceiverSettings
from kling_receiver.states import STATUSES
from kling_receiver.store.reader import Reader, TaskDetail, TaskFilter
from kling_receiver.store.writer import Writer
from kling_receiver.tasks import registration as task_registration
from kling_receiver.web.api.paging import decode_cursor, encode_cursor, parse_limit
from kling_receiver.web.api.registration import check_account, check_hook, read_registration
from kling_receiver.web.auth import Endpoint, require_role
from kling_receiver.web.body import LARGE_BYTES, BodyLimiter, Reservation, read_body
from kling_receiver.web.errors import ApiError


class TaskRoutes:
    """The routes that list, show and register tasks."""

    def __init__(
        self,
        settings: ReceiverSettings,
        *,
        writer: Writer,
        reader: Reader,
        bodies: BodyLimiter,
        payloads: Payloads,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._writer, self._reader = settings, writer, reader
        self._bodies, self._payloads = bodies, payloads
        self._signer = CallbackSigner(settings.signing_secrets, clock=clock)

    def routes(self) -> list[Route]:
        """Every route."""
        return [
            Route("/api/tasks", self._require("read", self._list), methods=["GET"]),
            Route("/api/tasks/{id}", self._task, methods=["GET", "PUT"]),
        ]

    def _require(self, role: Role, endpoint: Endpoint) -> Endpoint:
        return require_role(self._settings.signing_secrets, role, endpoint)

    async def _task(self, request: Request) -> Response:
        register, show = self._require("client", self._register), self._require("read", self._show)
        return await (register if request.method == "PUT" else show)(request)

    async def _register(self, request: Request) -> Response:
        task = request.path_params["id"]
        if not is_id(task):
            hint = "Use 1 to 128 letters, digits and . _ - : @ =, beginning with a letter or digit."
            raise ApiError(422, "bad_id", "This cannot be a task's id.", hint)
        with Reservation(self._bodies) as share:
            body = await read_body(request, share)
            if body.problem or body.size > len(body.content):
                raise ApiError(413, "too_large", "The registration is too long.", "Leave image bytes out of `request`.")
            large = body.size > LARGE_BYTES  # looked through beside the event loop
            if large:
                registration = await run_in_threadpool(read_registration, body.content)
            else:
                registration = read_registration(body.content)
            check_account(registration, self._settings)
            check_hook(registration, self._settings)
            done = await self._writer.run(lambda tx: task_registration.register(tx, task, registration), size=body.size)
        if done.conflict:
            raise ApiError(409, "conflict", done.conflict, "Use another external_task_id.")
        full = await get_task_or_404(self._reader, task)
        answer = {
            "task": self._payloads.task(full),
            "callback_url": self._signer.url(self._settings.receiver_url, task, full.row["family"]),
            "create": done.may_create,
        }
        return JSONResponse(answer, 201 if done.created else 200)

    async def _show(self, request: Request) -> Response:
        return JSONResponse(self._payloads.task(await get_task_or_404(self._reader, request.path_params["id"])))

    async def _list(self, request: Request) -> Response:
        page = await self._reader.render_page(_filter(request), lambda full: _json(self._payloads.task(full)))
        cursor = _json(encode_cursor(page.last) if page.last else None)
        body = b'{"tasks":[%s],"next":%s}' % (b",".join(page.items), cursor)
        return Response(body, media_type="application/json")


async def get_task_or_404(reader: Reader, task_id: str) -> TaskDetail:
    """A task with all that is shown of it. Raises ApiError when there is none."""
    found = await reader.details([task_id]) if is_id(task_id) else {}
    if task_id not in found:
        raise ApiError(404, "unknown_task", "There is no such task.", "Look at GET /api/tasks.")
    return found[task_id]


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _filter(request: Request) -> TaskFilter:
    """The filters of a list. Raises ApiError naming every problem."""
    asked, problems = request.query_params, []
    status, limit, cursor = asked.get("status"), asked.get("limit", "50"), asked.get("cursor")
    if status and status not in STATUSES:
        problems.append(f"`status` is one of {', '.join(STATUSES)}.")
    most, before = parse_limit(limit, problems), decode_cursor(cursor, problems)
    if problems:
        raise ApiError(422, "bad_filter", " ".join(problems), "Mend the address and send it again.")
    family, tag = (_text(asked.get(name)) for name in ("family", "tag"))
    return TaskFilter(status=status, family=family, tag=tag, before=before, limit=most)


def _text(value: str | None) -> str | None:
    """A filter's text; what no row can hold finds none."""
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode() if value else None

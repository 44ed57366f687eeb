"""The page `/dashboard/create`, the checks of its form while it is filled in, and what it can take from tasks."""

import secrets
from collections import defaultdict
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

from anyio import CapacityLimiter, to_thread
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kling_callback.jobs.catalog import JOBS
from kling_callback.jobs.images import MAX_BYTES, MAX_BYTES_NEW, check_size, encode_image
from kling_callback.jobs.inputs import InputFile, reachable_url
from kling_receiver.events.payloads import Payloads
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.reader import Reader, TaskDetail
from kling_receiver.store.task_list import TaskFilter
from kling_receiver.tasks.submission import why_full
from kling_receiver.web.api.submission import FULL_HINT, NO_KEY_HINT
from kling_receiver.web.api.tasks import get_task_or_404
from kling_receiver.web.body import BodyLimiter, Reservation, read_body
from kling_receiver.web.dashboard.create.fields import STAND_IN
from kling_receiver.web.dashboard.create.form import (
    OTHER_JOB,
    PREFIX,
    Form,
    check,
    default_model,
    idempotency_key,
    job_named,
    models_of,
)
from kling_receiver.web.dashboard.create.stored import form_of_family, form_of_request
from kling_receiver.web.dashboard.pages import HEADERS, NavLink, Pages, Visit, urls_from
from kling_receiver.web.errors import ApiError

URL = urls_from("/dashboard/create")
"""The parts of the form are made for its page."""
MAX_FORM_BYTES = 1_000_000
"""Bytes of a form, without its images."""
MAX_FIELDS = 500
MAX_NONCE_CHARS = 64
MAX_CHECKS = 2
"""Forms and images that are checked at once, beside the event loop."""
MAX_IMAGES = 4
"""Images that are received at once, each of at most 50 MB."""
IMAGE_SECONDS = 120
"""Seconds in which a whole image must arrive."""
MAX_SEARCHED = 100
"""The newest finished tasks, whose files can be chosen."""
MAX_CHOSEN_FROM = 60
"""Files to choose from."""


class CreatePage:
    """The page that creates tasks."""

    def __init__(
        self, settings: ReceiverSettings, pages: Pages, *, reader: Reader, payloads: Payloads, bodies: BodyLimiter
    ) -> None:
        self._settings, self._pages = settings, pages
        self._reader, self._payloads, self._bodies = reader, payloads, bodies
        self._checking, self._images = CapacityLimiter(MAX_CHECKS), BodyLimiter(MAX_IMAGES)
        pages.links.append(NavLink("Create", "dashboard/create", "c", role="client"))

    def routes(self) -> list[Route]:
        """The routes of this module."""
        page = self._pages.page
        return [
            Route("/dashboard/create", page("client", self._show, query=("from", "family", "job")), methods=["GET"]),
            Route("/dashboard/create/form", page("client", self._change), methods=["POST"]),
            Route("/dashboard/create/check", page("client", self._check), methods=["POST"]),
            Route("/dashboard/create/image", page("client", self._check_image, query=("max",)), methods=["POST"]),
            Route("/dashboard/create/files", page("client", self._list_files, query=("kind",)), methods=["GET"]),
        ]

    async def _show(self, visit: Visit) -> Response:
        form = await self._first_form(visit)
        problem = await self._why_not()
        checked = await to_thread.run_sync(
            lambda: check(form, self._settings, everything=False), limiter=self._checking
        )
        return self._pages.render(
            visit,
            "create.html",
            title="Create",
            problem=problem,
            nonce=secrets.token_urlsafe(16),
            **self._context(form, checked),
        )

    async def _first_form(self, visit: Visit) -> Form:
        query = visit.request.query_params
        if task_id := query.get("from", ""):
            detail = await get_task_or_404(self._reader, task_id)
            return form_of_request(detail.row["family"], detail.row["request"], detail.tags)
        if family := query.get("family", ""):
            return form_of_family(family)
        if query.get("job") == OTHER_JOB:
            return Form(None)
        job = job_named(query.get("job", "")) or JOBS[0]
        return Form(job, default_model(job))

    async def _why_not(self) -> ApiError | None:
        """Why nothing can be submitted at the moment, before anything is typed."""
        if not self._settings.has_key:
            return ApiError(409, "no_key", "This receiver has no key for Kling, so it sends no creates.", NO_KEY_HINT)
        if full := await self._reader.read(why_full):
            return ApiError(429, "queue_full", full, FULL_HINT)
        return None

    async def _change(self, visit: Visit) -> Response:
        """The fields of another job or model."""
        posted = await self._read(visit)
        form = read_form(posted)
        if (shown := posted.get("shown", [""])[0]) != (form.job.name if form.job else OTHER_JOB):
            form = replace(form, job=job_named(shown)).for_job(form.job)
        everything = bool(posted.get("tried", [""])[0])
        checked = await to_thread.run_sync(
            lambda: check(form, self._settings, everything=everything), limiter=self._checking
        )
        return self._fragment("create_form.html", **self._context(form, checked), swapped=True)

    async def _check(self, visit: Visit) -> Response:
        """What is wrong with the form, and its price; for a form without problems also the request to send."""
        posted = await self._read(visit)
        form = read_form(posted)
        everything = bool(posted.get("tried", [""])[0])
        checked = await to_thread.run_sync(
            lambda: check(form, self._settings, everything=everything), limiter=self._checking
        )
        ready = None
        if checked.request is not None:
            nonce = posted.get("nonce", [""])[0][:MAX_NONCE_CHARS]
            ready = {"key": idempotency_key(nonce, checked.request), "request": checked.request}
        return self._fragment("create_checked.html", names=form.names(), checked=checked, ready=ready)

    def _context(self, form: Form, checked: Any) -> dict[str, Any]:
        fields = form.fields()
        return {
            "form": form,
            "checked": checked,
            "jobs": JOBS,
            "models": models_of(form.job) if form.job else [],
            "main_fields": [field for field in fields if field.is_main],
            "more_fields": [field for field in fields if not field.is_main],
            "prefix": PREFIX,
            "other_job": OTHER_JOB,
        }

    def _fragment(self, template: str, **context: Any) -> Response:
        html = self._pages.fragment(template, url=URL, **context)
        return Response(html, headers=HEADERS, media_type="text/html")

    async def _read(self, visit: Visit) -> dict[str, list[str]]:
        """The fields of a posted form. Raises ApiError."""
        self._pages.sessions.check_origin(visit.request)
        with Reservation(self._bodies) as reservation:
            body = await read_body(visit.request, reservation, max_kept=MAX_FORM_BYTES, max_dropped=0)
        if body.problem or body.size > MAX_FORM_BYTES:
            hint = "Choose images as files or by URL, and shorten what is pasted as text."
            raise ApiError(413, "too_large", f"The form has more than {MAX_FORM_BYTES:,} bytes.", hint)
        try:
            pairs = parse_qsl(body.content.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
        except ValueError:
            raise ApiError(422, "bad_form", "The form cannot be read.", "Reload the page.") from None
        fields = defaultdict[str, list[str]](list)
        for name, value in pairs:
            fields[name].append(value.replace("\r\n", "\n"))
        return fields

    async def _check_image(self, visit: Visit) -> Response:
        """Whether Kling would accept an image, and what stands for it in the form. Nothing is stored."""
        self._pages.sessions.check_origin(visit.request)
        limit = MAX_BYTES_NEW if visit.request.query_params.get("max") == str(MAX_BYTES_NEW) else MAX_BYTES
        with Reservation(self._images) as reservation:
            body = await read_body(
                visit.request, reservation, max_kept=limit, max_dropped=MAX_BYTES_NEW, seconds=IMAGE_SECONDS
            )
            try:
                check_size(body.size, limit)
                if body.problem:
                    raise ValueError("was cut off on the way. Choose it again.")
                image = InputFile("image", body.content)
                await to_thread.run_sync(encode_image, image, limit, limiter=self._checking)
            except ValueError as error:
                return JSONResponse({"problem": str(error)}, headers=HEADERS)
        return JSONResponse({"value": STAND_IN + body.sha256}, headers=HEADERS)

    async def _list_files(self, visit: Visit) -> Response:
        """Files of the newest tasks, to choose from."""
        kind = "video" if visit.request.query_params.get("kind") == "video" else "image"
        details: list[TaskDetail] = []

        def collect(detail: TaskDetail) -> bytes:
            details.append(detail)
            return b""

        await self._reader.render_page(TaskFilter(status="succeed", limit=MAX_SEARCHED), collect)
        found = []
        for detail in details:
            for row, result in zip(detail.results, self._payloads.task(detail)["results"], strict=True):
                if result["kind"] == kind and result["status"] == "stored":
                    path = f"api/tasks/{row['task_id']}/results/{row['position']}"
                    found.append({"task": detail.row, "row": row, "path": path, "url": reachable_url(result)})
        return self._fragment("create_files.html", kind=kind, files=found[:MAX_CHOSEN_FROM])


def read_form(posted: dict[str, list[str]]) -> Form:
    """The form in posted fields."""

    def text(name: str) -> str:
        return posted.get(name, [""])[0]

    job = None if text("job") == OTHER_JOB else job_named(text("job")) or JOBS[0]
    model = text("model_name")
    return Form(
        job,
        (text("other_model") if model == "other" else model).strip(),
        {name.removeprefix(PREFIX): tuple(values) for name, values in posted.items() if name.startswith(PREFIX)},
        family=text("family"),
        body=text("body"),
        tags=text("tags"),
        external_task_id=text("external_task_id"),
        more=text("more"),
        is_other_model=model == "other",
    )

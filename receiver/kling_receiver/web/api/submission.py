"""POST /api/tasks: submit a task, whose create the receiver sends. DELETE /api/tasks/{id}: take it out of the queue."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

from anyio import CapacityLimiter, to_thread
from pydantic import Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kling_callback.errors import ParameterError
from kling_callback.jobs.body import chosen_callback, without_callback
from kling_callback.protocol import ids
from kling_callback.protocol.families import is_new_standard
from kling_callback.protocol.values import MAX_PRIORITY, is_too_complex
from kling_receiver.events.payloads import Payloads
from kling_receiver.hooks.config import WHOLE, EventTypes, Label
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.errors import DBAPIError, Unavailable
from kling_receiver.store.reader import Reader, TaskDetail
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.transaction import TASK_DEFAULTS
from kling_receiver.store.writer import Writer
from kling_receiver.tasks import submission as submissions
from kling_receiver.tasks.registration import MAX_REPORTED_TAGS, Registration
from kling_receiver.tasks.submission import MAX_KEY_CHARS, Submission
from kling_receiver.validation import describe_errors
from kling_receiver.web.api.actions import JOB_SCHEMA
from kling_receiver.web.api.committer import Committer, Submit
from kling_receiver.web.api.tasks import get_task_or_404, task_not_found
from kling_receiver.web.body import LARGE_BYTES, BodyLimiter, Reservation, read_body
from kling_receiver.web.errors import ApiError
from kling_receiver.web.requests import RequestModel

MAX_BYTES = 16_000_000
"""Bytes of a submission: a legacy image of 10 MB in base64, and what belongs to it."""
MAX_BYTES_NEW = 72_000_000
"""Bytes of a submission of the new standard, whose images may have 50 MB."""
MAX_LARGE = 4
"""Large submissions that are read and checked at once."""
OWN_ID = {"pattern": f"^({ids.PATTERN.pattern})?$"}
"""An id as JSON Schema; an empty one is none."""
READ_SECONDS = 120
"""Seconds in which a whole submission must arrive."""
FIX = "Fix the request and send it again. Nothing was sent to Kling."
FULL_HINT = "Wait until some are sent, or cancel some: DELETE /api/tasks/{id}."
NO_KEY_HINT = "Set KLING_API_KEY (or KLING_ACCESS_KEY and KLING_SECRET_KEY) for the receiver, or create it as a client."


ENDED_HINT = "There is nothing to cancel. An administrator can remove it: kling-receiver tasks remove ID"


ReadSubmission = Callable[[bytes, str, ReceiverSettings], Submission]
"""Parses and checks a request's body, with its Idempotency-Key. Raises ApiError."""


class SubmissionBody(RequestModel):
    """A task to create at Kling."""

    family: Annotated[str, Field(json_schema_extra=JOB_SCHEMA)]
    body: dict[str, Any] = Field(
        description="the create's parameters, as Kling documents them; images as base64 or URL. A `callback_url` "
        "becomes the task's hook, with `hook_format: kling`"
    )
    tags: list[Label] = Field(default_factory=list, max_length=MAX_REPORTED_TAGS)
    hook: str = Field("", max_length=2000, description="a web address to which the events of this task are sent")
    hook_events: EventTypes = Field(
        default_factory=list, description="with `hook`: only events of these types; empty means any"
    )
    hook_format: Literal["event", "kling"] = Field("event", description="with `hook`: what is sent to it")
    external_task_id: Annotated[str, Field(json_schema_extra={"pattern": f"^({ids.PATTERN.pattern})?$"})] | None = (
        Field(None, description="the task's id; a repeat with the same id and parameters is the same task")
    )
    priority: Annotated[
        int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="the highest is sent first"), WHOLE
    ] = 0


class SubmissionRoutes:
    """The endpoints that submit and cancel tasks."""

    def __init__(
        self, settings: ReceiverSettings, *, writer: Writer, reader: Reader, payloads: Payloads, timeout: float = 30
    ) -> None:
        """`timeout`: seconds for which a large submission waits while others are read."""
        self._settings, self._writer, self._reader, self._payloads = settings, writer, reader, payloads
        self._bodies = BodyLimiter(MAX_LARGE, timeout)
        self._parsing = CapacityLimiter(MAX_LARGE)
        self._committer = Committer(writer)

    async def submit(self, request: Request) -> Response:
        """Register a task, and answer at once; a job sends its create."""
        submission, is_new = await self.register(request, read_submission)
        try:
            detail = await get_task_or_404(self._reader, submission.task_id)
        except (Unavailable, DBAPIError):
            if not is_new:
                raise
            detail = _as_registered(submission)  # an error would make the caller submit it again, and pay twice
        return JSONResponse(self._payloads.task(detail), 201 if is_new else 200)

    async def register(
        self,
        request: Request,
        read: ReadSubmission,
        submit: Submit = submissions.submit,
        *,
        may_withdraw: bool = True,
    ) -> tuple[Submission, bool]:
        """Read a request's submission and register its task, durably. Returns also whether it is new.

        `read`: parses and checks a body; called beside the event loop for a large one. Raises ApiError, and
        Unavailable: then it is not registered, or if it may not be withdrawn, Undecided.
        """
        if not self._settings.has_key:
            raise ApiError(409, "no_key", "This receiver has no key for Kling, so it sends no creates.", NO_KEY_HINT)
        key = request.headers.get("Idempotency-Key", "").strip()
        if len(key) > MAX_KEY_CHARS:
            message = f"The Idempotency-Key has more than {MAX_KEY_CHARS} characters."
            raise ApiError(422, "bad_submission", message, FIX)
        with Reservation(self._bodies) as reservation:
            content = await self.read(request, reservation)
            if len(content) > LARGE_BYTES:  # parsed beside the event loop
                submission = await to_thread.run_sync(read, content, key, self._settings, limiter=self._parsing)
            else:
                submission = read(content, key, self._settings)
            result = await self._committer.commit(submission, submit, may_withdraw=may_withdraw)
        if result.conflict:
            hint = "Use another external_task_id or Idempotency-Key, or the same parameters and hook."
            raise ApiError(409, "conflict", result.conflict, hint)
        if result.full:
            hint = f"{FULL_HINT} Nothing was sent to Kling."
            raise ApiError(429, "queue_full", result.full, hint, Retry_After="30")
        return replace(submission, task_id=result.task_id or submission.task_id), result.created

    async def cancel(self, request: Request) -> Response:
        """End a task that waits in the queue."""
        detail = await get_task_or_404(self._reader, request.path_params["id"])
        result = await self._writer.run(lambda tx: submissions.cancel(tx, detail.row["id"]))
        if result == "removed":
            raise task_not_found()
        if result == "sent":
            message = f"Task {detail.row['id']} was sent to Kling, and Kling has no cancel."
            raise ApiError(409, "already_sent", message, "Wait until it ends.")
        if result == "ended":
            raise ApiError(409, "already_ended", f"Task {detail.row['id']} has ended.", ENDED_HINT)
        return JSONResponse(self._payloads.task(await get_task_or_404(self._reader, detail.row["id"])))

    async def read(self, request: Request, reservation: Reservation) -> bytes:
        """The body of a request. Raises ApiError for one that is too long or was cut off."""
        body = await read_body(
            request, reservation, max_kept=MAX_BYTES_NEW, max_dropped=MAX_BYTES_NEW, seconds=READ_SECONDS
        )
        if body.size > len(body.content):
            raise too_large(MAX_BYTES_NEW)
        if body.problem:
            raise ApiError(422, "bad_submission", "The request was cut off.", "Send it again.")
        return body.content


def _as_registered(submission: Submission) -> TaskDetail:
    """A new task that cannot be read at the moment."""
    registration, now = submission.registration, int(time.time() * 1000)
    row = {
        **TASK_DEFAULTS,
        "id": submission.task_id,
        "family": registration.family,
        "model": registration.model,
        "request": registration.request,
        "created_at": now,
        "updated_at": now,
    }
    return TaskDetail(cast(TaskRow, row), [], sorted(set(registration.tags)))


def too_large(max_bytes: int) -> ApiError:
    """The error for a submission of more bytes."""
    message = f"The submission has more than {max_bytes:,} bytes."
    return ApiError(413, "too_large", message, "Send images as URLs, or smaller ones. Nothing was sent to Kling.")


def read_submission(content: bytes, idempotency_key: str, settings: ReceiverSettings) -> Submission:
    """Parse and check a submission. Blocks for large ones. Raises ApiError naming every problem."""
    if is_too_complex(content):
        raise ApiError(422, "bad_submission", "The submission has too many parts.", FIX)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise ApiError(422, "bad_json", "The body is not valid JSON.", "Send a JSON object.") from None
    try:
        parsed = SubmissionBody.model_validate(document)
    except ValidationError as error:
        raise ApiError(422, "bad_submission", " ".join(describe_errors(error)), FIX) from None
    check_size(parsed.family, content)
    return check_submission(parsed, idempotency_key, settings)


def check_size(family: str, content: bytes) -> None:
    """Raise ApiError for a request that is longer than its family's standard allows."""
    if len(content) > MAX_BYTES and not is_new_standard(family):
        raise too_large(MAX_BYTES)


def check_submission(
    parsed: SubmissionBody,
    idempotency_key: str,
    settings: ReceiverSettings,
    *,
    task_id: str | None = None,
    external_id: str = "",
) -> Submission:
    """Check a submission. `task_id`, `external_id`: as in `build`. Raises ApiError naming every problem."""
    try:
        return make_submission(parsed, idempotency_key, settings, task_id=task_id, external_id=external_id)
    except ParameterError as error:
        raise ApiError(422, "bad_submission", " ".join(error.problems), FIX) from None


def make_submission(
    parsed: SubmissionBody,
    idempotency_key: str,
    settings: ReceiverSettings,
    *,
    task_id: str | None = None,
    external_id: str = "",
) -> Submission:
    """As `check_submission`. Raises ParameterError with all problems."""
    problems: list[str] = []
    callback_url, hook, hook_format = "", parsed.hook.strip(), parsed.hook_format
    try:
        callback_url = chosen_callback(parsed.family, parsed.body, None)
    except ParameterError as error:
        problems += error.problems
    if callback_url and hook:
        problems.append("`hook`: the body has a callback_url, which becomes the task's hook. Remove one of them.")
    elif callback_url:
        hook, hook_format = callback_url, "kling"
    registration: Registration | None = None
    try:
        registration = Registration.model_validate(
            {
                "family": parsed.family,
                "tags": parsed.tags,
                "hook": hook,
                "hook_events": parsed.hook_events,
                "hook_format": hook_format,
                "attempt": "submission",
            },
            by_alias=True,
            by_name=False,
            context=settings.client_hook_hosts,
        )
    except ValidationError as error:
        name = "callback_url" if callback_url else "hook"
        problems += [each.replace("hook:", f"{name}:", 1) for each in describe_errors(error)]
    if is_new_standard(parsed.family) and not settings.api_key:
        problems.append(f"family: {parsed.family} needs KLING_API_KEY; the receiver has an access key only.")
    try:
        submission = submissions.build(
            parsed.family,
            without_callback(parsed.family, parsed.body),
            limits=settings.slot_limits,
            task_id=task_id,
            external_id=external_id,
            external_task_id=parsed.external_task_id,
            idempotency_key=idempotency_key,
            priority=parsed.priority,
            tags=registration.tags if registration else (),
            hook=registration.hook if registration else "",
            hook_events=registration.hook_events if registration else (),
            hook_format=hook_format,
        )
    except ParameterError as error:
        problems += error.problems
    if problems:
        raise ParameterError(list(dict.fromkeys(problems)))
    return submission

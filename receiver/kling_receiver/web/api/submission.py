"""POST /api/tasks: submit a task, whose create the receiver sends. DELETE /api/tasks/{id}: take it out of the queue."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, move_on_after, sleep, to_thread
from pydantic import BeforeValidator, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kling_callback.errors import ParameterError
from kling_callback.protocol import ids
from kling_callback.protocol.families import is_new_standard
from kling_callback.protocol.values import is_too_complex
from kling_receiver.events.payloads import Payloads
from kling_receiver.hooks.config import EventTypes, Label
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.errors import Unanswered, Unavailable
from kling_receiver.store.reader import Reader
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer
from kling_receiver.tasks import submission as submissions
from kling_receiver.tasks.registration import MAX_REPORTED_TAGS, Registration
from kling_receiver.tasks.submission import MAX_KEY_CHARS, MAX_PRIORITY, Submission, SubmissionResult
from kling_receiver.validation import describe_errors
from kling_receiver.web.api.actions import JOB_SCHEMA
from kling_receiver.web.api.tasks import get_task_or_404
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
UNDECIDED_SECONDS = 15.0
"""Seconds for which the database is asked whether a commit without an answer succeeded: as long as a restart takes."""
POLL_SECONDS = 0.25
FIX = "Fix the request and send it again. Nothing was sent to Kling."
NO_KEY_HINT = "Set KLING_API_KEY (or KLING_ACCESS_KEY and KLING_SECRET_KEY) for the receiver, or create it as a client."


ReadSubmission = Callable[[bytes, str, ReceiverSettings], Submission]
"""Parses and checks a request's body, with its Idempotency-Key. Raises ApiError."""
Submit = Callable[[Transaction, str, Submission], SubmissionResult]


def _whole(value: Any) -> Any:
    """An integer that is written with a point, as JSON allows."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Undecided(ApiError):
    """Whether a task is registered is not known: the database was lost during its commit."""

    def __init__(self, task_id: str) -> None:
        message = f"The database does not answer: it is not known whether task {task_id} is registered."
        super().__init__(503, "undecided", message, f"Before you send it again, ask: GET /api/tasks/{task_id}.")
        self.task_id = task_id


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
    priority: Annotated[int, BeforeValidator(_whole)] = Field(
        0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="the highest is sent first"
    )


class SubmissionRoutes:
    """The endpoints that submit and cancel tasks."""

    def __init__(
        self, settings: ReceiverSettings, *, writer: Writer, reader: Reader, payloads: Payloads, timeout: float = 30
    ) -> None:
        """`timeout`: seconds for which a large submission waits while others are read."""
        self._settings, self._writer, self._reader, self._payloads = settings, writer, reader, payloads
        self._bodies = BodyLimiter(MAX_LARGE, timeout)
        self._parsing = CapacityLimiter(MAX_LARGE)

    async def submit(self, request: Request) -> Response:
        """Register a task, and answer at once; a job sends its create."""
        submission, is_new = await self.register(request, read_submission)
        detail = await get_task_or_404(self._reader, submission.task_id)
        return JSONResponse(self._payloads.task(detail), 201 if is_new else 200)

    async def register(
        self, request: Request, read: ReadSubmission, submit: Submit = submissions.submit
    ) -> tuple[Submission, bool]:
        """Read a request's submission and register its task, durably. Returns also whether it is new.

        `read`: parses and checks a body; called beside the event loop for a large one. Raises ApiError, also
        Undecided, and Unavailable: then it is not registered.
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
            result = await self._commit(submission, submit)
        if result.conflict:
            hint = "Use another external_task_id or Idempotency-Key, or the same parameters and hook."
            raise ApiError(409, "conflict", result.conflict, hint)
        if result.full:
            hint = "Wait until some are sent, or cancel some: DELETE /api/tasks/{id}. Nothing was sent to Kling."
            raise ApiError(429, "queue_full", result.full, hint, Retry_After="30")
        return replace(submission, task_id=result.task_id or submission.task_id), result.created

    async def _commit(self, submission: Submission, submit: Submit) -> SubmissionResult:
        """Register a submission's task. Raises Unavailable if it is not registered, and will not be.

        A caller who is told so sends it again, perhaps without an id by which the repeat is known: it is paid twice.
        Raises Undecided if the database cannot say for a while whether the task is registered.
        """
        has_begun = given_up = False

        def change(tx: Transaction) -> SubmissionResult:
            nonlocal has_begun
            has_begun = True  # before the check: one of the two threads sees what the other has set
            return SubmissionResult() if given_up else submit(tx, submission.task_id, submission)

        try:
            # Its size is not counted as pending: the reservation limits how many large ones there are.
            return await self._writer.run(change)
        except Unavailable as error:
            given_up = True  # it may still wait for its commit
            if has_begun and await self._is_registered(submission, may_follow=isinstance(error, Unanswered)):
                return SubmissionResult(created=True)  # its commit succeeded, and the answer was lost
            raise

    async def _is_registered(self, submission: Submission, *, may_follow: bool) -> bool:
        """Whether a commit without an answer succeeded. `may_follow`: it may still succeed. Raises Undecided."""
        with move_on_after(UNDECIDED_SECONDS):
            while True:
                with suppress(Unavailable):
                    row = await self._reader.task(submission.task_id)
                    if row is not None and row["create_token"] == submission.registration.create_token:
                        return True
                    if not may_follow:
                        return False
                await sleep(POLL_SECONDS)
        raise Undecided(submission.task_id)

    async def cancel(self, request: Request) -> Response:
        """End a task that waits in the queue."""
        detail = await get_task_or_404(self._reader, request.path_params["id"])
        result = await self._writer.run(lambda tx: submissions.cancel(tx, detail.row["id"]))
        if result == "sent":
            message = f"Task {detail.row['id']} was sent to Kling, and Kling has no cancel."
            raise ApiError(409, "already_sent", message, "Wait until it ends.")
        if result == "ended":
            raise ApiError(409, "already_ended", f"Task {detail.row['id']} has ended.", "There is nothing to cancel.")
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
    problems: list[str] = []
    callback_url, body = submissions.split_callback_url(parsed.family, parsed.body)
    hook, hook_format = parsed.hook.strip(), parsed.hook_format
    if callback_url is not None and hook:
        problems.append("`hook`: the body has a callback_url, which becomes the task's hook. Remove one of them.")
    elif callback_url is not None:
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
        name = "hook" if callback_url is None else "callback_url"
        problems += [each.replace("hook:", f"{name}:", 1) for each in describe_errors(error)]
    if is_new_standard(parsed.family) and not settings.api_key:
        problems.append(f"family: {parsed.family} needs KLING_API_KEY; the receiver has an access key only.")
    try:
        submission = submissions.build(
            parsed.family,
            body,
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
        raise ApiError(422, "bad_submission", " ".join(dict.fromkeys(problems)), FIX)
    return submission

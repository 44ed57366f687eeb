"""Creates: submitted through the receiver, and answered as Kling would answer them.

A create that has a slot at once is answered with Kling's answer: its id of the task, or its refusal. One that waits in
the queue, or whose outcome is unknown, is answered with our id: the caller can query it, and must not send it again.
"""

import asyncio
import json
import logging
from contextlib import suppress
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kling_callback.jobs.body import options_of
from kling_callback.protocol import families
from kling_callback.protocol.ids import is_id
from kling_callback.protocol.redact import is_empty
from kling_callback.protocol.values import IDENTIFIER, MAX_ID_CHARS, is_too_complex
from kling_receiver.events.bus import EventBus
from kling_receiver.settings import ReceiverSettings
from kling_receiver.store.reader import Reader, TaskDetail
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.sql import Statement
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer
from kling_receiver.tasks import submission as submissions
from kling_receiver.tasks.registration import may_reopen
from kling_receiver.tasks.submission import Submission, SubmissionResult
from kling_receiver.tasks.transitions import keep_our_id
from kling_receiver.web.api.committer import Undecided
from kling_receiver.web.api.submission import (
    SubmissionBody,
    SubmissionRoutes,
    check_size,
    check_submission,
)
from kling_receiver.web.compat.queries import Queries
from kling_receiver.web.compat.replies import (
    BAD_BODY,
    BAD_PARAMETER,
    NO_PATH,
    UNAVAILABLE,
    CompatError,
    envelope,
)

log = logging.getLogger("kling_receiver.web")

ANSWER_SECONDS = 30.0
"""Seconds that a create waits for Kling's answer. Proxies give up after 60, and then the caller would send it again."""
KEEP_SECONDS = 5.0
"""Seconds for the attempt to store that a create was answered our id."""
NOT_IN_CREATE = ("task_status_msg", "task_result", "message", "outputs")
"""Fields of a record that the answer to a create does not have."""

STATE = Statement("SELECT state FROM submission WHERE task_id = :task_id")
OTHER_TASK = Statement("""
    SELECT id FROM task WHERE external_task_id = :external_id AND kling_id IS NOT NULL AND id <> :task_id LIMIT 1
""")
"""A task at Kling that has this id of the caller's: what only a callback says about such an id proves nothing."""
LAST_FAILURE = Statement("""
    SELECT id FROM event WHERE task_id = :task_id AND type = 'task.failed' ORDER BY id DESC LIMIT 1
""")


class Creates:
    """Submits tasks, and waits for Kling's answer to those that are sent at once."""

    def __init__(
        self, submissions: SubmissionRoutes, queries: Queries, *, reader: Reader, writer: Writer, bus: EventBus
    ) -> None:
        self._submissions, self._queries = submissions, queries
        self._reader, self._writer, self._bus = reader, writer, bus

    async def create(self, request: Request, family: str) -> Response:
        """Submit a task, and answer as Kling would. Raises CompatError, ApiError, Unavailable: then it is not sent."""
        if problems := families.family_problems(family):
            raise CompatError(NO_PATH, " ".join(problems))

        def read(content: bytes, key: str, settings: ReceiverSettings) -> Submission:
            return _read(family, content, key, settings)

        try:
            submission, _ = await self._submissions.register(request, read, _submit, may_withdraw=False)
        except Undecided as error:  # as after an unknown outcome
            log.warning("task %s: its create was answered although it may not be registered", error.task_id)
            return JSONResponse(envelope(_unread(family, error.task_id)))
        try:
            return await self._answer(submission.task_id)
        except CompatError:
            raise
        except Exception as error:  # from here on, an error would make the caller pay twice
            log.warning("task %s: its create was answered without Kling's answer. %s", submission.task_id, error)
            await self._answer_ours(submission.task_id)
            return JSONResponse(envelope(_unread(family, submission.task_id)))

    async def _answer(self, task_id: str) -> Response:
        async def is_over() -> bool:
            task = await self._reader.task(task_id)
            state = await self._reader.read(lambda connection: STATE.scalar(connection, task_id=task_id))
            return task is None or task["outcome"] != "pending" or state in (None, "queued")

        if not self._bus.is_full:
            async for _ in self._bus.wait_until(is_over, [task_id], seconds=ANSWER_SECONDS):
                pass
        detail = (await self._reader.details([task_id]))[task_id]
        if detail.row["outcome"] == "not_created" and detail.row["origin"] == "local":
            return await self._refusal(detail.row)
        if not detail.row["kling_id"]:  # from now on, all records have the id that is answered here
            await self._writer.run(lambda tx: keep_our_id(tx, tx.require_task(task_id)))
            detail = (await self._reader.details([task_id]))[task_id]
        return JSONResponse(envelope(self._created(detail), _request_id(detail.row)))

    async def _answer_ours(self, task_id: str) -> None:
        """Let later records have our id, which is answered now, whatever Kling's is; unless that cannot be stored."""
        with suppress(Exception):
            async with asyncio.timeout(KEEP_SECONDS):
                await self._writer.run(lambda tx: tx.update_task(tx.require_task(task_id), keeps_our_id=True))

    def _created(self, detail: TaskDetail) -> dict[str, Any]:
        record = self._queries.record(detail)
        record |= {name: "submitted" for name in ("status", "task_status") if name in record}
        return {name: value for name, value in record.items() if name not in NOT_IN_CREATE}

    async def _refusal(self, task: TaskRow) -> Response:
        """Kling's refusal as it was; else the reason why the create was not sent."""
        event_id = await self._reader.read(lambda connection: LAST_FAILURE.scalar(connection, task_id=task["id"]))
        event = await self._reader.event(event_id) if event_id else None
        refusal = event["data"].get("refusal") if event and isinstance(event["data"], dict) else None
        if refusal:
            return Response(refusal["answer"], refusal["http_status"], media_type="application/json")
        raise CompatError(UNAVAILABLE, f"{task['status_msg']} Nothing was created.")


def _read(family: str, content: bytes, key: str, settings: ReceiverSettings) -> Submission:
    """Parse and check a create. Blocks for large ones. Raises CompatError, or ApiError naming every problem."""
    check_size(family, content)
    try:
        body = None if is_too_complex(content) else json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise CompatError(BAD_BODY, "The body must be a JSON object, with the parameters of the create.")
    external_id = options_of(family, body).get("external_task_id")
    if is_empty(external_id):
        return check_submission(_submission_body(family, body), key, settings)
    if not (isinstance(external_id, str) and IDENTIFIER.fullmatch(external_id)):
        rule = f"external_task_id must be text of up to {MAX_ID_CHARS} characters that may stand in a path."
        raise CompatError(BAD_PARAMETER, rule)
    task_id = external_id if is_id(external_id) else submissions.derived_id(f"external_task_id {external_id}")
    return check_submission(_submission_body(family, body), key, settings, task_id=task_id, external_id=external_id)


def _submission_body(family: str, body: dict[str, Any]) -> SubmissionBody:
    return SubmissionBody.model_construct(family=family, body=body)


def _submit(tx: Transaction, task_id: str, submission: Submission) -> SubmissionResult:
    """Submit a create. An `external_task_id` is unique, as at Kling, but for a repeat with its Idempotency-Key."""
    if external_id := submission.external_id:
        task = tx.task(task_id)
        is_repeat = task is not None and task["create_token"] == submission.registration.create_token
        exists = (task is not None and not may_reopen(task)) or OTHER_TASK.scalar(
            tx.connection, external_id=external_id, task_id=task_id
        )
        if exists and not is_repeat:
            return SubmissionResult(conflict=f"external_task_id {external_id} already exists.")
    return submissions.submit(tx, task_id, submission)


def _request_id(task: TaskRow) -> str | None:
    return task["request_id"] if task["outcome"] == "created" else None


def _unread(family: str, task_id: str) -> dict[str, Any]:
    """The record of a task that is registered, and cannot be read at the moment."""
    is_new = families.is_new_standard(family)
    return {"id": task_id, "status": "submitted"} if is_new else {"task_id": task_id, "task_status": "submitted"}

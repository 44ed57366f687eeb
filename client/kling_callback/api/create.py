"""What one create proves, by the same rules in the client and the receiver, so that no task is paid for twice.

A create that was not accepted may be sent again only after 1302, 1303, or without a connection. After an unknown
outcome it is never sent again: the task is looked up by our id, which Kling got as `external_task_id`.
"""

from contextlib import suppress
from dataclasses import dataclass

from kling_callback.api.kling import NOT_SENT_ERRORS, KlingApi
from kling_callback.api.refusals import CONCURRENCY_LIMITED, NOT_KLING, RATE_LIMITED
from kling_callback.errors import CreateUnknown, GatewayError, KlingError, NotCreated, Outcome
from kling_callback.protocol.reports import UNKNOWN_TASK, Report

MAX_REASON_CHARS = 2000
"""Characters of Kling's message that are reported to the receiver."""


@dataclass(frozen=True, slots=True)
class CreateOutcome:
    """The outcome of a create: `kling_id` if Kling named one, `reason` for any other outcome than created."""

    outcome: Outcome
    kling_id: str | None = None
    reason: str = ""
    request_id: str = ""
    """Kling's id of its answer, if it named one."""
    http_status: int | None = None
    answer: str = ""
    """Of an answer that refuses the create: its HTTP status, and its JSON as text."""
    finished: bool = False
    """Whether a query found that Kling had finished the task: its callback may be past."""

    def fields(self) -> dict[str, str | bool]:
        """The JSON fields of a report to the receiver."""
        fields: dict[str, str | bool | None] = {
            "outcome": self.outcome,
            "task_id": self.kling_id,
            "reason": self.reason[:MAX_REASON_CHARS],
            "request_id": self.request_id,
            "finished": self.finished,
        }
        return {name: value for name, value in fields.items() if value}


def created(report: Report) -> CreateOutcome:
    """The outcome of a create whose task Kling names."""
    return CreateOutcome(
        "created", kling_id=report.kling_id, request_id=report.request_id or "", finished=bool(report.final)
    )


def not_created(error: NotCreated) -> CreateOutcome:
    """The outcome of a create that Kling certainly did not accept, at least not this time."""
    return CreateOutcome(
        "not_created",
        reason=error.message,
        request_id=error.request_id or "",
        http_status=error.http_status,
        answer=error.answer,
    )


def may_resend(error: KlingError) -> bool:
    """Whether a create that ended with this error may be sent again: it was not accepted, and may be later."""
    return isinstance(error, NotCreated) and (
        error.code in (RATE_LIMITED, CONCURRENCY_LIMITED) or (was_not_sent(error) and error.retryable)
    )


def was_not_sent(error: KlingError) -> bool:
    """Whether a request failed before it was sent: there was no connection."""
    return isinstance(error.__cause__, NOT_SENT_ERRORS)


def is_lost(error: GatewayError) -> bool:
    """Whether a create was certainly no use, although its outcome is unknown: the address is not Kling's API."""
    return isinstance(error, CreateUnknown) and error.code == NOT_KLING


async def judge(kling_api: KlingApi, family: str, task_id: str, error: GatewayError) -> CreateOutcome:
    """The outcome of a create that ended with this error, and is not sent again.

    Kling has one code for an id that is taken, hence a created task, and for bad parameters: the task is looked up.
    """
    if not isinstance(error, NotCreated):
        return CreateOutcome("unknown", reason=str(error), request_id=error.request_id or "")
    if error.code in UNKNOWN_TASK:
        if report := await find_created(kling_api, family, task_id):
            return created(report)
        if "already exist" in error.message.lower():
            return CreateOutcome("unknown", reason=str(error))
    return not_created(error)


async def find_created(kling_api: KlingApi, family: str, task_id: str) -> Report | None:
    """Query Kling by our id, once. None proves nothing: a relay may drop our id."""
    with suppress(GatewayError):
        report = await kling_api.query(family, task_id=task_id)
        if report and report.kling_id and report.external_task_id in (None, task_id):
            return report
    return None

"""Every error this package raises, and what a caller may branch on.

KlingError
├── SettingsError        settings are missing or contradict each other; `problems` lists them all
├── ParameterError       a job's parameters are wrong, nothing was sent; `problems` lists them all
├── TokenError           a signed token does not hold
│   └── TokenExpired     it held once
├── HookError            what came to a hook of yours is no event of your receiver; `code` says why
├── GatewayError         Kling or the gateway did not give a usable answer
│   ├── NotCreated       the create was surely not taken: nothing is generated, nothing is paid
│   └── CreateUnknown    the create may have been taken: it is never sent again
├── ReceiverError        the receiver refused, or could not be reached
├── TaskFailed           the task ended as `failed`; the message is Kling's reason
├── ResultFailed         the task succeeded, but a result could not be stored or fetched
└── WaitTimeout          waiting ended; the task goes on
"""

from collections.abc import Sequence
from typing import Any, Literal

Outcome = Literal["created", "not_created", "unknown"]


class KlingError(Exception):
    """The base of all errors.

    `code`: Kling's or the receiver's error code. `http_status`: of the answer, if there was one.
    `request_id`: Kling's, for its support. `retryable`: the same call may succeed later, at the
    earliest after `retry_after` seconds.
    `outcome`: for a create, whether a task exists. `hint`: what to do next, one sentence.
    """

    outcome: Outcome | None = None

    def __init__(
        self,
        message: str,
        *,
        code: int | str | None = None,
        http_status: int | None = None,
        request_id: str | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.http_status = http_status
        self.request_id = request_id
        self.retryable = retryable
        self.retry_after = retry_after
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class _Problems(KlingError):
    """Several problems found in one look, so that they can be mended in one go."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class SettingsError(_Problems):
    """Settings are missing, malformed, or contradict each other."""


class ParameterError(_Problems):
    """A job's parameters are wrong; found before anything was sent."""

    outcome: Outcome | None = "not_created"


class TokenError(KlingError):
    """A signed token was forged, altered, or made with another secret."""


class TokenExpired(TokenError):
    """A token held, but its time is over (or its clock is more than a minute ahead)."""


class HookError(KlingError):
    """What came to a hook is forged, altered, too old, or no event. Answer it 400, and forget it.

    `code`: `missing_header`, `bad_header`, `bad_signature`, `too_old`, `too_new`, `too_large`, `not_json`,
    `not_an_event`.
    """


class GatewayError(KlingError):
    """Kling or the gateway refused, failed, or answered something unreadable."""


class NotCreated(GatewayError):
    """The create was surely not taken."""

    outcome: Outcome | None = "not_created"


class CreateUnknown(GatewayError):
    """The create may have been taken; sending it again could be paid twice."""

    outcome: Outcome | None = "unknown"


class ReceiverError(KlingError):
    """The receiver refused the request or could not be reached.

    `outcome` is `not_created` when that stopped a create before anything was sent to Kling.
    """


class _Ended(KlingError):
    """About one task: `task` is its JSON as in the receiver's API."""

    def __init__(self, message: str, *, task: dict[str, Any] | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.task = task or {}


class TaskFailed(_Ended):
    """The task ended as `failed`; the message is Kling's reason."""


class ResultFailed(_Ended):
    """A file of a task that succeeded cannot be had; others of the same task may be stored."""


class WaitTimeout(_Ended):
    """The time to wait is over; the task goes on, and `wait` may be called again."""

"""The errors of this package, and the attributes that callers branch on.

KlingError
├── SettingsError        settings are missing or contradict each other; `problems` lists them all
├── ParameterError       a job's parameters are wrong, nothing was sent; `problems` lists them all
├── TokenError           a signed token is not valid
│   └── TokenExpired     a signed token has expired
├── HookError            a request to your hook is not an event of your receiver; `code` says why
├── GatewayError         Kling or the gateway did not give a usable answer
│   ├── NotCreated       Kling certainly did not accept the create or call: nothing is generated, nothing is paid
│   └── CreateUnknown    Kling may have taken the create or call: it is never sent again
├── ReceiverError        the receiver refused the request, or could not be reached
├── TaskFailed           the task ended as `failed`; the message is Kling's reason
├── ResultFailed         the task succeeded, but a result could not be stored or downloaded
└── WaitTimeout          the wait timed out; the task continues
"""

from collections.abc import Sequence
from typing import Any, Literal

Outcome = Literal["created", "not_created", "unknown"]


class KlingError(Exception):
    """The base of all errors.

    `message`: what is wrong. `hint`: what to do next, one sentence, or None. `code`: Kling's error code (int) or
    the receiver's (str), or None. `http_status`: of the answer, if there was one. `request_id`: Kling's, for its
    support. `retryable`: whether the same call may succeed later, after `retry_after` seconds if known.
    `outcome`: of a create, whether a task exists; None for all other errors.
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
    """Several problems, reported together. `problems`: list of str, one message each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class SettingsError(_Problems):
    """Settings are missing, malformed, or contradict each other."""


class ParameterError(_Problems):
    """A job's parameters are wrong. Nothing was sent."""

    outcome: Outcome | None = "not_created"


class ProblemCollector:
    """Collects what several checks raise, to report it at once: `with collector: check()`, then `raise_all()`."""

    def __init__(self) -> None:
        self._errors: list[ParameterError | SettingsError] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        if not isinstance(error, ParameterError | SettingsError):
            return False
        self._errors.append(error)
        return True

    def raise_all(self) -> None:
        """Raise all problems as one error: a ParameterError, or a SettingsError if all are about settings."""
        problems = list(dict.fromkeys(problem for error in self._errors for problem in error.problems))
        if problems:
            parameters = any(isinstance(error, ParameterError) for error in self._errors)
            raise (ParameterError if parameters else SettingsError)(problems)


class TokenError(KlingError):
    """A signed token was forged, altered, or signed with another secret."""


class TokenExpired(TokenError):
    """A validly signed token has expired, or was signed more than a minute in the future."""


class HookError(KlingError):
    """A request to a hook is forged, altered, too old, or not an event. Answer 400, and ignore it.

    `code`: `missing_header`, `bad_header`, `bad_signature`, `too_old`, `too_new`, `too_large`, `not_json`,
    `not_an_event`.
    """


class GatewayError(KlingError):
    """Kling or the gateway refused the request, failed, or sent an unreadable answer."""


class NotCreated(GatewayError):
    """Kling certainly did not accept the create or the call: nothing is generated, nothing is paid.

    `answer`: Kling's answer to a create, as JSON text; "" if it was not sent, or the answer is long or no JSON object.
    """

    outcome: Outcome | None = "not_created"
    answer = ""


class CreateUnknown(GatewayError):
    """Kling may have taken the create, or carried out the call; sending it again could pay twice.

    `answer`: what a call was answered, as text, if it is not Kling's; other bytes as a `data:` address. "" for none.
    """

    outcome: Outcome | None = "unknown"
    answer = ""


class ReceiverError(KlingError):
    """The receiver refused the request or could not be reached.

    `outcome` is `not_created` if the error stopped a create before it was sent to Kling.
    """


class _TaskError(KlingError):
    """An error about one task. `task`: dict, its JSON as in the receiver's API."""

    def __init__(self, message: str, *, task: dict[str, Any] | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.task = task or {}


class TaskFailed(_TaskError):
    """The task ended as `failed`; the message is Kling's reason."""


class ResultFailed(_TaskError):
    """A file of a succeeded task could not be stored or downloaded; its other files may be stored."""


class WaitTimeout(_TaskError):
    """The wait timed out. The task continues, and `wait` may be called again."""

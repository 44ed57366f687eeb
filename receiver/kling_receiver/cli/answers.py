"""The answers of the API that the commands read, and the check that an answer is one: another server may answer."""

from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from kling_callback.api.receiver import unreadable_answer


class ListedHook(TypedDict):
    """A hook in a list."""

    name: str
    state: str
    address: str
    format: str
    events: list[str]
    families: list[str]
    statuses: list[str]
    tags: list[str]
    behind: int | None
    pending: int | None
    dead: int | None
    paused_because: str | None
    failing_since: str | None


class HookList(TypedDict):
    """Of `GET /api/hooks`."""

    hooks: list[ListedHook]


class HookName(TypedDict):
    """Of a change of a hook."""

    name: str


class AddedHook(TypedDict):
    """Of `POST /api/hooks`."""

    hook: HookName
    secret: str | None


class NewSecret(TypedDict):
    """Of `POST /api/hooks/{name}/rotate`."""

    secret: str


class TestedHook(TypedDict):
    """Of `POST /api/hooks/{name}/test`."""

    delivered: bool
    response_status: int | None
    duration_ms: float
    error: str | None
    response_body: str | None


class LastAttempt(TypedDict):
    """The last attempt of a delivery."""

    response_status: int | None
    error: str | None
    duration_ms: float


class ListedDelivery(TypedDict):
    """A delivery in a list."""

    id: str
    state: str
    type: str
    task: str
    attempts: int
    last_attempt: LastAttempt | None
    next_attempt_at: str | None


class DeliveryPage(TypedDict):
    """Of `GET /api/deliveries`."""

    deliveries: list[ListedDelivery]
    next: str | None


class RetriedDeliveries(TypedDict):
    """Of `POST /api/deliveries/retry`."""

    deliveries: int


class ReplayedEvents(TypedDict):
    """Of `POST /api/deliveries/replay`."""

    hooks: list[str]
    events: int


class AddedToken(TypedDict):
    """Of `POST /api/tokens`."""

    name: str


class ListedToken(TypedDict):
    """A named token in a list."""

    name: str
    role: str
    created_at: str
    expires_at: str
    last_used_at: str | None


class TokenList(TypedDict):
    """Of `GET /api/tokens`."""

    tokens: list[ListedToken]


class ListedEntry(TypedDict):
    """An entry of the audit log."""

    at: str
    actor: str
    action: str
    target: str
    detail: str
    result: str | None


class AuditPage(TypedDict):
    """Of `GET /api/audit`."""

    entries: list[ListedEntry]
    next: str | None


class ListedTask(TypedDict):
    """A task, as far as its line in a table needs it."""

    id: str
    status: str


class QueriedTask(TypedDict):
    """Of `POST /api/tasks/{id}/ask` and `/fetch`."""

    task: ListedTask
    kling: str | None


def checked(form: Any, answer: dict[str, Any]) -> dict[str, Any]:
    """The whole answer, which has at least the fields of `form`. Raises ReceiverError for any other."""
    try:
        TypeAdapter(form).validate_python(answer, strict=True)
    except ValidationError:
        raise unreadable_answer() from None
    return answer

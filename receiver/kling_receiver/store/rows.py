"""The rows of each table as types, so that mypy checks the name of every column. Times are unix milliseconds.

A row that came from one of `sql.Statement`'s methods has every key of its type, unless its SELECT names fewer columns.
"""

from typing import Any, TypedDict

from kling_callback.protocol.signing import Role
from kling_receiver.states import FinalStatus, Origin, Status

Row = dict[str, Any]
"""A row of no declared type: bound parameters, or a SELECT of a few columns."""


class TaskRow(TypedDict):
    """One task: `id` is ours, `kling_id` is Kling's."""

    id: str
    kling_id: str | None
    external_task_id: str | None
    family: str
    model: str
    request: Any
    request_sha256: str | None
    outcome: str
    create_token: str
    slots: int
    keeps_our_id: bool
    status: Status
    status_msg: str
    origin: Origin | None
    hint: FinalStatus | None
    hint_msg: str
    hint_count: int
    callback_kling_id: str | None
    cost: Any
    outputs: list[dict[str, Any]] | None
    request_id: str | None
    kling_created_at: int | None
    kling_updated_at: int | None
    duration_ms: int | None
    done: bool
    callback_count: int
    kept_callbacks: int
    kept_bytes: int
    created_at: int
    updated_at: int


class TaskChanges(TypedDict, total=False):
    """The columns of a task that may change."""

    kling_id: str | None
    external_task_id: str | None
    model: str
    request: Any
    request_sha256: str | None
    outcome: str
    create_token: str
    slots: int
    keeps_our_id: bool
    status: Status
    status_msg: str
    origin: Origin | None
    hint: FinalStatus | None
    hint_msg: str
    hint_count: int
    callback_kling_id: str | None
    cost: Any
    outputs: list[dict[str, Any]] | None
    request_id: str | None
    kling_created_at: int | None
    kling_updated_at: int | None
    duration_ms: int | None
    done: bool
    callback_count: int
    kept_callbacks: int
    kept_bytes: int


class SubmissionRow(TypedDict):
    """A create that the receiver sends."""

    id: int
    task_id: str
    state: str
    rank: int
    model: str
    slots: int
    body: bytes
    size: int
    attempt: str
    created_at: int


class RemovedRow(TypedDict):
    """A task that was removed, and the callbacks that arrived since."""

    id: str
    removed_at: int
    callback_count: int


class AccountRow(TypedDict):
    """What Kling's refusals have shown of the account."""

    id: int
    slot_ceiling: int | None
    create_interval_ms: int
    next_create_at: int


class EventRow(TypedDict):
    """One event as it is shown, without the stored body of a callback."""

    id: int
    log_id: str
    task_id: str
    type: str
    created_at: int
    data: Any


class ResultRow(TypedDict):
    """One file of a task; `position` counts from 0, `size` is in bytes, `duration` in seconds."""

    task_id: str
    position: int
    kind: str
    kling_id: str | None
    duration: float | None
    status: str
    content_type: str | None
    size: int | None
    sha256: str | None
    path: str | None
    source_url: str
    expires_at: int | None
    error: str
    warning: str


class JobRow(TypedDict):
    """One job of the queue."""

    id: int
    unique_key: str
    kind: str
    pool: str
    task_id: str
    concurrency_key: str
    hook_name: str | None
    args: Any
    state: str
    attempts: int
    due_at: int
    delay_ms: int
    claim_id: str | None
    lease_expires_at: int | None
    error: str
    created_at: int


class HookRow(TypedDict):
    """One hook; `timeout` and the retry schedule are in seconds, `rate_limit` in events a second."""

    name: str
    address: str
    source: str
    format: str
    task_id: str | None
    concurrency_key: str
    secrets: list[tuple[str, int | None]]
    filter: dict[str, list[str]]
    retry_schedule: list[float]
    concurrency: int
    rate_limit: float | None
    timeout: float
    cursor: int
    failing_since: int | None
    paused_at: int | None
    paused_because: str
    created_at: int


class AttemptRow(TypedDict):
    """One attempt to deliver one event to one hook."""

    id: int
    hook_name: str
    event_id: int
    task_id: str
    attempted_at: int
    duration_ms: int
    delivered: bool
    response_status: int | None
    response_body: str
    error: str


class TokenRow(TypedDict):
    """One named token."""

    id: str
    name: str
    role: Role
    created_at: int
    expires_at: int
    last_used_at: int | None
    revoked_at: int | None


class AuditRow(TypedDict):
    """One entry of the audit log."""

    id: int
    created_at: int
    actor: str
    action: str
    target: str
    detail: str
    result: str | None

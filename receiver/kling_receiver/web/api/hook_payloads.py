"""The JSON of hooks and deliveries. It contains no secret, and no password of an address."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import Field
from typing_extensions import TypedDict

from kling_callback.display import MASK
from kling_receiver.events.payloads import Timestamp, iso
from kling_receiver.hooks import deliveries
from kling_receiver.hooks.config import (
    WEB_SCHEMES,
    Concurrency,
    EventTypes,
    Families,
    HookFormat,
    RateLimit,
    RetrySchedule,
    Statuses,
    Tags,
    Timeout,
)
from kling_receiver.hooks.delivery_list import Delivery
from kling_receiver.jobs.queue import NEVER
from kling_receiver.sinks import scheme_of
from kling_receiver.states import Status
from kling_receiver.store.rows import AttemptRow, HookRow
from kling_receiver.store.tables import HOOK_SOURCES
from kling_receiver.store.transaction import last_event

USERINFO = re.compile(r"^([^:/?#]+://)([^:@/?#]*:(?=[^@]))?[^/?#]*@")
"""The start of an address: its scheme, a user name that a password follows, and the rest of the part before `@`."""


class HookJson(TypedDict):
    """A hook."""

    name: str
    address: Annotated[str, Field(description="without a password")]
    source: Annotated[
        str, Field(description="where the hook is defined", json_schema_extra={"enum": list(HOOK_SOURCES)})
    ]
    task: Annotated[str | None, Field(description="the only task whose events the hook receives")]
    format: HookFormat
    events: EventTypes
    families: Families
    statuses: Statuses
    tags: Tags
    retry_schedule: RetrySchedule
    concurrency: Concurrency
    rate_limit: RateLimit | None
    timeout: Timeout
    state: Literal["active", "failing", "paused"]
    circuit: Annotated[
        Literal["closed", "open"], Field(description="open: the last attempts all failed; it is tried now and then")
    ]
    next_attempt_at: Annotated[Timestamp | None, Field(description="when the next of what waits is sent")]
    paused_at: Timestamp | None
    paused_because: str | None
    failing_since: Timestamp | None
    pending: Annotated[int, Field(description="deliveries that were attempted and will be retried")]
    dead: Annotated[int, Field(description="dead letters: deliveries that were given up")]
    behind: Annotated[int, Field(description="events after the hook's cursor, whether they match its filter or not")]
    created_at: Timestamp


class HookListJson(TypedDict):
    """All hooks. `database` identifies the database, so that a command can tell which receiver it reached."""

    hooks: list[HookJson]
    database: str
    kept_in_file: bool


class HookSecretJson(TypedDict):
    """A hook and its new secret."""

    hook: HookJson
    secret: Annotated[str, Field(description="shown only this once")]


class RemovedJson(TypedDict):
    """The name of a hook that was removed."""

    removed: str


class OutcomeJson(TypedDict):
    """The outcome of one request to a hook."""

    delivered: bool
    duration_ms: Annotated[int, Field(description="milliseconds")]
    response_status: Annotated[int | None, Field(description="an HTTP status, or a command's exit code")]
    response_body: Annotated[str | None, Field(description="its first bytes; the last of a command's output")]
    error: str | None


class AttemptJson(OutcomeJson):
    """An attempt to deliver an event to a hook."""

    attempted_at: Timestamp


class _DeliveryFields(TypedDict):
    id: Annotated[str, Field(description="EVENT/HOOK")]
    event: int
    hook: str
    type: str
    task: str
    state: Annotated[
        Literal["pending", "delivered", "dead", "dropped"], Field(description="dropped: removed with its hook")
    ]
    last_attempt: AttemptJson | None
    next_attempt_at: Annotated[Timestamp | None, Field(description="when it is retried")]


class DeliverySummaryJson(_DeliveryFields):
    """A delivery of one event to one hook; `attempts` counts its attempts."""

    attempts: int


class DeliveryJson(_DeliveryFields):
    """A delivery of one event to one hook, with all its attempts."""

    attempts: list[AttemptJson]


class DeliveryPageJson(TypedDict):
    """A page of deliveries, newest event first."""

    deliveries: list[DeliverySummaryJson]
    next: str | None


class RetriedJson(TypedDict):
    """How many dead letters are delivered again."""

    deliveries: int


class ReplayedJson(TypedDict):
    """The hooks that receive a replay, and how many events of the log it covers."""

    hooks: list[str]
    events: int


def hook_payloads(connection: Any, rows: Sequence[HookRow], circuit_is_open: Callable[[str], bool]) -> list[HookJson]:
    """Render hooks, with what waits for each of them."""
    names = [row["name"] for row in rows]
    counts, due, last = (
        deliveries.counts(connection, names),
        deliveries.next_due(connection, names),
        last_event(connection),
    )
    return [
        _hook(row, counts[row["name"]], due.get(row["name"]), last, is_open=circuit_is_open(row["name"]))
        for row in rows
    ]


def _hook(row: HookRow, counts: dict[str, int], due_at: int | None, last_event_id: int, *, is_open: bool) -> HookJson:
    rules = row["filter"]
    return {
        "name": row["name"],
        "address": masked_address(row["address"]),
        "source": row["source"],
        "task": row["task_id"],
        "format": cast(HookFormat, row["format"]),
        "events": rules["events"],
        "families": rules["families"],
        "statuses": cast(list[Status], rules["statuses"]),
        "tags": rules["tags"],
        "retry_schedule": row["retry_schedule"],
        "concurrency": row["concurrency"],
        "rate_limit": row["rate_limit"],
        "timeout": row["timeout"],
        "state": "paused" if row["paused_at"] else "failing" if row["failing_since"] else "active",
        "circuit": "open" if is_open and not row["paused_at"] else "closed",
        "next_attempt_at": None if row["paused_at"] else iso(due_at),
        "paused_at": iso(row["paused_at"]),
        "paused_because": row["paused_because"] or None,
        "failing_since": iso(row["failing_since"]),
        "pending": counts["pending"],
        "dead": counts["dead"],
        "behind": max(last_event_id - row["cursor"], 0),
        "created_at": iso(row["created_at"]),
    }


def masked_address(address: str) -> str:
    """Hide the password or token in an address, and the whole query of a web address, which often is one."""
    if scheme_of(address) in WEB_SCHEMES:
        place, mark, _ = address.partition("?")
        return f"{place}?{MASK}" if mark else address
    return USERINFO.sub(rf"\1\2{MASK}@", address)


def delivery_payload(delivery: Delivery) -> DeliveryJson:
    """Render a delivery with all its attempts."""
    return {**_delivery_fields(delivery), "attempts": [_attempt(row) for row in delivery.attempts]}


def delivery_summary(delivery: Delivery) -> DeliverySummaryJson:
    """Render a delivery with its last attempt."""
    return {**_delivery_fields(delivery), "attempts": len(delivery.attempts)}


def _delivery_fields(delivery: Delivery) -> _DeliveryFields:
    job = delivery.job
    due_at = job["due_at"] if job and job["state"] == "ready" else NEVER
    return {
        "id": f"{delivery.event['id']}/{delivery.hook_name}",
        "event": delivery.event["id"],
        "hook": delivery.hook_name,
        "type": delivery.event["type"],
        "task": delivery.event["task_id"],
        "state": _state(delivery),
        "last_attempt": _attempt(delivery.attempts[-1]) if delivery.attempts else None,
        "next_attempt_at": iso(due_at) if due_at < NEVER else None,
    }


def _state(delivery: Delivery) -> Literal["pending", "delivered", "dead", "dropped"]:
    if delivery.job:
        return "dead" if delivery.job["state"] == "dead" else "pending"
    if any(row["delivered"] for row in delivery.attempts):
        return "delivered"
    return "dropped" if delivery.attempts else "pending"  # removed with its hook; or not attempted yet


def outcome_payload(
    delivered: bool, duration_ms: int, *, status: int | None = None, body: str = "", error: str = ""
) -> OutcomeJson:
    """Render the outcome of one request to a hook."""
    return {
        "delivered": delivered,
        "duration_ms": duration_ms,
        "response_status": status,
        "response_body": body or None,
        "error": error or None,
    }


def _attempt(row: AttemptRow) -> AttemptJson:
    outcome = outcome_payload(
        bool(row["delivered"]),
        row["duration_ms"],
        status=row["response_status"],
        body=row["response_body"],
        error=row["error"],
    )
    return {"attempted_at": iso(row["attempted_at"]), **outcome}

"""How hooks and deliveries look from outside. No secret is shown, nor a password in an address."""

import re
from typing import Any

from kling_receiver.events.payloads import iso
from kling_receiver.hooks.config import WEB_SCHEMES
from kling_receiver.hooks.delivery_list import Delivery
from kling_receiver.jobs.queue import NEVER
from kling_receiver.sinks import scheme_of
from kling_receiver.store.rows import AttemptRow, HookRow

USERINFO = re.compile(r"^([^:/?#]+://)([^:@/?#]*:(?=[^@]))?[^/?#]*@")
"""Of an address: its scheme, a user's name where a password follows, and what else stands before the host."""


def hook_payload(row: HookRow, counts: dict[str, int], last_event: int) -> dict[str, Any]:
    """A hook. `behind`: events of the log that it was not yet offered, wanted or not."""
    state = "paused" if row["paused_at"] else "failing" if row["failing_since"] else "active"
    return {
        "name": row["name"],
        "address": masked_address(row["address"]),
        "source": row["source"],
        "task": row["task_id"],
        **row["filter"],
        "retry_schedule": row["retry_schedule"],
        "concurrency": row["concurrency"],
        "rate_limit": row["rate_limit"],
        "timeout": row["timeout"],
        "state": state,
        "paused_at": iso(row["paused_at"]),
        "paused_because": row["paused_because"] or None,
        "failing_since": iso(row["failing_since"]),
        **counts,
        "behind": max(last_event - row["cursor"], 0),
        "created_at": iso(row["created_at"]),
    }


def masked_address(address: str) -> str:
    """An address without the password, or the token, in it; what a web address has after `?` is often one."""
    if scheme_of(address) in WEB_SCHEMES:
        place, mark, _ = address.partition("?")
        return f"{place}?***" if mark else address
    return USERINFO.sub(r"\1\2***@", address)


def delivery_payload(delivery: Delivery, *, attempts: bool = False) -> dict[str, Any]:
    """A delivery, with its last attempt or with all of them."""
    job, made = delivery.job, [_attempt(each) for each in delivery.attempts]
    due = job["due_at"] if job and job["state"] == "ready" else None
    return {
        "id": f"{delivery.event['id']}/{delivery.hook_name}",
        "event": delivery.event["id"],
        "hook": delivery.hook_name,
        "type": delivery.event["type"],
        "task": delivery.event["task_id"],
        "state": _state(delivery),
        "attempts": made if attempts else len(made),
        "last_attempt": made[-1] if made else None,
        "next_attempt_at": iso(due) if due and due < NEVER else None,
    }


def _state(delivery: Delivery) -> str:
    if delivery.job:
        return "dead" if delivery.job["state"] == "dead" else "pending"
    if any(each["delivered"] for each in delivery.attempts):
        return "delivered"
    return "dropped" if delivery.attempts else "pending"  # with its hook; or not tried yet


def outcome_payload(
    delivered: bool, duration_ms: int, *, status: int | None = None, body: str = "", error: str = ""
) -> dict[str, Any]:
    """The outcome of one attempt."""
    return {
        "delivered": delivered,
        "duration_ms": duration_ms,
        "response_status": status,
        "response_body": body or None,
        "error": error or None,
    }


def _attempt(row: AttemptRow) -> dict[str, Any]:
    outcome = outcome_payload(
        bool(row["delivered"]),
        row["duration_ms"],
        status=row["response_status"],
        body=row["response_body"],
        error=row["error"],
    )
    return {"attempted_at": iso(row["attempted_at"]), **outcome}

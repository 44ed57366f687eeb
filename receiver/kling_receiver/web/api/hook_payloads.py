"""How hooks and deliveries look from outside. No secret is shown, nor a password in an address."""

import re
from typing import Any

from kling_receiver.events.payloads import iso
from kling_receiver.hooks.config import WEB_SCHEMES
from kling_receiver.hooks.delivery_list import Delivery
from kling_receiver.jobs.queue import NEVER
from kling_receiver.sinks import scheme_of
from kling_receiver.store.sql import Row

USERINFO = re.compile(r"^([^:/?#]+://)([^:@/?#]*:(?=[^@]))?[^/?#]*@")
"""Of an address: its scheme, a user's name where a password follows, and what else stands before the host."""


def hook_payload(row: Row, counts: dict[str, int], last_event: int) -> dict[str, Any]:
    """A hook. `behind`: events of the log that it was not yet offered, wanted or not."""
    state = "paused" if row["paused_at"] else "failing" if row["failing_since"] else "active"
    return {
        "name": row["name"],
        "address": masked_address(row["address"]),
        "source": row["source"],
        "task": row["task"],
        **row["filter"],
        "schedule": row["schedule"],
        "concurrency": row["concurrency"],
        "rate": row["rate"],
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
        "task": delivery.event["task"],
        "state": _state(delivery),
        "attempts": made if attempts else len(made),
        "last": made[-1] if made else None,
        "due_at": iso(due) if due and due < NEVER else None,
    }


def _state(delivery: Delivery) -> str:
    if delivery.job:
        return "dead" if delivery.job["state"] == "dead" else "waiting"
    if any(each["taken"] for each in delivery.attempts):
        return "delivered"
    return "dropped" if delivery.attempts else "waiting"  # with its hook; or not tried yet


def _attempt(row: Row) -> dict[str, Any]:
    return {
        "at": iso(row["at"]),
        "ms": row["ms"],
        "taken": bool(row["taken"]),
        "status": row["status"],
        "answer": row["answer"] or None,
        "error": row["error"] or None,
    }

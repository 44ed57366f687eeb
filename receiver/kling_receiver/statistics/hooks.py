"""How hooks do: the success rate and latency of their newest attempts, their last responses, their backlog."""

from collections.abc import Sequence
from typing import TypedDict

from sqlalchemy import Connection

from kling_receiver.jobs.kinds import Kind
from kling_receiver.store.rows import AttemptRow
from kling_receiver.store.sql import Statement, columns
from kling_receiver.store.tables import ATTEMPT
from kling_receiver.store.transaction import last_event

MAX_ATTEMPTS = 1_000
"""The newest attempts of a hook, from which rate and latency are computed: those at its newest events."""
LAST_RESPONSES = 5
MAX_JOBS = 10_000
"""Deliveries of a hook in the queue that are counted."""


class HookHealth(TypedDict):
    """How a hook does.

    `attempts`: those that the next numbers are of; `since`: when the first of them was made (unix ms).
    `delivered`: how many of them; `median_ms`, `p95_ms`: their durations in milliseconds; None without an attempt.
    `last`: the newest attempts, newest first.
    `pending`: deliveries that are to be retried, the first at `next_due_at` (unix ms); `dead`: those given up.
    `counts_are_complete` False: more than MAX_JOBS wait, and some of them are counted.
    `behind`: events of the log after the hook's cursor, whether it wants them or not.
    """

    attempts: int
    since: int | None
    delivered: int
    median_ms: int | None
    p95_ms: int | None
    last: list[AttemptRow]
    pending: int
    next_due_at: int | None
    dead: int
    counts_are_complete: bool
    behind: int


class _Attempt(TypedDict):
    id: int
    attempted_at: int
    duration_ms: int
    delivered: bool


NEWEST = Statement[_Attempt](
    """
    SELECT id, attempted_at, duration_ms, delivered FROM delivery_attempt
    WHERE (hook_name, event_id) < (:name, :end) AND hook_name >= :name
    ORDER BY hook_name DESC, event_id DESC LIMIT :most
    """,
    table=ATTEMPT,
)
"""A comparison of rows: with `hook_name = :name`, PostgreSQL may read the newest attempts of all hooks instead."""
LAST = Statement[AttemptRow](f"SELECT {columns(ATTEMPT)} FROM delivery_attempt WHERE id IN :ids", table=ATTEMPT)
QUEUED = Statement(f"""
    SELECT state, count(*) AS total, min(due_at) AS due_at FROM (
        SELECT state, due_at FROM job WHERE hook_name = :name AND kind = '{Kind.DELIVERY}' LIMIT :most
    ) AS counted GROUP BY state
""")  # a constant
CURSORS = Statement("SELECT name, cursor FROM hook WHERE name IN :names")


def hook_health(connection: Connection, names: Sequence[str]) -> dict[str, HookHealth]:
    """How each of these hooks does, by name; those that do not exist are left out. For the hooks of one page."""
    newest = last_event(connection)
    cursors = {row["name"]: row["cursor"] for row in CURSORS.all(connection, names=list(names))}
    return {name: _health(connection, name, max(newest - cursors[name], 0)) for name in names if name in cursors}


def _health(connection: Connection, name: str, behind: int) -> HookHealth:
    attempts = NEWEST.all(connection, name=name, end=1 << 62, most=MAX_ATTEMPTS)
    durations = sorted(each["duration_ms"] for each in attempts)
    ids = sorted((each["id"] for each in attempts), reverse=True)[:LAST_RESPONSES]
    last = LAST.all(connection, ids=ids) if ids else []
    pending, dead, due = 0, 0, []
    for row in QUEUED.all(connection, name=name, most=MAX_JOBS + 1):
        if row["state"] == "dead":
            dead = row["total"]
        else:
            pending += row["total"]
            due.append(row["due_at"])
    return {
        "attempts": len(attempts),
        "since": min((each["attempted_at"] for each in attempts), default=None),
        "delivered": sum(each["delivered"] for each in attempts),
        "median_ms": _nearest_rank(durations, 50),
        "p95_ms": _nearest_rank(durations, 95),
        "last": sorted(last, key=lambda attempt: attempt["id"], reverse=True),
        "pending": pending,
        "next_due_at": min(due, default=None),
        "dead": dead,
        "counts_are_complete": pending + dead <= MAX_JOBS,
        "behind": behind,
    }


def _nearest_rank(ordered: Sequence[int], percent: int) -> int | None:
    """The least of the values that so many per cent of them do not exceed."""
    return ordered[-(-percent * len(ordered) // 100) - 1] if ordered else None

"""What waits now: creates that wait for a slot, and the jobs of the queue."""

from typing import TypedDict

from sqlalchemy import Connection

from kling_receiver.policy import SlotLimits
from kling_receiver.store.sql import Statement
from kling_receiver.tasks import slots

MAX_JOBS = 100_000
"""Jobs that are counted."""


class SlotUse(TypedDict):
    """Slots of the account. `total`, `by_model`: the limits; None: any number.

    `ceiling`: the slots that Kling's last refusal has left, until a task ends; None: the limits alone count.
    `held`: by the tasks at Kling and those that are about to be sent; by model in `held_by_model`.
    `queued`: submissions that wait for a slot; `queued_since`: when the oldest of them came (unix ms).
    """

    total: int | None
    by_model: dict[str, int]
    ceiling: int | None
    held: int
    held_by_model: dict[str, int]
    queued: int
    queued_since: int | None


class PendingJobs(TypedDict):
    """The jobs of one kind: those that wait for their time or a worker, that run, and that were given up.

    `next_due_at`: when the first of those that wait is due (unix ms): one in the past waits for a worker.
    """

    kind: str
    waiting: int
    running: int
    dead: int
    next_due_at: int | None


class JobCounts(TypedDict):
    """Jobs by kind. `is_complete` False: there are more than MAX_JOBS, and the oldest of them are counted."""

    kinds: list[PendingJobs]
    is_complete: bool


QUEUED = Statement("SELECT count(*) AS queued, min(created_at) AS since FROM submission WHERE state = 'queued'")
CEILING = Statement("SELECT slot_ceiling FROM account")
JOBS = Statement("""
    SELECT kind, state, count(*) AS total, min(due_at) AS due_at
    FROM (SELECT kind, state, due_at FROM job ORDER BY id LIMIT :most) AS counted GROUP BY kind, state ORDER BY kind
""")


def slot_use(connection: Connection, limits: SlotLimits) -> SlotUse:
    """The account's slots and the queue for them. `limits`: of KLING_CONCURRENCY."""
    held = {row["model"]: int(row["slots"]) for row in slots.HELD.all(connection)}
    queue = QUEUED.all(connection)[0]
    return {
        "total": limits.total,
        "by_model": dict(limits.by_model),
        "ceiling": CEILING.scalar(connection),
        "held": sum(held.values()),
        "held_by_model": held,
        "queued": queue["queued"],
        "queued_since": queue["since"],
    }


def pending_jobs(connection: Connection) -> JobCounts:
    """The jobs of the queue, by kind."""
    kinds: dict[str, PendingJobs] = {}
    counted = 0
    for row in JOBS.all(connection, most=MAX_JOBS + 1):
        counted += row["total"]
        kind = row["kind"]
        jobs = kinds.setdefault(kind, {"kind": kind, "waiting": 0, "running": 0, "dead": 0, "next_due_at": None})
        match row["state"]:
            case "ready":
                jobs["waiting"], jobs["next_due_at"] = row["total"], row["due_at"]
            case "running":
                jobs["running"] = row["total"]
            case _:
                jobs["dead"] = row["total"]
    return {"kinds": list(kinds.values()), "is_complete": counted <= MAX_JOBS}

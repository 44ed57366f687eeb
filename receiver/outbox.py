"""Work that is owed: claimed under a lease, settled only by who holds the claim, kept when it is given up.

     a           b
ready ──▶ running ──▶ (gone)     a  claimed: counted, leased        b  Done
  ▲          │ │                 c  RetryAt, or the lease ran out   d  GiveUp
  └────c─────┘ └──d──▶ dead ──▶ ready (owed again)
"""

import random
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, select, text

from receiver.transaction import JOB, Transaction

LOOK_AHEAD = 200
"""Jobs that one claim looks at: those of a lane that is full are passed over."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that is ours to do until its lease ends; `attempts` counts this one too."""

    id: int
    key: str
    kind: str
    task: str
    lane: str
    data: Any
    attempts: int
    claim: str


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing is owed any more."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Owed again at `due_at` (unix ms). `data`: what the next attempt is to know; None leaves it.

    `counts`: False for an attempt that was cut off, not made.
    """

    due_at: int
    error: str
    data: Any = None
    counts: bool = True


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Kept as dead, with the reason."""

    error: str


Outcome = Done | RetryAt | GiveUp
Verdict = Callable[[Transaction], Outcome]
"""What a job came to: applied in the transaction that settles it, so that both happen or neither."""


def verdict(outcome: Outcome) -> Verdict:
    """A verdict that changes nothing but the job."""
    return lambda tx: outcome


CLAIM = text("""
    UPDATE job SET state = 'running', attempts = attempts + 1, claim = :claim, leased_until = :until
    WHERE id = :id AND state = 'ready'
""")
RESCUE = text("""
    UPDATE job SET state = 'ready', claim = NULL, leased_until = NULL, due_at = :now, attempts = attempts - 1
    WHERE state = 'running' AND leased_until <= :until
""")
FORGET = text("DELETE FROM job WHERE id = :id AND claim = :claim")
RETRY = text("""
    UPDATE job SET state = 'ready', claim = NULL, leased_until = NULL, due_at = :due_at, error = :error,
        attempts = :attempts, data = :data
    WHERE id = :id AND claim = :claim
""").bindparams(bindparam("data", type_=JOB.c.data.type))
BURY = text("""
    UPDATE job SET state = 'dead', claim = NULL, leased_until = NULL, error = :error
    WHERE id = :id AND claim = :claim
""")
HOLD = "SELECT 1 FROM job WHERE id = :id AND claim = :claim"
NEXT_DUE = text("""
    SELECT due_at FROM job WHERE state = 'ready' AND lane NOT IN :full ORDER BY due_at LIMIT 1
""").bindparams(bindparam("full", type_=JOB.c.lane.type, expanding=True))
NEXT_RESCUE = text("SELECT min(leased_until) FROM job WHERE state = 'running'")

LONGEST_ERROR = 500


def claim_due(
    tx: Transaction, *, room: int, running: Mapping[str, int], per_lane: int, lease_ms: int
) -> list[Claimed]:
    """Claim at most `room` due jobs, none of a lane where `per_lane` are `running` already."""
    full = [lane for lane, count in running.items() if count >= per_lane]
    query = (
        select(JOB)
        .where(JOB.c.state == "ready", JOB.c.due_at <= tx.now, JOB.c.lane.not_in(full))
        .order_by(JOB.c.due_at, JOB.c.id)
        .limit(LOOK_AHEAD)
    )
    rows = tx.connection.execute(query if tx.database.is_sqlite else query.with_for_update(skip_locked=True))
    taken: list[Any] = []
    lanes = Counter(running)
    for row in rows:
        if len(taken) < room and lanes[row.lane] < per_lane:
            lanes[row.lane] += 1
            taken.append(row)
    return _take(tx, taken, tx.now + lease_ms)


def _take(tx: Transaction, rows: list[Any], until: int) -> list[Claimed]:
    claimed = [
        Claimed(row.id, row.key, row.kind, row.task, row.lane, row.data, row.attempts + 1, secrets.token_hex(8))
        for row in rows
    ]
    if claimed:
        tx.connection.execute(CLAIM, [{"id": job.id, "claim": job.claim, "until": until} for job in claimed])
    return claimed


def next_due(tx: Transaction, full: list[str]) -> int | None:
    """Unix ms at which a job of a lane with room is due, or a lease ends; None when nothing waits."""
    due = tx.connection.execute(NEXT_DUE, {"full": full}).scalar()
    lease = tx.connection.execute(NEXT_RESCUE).scalar()
    return min((at for at in (due, lease) if at is not None), default=None)


def settle(tx: Transaction, job: Claimed, decide: Verdict) -> bool:
    """Apply the verdict, unless the claim is lost: then nothing is changed, and False is returned."""
    held = {"id": job.id, "claim": job.claim}
    if not tx.connection.execute(text(HOLD + tx.database.lock_rows), held).scalar():
        return False
    outcome = decide(tx)
    if isinstance(outcome, Done):
        tx.connection.execute(FORGET, held)
    elif isinstance(outcome, RetryAt):
        again = {
            "due_at": outcome.due_at,
            "error": outcome.error[:LONGEST_ERROR],
            "attempts": job.attempts if outcome.counts else job.attempts - 1,
            "data": job.data if outcome.data is None else outcome.data,
        }
        tx.connection.execute(RETRY, held | again)
    else:
        tx.connection.execute(BURY, {**held, "error": outcome.error[:LONGEST_ERROR]})
    return True


def rescue(tx: Transaction, until: int) -> int:
    """Give back the jobs whose lease ends by `until` (unix ms): their worker is dead. How many there were.

    The attempt does not count: however often the receiver is killed, no file and no event is given up for that.
    """
    return tx.connection.execute(RESCUE, {"now": tx.now, "until": until}).rowcount


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between attempts, seconds: drawn from the upper half of each step, so that retries spread out."""

    steps: tuple[float, ...]
    draw: Callable[[], float] = random.random

    def after(self, attempts: int, now: int, *, at_least: float | None = None) -> int | None:
        """Unix ms of the next attempt after so many; None when that was the last.

        `at_least`: the seconds that the other side asked for (`Retry-After`), believed up to an hour.
        """
        if attempts > len(self.steps):
            return None
        step = self.steps[attempts - 1]
        wait = max(step * (0.5 + self.draw() / 2), min(at_least or 0.0, 3600.0))
        return now + int(wait * 1000)

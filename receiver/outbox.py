"""Work that is owed: claimed under a lease, settled only by who holds the claim, kept when it is given up.

     a           b
ready ──▶ running ──▶ (gone)     a  claimed: counted, leased        b  Done
  ▲          │ │                 c  RetryAt, or the lease ran out   d  GiveUp
  └────c─────┘ └──d──▶ dead ──▶ ready (owed again)
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from sqlalchemy import bindparam, select, text

from receiver.transaction import JOB, Transaction

LOOK_AHEAD = 200
"""Jobs that one claim looks at: those of a lane that is full are passed over."""
FAR = 1 << 60
"""Unix ms at which nothing is due: a job that waits for a hook to be resumed."""


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


DUE = (
    select(JOB)
    .where(JOB.c.state == "ready", JOB.c.due_at <= bindparam("now"))
    .order_by(JOB.c.due_at, JOB.c.id)
    .limit(LOOK_AHEAD)
    .with_for_update(skip_locked=True)  # SQLite has no such words; its one writer needs none
)
DUE_IN_ROOM = DUE.where(
    JOB.c.lane.not_in(bindparam("lanes", expanding=True)), JOB.c.kind.not_in(bindparam("kinds", expanding=True))
)
CLAIM = text("""
    UPDATE job SET state = 'running', attempts = attempts + 1, claim = :claim, leased_until = :until
    WHERE id = :id AND state = 'ready'
""")
RESCUE = text("""
    UPDATE job SET state = 'ready', claim = NULL, leased_until = NULL, due_at = :now, attempts = attempts - 1
    WHERE state = 'running' AND leased_until <= :until
""")
GIVE_BACK = text("""
    UPDATE job SET state = 'ready', claim = NULL, leased_until = NULL, attempts = attempts - 1
    WHERE state = 'running' AND claim = :claim
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
NEXT = select(JOB.c.due_at).where(JOB.c.state == "ready", JOB.c.due_at < FAR).order_by(JOB.c.due_at).limit(1)
NEXT_IN_ROOM = NEXT.where(
    JOB.c.lane.not_in(bindparam("lanes", expanding=True)), JOB.c.kind.not_in(bindparam("kinds", expanding=True))
)
NEXT_RESCUE = text("SELECT min(leased_until) FROM job WHERE state = 'running'")

LONGEST_ERROR = 500
NO_MORE: Mapping[str, int] = {}


@dataclass(slots=True)
class Busy:
    """What runs at once, by lane and by kind, and how much of each may; of some kinds `more`."""

    per_lane: int
    per_kind: int
    lanes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    more: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def with_these(
        cls, jobs: Sequence[Claimed], *, per_lane: int, per_kind: int, more: Mapping[str, int] = NO_MORE
    ) -> Self:
        """With what runs already."""
        lanes, kinds = Counter(job.lane for job in jobs), Counter(job.kind for job in jobs)
        return cls(per_lane, per_kind, lanes, kinds, more)

    def takes(self, job: Any) -> bool:
        """Whether there is room for this job; it counts from now on."""
        if self.lanes[job.lane] >= self.per_lane or self.kinds[job.kind] >= self._most(job.kind):
            return False
        self.lanes[job.lane] += 1
        self.kinds[job.kind] += 1
        return True

    @property
    def full_lanes(self) -> list[str]:
        """Lanes without room."""
        return [lane for lane, count in self.lanes.items() if count >= self.per_lane]

    @property
    def full_kinds(self) -> list[str]:
        """Kinds without room."""
        return [kind for kind, count in self.kinds.items() if count >= self._most(kind)]

    def _most(self, kind: str) -> int:
        return self.more.get(kind, self.per_kind)


def claim_due(tx: Transaction, busy: Busy, *, name: str, lease_ms: int) -> list[Claimed]:
    """Claim due jobs that there is room for; they count as `busy` then. `name`: of this claim alone."""
    full = {"lanes": busy.full_lanes, "kinds": busy.full_kinds}
    rows = tx.connection.execute(DUE_IN_ROOM if any(full.values()) else DUE, {"now": tx.now, **full})
    claimed = [
        Claimed(row.id, row.key, row.kind, row.task, row.lane, row.data, row.attempts + 1, name)
        for row in rows
        if busy.takes(row)
    ]
    if claimed:
        until = tx.now + lease_ms
        tx.connection.execute(CLAIM, [{"id": job.id, "claim": name, "until": until} for job in claimed])
    return claimed


def give_back(tx: Transaction, name: str) -> None:
    """Void a claim that nobody heard of; nothing of it was begun, so it counts as no attempt."""
    tx.connection.execute(GIVE_BACK, {"claim": name})


def next_due(tx: Transaction, busy: Busy, *, leases: bool = True) -> int | None:
    """Unix ms at which a job that there is room for is due, or one of the `leases` ends; None for never."""
    full = {"lanes": busy.full_lanes, "kinds": busy.full_kinds}
    due = tx.connection.execute(NEXT_IN_ROOM if any(full.values()) else NEXT, full).scalar()
    lease = tx.connection.execute(NEXT_RESCUE).scalar() if leases else None
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


LONGEST_ASKED = 3600.0
"""Seconds up to which a `Retry-After` is believed."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between attempts, seconds: drawn from the upper half of each step, so that retries spread out."""

    steps: tuple[float, ...]
    draw: Callable[[], float] = random.random

    def after(self, attempts: int, now: int, *, at_least: float | None = None) -> int | None:
        """Unix ms of the next attempt after so many; None when that was the last.

        `at_least`: the seconds that the other side asked for (`Retry-After`).
        """
        if attempts > len(self.steps):
            return None
        step = self.steps[attempts - 1]
        wait = max(step * (0.5 + self.draw() / 2), min(at_least or 0.0, LONGEST_ASKED))
        return now + int(wait * 1000)

"""Work that is owed: claimed under a lease, settled only by who holds the claim, kept when it is given up.

     a           b
ready ──▶ running ──▶ (gone)     a  claimed: counted, leased        b  Done
  ▲          │ │                 c  RetryAt, or the lease ran out   d  GiveUp
  └────c─────┘ └──d──▶ dead ──▶ ready (owed again)
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from kling_receiver.store.sql import Statement
from kling_receiver.store.tables import dump_json
from kling_receiver.store.transaction import JOB, Transaction

MAX_SCANNED = 200
"""Jobs that one claim looks at: those of a lane that is full are passed over."""
NEVER = 1 << 60
"""Unix ms at which nothing is due: a job that waits for a hook to be resumed."""


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that is ours to do until its lease ends; `attempts` counts this one too."""

    id: int
    key: str
    kind: str
    task_id: str
    concurrency_key: str
    args: Any
    attempts: int
    claim_id: str


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
    args: Any = None
    counts: bool = True


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Kept as dead, with the reason."""

    error: str


Outcome = Done | RetryAt | GiveUp
Settle = Callable[[Transaction], Outcome]
"""What a job came to: applied in the transaction that settles it, so that both happen or neither."""


def settle_as(outcome: Outcome) -> Settle:
    """A verdict that changes nothing but the job."""
    return lambda tx: outcome


HAS_CAPACITY = "AND lane NOT IN :lanes AND kind NOT IN :kinds"


def _due(condition: str) -> Statement:
    sql = f"""
        SELECT id, key, kind, task, lane, data, attempts FROM job
        WHERE state = 'ready' AND due_at <= :now {condition} ORDER BY due_at, id LIMIT {MAX_SCANNED}
    """  # noqa: S608  # ours
    return Statement(sql, table=JOB, lock="FOR UPDATE SKIP LOCKED")


def _next(condition: str) -> Statement:
    sql = (
        f"SELECT due_at FROM job WHERE state = 'ready' AND due_at < {NEVER} {condition} ORDER BY due_at LIMIT 1"  # noqa: S608
    )
    return Statement(sql)


DUE, DUE_WITH_CAPACITY = _due(""), _due(HAS_CAPACITY)
NEXT, NEXT_WITH_CAPACITY = _next(""), _next(HAS_CAPACITY)
CLAIM = Statement("""
    UPDATE job SET state = 'running', attempts = attempts + 1, claim = :claim, leased_until = :until
    WHERE id = :id AND state = 'ready'
""")
RESCUE = Statement("""
    UPDATE job SET state = 'ready', claim = NULL, leased_until = NULL, due_at = :now, attempts = attempts - 1
    WHERE state = 'running' AND leased_until <= :until
""")
RELEASE_CLAIM = Statement("""
    UPDATE job SET state = 'ready', claim = NULL, leased_until = NULL, attempts = attempts - 1
    WHERE state = 'running' AND claim = :claim
""")
DELETE_SETTLED = Statement("DELETE FROM job WHERE id = :id AND claim = :claim")
RETRY = Statement("""
    UPDATE job SET state = 'ready', claim = NULL, leased_until = NULL, due_at = :due_at, error = :error,
        attempts = :attempts, data = :data
    WHERE id = :id AND claim = :claim
""")
MARK_DEAD = Statement("""
    UPDATE job SET state = 'dead', claim = NULL, leased_until = NULL, error = :error
    WHERE id = :id AND claim = :claim
""")
LOCK_CLAIMED = Statement("SELECT 1 FROM job WHERE id = :id AND claim = :claim", lock="FOR UPDATE")
NEXT_LEASE_EXPIRY = Statement("SELECT min(leased_until) FROM job WHERE state = 'running'")

MAX_ERROR_CHARS = 500
NO_OVERRIDES: Mapping[str, int] = {}


@dataclass(slots=True)
class Capacity:
    """What runs at once, by lane and by kind, and how much of each may; of some kinds `more`."""

    per_key: int
    per_kind: int
    keys: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    overrides: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        jobs: Sequence[ClaimedJob],
        *,
        per_key: int,
        per_kind: int,
        overrides: Mapping[str, int] = NO_OVERRIDES,
    ) -> Self:
        """With what runs already."""
        lanes, kinds = Counter(job.concurrency_key for job in jobs), Counter(job.kind for job in jobs)
        return cls(per_key, per_kind, lanes, kinds, overrides)

    def reserve(self, key: str, kind: str) -> bool:
        """Whether there is room for a job; it counts from now on."""
        if self.keys[key] >= self.per_key or self.kinds[kind] >= self._limit(kind):
            return False
        self.keys[key] += 1
        self.kinds[kind] += 1
        return True

    @property
    def exhausted(self) -> dict[str, list[str]]:
        """The `lanes` and `kinds` without room, if any is."""
        lanes = [lane for lane, count in self.keys.items() if count >= self.per_key]
        kinds = [kind for kind, count in self.kinds.items() if count >= self._limit(kind)]
        return {"lanes": lanes, "kinds": kinds} if lanes or kinds else {}

    def _limit(self, kind: str) -> int:
        return self.overrides.get(kind, self.per_kind)


def claim_due(tx: Transaction, capacity: Capacity, *, claim_id: str, lease_ms: int) -> list[ClaimedJob]:
    """Claim due jobs that there is room for; they count as `busy` then. `name`: of this claim alone."""
    full = capacity.exhausted
    rows = (
        DUE_WITH_CAPACITY.all(tx.connection, now=tx.now, **full) if full else DUE.all(tx.connection, now=tx.now)
    )
    claimed = [
        ClaimedJob(**{**row, "attempts": row["attempts"] + 1}, claim_id=claim_id)
        for row in rows
        if capacity.reserve(row["lane"], row["kind"])
    ]
    if claimed:
        until = tx.now + lease_ms
        CLAIM.executemany(tx.connection, [{"id": job.id, "claim": claim_id, "until": until} for job in claimed])
    return claimed


def release_claim(tx: Transaction, claim_id: str) -> None:
    """Void a claim that nobody heard of; nothing of it was begun, so it counts as no attempt."""
    RELEASE_CLAIM.execute(tx.connection, claim=claim_id)


def next_due(tx: Transaction, capacity: Capacity, *, leases: bool = True) -> int | None:
    """Unix ms at which a job that there is room for is due, or one of the `leases` ends; None for never."""
    full = capacity.exhausted
    due = NEXT_WITH_CAPACITY.scalar(tx.connection, **full) if full else NEXT.scalar(tx.connection)
    lease = NEXT_LEASE_EXPIRY.scalar(tx.connection) if leases else None
    return min((at for at in (due, lease) if at is not None), default=None)


def settle(tx: Transaction, job: ClaimedJob, effect: Settle) -> bool:
    """Apply the verdict, unless the claim is lost: then nothing is changed, and False is returned."""
    held = {"id": job.id, "claim": job.claim_id}
    if not LOCK_CLAIMED.scalar(tx.connection, **held):
        return False
    outcome = effect(tx)
    if isinstance(outcome, Done):
        DELETE_SETTLED.execute(tx.connection, **held)
    elif isinstance(outcome, RetryAt):
        again = {
            "due_at": outcome.due_at,
            "error": outcome.error[:MAX_ERROR_CHARS],
            "attempts": job.attempts if outcome.counts else job.attempts - 1,
            "data": dump_json(job.args if outcome.args is None else outcome.args),
        }
        RETRY.execute(tx.connection, **held, **again)
    else:
        MARK_DEAD.execute(tx.connection, **held, error=outcome.error[:MAX_ERROR_CHARS])
    return True


def rescue(tx: Transaction, expired_by: int) -> int:
    """Give back the jobs whose lease ends by `until` (unix ms): their worker is dead. How many there were.

    The attempt does not count: however often the receiver is killed, no file and no event is given up for that.
    """
    return RESCUE.execute(tx.connection, now=tx.now, until=expired_by)

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

from kling_receiver.store.sql import Sql
from kling_receiver.store.tables import encode
from kling_receiver.store.transaction import JOB, Transaction

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


IN_ROOM = "AND lane NOT IN :lanes AND kind NOT IN :kinds"


def _due(room: str) -> Sql:
    sql = f"""
        SELECT id, key, kind, task, lane, data, attempts FROM job
        WHERE state = 'ready' AND due_at <= :now {room} ORDER BY due_at, id LIMIT {LOOK_AHEAD}
    """  # noqa: S608  # ours
    return Sql(sql, of=JOB, lock="FOR UPDATE SKIP LOCKED")


def _next(room: str) -> Sql:
    sql = f"SELECT due_at FROM job WHERE state = 'ready' AND due_at < {FAR} {room} ORDER BY due_at LIMIT 1"  # noqa: S608
    return Sql(sql)


DUE, DUE_IN_ROOM = _due(""), _due(IN_ROOM)
NEXT, NEXT_IN_ROOM = _next(""), _next(IN_ROOM)
CLAIM = Sql("""
    UPDATE job SET state = 'running', attempts = attempts + 1, claim = :claim, leased_until = :until
    WHERE id = :id AND state = 'ready'
""")
RESCUE = Sql("""
    UPDATE job SET state = 'ready', claim = NULL, leased_until = NULL, due_at = :now, attempts = attempts - 1
    WHERE state = 'running' AND leased_until <= :until
""")
GIVE_BACK = Sql("""
    UPDATE job SET state = 'ready', claim = NULL, leased_until = NULL, attempts = attempts - 1
    WHERE state = 'running' AND claim = :claim
""")
FORGET = Sql("DELETE FROM job WHERE id = :id AND claim = :claim")
RETRY = Sql("""
    UPDATE job SET state = 'ready', claim = NULL, leased_until = NULL, due_at = :due_at, error = :error,
        attempts = :attempts, data = :data
    WHERE id = :id AND claim = :claim
""")
BURY = Sql("""
    UPDATE job SET state = 'dead', claim = NULL, leased_until = NULL, error = :error
    WHERE id = :id AND claim = :claim
""")
HOLD = Sql("SELECT 1 FROM job WHERE id = :id AND claim = :claim", lock="FOR UPDATE")
NEXT_RESCUE = Sql("SELECT min(leased_until) FROM job WHERE state = 'running'")

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

    def takes(self, lane: str, kind: str) -> bool:
        """Whether there is room for a job; it counts from now on."""
        if self.lanes[lane] >= self.per_lane or self.kinds[kind] >= self._most(kind):
            return False
        self.lanes[lane] += 1
        self.kinds[kind] += 1
        return True

    @property
    def full(self) -> dict[str, list[str]]:
        """The `lanes` and `kinds` without room, if any is."""
        lanes = [lane for lane, count in self.lanes.items() if count >= self.per_lane]
        kinds = [kind for kind, count in self.kinds.items() if count >= self._most(kind)]
        return {"lanes": lanes, "kinds": kinds} if lanes or kinds else {}

    def _most(self, kind: str) -> int:
        return self.more.get(kind, self.per_kind)


def claim_due(tx: Transaction, busy: Busy, *, name: str, lease_ms: int) -> list[Claimed]:
    """Claim due jobs that there is room for; they count as `busy` then. `name`: of this claim alone."""
    full = busy.full
    rows = DUE_IN_ROOM.all(tx.connection, now=tx.now, **full) if full else DUE.all(tx.connection, now=tx.now)
    claimed = [
        Claimed(**{**row, "attempts": row["attempts"] + 1}, claim=name)
        for row in rows
        if busy.takes(row["lane"], row["kind"])
    ]
    if claimed:
        until = tx.now + lease_ms
        CLAIM.do_each(tx.connection, [{"id": job.id, "claim": name, "until": until} for job in claimed])
    return claimed


def give_back(tx: Transaction, name: str) -> None:
    """Void a claim that nobody heard of; nothing of it was begun, so it counts as no attempt."""
    GIVE_BACK.do(tx.connection, claim=name)


def next_due(tx: Transaction, busy: Busy, *, leases: bool = True) -> int | None:
    """Unix ms at which a job that there is room for is due, or one of the `leases` ends; None for never."""
    full = busy.full
    due = NEXT_IN_ROOM.value(tx.connection, **full) if full else NEXT.value(tx.connection)
    lease = NEXT_RESCUE.value(tx.connection) if leases else None
    return min((at for at in (due, lease) if at is not None), default=None)


def settle(tx: Transaction, job: Claimed, decide: Verdict) -> bool:
    """Apply the verdict, unless the claim is lost: then nothing is changed, and False is returned."""
    held = {"id": job.id, "claim": job.claim}
    if not HOLD.value(tx.connection, **held):
        return False
    outcome = decide(tx)
    if isinstance(outcome, Done):
        FORGET.do(tx.connection, **held)
    elif isinstance(outcome, RetryAt):
        again = {
            "due_at": outcome.due_at,
            "error": outcome.error[:LONGEST_ERROR],
            "attempts": job.attempts if outcome.counts else job.attempts - 1,
            "data": encode(job.data if outcome.data is None else outcome.data),
        }
        RETRY.do(tx.connection, **held, **again)
    else:
        BURY.do(tx.connection, **held, error=outcome.error[:LONGEST_ERROR])
    return True


def rescue(tx: Transaction, until: int) -> int:
    """Give back the jobs whose lease ends by `until` (unix ms): their worker is dead. How many there were.

    The attempt does not count: however often the receiver is killed, no file and no event is given up for that.
    """
    return RESCUE.do(tx.connection, now=tx.now, until=until)

"""The job queue: jobs are claimed under a lease and settled by the claim's holder.

A job that is given up stays as a dead letter and can be retried.

     a           b
ready ──▶ running ──▶ (gone)     a  claimed: attempt counted, lease set   b  Done
  ▲          │ │                 c  RetryAt, or the lease expired         d  GiveUp, or unknown to this version
  └────c─────┘ └──d──▶ dead ──▶ ready (enqueued or retried)
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from kling_receiver.jobs.kinds import MAX_PER_POOL, MAX_PER_UNKNOWN_POOL
from kling_receiver.store.errors import InvalidRow
from kling_receiver.store.rows import JobRow
from kling_receiver.store.sql import Statement
from kling_receiver.store.tables import dump_json, load_json
from kling_receiver.store.transaction import Transaction

MAX_SCANNED = 200
"""Due jobs that one claim reads: it passes over those whose concurrency key is exhausted."""
NEVER = 1 << 60
"""Unix ms of a job that is not due before something resumes it: that of a paused hook."""
MAX_ERROR_CHARS = 500
INVALID = "This version cannot run the job: "
"""How the error of a dead letter begins whose kind, args or rows are unknown."""


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that this worker may run until its lease expires; `attempts` includes the current one."""

    id: int
    unique_key: str
    kind: str
    pool: str
    task_id: str
    concurrency_key: str
    args: Any
    """Of a row that is damaged, it may be anything: see `kinds.args_problem`."""
    attempts: int
    claim_id: str


@dataclass(frozen=True, slots=True)
class Done:
    """The job is finished and deleted."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """The job runs again at `due_at` (unix ms). `args`: for the next attempt; None keeps them.

    `counts`: False for an attempt that was interrupted before it could succeed or fail.
    """

    due_at: int
    error: str
    args: Any = None
    counts: bool = True


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job becomes a dead letter, with the reason."""

    error: str


Outcome = Done | RetryAt | GiveUp
Effect = Callable[[Transaction], Outcome]
"""What a handler returns: it is applied in the transaction that settles the job, so that both happen or neither."""


def settle_as(outcome: Outcome) -> Effect:
    """An `Effect` that changes only the job."""
    return lambda tx: outcome


HAS_CAPACITY = "AND concurrency_key NOT IN :keys AND pool NOT IN :pools"
DUE, DUE_WITH_CAPACITY = (
    Statement[JobRow](
        f"""
        SELECT id, unique_key, kind, pool, task_id, concurrency_key, args, attempts FROM job
        WHERE state = 'ready' AND due_at <= :now {condition} ORDER BY due_at, id LIMIT {MAX_SCANNED}
        """,  # constants
        lock="FOR UPDATE SKIP LOCKED",
    )
    for condition in ("", HAS_CAPACITY)
)
NEXT, NEXT_WITH_CAPACITY = (
    Statement(f"""
        SELECT due_at FROM job WHERE state = 'ready' AND due_at < {NEVER} {condition} ORDER BY due_at LIMIT 1
    """)  # constants
    for condition in ("", HAS_CAPACITY)
)
CLAIM = Statement("""
    UPDATE job SET state = 'running', attempts = attempts + 1, claim_id = :claim_id,
        lease_expires_at = :lease_expires_at
    WHERE id = :id AND state = 'ready'
""")
RESCUE = Statement("""
    UPDATE job SET state = 'ready', claim_id = NULL, lease_expires_at = NULL, due_at = :now, delay_ms = 0,
        attempts = attempts - 1
    WHERE state = 'running' AND lease_expires_at <= :expired_by
""")
RENEW_LEASE = Statement("""
    UPDATE job SET lease_expires_at = :lease_expires_at WHERE id = :id AND claim_id = :claim_id
""")
RELEASE_CLAIM = Statement("""
    UPDATE job SET state = 'ready', claim_id = NULL, lease_expires_at = NULL, attempts = attempts - 1
    WHERE state = 'running' AND claim_id = :claim_id
""")
DELETE_SETTLED = Statement("DELETE FROM job WHERE id = :id AND claim_id = :claim_id")
RETRY = Statement("""
    UPDATE job SET state = 'ready', claim_id = NULL, lease_expires_at = NULL, due_at = :due_at,
        delay_ms = :delay_ms, error = :error, attempts = :attempts, args = :args
    WHERE id = :id AND claim_id = :claim_id
""")
MARK_DEAD = Statement("""
    UPDATE job SET state = 'dead', claim_id = NULL, lease_expires_at = NULL, error = :error
    WHERE id = :id AND claim_id = :claim_id
""")
LOCK_CLAIMED = Statement("SELECT 1 FROM job WHERE id = :id AND claim_id = :claim_id", lock="FOR UPDATE")
NEXT_LEASE_EXPIRY = Statement("SELECT min(lease_expires_at) FROM job WHERE state = 'running'")
RETRY_INVALID = Statement(f"""
    UPDATE job SET state = 'ready', attempts = 0, due_at = :now, delay_ms = 0
    WHERE state = 'dead' AND error LIKE '{INVALID}%'
""")  # a constant
CLAMP_DUE_TIMES = Statement(f"""
    UPDATE job SET due_at = :now + delay_ms
    WHERE state = 'ready' AND due_at > :now + delay_ms AND due_at < {NEVER}
""")  # a constant
CLAMP_LEASES = Statement("""
    UPDATE job SET lease_expires_at = :latest WHERE state = 'running' AND lease_expires_at > :latest
""")


@dataclass(slots=True)
class Capacity:
    """How many more jobs may run: at most `per_key` with one concurrency key, and `per_pool` in each pool."""

    per_key: int
    per_pool: Mapping[str, int] = field(default_factory=lambda: MAX_PER_POOL)
    keys: Counter[str] = field(default_factory=Counter)
    pools: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, running: Sequence[ClaimedJob], *, per_key: int, per_pool: Mapping[str, int] = MAX_PER_POOL) -> Self:
        """The capacity that the running jobs leave."""
        keys, pools = Counter(job.concurrency_key for job in running), Counter(job.pool for job in running)
        return cls(per_key, per_pool, keys, pools)

    def reserve(self, key: str, pool: str) -> bool:
        """Count one more job, if there is capacity for it; whether there was."""
        if self.keys[key] >= self.per_key or self.pools[pool] >= self._pool_limit(pool):
            return False
        self.keys[key] += 1
        self.pools[pool] += 1
        return True

    @property
    def exhausted(self) -> dict[str, list[str]]:
        """The `keys` and `pools` without capacity; empty when no limit is reached."""
        keys = [key for key, count in self.keys.items() if count >= self.per_key]
        pools = [pool for pool, count in self.pools.items() if count >= self._pool_limit(pool)]
        return {"keys": keys, "pools": pools} if keys or pools else {}

    def _pool_limit(self, pool: str) -> int:
        return self.per_pool.get(pool, MAX_PER_UNKNOWN_POOL)


def claim_due(tx: Transaction, capacity: Capacity, *, claim_id: str, lease_ms: int) -> list[ClaimedJob]:
    """Claim the due jobs that there is capacity for. `claim_id`: of this claim only."""
    if exhausted := capacity.exhausted:
        rows = DUE_WITH_CAPACITY.all(tx.connection, now=tx.now, **exhausted)
    else:
        rows = DUE.all(tx.connection, now=tx.now)
    claimed = [
        ClaimedJob(
            id=row["id"],
            unique_key=row["unique_key"],
            kind=row["kind"],
            pool=row["pool"],
            task_id=row["task_id"],
            concurrency_key=row["concurrency_key"],
            args=_load_args(row["args"]),
            attempts=row["attempts"] + 1,
            claim_id=claim_id,
        )
        for row in rows
        if capacity.reserve(row["concurrency_key"], row["pool"])
    ]
    if claimed:
        claim = {"claim_id": claim_id, "lease_expires_at": tx.now + lease_ms}
        CLAIM.executemany(tx.connection, [{"id": job.id, **claim} for job in claimed])
    return claimed


def _load_args(text: Any) -> Any:
    """The args of a job. Those that are no JSON stay text: one damaged row must not stop the queue."""
    try:
        return load_json(text)
    except InvalidRow:
        return text


def renew_leases(tx: Transaction, jobs: Sequence[ClaimedJob], *, lease_ms: int) -> None:
    """Extend the leases of running jobs, whose worker is this one."""
    lease = {"lease_expires_at": tx.now + lease_ms}
    RENEW_LEASE.executemany(tx.connection, [{"id": job.id, "claim_id": job.claim_id, **lease} for job in jobs])


def release_claim(tx: Transaction, claim_id: str) -> None:
    """Release the jobs of a claim whose commit was reported as failed. They never started: no attempt is counted."""
    RELEASE_CLAIM.execute(tx.connection, claim_id=claim_id)


def next_due(tx: Transaction, capacity: Capacity, *, leases: bool = True) -> int | None:
    """Unix ms of the next job that there is capacity for, or of the next lease to expire; None: neither exists."""
    if exhausted := capacity.exhausted:
        due = NEXT_WITH_CAPACITY.scalar(tx.connection, **exhausted)
    else:
        due = NEXT.scalar(tx.connection)
    lease = NEXT_LEASE_EXPIRY.scalar(tx.connection) if leases else None
    return min((at for at in (due, lease) if at is not None), default=None)


def settle(tx: Transaction, job: ClaimedJob, effect: Effect) -> bool:
    """Finish a claimed job: apply its effect and outcome in this transaction.

    Returns False, changing nothing, if another worker has taken the claim.
    """
    claim = {"id": job.id, "claim_id": job.claim_id}
    if not LOCK_CLAIMED.scalar(tx.connection, **claim):
        return False
    outcome = effect(tx)
    tx.worked_on(job.task_id)
    if isinstance(outcome, Done):
        DELETE_SETTLED.execute(tx.connection, **claim)
    elif isinstance(outcome, RetryAt):
        RETRY.execute(
            tx.connection,
            **claim,
            due_at=outcome.due_at,
            delay_ms=max(outcome.due_at - tx.now, 0),
            error=outcome.error[:MAX_ERROR_CHARS],
            attempts=job.attempts if outcome.counts else job.attempts - 1,
            args=dump_json(job.args if outcome.args is None else outcome.args),
        )
    else:
        MARK_DEAD.execute(tx.connection, **claim, error=outcome.error[:MAX_ERROR_CHARS])
    return True


def rescue(tx: Transaction, expired_by: int) -> int:
    """Release the jobs whose lease expires by `expired_by` (unix ms): their worker is dead. Returns how many.

    The attempt is not counted: however often the receiver is killed, no file and no event is given up for it.
    """
    return RESCUE.execute(tx.connection, now=tx.now, expired_by=expired_by)


def retry_invalid(tx: Transaction) -> int:
    """Retry the dead letters that the version which ran before could not run. Returns how many."""
    return RETRY_INVALID.execute(tx.connection, now=tx.now)


def clamp_due_times(tx: Transaction) -> int:
    """Make jobs due earlier that are due more than `delay_ms` from now. Returns how many.

    The clock was ahead when their due time was set, and has been corrected since.
    """
    return CLAMP_DUE_TIMES.execute(tx.connection, now=tx.now)


def clamp_leases(tx: Transaction, lease_ms: int) -> None:
    """Let leases expire `lease_ms` from now at the latest, also those that were given by a clock that was ahead."""
    CLAMP_LEASES.execute(tx.connection, latest=tx.now + lease_ms)

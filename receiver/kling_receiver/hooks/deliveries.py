"""Deliveries as rows: what became of each event at each hook, what is owed again, and what is dead.

An event stays owed to a hook until it was taken: it lies behind the hook's cursor, waits as a job, or is dead.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from kling_receiver.hooks.records import MAX_REASON_CHARS, hook, job_kind, pause
from kling_receiver.store.sql import BulkInsert, Row, Statement
from kling_receiver.store.tables import Attempt as AttemptRow
from kling_receiver.store.transaction import EVENT, JOB, Transaction

ATTEMPT = AttemptRow.__table__  # type: ignore[attr-defined]  # set by SQLModel
INSERT_ATTEMPTS = BulkInsert(ATTEMPT, [column.name for column in ATTEMPT.c if column.name != "id"])


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """One attempt, made at `at` (unix ms) in `ms` milliseconds; `count`: which one of this delivery.

    `due_at`: when it is to be made again (unix ms); None when it was taken, or no attempt is left.
    `gone`: the hook wants nothing any more.
    """

    hook: Row
    event_id: int
    task_id: str
    attempted_at: int
    duration_ms: int
    count: int
    delivered: bool
    response_status: int | None = None
    response_body: str = ""
    error: str = ""
    retry_at: int | None = None
    gone: bool = False


def record_attempts(tx: Transaction, attempts: list[DeliveryAttempt]) -> None:
    """Keep attempts; what was not taken is owed again, or kept as dead, unless the hook was removed."""
    save_attempts(tx, attempts)
    failed = {each.hook["name"] for each in attempts if not each.delivered}
    there = {name for name in sorted(failed) if hook(tx.connection, name)}
    for each in attempts:
        if not each.delivered and each.hook["name"] in there:
            dead = {"state": "dead", "error": each.error} if each.retry_at is None else {"error": each.error}
            enqueue_delivery(
                tx, each.event_id, each.hook, each.task_id, due_at=each.retry_at, attempts=each.count, **dead
            )


def save_attempts(tx: Transaction, attempts: Sequence[DeliveryAttempt]) -> None:
    """Keep attempts, and what they show of their hooks."""
    by_hook: dict[str, list[DeliveryAttempt]] = {}
    for each in attempts:
        by_hook.setdefault(each.hook["name"], []).append(each)
    INSERT_ATTEMPTS.insert(tx.connection, [_row(each) for each in attempts])
    for name in sorted(by_hook):
        _update_health(tx, name, by_hook[name])


def _row(each: DeliveryAttempt) -> Row:
    return {
        "hook": each.hook["name"],
        "event": each.event_id,
        "task": each.task_id,
        "at": each.attempted_at,
        "ms": each.duration_ms,
        "taken": each.delivered,
        "status": each.response_status,
        "answer": each.response_body.replace("\0", "\ufffd"),
        "error": each.error[:MAX_REASON_CHARS],
    }


MARK_HEALTHY = Statement(
    "UPDATE hook SET failing_since = NULL WHERE name = :name AND failing_since IS NOT NULL"
)
MARK_FAILING = Statement("""
    UPDATE hook SET failing_since = :now WHERE name = :name AND (failing_since IS NULL OR NOT EXISTS (
        SELECT 1 FROM job WHERE hook = :name AND key LIKE 'hook/%' AND state <> 'dead'))
""")
"""It has failed since the first failure of which something is still to be tried again."""
FAILING_SINCE = Statement("SELECT failing_since FROM hook WHERE name = :name AND paused_at IS NULL")


def _update_health(tx: Transaction, name: str, attempts: Sequence[DeliveryAttempt]) -> None:
    """A hook that took something is well; one that failed for too long, or is gone, is paused."""
    limit = tx.policy.hook_pause_seconds
    if any(each.gone for each in attempts):
        pause(tx, name, "it answered 410: it wants nothing any more")
    elif any(each.delivered for each in attempts):
        if MARK_HEALTHY.execute(tx.connection, name=name):
            tx.run_now(f"dispatch/{name}")
    else:
        MARK_FAILING.execute(tx.connection, name=name, now=tx.now)
        since = FAILING_SINCE.scalar(tx.connection, name=name)
        if since is not None and tx.now - since >= limit * 1000:
            pause(tx, name, f"it took nothing for {limit:g} s; the last time: {attempts[-1].error}")


def enqueue_delivery(
    tx: Transaction, event_id: int, hook: Row, task_id: str, *, due_at: int | None = None, **more: Any
) -> None:
    """Owe one delivery: now, or at `due_at` (unix ms)."""
    name, kind = hook["name"], job_kind("hook", hook)
    data = {"hook": name, "event": event_id}
    more |= {"hook": name, "due_at": due_at, "data": data}
    tx.enqueue(kind, task_id, key=delivery_key(event_id, name), lane=f"hook {hook['lane']}", **more)


def delivery_key(event_id: int, hook_name: str) -> str:
    """The key of what is owed of one delivery."""
    return f"hook/{event_id}/{hook_name}"


ADVANCE_CURSOR = Statement("UPDATE hook SET cursor = :cursor WHERE name = :name AND cursor < :cursor")
HAS_MORE = Statement("""
    SELECT 1 FROM hook WHERE name = :name AND paused_at IS NULL AND EXISTS (
        SELECT 1 FROM event WHERE id > hook.cursor AND (hook.task IS NULL OR event.task = hook.task))
""")


def advance_cursor(tx: Transaction, name: str, cursor: int) -> bool:
    """Every event up to `cursor` was tried once, or not wanted; whether there are more by now."""
    ADVANCE_CURSOR.execute(tx.connection, name=name, cursor=cursor)
    return HAS_MORE.scalar(tx.connection, name=name) is not None


def redeliver(tx: Transaction, event_id: int, hook: Row, task_id: str) -> None:
    """Send one event to one hook again, whatever became of it; to a paused one when it is resumed."""
    enqueue_delivery(tx, event_id, hook, task_id)
    tx.run_now(delivery_key(event_id, hook["name"]))


RETRY_DEAD = """
    UPDATE job SET state = 'ready', attempts = 0, due_at = :now WHERE state = 'dead' AND hook
"""


def retry_dead(tx: Transaction, name: str | None) -> int:
    """Send again all that is dead, of one hook or of all; how many those are."""
    which = " = :name" if name else " IS NOT NULL"
    count = Statement(RETRY_DEAD + which).execute(tx.connection, now=tx.now, name=name)
    if count:
        tx.wake_worker()
    return count


def replay(
    tx: Transaction, hooks: Iterable[Row], after: int, until: int, *, task_id: str | None = None
) -> None:
    """Owe these hooks anew what they want of the events after `after`, up to `until`; of one task or of all."""
    for row in hooks:
        name = row["name"]
        key = f"replay/{name}/{after}/{until}/{task_id or ''}"
        data = {"after": after, "until": until, "task": task_id, "hook": name}
        tx.enqueue(job_kind("replay", row), "", key=key, lane=f"hook {row['lane']}", hook=name, data=data)


def count_events(connection: Connection, first: int, last: int, task_id: str | None) -> int:
    """How many events the log has from `first` to `last`; of one task or of all."""
    query = select(func.count()).where(EVENT.c.id >= first, EVENT.c.id <= last)
    if task_id is not None:
        query = query.where(EVENT.c.task == task_id)
    return int(connection.execute(query).scalar_one())


def counts(connection: Connection, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Of each hook how many deliveries wait (tried, and to be tried again), and how many are dead."""
    query = (
        select(JOB.c.hook, JOB.c.state, func.count())
        .where(JOB.c.hook.in_(list(names)), JOB.c.key.like("hook/%"))
        .group_by(JOB.c.hook, JOB.c.state)
    )
    found = {name: {"waiting": 0, "dead": 0} for name in names}
    for name, state, count in connection.execute(query):
        found[name]["dead" if state == "dead" else "waiting"] += count
    return found


ATTEMPTED = Statement("SELECT event FROM attempt WHERE hook = :name AND event > :after")


def attempted_events(connection: Connection, name: str, after: int) -> set[int]:
    """The events after `after` of which an attempt is on record: a run that was killed had made them."""
    return set(ATTEMPTED.scalars(connection, name=name, after=after))


def first_event_since(connection: Connection, at: int) -> int | None:
    """The id of the first event at `at` (unix ms) or later."""
    return connection.execute(select(func.min(EVENT.c.id)).where(EVENT.c.at >= at)).scalar()

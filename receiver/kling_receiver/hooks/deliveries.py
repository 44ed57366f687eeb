"""The rows of deliveries: record attempts, enqueue retries, advance cursors, retry dead letters, replay.

Until a hook has accepted an event, the event is behind the hook's cursor, waits as a job, or is a dead letter.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from kling_receiver.hooks.records import MAX_REASON_CHARS, hook, pause
from kling_receiver.jobs.kinds import Kind, delivery_key, dispatch_key, hook_pool, replay_key
from kling_receiver.jobs.queue import NEVER
from kling_receiver.store.removed import removed_tasks
from kling_receiver.store.rows import HookRow, Row
from kling_receiver.store.sql import BulkInsert, Statement
from kling_receiver.store.tables import ATTEMPT, EVENT, JOB
from kling_receiver.store.transaction import Transaction

INSERT_ATTEMPTS = BulkInsert(ATTEMPT, [column.name for column in ATTEMPT.c if column.name != "id"])


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """One attempt at one delivery. `attempted_at`: unix ms; `count`: its number, from 1.

    `retry_in_ms`: from its record to the next attempt; None when it was delivered, or no attempt is left.
    `gone`: the hook answered that it wants no more events.
    """

    hook: HookRow
    event_id: int
    task_id: str
    attempted_at: int
    duration_ms: int
    count: int
    delivered: bool
    response_status: int | None = None
    response_body: str = ""
    error: str = ""
    retry_in_ms: int | None = None
    gone: bool = False


def record_attempts(tx: Transaction, attempts: list[DeliveryAttempt]) -> None:
    """Save attempts. Failed ones are retried or become dead letters, unless the hook is gone."""
    kept = save_attempts(tx, attempts)
    failed = {each.hook["name"] for each in kept if not each.delivered}
    existing = {name for name in sorted(failed) if hook(tx.connection, name)}
    for each in kept:
        if not each.delivered and each.hook["name"] in existing:
            state = "dead" if each.retry_in_ms is None else "ready"
            job = {"state": state, "error": each.error, "attempts": each.count}
            enqueue_delivery(tx, each.event_id, each.hook, each.task_id, due_at=tx.now + (each.retry_in_ms or 0), **job)


def save_attempts(tx: Transaction, attempts: Sequence[DeliveryAttempt]) -> list[DeliveryAttempt]:
    """Save attempts, and update the health of their hooks. Returns those that are kept.

    The events of a task that was removed during an attempt are gone: there is nothing to keep it with, nor to retry.
    """
    by_hook: dict[str, list[DeliveryAttempt]] = {}
    for each in attempts:
        tx.worked_on(each.task_id)
        by_hook.setdefault(each.hook["name"], []).append(each)
    removed = removed_tasks(tx.connection, {each.task_id for each in attempts})
    kept = [each for each in attempts if each.task_id not in removed]
    INSERT_ATTEMPTS.insert(tx.connection, [_row(each) for each in kept])
    tx.note_hook_change()
    for name in sorted(by_hook):
        _update_health(tx, name, by_hook[name])
    return kept


def _row(attempt: DeliveryAttempt) -> Row:
    return {
        "hook_name": attempt.hook["name"],
        "event_id": attempt.event_id,
        "task_id": attempt.task_id,
        "attempted_at": attempt.attempted_at,
        "duration_ms": attempt.duration_ms,
        "delivered": attempt.delivered,
        "response_status": attempt.response_status,
        "response_body": attempt.response_body.replace("\0", "\ufffd"),
        "error": attempt.error[:MAX_REASON_CHARS],
    }


MARK_HEALTHY = Statement("""
    UPDATE hook SET failing_since = NULL WHERE name = :name AND failing_since IS NOT NULL
""")
MARK_FAILING = Statement(f"""
    UPDATE hook SET failing_since = :now WHERE name = :name AND (failing_since IS NULL OR NOT EXISTS (
        SELECT 1 FROM job WHERE hook_name = :name AND kind = '{Kind.DELIVERY}' AND state <> 'dead'))
""")  # a constant
"""A hook has been failing since the first failure of a delivery that is still to be retried."""
FAILING_SINCE = Statement("SELECT failing_since FROM hook WHERE name = :name AND paused_at IS NULL")


def _update_health(tx: Transaction, name: str, attempts: Sequence[DeliveryAttempt]) -> None:
    """Update the hook's health: a success clears `failing_since`; failing too long, or HTTP 410, pauses it."""
    if any(each.gone for each in attempts):
        pause(tx, name, "the hook answered 410: it wants no more events")
    elif any(each.delivered for each in attempts):
        if MARK_HEALTHY.execute(tx.connection, name=name):
            tx.run_now(dispatch_key(name))
    else:
        MARK_FAILING.execute(tx.connection, name=name, now=tx.now)
        since, seconds = FAILING_SINCE.scalar(tx.connection, name=name), tx.policy.hook_pause_seconds
        if since is not None and tx.now - since >= seconds * 1000:
            pause(tx, name, f"every attempt failed for {seconds:g} s; the last one: {attempts[-1].error}")


def enqueue_delivery(
    tx: Transaction, event_id: int, hook: HookRow, task_id: str, *, due_at: int | None = None, **values: Any
) -> None:
    """Enqueue one delivery. `due_at`: unix ms; None: now. `values`: columns of the job."""
    name = hook["name"]
    tx.enqueue(
        Kind.DELIVERY,
        task_id,
        unique_key=delivery_key(event_id, name),
        pool=hook_pool(Kind.DELIVERY, hook["task_id"]),
        concurrency_key=f"hook {hook['concurrency_key']}",
        due_at=due_at,
        args={"hook": name, "event": event_id},
        hook_name=name,
        **values,
    )


ADVANCE_CURSOR = Statement("UPDATE hook SET cursor = :cursor WHERE name = :name AND cursor < :cursor")
HAS_MORE = Statement("""
    SELECT 1 FROM hook WHERE name = :name AND paused_at IS NULL AND EXISTS (
        SELECT 1 FROM event WHERE id > hook.cursor AND (hook.task_id IS NULL OR event.task_id = hook.task_id))
""")


def advance_cursor(tx: Transaction, name: str, cursor: int) -> bool:
    """Record that every event up to `cursor` was attempted or did not match. Returns whether there are more."""
    ADVANCE_CURSOR.execute(tx.connection, name=name, cursor=cursor)
    tx.note_hook_change()
    return HAS_MORE.scalar(tx.connection, name=name) is not None


def redeliver(tx: Transaction, event_id: int, hook: HookRow, task_id: str) -> None:
    """Send one event to one hook again, whatever its state; to a paused hook once it is resumed."""
    enqueue_delivery(tx, event_id, hook, task_id)
    tx.run_now(delivery_key(event_id, hook["name"]))
    tx.note_hook_change()


RETRY_DEAD = """
    UPDATE job SET state = 'ready', attempts = 0, due_at = :now, delay_ms = 0 WHERE state = 'dead' AND hook_name
"""


def retry_dead(tx: Transaction, name: str | None) -> int:
    """Enqueue the dead letters of one hook, or of all hooks (None). Returns how many."""
    which = " = :name" if name else " IS NOT NULL"
    count = Statement(RETRY_DEAD + which).execute(tx.connection, now=tx.now, name=name)
    if count:
        tx.wake_worker()
        tx.note_hook_change()
    return count


def replay(tx: Transaction, hooks: Iterable[HookRow], after: int, until: int, *, task_id: str | None = None) -> None:
    """Send the events after `after`, up to `until`, to these hooks again; of one task or of all."""
    for row in hooks:
        name = row["name"]
        tx.enqueue(
            Kind.REPLAY,
            "",
            unique_key=replay_key(name, after, until, task_id),
            pool=hook_pool(Kind.REPLAY, row["task_id"]),
            concurrency_key=f"hook {row['concurrency_key']}",
            args={"after": after, "until": until, "task": task_id, "hook": name},
            hook_name=name,
        )


def count_events(connection: Connection, first: int, last: int, task_id: str | None) -> int:
    """How many events the log has from id `first` to `last`; of one task or of all."""
    query = select(func.count()).where(EVENT.c.id >= first, EVENT.c.id <= last)
    if task_id is not None:
        query = query.where(EVENT.c.task_id == task_id)
    return int(connection.execute(query).scalar_one())


def counts(connection: Connection, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """For each hook, how many deliveries are `pending` (attempted, to be retried) and `dead`."""
    query = (
        select(JOB.c.hook_name, JOB.c.state, func.count())
        .where(JOB.c.hook_name.in_(list(names)), JOB.c.kind == Kind.DELIVERY)
        .group_by(JOB.c.hook_name, JOB.c.state)
    )
    by_hook = {name: {"pending": 0, "dead": 0} for name in names}
    for name, state, count in connection.execute(query):
        by_hook[name]["dead" if state == "dead" else "pending"] += count
    return by_hook


NEXT_DUE = Statement[Row](f"""
    SELECT hook_name, min(due_at) AS due_at FROM job
    WHERE hook_name IN :names AND state = 'ready' AND due_at < {NEVER} GROUP BY hook_name
""")  # a constant


def next_due(connection: Connection, names: Sequence[str]) -> dict[str, int]:
    """For each hook that has something to do later, when that is due (unix ms)."""
    return {row["hook_name"]: row["due_at"] for row in NEXT_DUE.all(connection, names=list(names))}


ATTEMPTED = Statement("SELECT event_id FROM delivery_attempt WHERE hook_name = :name AND event_id > :after")


def attempted_events(connection: Connection, name: str, after: int) -> set[int]:
    """The ids above `after` that already have an attempt on record: a run was killed before it saved its cursor."""
    return set(ATTEMPTED.scalars(connection, name=name, after=after))


def first_event_since(connection: Connection, at: int) -> int | None:
    """The id of the first event at `at` (unix ms) or later."""
    return connection.execute(select(func.min(EVENT.c.id)).where(EVENT.c.created_at >= at)).scalar()

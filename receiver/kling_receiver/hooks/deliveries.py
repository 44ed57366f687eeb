"""Deliveries as rows: what became of each event at each hook, what is owed again, and what is dead.

An event stays owed to a hook until it was taken: it lies behind the hook's cursor, waits as a job, or is dead.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from kling_receiver.hooks.records import LONGEST_SAID, hook, of_kind, pause
from kling_receiver.store.sql import Bulk, Row, Sql
from kling_receiver.store.tables import Attempt as AttemptRow
from kling_receiver.store.transaction import EVENT, JOB, Transaction

ATTEMPT = AttemptRow.__table__  # type: ignore[attr-defined]  # set by SQLModel
ATTEMPTS = Bulk(ATTEMPT, [column.name for column in ATTEMPT.c if column.name != "id"])


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, made at `at` (unix ms) in `ms` milliseconds; `count`: which one of this delivery.

    `due_at`: when it is to be made again (unix ms); None when it was taken, or no attempt is left.
    `gone`: the hook wants nothing any more.
    """

    hook: Row
    event: int
    task: str
    at: int
    ms: int
    count: int
    taken: bool
    status: int | None = None
    answer: str = ""
    error: str = ""
    due_at: int | None = None
    gone: bool = False


def record(tx: Transaction, attempts: list[Attempt]) -> None:
    """Keep attempts; what was not taken is owed again, or kept as dead, unless the hook was removed."""
    keep(tx, attempts)
    failed = {each.hook["name"] for each in attempts if not each.taken}
    there = {name for name in sorted(failed) if hook(tx.connection, name)}
    for each in attempts:
        if not each.taken and each.hook["name"] in there:
            dead = {"state": "dead", "error": each.error} if each.due_at is None else {"error": each.error}
            owe(tx, each.event, each.hook, each.task, due_at=each.due_at, attempts=each.count, **dead)


def keep(tx: Transaction, attempts: Sequence[Attempt]) -> None:
    """Keep attempts, and what they show of their hooks."""
    by_hook: dict[str, list[Attempt]] = {}
    for each in attempts:
        by_hook.setdefault(each.hook["name"], []).append(each)
    ATTEMPTS.insert(tx.connection, [_row(each) for each in attempts])
    for name in sorted(by_hook):
        _judge(tx, name, by_hook[name])


def _row(each: Attempt) -> Row:
    return {
        "hook": each.hook["name"],
        "event": each.event,
        "task": each.task,
        "at": each.at,
        "ms": each.ms,
        "taken": each.taken,
        "status": each.status,
        "answer": each.answer.replace("\0", "\ufffd"),
        "error": each.error[:LONGEST_SAID],
    }


WELL = Sql("UPDATE hook SET failing_since = NULL WHERE name = :name AND failing_since IS NOT NULL")
ILL = Sql("""
    UPDATE hook SET failing_since = :now WHERE name = :name AND (failing_since IS NULL OR NOT EXISTS (
        SELECT 1 FROM job WHERE hook = :name AND key LIKE 'hook/%' AND state <> 'dead'))
""")
"""It has failed since the first failure of which something is still to be tried again."""
ILL_SINCE = Sql("SELECT failing_since FROM hook WHERE name = :name AND paused_at IS NULL")


def _judge(tx: Transaction, name: str, attempts: Sequence[Attempt]) -> None:
    """A hook that took something is well; one that failed for too long, or is gone, is paused."""
    patience = tx.rules.patience
    if any(each.gone for each in attempts):
        pause(tx, name, "it answered 410: it wants nothing any more")
    elif any(each.taken for each in attempts):
        if WELL.do(tx.connection, name=name):
            tx.hasten(f"dispatch/{name}")
    else:
        ILL.do(tx.connection, name=name, now=tx.now)
        since = ILL_SINCE.value(tx.connection, name=name)
        if since is not None and tx.now - since >= patience * 1000:
            pause(tx, name, f"it took nothing for {patience:g} s; the last time: {attempts[-1].error}")


def owe(tx: Transaction, event: int, row: Row, task: str, *, due_at: int | None = None, **more: Any) -> None:
    """Owe one delivery: now, or at `due_at` (unix ms)."""
    name, kind = row["name"], of_kind("hook", row)
    data = {"hook": name, "event": event}
    more |= {"hook": name, "due_at": due_at, "data": data}
    tx.owe(kind, task, key=key_of(event, name), lane=f"hook {row['lane']}", **more)


def key_of(event: int, hook: str) -> str:
    """The key of what is owed of one delivery."""
    return f"hook/{event}/{hook}"


ADVANCE = Sql("UPDATE hook SET cursor = :cursor WHERE name = :name AND cursor < :cursor")
BEHIND = Sql("""
    SELECT 1 FROM hook WHERE name = :name AND paused_at IS NULL AND EXISTS (
        SELECT 1 FROM event WHERE id > hook.cursor AND (hook.task IS NULL OR event.task = hook.task))
""")


def advance(tx: Transaction, name: str, cursor: int) -> bool:
    """Every event up to `cursor` was tried once, or not wanted; whether there are more by now."""
    ADVANCE.do(tx.connection, name=name, cursor=cursor)
    return BEHIND.value(tx.connection, name=name) is not None


def again(tx: Transaction, event: int, row: Row, task: str) -> None:
    """Send one event to one hook again, whatever became of it; to a paused one when it is resumed."""
    owe(tx, event, row, task)
    tx.hasten(key_of(event, row["name"]))


REVIVE = """
    UPDATE job SET state = 'ready', attempts = 0, due_at = :now WHERE state = 'dead' AND hook
"""


def revive(tx: Transaction, name: str | None) -> int:
    """Send again all that is dead, of one hook or of all; how many those are."""
    which = " = :name" if name else " IS NOT NULL"
    count = Sql(REVIVE + which).do(tx.connection, now=tx.now, name=name)
    if count:
        tx.wake()
    return count


def replay(tx: Transaction, hooks: Iterable[Row], after: int, until: int, *, task: str | None = None) -> None:
    """Owe these hooks anew what they want of the events after `after`, up to `until`; of one task or of all."""
    for row in hooks:
        name = row["name"]
        key = f"replay/{name}/{after}/{until}/{task or ''}"
        data = {"after": after, "until": until, "task": task, "hook": name}
        tx.owe(of_kind("replay", row), "", key=key, lane=f"hook {row['lane']}", hook=name, data=data)


def count_between(connection: Connection, first: int, last: int, task: str | None) -> int:
    """How many events the log has from `first` to `last`; of one task or of all."""
    query = select(func.count()).where(EVENT.c.id >= first, EVENT.c.id <= last)
    if task is not None:
        query = query.where(EVENT.c.task == task)
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


TRIED = Sql("SELECT event FROM attempt WHERE hook = :name AND event > :after")


def tried(connection: Connection, name: str, after: int) -> set[int]:
    """The events after `after` of which an attempt is on record: a run that was killed had made them."""
    return set(TRIED.values(connection, name=name, after=after))


def first_since(connection: Connection, at: int) -> int | None:
    """The id of the first event at `at` (unix ms) or later."""
    return connection.execute(select(func.min(EVENT.c.id)).where(EVENT.c.at >= at)).scalar()

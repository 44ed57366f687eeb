"""Hooks and their deliveries as rows: every statement on them, as verbs of the trade and as questions.

An event stays owed to a hook until it was taken: it lies behind the hook's cursor, waits as a job, or is dead.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, or_, select, text, tuple_

from receiver.bulk import Bulk
from receiver.hook_rows import LONGEST_SAID, hook, hooks, of_kind, pause
from receiver.hooks import wants
from receiver.reading import SHOWN, events_after, full_tasks
from receiver.tables import Attempt as AttemptRow
from receiver.transaction import EVENT, JOB, Row, Transaction

ATTEMPT = AttemptRow.__table__  # type: ignore[attr-defined]  # set by SQLModel
ATTEMPTS = Bulk(ATTEMPT, [column.name for column in ATTEMPT.c if column.name != "id"])
LOOKED_AT = 1_000
"""Events behind a hook's cursor that a list looks at."""


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
    names = {
        "hook": lambda each: each.hook["name"],
        "answer": lambda each: each.answer.replace("\0", "\ufffd"),
        "error": lambda each: each.error[:LONGEST_SAID],
    }
    columns = ("hook", "event", "task", "at", "ms", "taken", "status", "answer", "error")
    rows = [
        {name: names[name](each) if name in names else getattr(each, name) for name in columns}
        for each in attempts
    ]
    ATTEMPTS.insert(tx.connection, rows)
    for name in sorted({each.hook["name"] for each in attempts}):
        _judge(tx, name, [each for each in attempts if each.hook["name"] == name])


WELL = text("UPDATE hook SET failing_since = NULL WHERE name = :name AND failing_since IS NOT NULL")
ILL = text("""
    UPDATE hook SET failing_since = :now WHERE name = :name AND (failing_since IS NULL OR NOT EXISTS (
        SELECT 1 FROM job WHERE hook = :name AND key LIKE 'hook/%' AND state <> 'dead'))
""")
"""It has failed since the first failure of which something is still to be tried again."""
ILL_SINCE = text("SELECT failing_since FROM hook WHERE name = :name AND paused_at IS NULL")


def _judge(tx: Transaction, name: str, attempts: Sequence[Attempt]) -> None:
    """A hook that took something is well; one that failed for too long, or is gone, is paused."""
    execute, patience = tx.connection.execute, tx.rules.patience
    if any(each.gone for each in attempts):
        pause(tx, name, "it answered 410: it wants nothing any more")
    elif any(each.taken for each in attempts):
        if execute(WELL, {"name": name}).rowcount:
            tx.hasten(f"dispatch/{name}")
    else:
        execute(ILL, {"name": name, "now": tx.now})
        since = execute(ILL_SINCE, {"name": name}).scalar()
        if since is not None and tx.now - since >= patience * 1000:
            pause(tx, name, f"it took nothing for {patience:g} s; the last time: {attempts[-1].error}")


def owe(tx: Transaction, event: int, row: Row, task: str, *, due_at: int | None = None, **more: Any) -> None:
    """Owe one delivery: now, or at `due_at` (unix ms)."""
    name, kind = row["name"], of_kind("hook", row)
    data = {"hook": name, "event": event}
    more |= {"hook": name, "due_at": due_at, "data": data}
    tx.owe(kind, task, key=_key(event, name), lane=f"hook {row['lane']}", **more)


def _key(event: int, hook: str) -> str:
    return f"hook/{event}/{hook}"


ADVANCE = text("UPDATE hook SET cursor = :cursor WHERE name = :name AND cursor < :cursor")
BEHIND = text("""
    SELECT 1 FROM hook WHERE name = :name AND paused_at IS NULL AND EXISTS (
        SELECT 1 FROM event WHERE id > hook.cursor AND (hook.task IS NULL OR event.task = hook.task))
""")


def advance(tx: Transaction, name: str, cursor: int) -> bool:
    """Every event up to `cursor` was tried once, or not wanted; whether there are more by now."""
    tx.connection.execute(ADVANCE, {"name": name, "cursor": cursor})
    return tx.connection.execute(BEHIND, {"name": name}).first() is not None


def again(tx: Transaction, event: int, row: Row, task: str) -> None:
    """Send one event to one hook again, whatever became of it; to a paused one when it is resumed."""
    owe(tx, event, row, task)
    tx.hasten(_key(event, row["name"]))


REVIVE = """
    UPDATE job SET state = 'ready', attempts = 0, due_at = :now WHERE state = 'dead' AND hook
"""


def revive(tx: Transaction, name: str | None) -> int:
    """Send again all that is dead, of one hook or of all; how many those are."""
    which = " = :name" if name else " IS NOT NULL"
    count = tx.connection.execute(text(REVIVE + which), {"now": tx.now, "name": name}).rowcount
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


def tried(connection: Connection, name: str, after: int) -> set[int]:
    """The events after `after` of which an attempt is on record: a run that was killed had made them."""
    query = select(ATTEMPT.c.event).where(ATTEMPT.c.event > after, ATTEMPT.c.hook == name)
    return set(connection.execute(query).scalars())


def first_since(connection: Connection, at: int) -> int | None:
    """The id of the first event at `at` (unix ms) or later."""
    return connection.execute(select(func.min(EVENT.c.id)).where(EVENT.c.at >= at)).scalar()


@dataclass(frozen=True, slots=True)
class Wish:
    """Which deliveries a list shows, newest event first. `before`: the (event, hook) of the last one shown."""

    hook: str | None = None
    state: str | None = None
    task: str | None = None
    before: tuple[int, str] | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event and one hook. `job`: what is owed of it; `attempts`: those made, oldest first."""

    event: Row
    hook: str
    job: Row | None
    attempts: list[Row]


def listed(connection: Connection, wish: Wish) -> list[Delivery]:
    """Deliveries, one more than the limit when there are more."""
    found = set()
    if wish.state in (None, "delivered"):
        found |= _attempted(connection, wish)
    if wish.state in (None, "waiting", "dead"):
        found |= _owed(connection, wish)
    if wish.state in (None, "waiting"):
        found |= _untried(connection, wish)
    chosen = sorted(found, key=lambda each: (-each[0], each[1]))[: wish.limit + 1]
    return _deliveries(connection, chosen)


def delivery(connection: Connection, event: int, hook: str) -> Delivery | None:
    """One delivery, if there is something on record of it."""
    found = _deliveries(connection, [(event, hook)])
    return next((each for each in found if each.job or each.attempts), None)


NOT_OWED = text("NOT EXISTS (SELECT 1 FROM job WHERE key = 'hook/' || event || '/' || hook)")


def _attempted(connection: Connection, wish: Wish) -> set[tuple[int, str]]:
    columns = ATTEMPT.c.event, ATTEMPT.c.hook
    query = select(*columns).distinct().order_by(ATTEMPT.c.event.desc(), ATTEMPT.c.hook).limit(wish.limit + 1)
    if wish.hook:
        query = query.where(ATTEMPT.c.hook == wish.hook)
    if wish.task:
        query = query.where(ATTEMPT.c.event.in_(select(EVENT.c.id).where(EVENT.c.task == wish.task)))
    if wish.state:
        query = query.where(ATTEMPT.c.taken, NOT_OWED)
    if wish.before:
        query = query.where(_after(columns, wish.before))
    return {(row.event, row.hook) for row in connection.execute(query)}


def _after(columns: Any, place: tuple[int, str]) -> Any:
    event, hook = columns
    return or_(event < place[0], (event == place[0]) & (hook > place[1]))


def _owed(connection: Connection, wish: Wish) -> set[tuple[int, str]]:
    query = select(JOB.c.data).where(JOB.c.hook.is_not(None), JOB.c.key.like("hook/%"))
    if wish.state:
        query = query.where(JOB.c.state == "dead" if wish.state == "dead" else JOB.c.state != "dead")
    if wish.hook:
        query = query.where(JOB.c.hook == wish.hook)
    if wish.task:
        query = query.where(JOB.c.task == wish.task)
    return _cut({(data["event"], data["hook"]) for (data,) in connection.execute(query)}, wish)


def _cut(found: set[tuple[int, str]], wish: Wish) -> set[tuple[int, str]]:
    if wish.before is None:
        return found
    last = (-wish.before[0], wish.before[1])
    return {each for each in found if (-each[0], each[1]) > last}


def _untried(connection: Connection, wish: Wish) -> set[tuple[int, str]]:
    """Events that hooks want and that nobody tried yet: behind their cursors."""
    found: set[tuple[int, str]] = set()
    for row in hooks(connection) if wish.hook is None else [hook(connection, wish.hook)]:
        if row is None:
            continue
        until, task = wish.before and wish.before[0], wish.task or row["task"]
        events = events_after(connection, row["cursor"], task, limit=LOOKED_AT, until=until, newest=True)
        full = full_tasks(connection, sorted({event["task"] for event in events}))
        seen = tried(connection, row["name"], row["cursor"])
        for event in events:
            if event["id"] not in seen and wants(row, event, full[event["task"]]):
                found.add((event["id"], row["name"]))
    return _cut(found, wish)


def _deliveries(connection: Connection, chosen: Sequence[tuple[int, str]]) -> list[Delivery]:
    numbers = sorted({event for event, _ in chosen})
    found = connection.execute(select(*SHOWN).where(EVENT.c.id.in_(numbers)))
    events = {row.id: dict(row._mapping) for row in found}
    keys = [_key(event, name) for event, name in chosen]
    owed = {row.key: dict(row._mapping) for row in connection.execute(select(JOB).where(JOB.c.key.in_(keys)))}
    pairs = tuple_(ATTEMPT.c.event, ATTEMPT.c.hook).in_(list(chosen))
    made: dict[tuple[int, str], list[Row]] = {each: [] for each in chosen}
    for row in connection.execute(select(ATTEMPT).where(pairs).order_by(ATTEMPT.c.id)):
        made[row.event, row.hook].append(dict(row._mapping))
    return [
        Delivery(events[event], name, owed.get(_key(event, name)), made[event, name])
        for event, name in chosen
        if event in events
    ]

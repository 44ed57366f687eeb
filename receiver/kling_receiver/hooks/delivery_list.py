"""Lists of deliveries, by hook, state and task: those on record, those owed, and those not tried yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, or_, select, text, tuple_

from kling_receiver.hooks.deliveries import ATTEMPT, key_of, tried
from kling_receiver.hooks.matching import wants
from kling_receiver.hooks.records import hook, hooks
from kling_receiver.store.reader import EVENTS, events_after, full_tasks
from kling_receiver.store.sql import Row, Sql
from kling_receiver.store.transaction import EVENT, JOB

STATES = ("waiting", "delivered", "dead")
LOOKED_AT = 1_000
"""Events behind a hook's cursor that a list looks at."""


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


HAS = Sql("""
    SELECT 1 WHERE EXISTS (SELECT 1 FROM hook WHERE name = :hook)
        OR EXISTS (SELECT 1 FROM attempt WHERE hook = :hook)
""")


def has(connection: Connection, hook: str) -> bool:
    """Whether there is a hook of this name, or was one that something was sent to."""
    return HAS.value(connection, hook=hook) is not None


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
    if not chosen:
        return []
    events = {row["id"]: row for row in EVENTS.all(connection, ids=sorted({event for event, _ in chosen}))}
    keys = [key_of(event, name) for event, name in chosen]
    owed = {row.key: dict(row._mapping) for row in connection.execute(select(JOB).where(JOB.c.key.in_(keys)))}
    pairs = tuple_(ATTEMPT.c.event, ATTEMPT.c.hook).in_(list(chosen))
    made: dict[tuple[int, str], list[Row]] = {each: [] for each in chosen}
    for row in connection.execute(select(ATTEMPT).where(pairs).order_by(ATTEMPT.c.id)):
        made[row.event, row.hook].append(dict(row._mapping))
    return [
        Delivery(events[event], name, owed.get(key_of(event, name)), made[event, name])
        for event, name in chosen
        if event in events
    ]

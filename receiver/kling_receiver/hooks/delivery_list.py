"""Lists of deliveries, by hook, state and task: those on record, those owed, and those not tried yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, or_, select, text, tuple_

from kling_receiver.hooks.deliveries import ATTEMPT, attempted_events, delivery_key
from kling_receiver.hooks.matching import matches
from kling_receiver.hooks.records import hook, hooks
from kling_receiver.store.reader import SELECT_EVENTS, events_after, load_details
from kling_receiver.store.sql import Row, Statement
from kling_receiver.store.transaction import EVENT, JOB

STATES = ("waiting", "delivered", "dead")
SCAN_LIMIT = 1_000
"""Events behind a hook's cursor that a list looks at."""


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries a list shows, newest event first. `before`: the (event, hook) of the last one shown."""

    hook_name: str | None = None
    state: str | None = None
    task_id: str | None = None
    before: tuple[int, str] | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event and one hook. `job`: what is owed of it; `attempts`: those made, oldest first."""

    event: Row
    hook_name: str
    job: Row | None
    attempts: list[Row]


def list_deliveries(connection: Connection, delivery_filter: DeliveryFilter) -> list[Delivery]:
    """Deliveries, one more than the limit when there are more."""
    found = set()
    if delivery_filter.state in (None, "delivered"):
        found |= _attempted(connection, delivery_filter)
    if delivery_filter.state in (None, "waiting", "dead"):
        found |= _queued(connection, delivery_filter)
    if delivery_filter.state in (None, "waiting"):
        found |= _not_attempted(connection, delivery_filter)
    chosen = sorted(found, key=lambda each: (-each[0], each[1]))[: delivery_filter.limit + 1]
    return _deliveries(connection, chosen)


HOOK_EXISTS = Statement("""
    SELECT 1 WHERE EXISTS (SELECT 1 FROM hook WHERE name = :hook)
        OR EXISTS (SELECT 1 FROM attempt WHERE hook = :hook)
""")


def hook_exists(connection: Connection, hook_name: str) -> bool:
    """Whether there is a hook of this name, or was one that something was sent to."""
    return HOOK_EXISTS.scalar(connection, hook=hook_name) is not None


def get_delivery(connection: Connection, event_id: int, hook_name: str) -> Delivery | None:
    """One delivery, if there is something on record of it."""
    found = _deliveries(connection, [(event_id, hook_name)])
    return next((each for each in found if each.job or each.attempts), None)


NOT_QUEUED = text("NOT EXISTS (SELECT 1 FROM job WHERE key = 'hook/' || event || '/' || hook)")


def _attempted(connection: Connection, delivery_filter: DeliveryFilter) -> set[tuple[int, str]]:
    columns = ATTEMPT.c.event, ATTEMPT.c.hook
    query = (
        select(*columns)
        .distinct()
        .order_by(ATTEMPT.c.event.desc(), ATTEMPT.c.hook)
        .limit(delivery_filter.limit + 1)
    )
    if delivery_filter.hook_name:
        query = query.where(ATTEMPT.c.hook == delivery_filter.hook_name)
    if delivery_filter.task_id:
        query = query.where(
            ATTEMPT.c.event.in_(select(EVENT.c.id).where(EVENT.c.task == delivery_filter.task_id))
        )
    if delivery_filter.state:
        query = query.where(ATTEMPT.c.taken, NOT_QUEUED)
    if delivery_filter.before:
        query = query.where(_after(columns, delivery_filter.before))
    return {(row.event, row.hook) for row in connection.execute(query)}


def _after(columns: Any, place: tuple[int, str]) -> Any:
    event, hook = columns
    return or_(event < place[0], (event == place[0]) & (hook > place[1]))


def _queued(connection: Connection, delivery_filter: DeliveryFilter) -> set[tuple[int, str]]:
    query = select(JOB.c.data).where(JOB.c.hook.is_not(None), JOB.c.key.like("hook/%"))
    if delivery_filter.state:
        query = query.where(JOB.c.state == "dead" if delivery_filter.state == "dead" else JOB.c.state != "dead")
    if delivery_filter.hook_name:
        query = query.where(JOB.c.hook == delivery_filter.hook_name)
    if delivery_filter.task_id:
        query = query.where(JOB.c.task == delivery_filter.task_id)
    return _past_cursor(
        {(data["event"], data["hook"]) for (data,) in connection.execute(query)}, delivery_filter
    )


def _past_cursor(found: set[tuple[int, str]], delivery_filter: DeliveryFilter) -> set[tuple[int, str]]:
    if delivery_filter.before is None:
        return found
    last = (-delivery_filter.before[0], delivery_filter.before[1])
    return {each for each in found if (-each[0], each[1]) > last}


def _not_attempted(connection: Connection, delivery_filter: DeliveryFilter) -> set[tuple[int, str]]:
    """Events that hooks want and that nobody tried yet: behind their cursors."""
    found: set[tuple[int, str]] = set()
    for row in (
        hooks(connection)
        if delivery_filter.hook_name is None
        else [hook(connection, delivery_filter.hook_name)]
    ):
        if row is None:
            continue
        until, task = (
            delivery_filter.before and delivery_filter.before[0],
            delivery_filter.task_id or row["task"],
        )
        events = events_after(connection, row["cursor"], task, limit=SCAN_LIMIT, until=until, newest=True)
        full = load_details(connection, sorted({event["task"] for event in events}))
        seen = attempted_events(connection, row["name"], row["cursor"])
        for event in events:
            if event["id"] not in seen and matches(row, event, full[event["task"]]):
                found.add((event["id"], row["name"]))
    return _past_cursor(found, delivery_filter)


def _deliveries(connection: Connection, chosen: Sequence[tuple[int, str]]) -> list[Delivery]:
    if not chosen:
        return []
    events = {
        row["id"]: row for row in SELECT_EVENTS.all(connection, ids=sorted({event for event, _ in chosen}))
    }
    keys = [delivery_key(event, name) for event, name in chosen]
    owed = {row.key: dict(row._mapping) for row in connection.execute(select(JOB).where(JOB.c.key.in_(keys)))}
    pairs = tuple_(ATTEMPT.c.event, ATTEMPT.c.hook).in_(list(chosen))
    made: dict[tuple[int, str], list[Row]] = {each: [] for each in chosen}
    for row in connection.execute(select(ATTEMPT).where(pairs).order_by(ATTEMPT.c.id)):
        made[row.event, row.hook].append(dict(row._mapping))
    return [
        Delivery(events[event], name, owed.get(delivery_key(event, name)), made[event, name])
        for event, name in chosen
        if event in events
    ]

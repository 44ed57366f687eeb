"""Lists of deliveries by hook, state and task: those on record, those in the queue, those not attempted yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, func, literal, or_, select, text, tuple_

from kling_receiver.hooks.matching import matches
from kling_receiver.hooks.records import hook, hooks
from kling_receiver.jobs.kinds import Kind, delivery_key, delivery_of
from kling_receiver.store.reader import SELECT_EVENTS, events_after, load_details
from kling_receiver.store.rows import AttemptRow, EventRow, JobRow
from kling_receiver.store.sql import Statement, columns
from kling_receiver.store.tables import ATTEMPT, EVENT, JOB

STATES = ("pending", "delivered", "dead")
SCAN_LIMIT = 1_000
"""Events behind a hook's cursor that a list reads at most."""

Key = tuple[int, str]
"""An event's id and a hook's name."""


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries a list has, newest event first. `before`: the key of the last one of the page before."""

    hook_name: str | None = None
    state: str | None = None
    task_id: str | None = None
    before: Key | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event and one hook. `job`: its retry, if one is in the queue; `attempts`: oldest first."""

    event: EventRow
    hook_name: str
    job: JobRow | None
    attempts: list[AttemptRow]


def list_deliveries(connection: Connection, delivery_filter: DeliveryFilter) -> list[Delivery]:
    """List deliveries, newest event first; one more than the limit if there are more."""
    keys: set[Key] = set()
    if delivery_filter.state in (None, "delivered"):
        keys |= _attempted(connection, delivery_filter)
    if delivery_filter.state in (None, "pending", "dead"):
        keys |= _queued(connection, delivery_filter)
    if delivery_filter.state in (None, "pending"):
        keys |= _not_attempted(connection, delivery_filter)
    chosen = sorted(keys, key=_newest_first)[: delivery_filter.limit + 1]
    return _deliveries(connection, chosen)


HOOK_EXISTS = Statement("""
    SELECT 1 WHERE EXISTS (SELECT 1 FROM hook WHERE name = :hook_name)
        OR EXISTS (SELECT 1 FROM delivery_attempt WHERE hook_name = :hook_name)
""")


def hook_exists(connection: Connection, hook_name: str) -> bool:
    """Whether a hook of this name exists, or delivery attempts of a removed one are on record."""
    return HOOK_EXISTS.scalar(connection, hook_name=hook_name) is not None


def get_delivery(connection: Connection, event_id: int, hook_name: str) -> Delivery | None:
    """One delivery; None unless it has a job or an attempt."""
    deliveries = _deliveries(connection, [(event_id, hook_name)])
    return next((each for each in deliveries if each.job or each.attempts), None)


NOT_QUEUED = text(f"""
    NOT EXISTS (SELECT 1 FROM job WHERE unique_key =
        '{Kind.DELIVERY}/' || delivery_attempt.event_id || '/' || delivery_attempt.hook_name)
""")  # a constant
JOB_COLUMNS = ", ".join(column.name for column in JOB.c if column.name != "args")  # they may be damaged
SELECT_JOBS = Statement[JobRow](f"SELECT {JOB_COLUMNS} FROM job WHERE unique_key IN :keys")
ATTEMPTED = Statement("SELECT event_id FROM delivery_attempt WHERE hook_name = :name AND event_id IN :ids")
"""Only of some events: a hook may have far more attempts behind its cursor, where that was set back."""
SELECT_ATTEMPTS = Statement[AttemptRow](
    f"SELECT {columns(ATTEMPT)} FROM delivery_attempt WHERE event_id IN :ids AND hook_name IN :names ORDER BY id",
    table=ATTEMPT,
)
"""Some of them are of other deliveries: for a list of pairs, SQLite reads the whole table."""


def _newest_first(key: Key) -> tuple[int, str]:
    return -key[0], key[1]


def _attempted(connection: Connection, delivery_filter: DeliveryFilter) -> set[Key]:
    event_id, hook_name = ATTEMPT.c.event_id, ATTEMPT.c.hook_name
    query = select(event_id, hook_name).distinct().order_by(event_id.desc(), hook_name)
    query = query.limit(delivery_filter.limit + 1)
    if delivery_filter.hook_name:
        query = query.where(hook_name == delivery_filter.hook_name)
    if delivery_filter.task_id:
        query = query.where(event_id.in_(select(EVENT.c.id).where(EVENT.c.task_id == delivery_filter.task_id)))
    if delivery_filter.state:
        query = query.where(ATTEMPT.c.delivered, NOT_QUEUED)
    if delivery_filter.before:
        last_id, last_name = delivery_filter.before
        query = query.where(or_(event_id < last_id, (event_id == last_id) & (hook_name > last_name)))
    return {(row.event_id, row.hook_name) for row in connection.execute(query)}


def _queued(connection: Connection, delivery_filter: DeliveryFilter) -> set[Key]:
    query = select(JOB.c.unique_key).where(JOB.c.hook_name.is_not(None), JOB.c.kind == Kind.DELIVERY)
    if delivery_filter.state:
        query = query.where(JOB.c.state == "dead" if delivery_filter.state == "dead" else JOB.c.state != "dead")
    if delivery_filter.task_id:
        query = query.where(JOB.c.task_id == delivery_filter.task_id)
    if delivery_filter.hook_name:
        query = _newest_of_hook(query, delivery_filter.hook_name, delivery_filter)
    keys = {key for unique_key in connection.execute(query).scalars() if (key := delivery_of(unique_key))}
    return _past_cursor(keys, delivery_filter)


def _newest_of_hook(query: Select[Any], hook_name: str, delivery_filter: DeliveryFilter) -> Select[Any]:
    """Only as many of a hook's jobs as the page may show: a hook may have many dead letters.

    The keys of one hook differ in the event's id only, so that a longer key, or the later one of the same length, is of
    a newer event.
    """
    order = func.length(JOB.c.unique_key), JOB.c.unique_key
    query = query.where(JOB.c.hook_name == hook_name).order_by(*(column.desc() for column in order))
    if delivery_filter.before:
        last = delivery_key(delivery_filter.before[0], hook_name)
        query = query.where(tuple_(*order) <= tuple_(literal(len(last)), literal(last)))
    return query.limit(delivery_filter.limit + 2)  # the cursor's own event may be among them


def _past_cursor(keys: set[Key], delivery_filter: DeliveryFilter) -> set[Key]:
    if delivery_filter.before is None:
        return keys
    last = _newest_first(delivery_filter.before)
    return {key for key in keys if _newest_first(key) > last}


def _not_attempted(connection: Connection, delivery_filter: DeliveryFilter) -> set[Key]:
    """The matching events behind the hooks' cursors that have no attempt yet."""
    name = delivery_filter.hook_name
    rows = hooks(connection) if name is None else [hook(connection, name)]
    keys: set[Key] = set()
    for row in filter(None, rows):
        until = delivery_filter.before and delivery_filter.before[0]
        task_id = delivery_filter.task_id or row["task_id"]
        events = events_after(connection, row["cursor"], task_id, limit=SCAN_LIMIT, until=until, newest=True)
        if not events:
            continue
        details = load_details(connection, sorted({event["task_id"] for event in events}))
        attempted = set(ATTEMPTED.scalars(connection, name=row["name"], ids=[event["id"] for event in events]))
        for event in events:
            if event["id"] not in attempted and matches(row, event, details[event["task_id"]]):
                keys.add((event["id"], row["name"]))
    return _past_cursor(keys, delivery_filter)


def _deliveries(connection: Connection, keys: Sequence[Key]) -> list[Delivery]:
    if not keys:
        return []
    ids = sorted({event_id for event_id, _ in keys})
    events = {event["id"]: event for event in SELECT_EVENTS.all(connection, ids=ids)}
    unique_keys = [delivery_key(event_id, name) for event_id, name in keys]
    jobs = {job["unique_key"]: job for job in SELECT_JOBS.all(connection, keys=unique_keys)}
    attempts: dict[Key, list[AttemptRow]] = {key: [] for key in keys}
    for attempt in SELECT_ATTEMPTS.all(connection, ids=ids, names=sorted({name for _, name in keys})):
        if (key := (attempt["event_id"], attempt["hook_name"])) in attempts:
            attempts[key].append(attempt)
    return [
        Delivery(events[event_id], name, jobs.get(delivery_key(event_id, name)), attempts[event_id, name])
        for event_id, name in keys
        if event_id in events
    ]

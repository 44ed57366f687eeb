"""The numbers of a time range: tasks by outcome, callbacks, time to completion, costs.

Outcomes and callbacks are counted an hour at a time, in the transaction of each event (`hourly_count`), so that a range
may have any length. Durations and costs are read from the tasks that were created in the range: from the newest
MAX_TASKS of it, if it has more, and the result names the time from which they are complete. Nothing is estimated.
"""

from collections.abc import Iterable
from typing import TypedDict

from sqlalchemy import Connection

from kling_callback.batch.costs import ChargeSum
from kling_receiver.store.sql import Statement, is_sqlite
from kling_receiver.store.tables import load_json
from kling_receiver.store.transaction import HOUR_MS

DAY_MS = 24 * HOUR_MS
MAX_TASKS = 120_000
"""Tasks that are read for durations and costs: a page is to take less than half a second."""
MAX_FAMILIES = 50
MAX_TAGS = 100
"""Tags with a cost: those of the most tasks."""


class OutcomeRow(TypedDict):
    """What happened to tasks in one step of a range, which begins at `start` (unix ms)."""

    start: int
    created: int
    succeeded: int
    failed: int


class CallbackCounts(TypedDict):
    """Authenticated callbacks of a range, whose first hour begins at `since` (unix ms).

    `accepted` includes the `repeated` ones, and those past the limits of the event log; `ignored`: accepted ones that
    changed nothing, because they were late or contradicted Kling.
    """

    since: int
    accepted: int
    repeated: int
    ignored: int


class DurationRow(TypedDict):
    """Milliseconds from the create to the success of a family's tasks: half, and 95 of 100, took no longer."""

    family: str
    count: int
    p50_ms: int
    p95_ms: int


class CostRow(TypedDict):
    """What the tasks cost that were created on the day that begins at `day` (unix ms, UTC), and how many have a cost.

    `amounts`: decimal numbers by unit or currency, such as `video units`.
    """

    day: int
    tasks: int
    amounts: dict[str, str]


class TagCostRow(TypedDict):
    """The same for the tasks of a tag. A task with several tags is counted for each."""

    tag: str
    tasks: int
    amounts: dict[str, str]


class FinishedTasks(TypedDict):
    """Durations and costs of the tasks that were created from `since` on (unix ms): later than asked for, if the range
    has more than MAX_TASKS."""

    since: int
    durations: list[DurationRow]
    costs: list[CostRow]
    costs_by_tag: list[TagCostRow]


HOURS = Statement("""
    SELECT hour, name, total FROM hourly_count WHERE hour >= :first AND hour < :end AND name IN :names
""")
OUTCOMES = {"task.created": "created", "task.succeed": "succeeded", "task.failed": "failed"}
"""Names of counts, and what they mean."""
ACCEPTED = ("callback.received", "callback.repeated", "callback.unkept")
PLAN = Statement("""
    SELECT set_config('random_page_cost', '1.1', true), set_config('work_mem', '32MB', true),
        set_config('max_parallel_workers_per_gather', '0', true)
""")
"""PostgreSQL, for this transaction: the tasks of a range lie together, and their number says what an index saves; its
usual costs lead to a scan of the whole table. One page has one processor: callbacks need the others."""
REACH = Statement("""
    SELECT created_at FROM task WHERE created_at >= :since AND created_at < :until
    ORDER BY created_at DESC, id DESC LIMIT 1 OFFSET :most
""")
NEXT_FAMILY = Statement("SELECT min(family) FROM task WHERE duration_ms IS NOT NULL AND family > :family")
DURATIONS = """
    FROM task WHERE duration_ms IS NOT NULL AND family = :family AND created_at >= :since AND created_at < :until
"""
"""The index `task_durations` has all that is read."""
COUNT_DURATIONS = Statement(f"SELECT count(*) {DURATIONS}")  # a constant, as in the next two
SHORTEST = Statement(f"SELECT duration_ms {DURATIONS} ORDER BY duration_ms LIMIT 1 OFFSET :skip")
LONGEST = Statement(f"SELECT duration_ms {DURATIONS} ORDER BY duration_ms DESC LIMIT 1 OFFSET :skip")
COSTS = Statement(f"""
    SELECT created_at / {DAY_MS} AS day, family, cost, count(*) AS tasks FROM task
    WHERE created_at >= :since AND created_at < :until AND cost <> 'null'
    GROUP BY created_at / {DAY_MS}, family, cost
""")  # a constant
COSTS_OF_TAGS = Statement("""
    SELECT tag, family, cost, count(*) AS tasks FROM task CROSS JOIN tag
    WHERE tag.task_id = task.id AND task.created_at >= :since AND task.created_at < :until AND cost <> 'null'
    GROUP BY tag, family, cost
""")


def outcomes(connection: Connection, since: int, until: int, step_ms: int = HOUR_MS) -> list[OutcomeRow]:
    """Tasks that were created, succeeded and failed in each step of a range, oldest first, without a gap.

    `since`, `until`: unix ms. `step_ms`: an hour, or a multiple; steps begin at its multiples, days at midnight UTC.
    """
    first = since // step_ms * step_ms
    steps: dict[int, OutcomeRow] = {
        start: {"start": start, "created": 0, "succeeded": 0, "failed": 0} for start in range(first, until, step_ms)
    }
    hours = {"first": first // HOUR_MS, "end": -(-until // HOUR_MS)}
    for row in HOURS.all(connection, **hours, names=list(OUTCOMES)):
        step = steps[row["hour"] * HOUR_MS // step_ms * step_ms]
        match row["name"]:
            case "task.created":
                step["created"] += row["total"]
            case "task.succeed":
                step["succeeded"] += row["total"]
            case _:
                step["failed"] += row["total"]
    return list(steps.values())


def callbacks(connection: Connection, since: int, until: int) -> CallbackCounts:
    """The callbacks of a range of whole hours. Refused ones are in no database: see `Metrics.callbacks_by_outcome`."""
    first = since // HOUR_MS
    names = [*ACCEPTED, "callback.ignored"]
    totals = dict.fromkeys(names, 0)
    for row in HOURS.all(connection, first=first, end=-(-until // HOUR_MS), names=names):
        totals[row["name"]] += row["total"]
    return {
        "since": first * HOUR_MS,
        "accepted": sum(totals[name] for name in ACCEPTED),
        "repeated": totals["callback.repeated"],
        "ignored": totals["callback.ignored"],
    }


def finished_tasks(connection: Connection, since: int, until: int) -> FinishedTasks:
    """Durations and costs of the tasks that were created in a range (unix ms), or of its newest. Raises InvalidRow."""
    if not is_sqlite(connection):
        PLAN.all(connection)
    reach = REACH.scalar(connection, since=since, until=until, most=MAX_TASKS)
    since = since if reach is None else reach + 1
    return {
        "since": since,
        "durations": _durations(connection, since, until),
        "costs": _costs(connection, since, until),
        "costs_by_tag": _costs_of_tags(connection, since, until),
    }


def _durations(connection: Connection, since: int, until: int) -> list[DurationRow]:
    rows: list[DurationRow] = []
    family = NEXT_FAMILY.scalar(connection, family="")
    while family is not None and len(rows) < MAX_FAMILIES:
        key = {"family": family, "since": since, "until": until}
        if count := COUNT_DURATIONS.scalar(connection, **key):
            p50 = SHORTEST.scalar(connection, **key, skip=(count + 1) // 2 - 1)
            p95 = LONGEST.scalar(connection, **key, skip=count - (95 * count + 99) // 100)  # from the short end
            rows.append({"family": family, "count": count, "p50_ms": p50, "p95_ms": p95})
        family = NEXT_FAMILY.scalar(connection, family=family)
    return rows


def _costs(connection: Connection, since: int, until: int) -> list[CostRow]:
    sums: dict[int, ChargeSum] = {}
    for row in COSTS.all(connection, since=since, until=until):
        sums.setdefault(row["day"], ChargeSum()).add(row["family"], load_json(row["cost"]), tasks=row["tasks"])
    return [{"day": day * DAY_MS, "tasks": sums[day].tasks, "amounts": _amounts(sums[day])} for day in sorted(sums)]


def _costs_of_tags(connection: Connection, since: int, until: int) -> list[TagCostRow]:
    sums: dict[str, ChargeSum] = {}
    for row in COSTS_OF_TAGS.all(connection, since=since, until=until):
        sums.setdefault(row["tag"], ChargeSum()).add(row["family"], load_json(row["cost"]), tasks=row["tasks"])
    tags: Iterable[str] = sorted(sums, key=lambda tag: (-sums[tag].tasks, tag))[:MAX_TAGS]
    return [{"tag": tag, "tasks": sums[tag].tasks, "amounts": _amounts(sums[tag])} for tag in tags]


def _amounts(charges: ChargeSum) -> dict[str, str]:
    return {unit: f"{amount.normalize():f}" for unit, amount in sorted(charges.amounts.items())}

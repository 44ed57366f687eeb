"""The numbers of a time range: what is counted, and how much is read for it."""

import hashlib
from dataclasses import replace
from typing import Any, cast

import pytest
from sqlalchemy import Connection

from kling_receiver.metrics import Metrics
from kling_receiver.statistics import overview
from kling_receiver.store.database import Database
from kling_receiver.store.transaction import HOUR_MS, Transaction
from kling_receiver.tasks import ingest
from kling_receiver.web.dashboard.overview import MAX_UNITS, cost_charts
from tests.support.database import FILE, NOW, Ledger, callback, statements
from tools.bench import filled

HOUR, DAY = HOUR_MS, overview.DAY_MS
START = NOW // DAY * DAY
"""Midnight."""


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """A database, at midnight."""
    ledger = Ledger(database)
    ledger.now = START
    return ledger


def finish(ledger: Ledger, task: str, *, after: int, cost: Any = None, **given: Any) -> None:
    """Register a task, and let Kling report its success `after` so many ms."""
    ledger.register(task, outcome="created", kling_id=f"k-{task}", **given)
    ledger.now += after
    succeed = callback(task, status="succeed", files=[FILE], signed=True)
    assert succeed.report
    ledger.record(replace(succeed, report=replace(succeed.report, cost=cost)))
    ledger.now -= after


def test_the_outcomes_of_each_hour_and_day(ledger: Ledger) -> None:
    """At the time of the event; hours without one are there too."""
    finish(ledger, "a", after=2 * HOUR)
    ledger.register("b", outcome="not_created")
    ledger.now = START + DAY + 5
    ledger.register("c")
    with ledger.database.read() as connection:
        hours = overview.outcomes(connection, START + 10, START + 4 * HOUR)
        days = overview.outcomes(connection, START, START + DAY + 6, DAY)
        none = overview.outcomes(connection, START - 9 * DAY, START - 8 * DAY, DAY)
    assert [tuple(row.values()) for row in hours] == [
        (START, 2, 0, 1),
        (START + HOUR, 0, 0, 0),
        (START + 2 * HOUR, 0, 1, 0),
        (START + 3 * HOUR, 0, 0, 0),
    ]
    assert [tuple(row.values()) for row in days] == [(START, 2, 1, 1), (START + DAY, 1, 0, 0)]
    assert [tuple(row.values()) for row in none] == [(START - 9 * DAY, 0, 0, 0)]


def test_each_callback_is_counted_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """New ones, repeats, those past the limits of the event log; a late one is accepted, and ignored."""
    monkeypatch.setattr(ingest, "MAX_KEPT_CALLBACKS", 3)
    ledger.register("t", outcome="created", kling_id="k")
    first = callback("t", status="processing")
    ledger.record(first, first)
    ledger.record(first)
    late = [replace(callback("t"), body_sha256=hashlib.sha256(bytes([n])).hexdigest()) for n in range(4)]
    ledger.record(*late)
    ledger.now += HOUR
    ledger.record(first)
    with ledger.database.read() as connection:
        counts = overview.callbacks(connection, START + 5, START + HOUR)
        both = overview.callbacks(connection, START, START + HOUR + 1)
        task = ledger.task("t")
    ignored = ledger.types().count("callback.ignored")
    assert counts == {"since": START, "accepted": 7, "repeated": 2, "ignored": ignored}
    assert both["accepted"] == task["callback_count"] == 8
    assert both["repeated"] == 3


def test_nothing_is_counted_of_a_transaction_that_failed(ledger: Ledger) -> None:
    """The counts are committed with the events."""

    def fail(connection: Connection) -> None:
        tx = Transaction(connection, ledger.database, ledger.now)
        tx.add_event("t", "task.created")
        tx.flush()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), ledger.database.write() as connection:
        fail(connection)
    with ledger.database.read() as connection:
        assert overview.outcomes(connection, START, START + HOUR)[0]["created"] == 0


def test_durations_by_family(ledger: Ledger) -> None:
    """By the nearest rank; only those of successes of the range."""
    for n in range(1, 21):
        finish(ledger, f"image-{n}", after=n * 1000)
    finish(ledger, "video", after=90_000, family="videos/text2video")
    ledger.register("open", family="videos/effects")
    ledger.now += DAY
    finish(ledger, "later", after=1)
    with ledger.database.read() as connection:
        found = overview.finished_tasks(connection, START, START + DAY)
        nothing = overview.finished_tasks(connection, START - DAY, START)
    assert found["since"] == START
    assert found["durations"] == [
        {"family": "images/generations", "count": 20, "p50_ms": 10_000, "p95_ms": 19_000},
        {"family": "videos/text2video", "count": 1, "p50_ms": 90_000, "p95_ms": 90_000},
    ]
    assert nothing == {"since": START - DAY, "durations": [], "costs": [], "costs_by_tag": []}


def test_costs_by_day_and_tag(ledger: Ledger) -> None:
    """In each of Kling's forms, exactly; what cannot be read is not counted."""
    finish(ledger, "a", after=1, cost="0.1", tags=("shop", "red"))
    finish(ledger, "b", after=1, cost="0.2", tags=("shop",))
    finish(ledger, "c", after=1, cost="free", tags=("shop",))
    ledger.now += DAY
    finish(ledger, "d", after=1, cost={"quota": "1.20", "list_price": "1.5"}, family="videos/effects")
    finish(ledger, "e", after=1, cost="7", family="videos/effects", tags=("red",))
    finish(ledger, "f", after=1)
    with ledger.database.read() as connection:
        found = overview.finished_tasks(connection, START, START + 2 * DAY)
    assert found["costs"] == [
        {"day": START, "tasks": 2, "amounts": {"image units": "0.3"}},
        {"day": START + DAY, "tasks": 2, "amounts": {"of the balance": "1.2", "video units": "7"}},
    ]
    assert found["costs_by_tag"] == [
        {"tag": "red", "tasks": 2, "amounts": {"image units": "0.1", "video units": "7"}},
        {"tag": "shop", "tasks": 2, "amounts": {"image units": "0.3"}},
    ]


def test_a_long_range_is_read_from_its_newest_tasks(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result names the time from which it is complete."""
    monkeypatch.setattr(overview, "MAX_TASKS", 3)
    for n in range(5):
        finish(ledger, f"t{n}", after=1000 * n, cost="1", tags=("shop",))
        ledger.now += 10
    with ledger.database.read() as connection:
        found = overview.finished_tasks(connection, START, START + DAY)
        exact = overview.finished_tasks(connection, START + 15, START + DAY)
    assert found["since"] == START + 11
    assert exact["since"] == START + 15
    for each in (found, exact):
        assert [row["count"] for row in each["durations"]] == [3]
        assert [row["tasks"] for row in (*each["costs"], *each["costs_by_tag"])] == [3, 3]


def test_each_number_is_read_by_an_index(database: Database) -> None:
    """Not from the whole table, nor from the event log."""
    if not database.is_sqlite:
        return  # PostgreSQL plans by statistics
    filled.fill(database, 100, START)
    with statements(database) as seen, database.read() as connection:
        overview.outcomes(connection, START - DAY, START)
        overview.callbacks(connection, START - DAY, START)
        overview.finished_tasks(connection, START - DAY, START)
    queries = [statement for statement in seen if "FROM" in statement]
    assert len(queries) > 8
    for query in queries:
        with database.read() as connection:
            plan = "; ".join(row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"))
        assert "SEARCH" in plan, plan
        assert "SCAN" not in plan, plan
        assert "event" not in query, query
        if "duration_ms" in query:
            assert "COVERING INDEX task_durations" in plan, plan


def test_refused_callbacks_are_counted_since_the_start() -> None:
    """They are in no database: nobody may fill it without a token."""
    metrics = Metrics()
    assert metrics.callbacks_by_outcome() == {}
    metrics.callbacks.labels("accepted").inc(3)
    metrics.callbacks.labels("bad_token").inc()
    assert metrics.callbacks_by_outcome() == {"accepted": 3, "bad_token": 1}


def test_the_page_has_few_charts_of_costs() -> None:
    """A gateway may name another currency in each answer."""
    costs = [{"day": DAY * day, "tasks": 1, "amounts": {f"{day:02}": "1"}} for day in range(MAX_UNITS + 5)]
    finished = cast(overview.FinishedTasks, {"costs": costs})
    charts = cost_charts(finished, 0, 30 * DAY)
    assert [chart["unit"] for chart in charts] == [f"{day:02}" for day in range(MAX_UNITS)]

"""How hooks do, from their attempts and the queue."""

from typing import Any

import pytest

from kling_receiver.hooks import deliveries
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import HookConfig
from kling_receiver.hooks.deliveries import DeliveryAttempt
from kling_receiver.statistics import hooks
from kling_receiver.statistics.hooks import hook_health
from kling_receiver.store.database import Database
from tests.support.database import NOW, Ledger, statements


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """A database with two hooks and some events."""
    ledger = Ledger(database)
    for name in ("a", "b"):
        config = HookConfig(name=name, address="https://hooks.example/x")
        ledger.change(lambda tx, config=config: hook_records.add(tx, config))  # type: ignore[misc]
    ledger.log(*["task.created"] * 10)
    return ledger


def attempt(ledger: Ledger, name: str, event: int, **values: Any) -> None:
    """Record one attempt."""

    def record(tx: Any) -> None:
        row = hook_records.hook(tx.connection, name)
        assert row
        given = {"duration_ms": 10, "count": 1, "delivered": True, "response_status": 200, **values}
        deliveries.record_attempts(tx, [DeliveryAttempt(row, event, "t", ledger.now, **given)])

    ledger.change(record)
    ledger.now += 1000


def test_the_health_of_a_hook(ledger: Ledger) -> None:
    """Rate, latency, last responses and backlog; each hook has its own."""
    for event in range(1, 8):
        attempt(ledger, "a", event, duration_ms=event * 10)
    failed = {"delivered": False, "response_status": 503, "error": "HTTP 503"}
    attempt(ledger, "a", 8, duration_ms=900, **failed, retry_in_ms=60_000)
    attempt(ledger, "a", 9, duration_ms=800, **failed)
    attempt(ledger, "b", 3)
    with ledger.database.read() as connection:
        found = hook_health(connection, ["a", "b", "unknown"])
        assert hook_health(connection, []) == {}
    assert found.keys() == {"a", "b"}
    health = dict(found["a"])
    last: Any = health.pop("last")
    assert [each["event_id"] for each in last] == [9, 8, 7, 6, 5]
    assert health == {
        "attempts": 9,
        "since": NOW,
        "delivered": 7,
        "median_ms": 50,
        "p95_ms": 900,
        "pending": 1,
        "next_due_at": NOW + 7000 + 60_000,
        "dead": 1,
        "counts_are_complete": True,
        "behind": 10,
    }
    assert (found["b"]["attempts"], found["b"]["pending"], found["b"]["last"][0]["event_id"]) == (1, 0, 3)


def test_a_hook_without_an_attempt(ledger: Ledger) -> None:
    """It has no rate yet."""
    with ledger.database.read() as connection:
        health = hook_health(connection, ["b"])["b"]
    assert (health["attempts"], health["median_ms"], health["p95_ms"], health["since"]) == (0, None, None, None)


def test_few_rows_are_read(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest attempts, and some of a large backlog."""
    monkeypatch.setattr(hooks, "MAX_ATTEMPTS", 3)
    monkeypatch.setattr(hooks, "MAX_JOBS", 2)
    for event in range(1, 6):
        attempt(ledger, "a", event, duration_ms=event, delivered=False, response_status=500)
    with statements(ledger.database) as seen, ledger.database.read() as connection:
        health = hook_health(connection, ["a"])["a"]
    assert (health["attempts"], health["median_ms"], health["counts_are_complete"]) == (3, 4, False)
    assert health["pending"] + health["dead"] == 3
    if ledger.database.is_sqlite:
        (query,) = [each for each in seen if "ORDER BY hook_name DESC" in each]
        with ledger.database.read() as connection:
            plan = "; ".join(row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}"))
        assert "USING INDEX attempt_of" in plan
        assert "TEMP B-TREE" not in plan

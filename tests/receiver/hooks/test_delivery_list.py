"""The list of deliveries: what it reads."""

from typing import Any

from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import HookConfig
from kling_receiver.hooks.delivery_list import DeliveryFilter, list_deliveries
from kling_receiver.store.database import Database
from kling_receiver.store.tables import ATTEMPT
from tests.support.database import NOW, Ledger
from tools.bench import filled

ATTEMPTS = 5_000


def test_a_task_does_not_read_the_attempts_of_others(database: Database) -> None:
    """Where a hook's cursor was set back behind many events that were delivered. The steps of SQLite are counted."""
    if not database.is_sqlite:
        return  # it has no such count, and the same index
    ledger = Ledger(database)
    config = HookConfig(name="shop", address="https://hooks.example/x")
    ledger.change(lambda tx: hook_records.add(tx, config))
    ledger.register()
    ledger.log("task.submitted")
    columns = [column.name for column in ATTEMPT.c if column.name != "id"]
    rows = [("shop", event, "u", NOW, 10, True, 200, "ok", "") for event in range(10, 10 + ATTEMPTS)]
    with database.write() as connection:
        filled.insert(connection, ATTEMPT, columns, [("shop", 1, "t", NOW, 10, True, 200, "ok", ""), *rows])
        connection.exec_driver_sql("UPDATE hook SET cursor = 0")
    steps: list[int] = []
    with database.read() as connection:
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(lambda: steps.append(1), 100)
        found = list_deliveries(connection, DeliveryFilter(task_id="t"))
        driver.set_progress_handler(None, 0)
    assert [(each.event["id"], len(each.attempts)) for each in found] == [(2, 0), (1, 1)]
    assert len(steps) * 100 < ATTEMPTS

"""What waits: slots, submissions, jobs."""

import pytest

from kling_receiver.policy import Policy, SlotLimits
from kling_receiver.statistics import queues
from kling_receiver.store.database import Database
from kling_receiver.store.tables import SENT_HERE, SUBMISSION
from tests.support.database import NOW, Ledger

LIMITS = SlotLimits(10, {"kling-v3": 3})


def test_the_slots_and_the_queue(database: Database) -> None:
    """Those of tasks at Kling and of claimed creates are held; the others wait."""
    ledger = Ledger(database, rules=Policy(slots=LIMITS))
    with database.read() as connection:
        empty = queues.slot_use(connection, SlotLimits())
    assert (empty["total"], empty["held"], empty["queued"], empty["queued_since"]) == (None, 0, 0, None)
    ledger.register("a", model="kling-v3", request={"n": 2}, outcome="created", kling_id="k")
    for number, state in enumerate(("claimed", "queued", "queued")):
        ledger.register(f"s{number}", create_token=f"{SENT_HERE}{number}")
        row = {"task_id": f"s{number}", "state": state, "rank": 0, "model": "kling-v1", "slots": 4, "body": b"{}"}
        with database.write() as connection:
            connection.execute(SUBMISSION.insert(), {**row, "size": 2, "attempt": "", "created_at": NOW + number})
    with database.read() as connection:
        assert queues.slot_use(connection, LIMITS) == {
            "total": 10,
            "by_model": {"kling-v3": 3},
            "ceiling": None,
            "held": 6,
            "held_by_model": {"kling-v3": 2, "kling-v1": 4},
            "queued": 2,
            "queued_since": NOW + 1,
        }


def test_the_jobs_by_kind(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait, run, and were given up; the first that is due."""
    ledger = Ledger(database)
    for task in ("a", "b", "c"):
        ledger.register(task)
        ledger.now += 1000
    due = min(job["due_at"] for job in ledger.jobs().values())
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE job SET state = 'dead' WHERE task_id = 'b'")
        connection.exec_driver_sql("UPDATE job SET state = 'running', claim_id = 'x' WHERE task_id = 'c'")
    with database.read() as connection:
        found = queues.pending_jobs(connection)
        assert found == {
            "kinds": [{"kind": "overdue", "waiting": 1, "running": 1, "dead": 1, "next_due_at": due}],
            "is_complete": True,
        }
        monkeypatch.setattr(queues, "MAX_JOBS", 2)
        assert not queues.pending_jobs(connection)["is_complete"]

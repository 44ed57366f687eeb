"""Slots of the account: which tasks hold them, and which submissions get those that are free.

            a            b             c
queued ────▶ claimed ────▶ sending ────▶ (gone)     the task holds the slots from b to its end
  ▲  ▲          │             │
  │  └────d─────┴──────d──────┘                     a  `fill`: a slot is free (tasks/slots)
                                                    b  just before the create is sent, durably (tasks/creating)
                                                    c  the create's outcome is known
                                                    d  Kling has no slot for it (1303): it waits again

A task ends by a callback, a query or a deadline: whatever ends it releases its slots, in the same transaction, which
hands them to the queue. Nothing is counted in memory, so that several receivers may share a database: each locks the
row of `account` while it hands out slots.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from kling_receiver.jobs import enqueue
from kling_receiver.store.rows import AccountRow, Row, TaskRow
from kling_receiver.store.sql import Statement, columns
from kling_receiver.store.tables import ACCOUNT, SENT_HERE
from kling_receiver.store.transaction import Transaction

AUTO_SLOTS = 9
"""Slots of a series whose length Kling chooses: the most images of one task."""
FILLED_AT_ONCE = 100
"""Queued submissions that are read at once."""

SELECT_ACCOUNT = Statement[AccountRow](f"SELECT {columns(ACCOUNT)} FROM account", lock="FOR UPDATE")
INSERT_ACCOUNT = Statement("""
    INSERT INTO account (id, slot_ceiling, create_interval_ms, next_create_at) VALUES (1, NULL, 0, 0)
    ON CONFLICT DO NOTHING
""")
UPDATE_ACCOUNT = Statement("""
    UPDATE account SET slot_ceiling = :slot_ceiling, create_interval_ms = :create_interval_ms,
        next_create_at = :next_create_at
""")
HELD = Statement("""
    SELECT model, sum(slots) AS slots FROM (
        SELECT model, slots FROM task WHERE slots > 0
        UNION ALL SELECT model, slots FROM submission WHERE state = 'claimed'
    ) AS holder GROUP BY model
""")
NEXT_QUEUED = Statement(f"""
    SELECT id, task_id, model, slots FROM submission WHERE state = 'queued' AND model NOT IN :passed_over
    ORDER BY rank, id LIMIT {FILLED_AT_ONCE}
""")  # a constant
CLAIM = Statement("UPDATE submission SET state = 'claimed' WHERE id = :id AND state = 'queued'")
QUEUED_OF = Statement("SELECT task_id FROM submission WHERE task_id IN :task_ids AND state = 'queued' ORDER BY id")


def slots_of(family: str, body: Any) -> int:
    """The slots that a task holds: one for each image of an image task, else one."""
    if not family.startswith("images/") or not isinstance(body, Mapping):
        return 1
    is_series = body.get("result_type") == "series"
    count = body.get("series_amount" if is_series else "n")
    if isinstance(count, float) and count.is_integer():
        count = int(count)
    if isinstance(count, str) and count.isascii() and count.isdecimal():
        count = int(count[:6])
    if isinstance(count, int) and not isinstance(count, bool):
        return min(max(count, 1), 1_000_000)
    return AUTO_SLOTS if is_series else 1


def is_sent_here(task: TaskRow) -> bool:
    """Whether the receiver sends the create of this task, not its client."""
    return task["create_token"].startswith(SENT_HERE)


def hold(tx: Transaction, task: TaskRow) -> None:
    """Let a task that is open at Kling hold its slots, if it holds none: the account's slots count, whoever uses them.

    Without limits, only creates that the receiver sends are counted, so that 1303 tells it how many it has.
    """
    if not task["slots"] and (tx.policy.slots.are_limited or is_sent_here(task)):
        tx.update_task(task, slots=slots_of(task["family"], task["request"]))


def release(tx: Transaction, task: TaskRow) -> None:
    """Release the slots of a task that has ended, and hand them to the queue at the end of this transaction."""
    if task["slots"]:
        tx.update_task(task, slots=0)
        freed(tx)


def freed(tx: Transaction) -> None:
    """Hand one slot more to the queue, at the end of this transaction: one was released, or Kling proved to have it."""
    tx.run_at_end(fill)


def queued(tx: Transaction, task_id: str) -> None:
    """Hand a slot to a new submission at the end of this transaction; if none is free, an event says that it waits."""
    tx.run_at_end(fill, task_id)


def lock_account(tx: Transaction) -> AccountRow:
    """The account's row, locked until the commit: after the rows of tasks, so that no two transactions deadlock."""
    row = SELECT_ACCOUNT.first(tx.connection)
    if row is None:
        INSERT_ACCOUNT.execute(tx.connection)
        row = SELECT_ACCOUNT.first(tx.connection)
        assert row is not None
    return row


def update_account(tx: Transaction, account: AccountRow) -> None:
    """Write the account's row."""
    values = cast(Row, account)
    UPDATE_ACCOUNT.execute(tx.connection, **{name: values[name] for name in values if name != "id"})


def held(tx: Transaction) -> Counter[str]:
    """The slots that are held, by model. Changes of this transaction must have been written."""
    return Counter({row["model"]: int(row["slots"]) for row in HELD.all(tx.connection)})


def fill(tx: Transaction, causes: list[str | None]) -> None:
    """Hand free slots to queued submissions: the highest priority first, then first in, first out.

    A model at its limit is passed over, but nothing overtakes a larger task that waits for the total.
    `causes`: the tasks that were submitted in this transaction, and None for each release of slots.
    """
    account = lock_account(tx)
    if None in causes:
        _raise_ceiling(tx, account, causes.count(None))
    claimed = _claim_free(tx, account)
    submitted = [task_id for task_id in causes if task_id is not None and task_id not in claimed]
    for task_id in QUEUED_OF.scalars(tx.connection, task_ids=submitted) if submitted else ():
        tx.add_event(task_id, "task.queued", {})


def _raise_ceiling(tx: Transaction, account: AccountRow, by: int) -> None:
    """Use more slots again than at the last 1303, because a task of ours ended, or Kling accepted another one.

    One slot more at a time: a ceiling that is too high costs refusals.
    """
    if account["slot_ceiling"] is None:
        return
    ceiling, total = account["slot_ceiling"] + by, tx.policy.slots.total
    account["slot_ceiling"] = None if total is not None and ceiling >= total else ceiling
    update_account(tx, account)


def _claim_free(tx: Transaction, account: AccountRow) -> set[str]:
    """Claim queued submissions for the free slots. Returns their tasks."""
    limits = tx.policy.slots
    ceilings = [limit for limit in (limits.total, account["slot_ceiling"]) if limit is not None]
    total = min(ceilings) if ceilings else None
    used: Counter[str] | None = None
    passed_over, claimed = set[str](), dict[str, int]()
    while rows := NEXT_QUEUED.all(tx.connection, passed_over=sorted(passed_over)):
        if used is None:
            used = held(tx) if total is not None or limits.by_model else Counter()
        is_full = False
        for row in rows:
            if row["model"] in passed_over:
                continue
            limit = limits.by_model.get(row["model"])
            if limit is not None and used[row["model"]] + row["slots"] > limit:
                passed_over.add(row["model"])
                continue
            in_use = used.total()
            # Alone, a task is sent whatever 1303 has shown: nothing of ours will ever end to free more slots.
            alone = not in_use and limits.problem("", row["slots"]) is None
            if total is not None and in_use + row["slots"] > total and not alone:
                is_full = True
                break
            used[row["model"]] += row["slots"]
            claimed[row["task_id"]] = row["id"]
        if claims := [{"id": claimed[row["task_id"]]} for row in rows if row["task_id"] in claimed]:
            CLAIM.executemany(tx.connection, claims)
        if is_full or len(rows) < FILLED_AT_ONCE:
            break
    for task_id in claimed:
        enqueue.create(tx, task_id)
    return set(claimed)

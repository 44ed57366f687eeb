"""How long tasks take, learned from finished ones: when to ask about a task that will not be called back.

A relay may drop the callback address. Its tasks are not asked about at the deadline, but when such tasks usually end.
"""

from typing import TypedDict

from kling_callback.protocol.reports import Report
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.sql import Statement
from kling_receiver.store.transaction import Transaction

MIN_TASKS = 3
"""Finished tasks, the newest ones, without any callback: then none is expected for the next task either."""
MAX_TASKS = 20
"""Finished tasks from which a duration is learned."""
RECENT_TASKS = 50
"""Finished tasks of a family that are read, of all its models."""
MIN_QUESTION_MS = 5_000
"""No task is asked about sooner after its create."""
MARGIN = 1.2
"""The first question comes this much later than nine of ten tasks took: one that is too early costs a second one."""


class _Finished(TypedDict):
    model: str
    callback_count: int
    duration_ms: int


NEWEST = Statement[_Finished](f"""
    SELECT model, callback_count, duration_ms FROM task WHERE id IN (
        SELECT id FROM task WHERE family = :family AND duration_ms IS NOT NULL
        ORDER BY created_at DESC LIMIT {RECENT_TASKS}
    ) ORDER BY created_at DESC
""")  # a constant
"""The index `task_durations` has all that the inner SELECT reads: that of the family leads past unfinished tasks."""


def of(task: TaskRow, report: Report, now: int, *, timely: bool) -> int | None:
    """Milliseconds that a task took which Kling now reports as a success; None: it says nothing about other tasks.

    A task without an attempt of a client was adopted: its create named no callback address of ours, unless a callback
    came. Without Kling's times it is only known that the task ended before it was asked about. Half of that is taken:
    the next questions come earlier, until one comes too early. `timely`: whether the question or callback came by
    itself; an operator asks at any time.
    """
    if not task["create_token"] and not task["callback_count"]:
        return None
    if report.created_at and report.updated_at and report.updated_at > report.created_at:
        return report.updated_at - report.created_at
    age = max(now - task["created_at"], 0)
    if task["callback_count"]:
        return age
    return age // 2 if timely else None


def early_question_ms(tx: Transaction, family: str, model: str) -> int | None:
    """Milliseconds from a create to a question before the deadline; None: the deadline is soon enough.

    There is one if the newest finished tasks of the model (or of the family, while the model has few) were never called
    back: after the duration that nine of ten of them did not exceed, with a margin. One callback ends that.
    """
    newest = NEWEST.all(tx.connection, family=family)
    of_model = [task for task in newest if task["model"] == model]
    tasks = (of_model if len(of_model) >= MIN_TASKS else newest)[:MAX_TASKS]
    silent = next((index for index, task in enumerate(tasks) if task["callback_count"]), len(tasks))
    if silent < MIN_TASKS:
        return None
    durations = sorted(task["duration_ms"] for task in tasks[:silent])
    usual = durations[(9 * len(durations) - 1) // 10]
    delay = max(int(usual * MARGIN), MIN_QUESTION_MS)
    return delay if delay < tx.policy.overdue_ms(family) else None

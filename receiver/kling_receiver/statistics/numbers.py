"""All numbers of the overview, as they are at one moment."""

from typing import TypedDict

from sqlalchemy import Connection

from kling_receiver.policy import SlotLimits
from kling_receiver.statistics import overview, queues


class Numbers(TypedDict):
    """The numbers of a time range, and what waits now."""

    outcomes: list[overview.OutcomeRow]
    callbacks: overview.CallbackCounts
    finished: overview.FinishedTasks
    slots: queues.SlotUse
    jobs: queues.JobCounts


def read_numbers(connection: Connection, since: int, until: int, step_ms: int, limits: SlotLimits) -> Numbers:
    """The numbers of a range (unix ms) in steps of whole hours. `limits`: of KLING_CONCURRENCY. Raises InvalidRow."""
    return {
        "outcomes": overview.outcomes(connection, since, until, step_ms),
        "callbacks": overview.callbacks(connection, since, until),
        "finished": overview.finished_tasks(connection, since, until),
        "slots": queues.slot_use(connection, limits),
        "jobs": queues.pending_jobs(connection),
    }

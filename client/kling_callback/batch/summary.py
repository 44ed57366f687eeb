"""What has become of the jobs of a batch."""

from collections import Counter
from dataclasses import dataclass, field

from kling_callback.batch.costs import ChargeSum, EstimateSum


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that failed: its line and id, and why."""

    line: int
    task_id: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}, {self.task_id}: {self.reason}"


@dataclass(slots=True)
class Summary:
    """What has become of the jobs so far. `submitted`: taken by the receiver, now or by an earlier run; or `refused`.

    `ended`: with or without success, the refused ones included; `files`: saved, now or by an earlier run.

    `charges`: what Kling says that the ended tasks cost; `estimate`: what those that succeeded cost by its list prices.
    """

    jobs: int
    submitted: int = 0
    refused: int = 0
    ended: int = 0
    files: int = 0
    failures: list[Failure] = field(default_factory=list)
    charges: ChargeSum = field(default_factory=ChargeSum)
    estimate: EstimateSum = field(default_factory=EstimateSum)
    statuses: Counter[str] = field(default_factory=Counter)
    """Of the submitted jobs that have not ended: `queued`, or the task's status."""

    @property
    def succeeded(self) -> int:
        """Jobs that succeeded, and whose files are all there."""
        return self.ended - len(self.failures)

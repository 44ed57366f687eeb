"""The state machine of a task: which status may follow which, by the source of the new status. Imports nothing of ours.

              a              b               c
    created ────▶ submitted ────▶ processing ────▶ succeed
       │              │               │      └───▶ failed
       └──────────────┴───────────────┘  (d: steps may be skipped)

    succeed, failed, when the source is not Kling
       └────▶ any status that Kling reports (e); created, by another attempt (f)

a  Kling accepted the create, or any authenticated callback says so. A task whose create the receiver sends stays
   `created` while it waits for a slot; the states of its submission are in `tasks/slots`.
b  Kling started the job.
c  Kling finished the job. A callback with a final status is only a hint: `tasks/ingest` never sets it.
d  Callbacks may be lost, late or out of order: a later status needs no earlier one.
e  A final status that did not come from Kling (`origin` `local` or `callback`) is replaced by Kling's status.
f  A create that was certainly not accepted (`local`) is retried by a registration with the same id.

Otherwise a status never goes back, and Kling's first final status stands.
"""

from typing import Literal

Status = Literal["created", "submitted", "processing", "succeed", "failed"]
FinalStatus = Literal["succeed", "failed"]
Origin = Literal["kling", "callback", "local"]
Transition = Literal["applied", "same", "late", "contradictory"]

RANK: dict[str, int] = {"created": 0, "submitted": 1, "processing": 2, "succeed": 3, "failed": 3}
FINAL = frozenset({"succeed", "failed"})
STATUSES: tuple[str, ...] = tuple(RANK)
ORIGINS: tuple[str, ...] = ("kling", "callback", "local")


def transition(status: str, origin: str | None, to: str, by: Origin) -> Transition:
    """The effect of a new status `to` from the source `by` on a task with `status`, which is final by `origin`."""
    if status in FINAL and (origin == "kling" or by != "kling"):
        return _after_final(status, to)
    if status in FINAL:
        return "applied"
    if RANK[to] > RANK[status]:
        return "applied"
    return "same" if to == status else "late"


def _after_final(status: str, to: str) -> Transition:
    if to == status:
        return "same"
    return "contradictory" if to in FINAL else "late"

"""The life of a task: which status may follow which, and whose word moves it. Imports nothing of ours.

              a              b               c
    created ────▶ submitted ────▶ processing ────▶ succeed
       │              │               │      └───▶ failed
       └──────────────┴───────────────┘  (d: steps may be skipped)

    succeed, failed, not by Kling's own word
       └────▶ any status that Kling names (e); created, by another attempt (f)

a  Kling took the create, or any proven callback says so.
b  Kling began.
c  Kling ended it; a callback alone is only a hint of that, until Kling itself says so.
d  Callbacks may be lost, late or out of order: a later status needs no earlier one.
e  An end that Kling did not tell us (`origin` `local` or `callback`) gives way to Kling's word.
f  A create that surely was not taken (`local`) is tried again by a registration with the same id.

A status never goes back otherwise, and Kling's first final word stands.
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
    """What becomes of a task in `status` (final by `origin`) when `by` says that it is `to`."""
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

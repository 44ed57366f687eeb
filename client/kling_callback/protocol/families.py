"""What names a kind of job: its path at Kling. Client and receiver keep to one rule: Kling is asked there."""

import re

PATTERN = re.compile(r"/?[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")

MAX_CHARS = 200

DESCRIPTION = "a path under /v1 like videos/effects, or a new one like /text-to-video/kling-3.0-turbo"


def is_family(text: str) -> bool:
    """Whether `text` may name a family: a path that leads nowhere else."""
    return len(text) <= MAX_CHARS and PATTERN.fullmatch(text) is not None


def is_job(family: str) -> bool:
    """Whether a create may be sent there: Kling's paths have two parts or more.

    Only who creates asks this; a callback whose address somebody signed for another path is still taken.
    """
    return is_family(family) and "/" in family[1:]


def is_new_standard(family: str) -> bool:
    """Whether it is of Kling's new standard: a path of its own, not one under `/v1`."""
    return family.startswith("/")

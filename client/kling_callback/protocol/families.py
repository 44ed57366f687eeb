"""Families: the paths at Kling that name kinds of jobs. Client and receiver check them by the same rule."""

import re

PATTERN = re.compile(r"/?[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")

MAX_CHARS = 200

DESCRIPTION = "a path under /v1 like videos/effects, or a new one like /text-to-video/kling-3.0-turbo"


def is_family(text: str) -> bool:
    """Whether `text` may name a family: a path without `..`, query or host."""
    return len(text) <= MAX_CHARS and PATTERN.fullmatch(text) is not None


def is_job(family: str) -> bool:
    """Whether a create may be sent to this path: Kling's have two parts or more.

    Only creates are checked: a callback whose address was signed for another path is still accepted.
    """
    return is_family(family) and "/" in family[1:]


def is_new_standard(family: str) -> bool:
    """Whether the family is of Kling's new standard: a path from the root, not under `/v1`."""
    return family.startswith("/")


def usual_kind(family: str) -> str:
    """The kind of the files that jobs of this family make: `video`, `image`, `audio`, or `file` if it does not tell."""
    first = family.lower().strip("/").partition("/")[0]
    if first in LEGACY_KINDS:
        return LEGACY_KINDS[first]
    made = first.rpartition("-to-")[2]
    return next((kind for kind in ("video", "image", "audio") if kind in made), "video" if "motion" in made else "file")


LEGACY_KINDS = {"images": "image", "videos": "video", "audio": "audio"}
"""By the first part of a path under `/v1`."""

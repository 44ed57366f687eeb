"""Families: the paths at Kling that name kinds of jobs. Client and receiver check them by the same rules.

Asynchronous families create tasks, which end with a callback. Synchronous endpoints answer at once: their answer is
the result.
"""

import re

PATTERN = re.compile(r"/?[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")

MAX_CHARS = 200

DESCRIPTION = "a path under /v1 like videos/effects, or a new one like /text-to-video/kling-3.0-turbo"

ASYNCHRONOUS = (
    "images/generations",
    "images/multi-image2image",
    "images/editing/expand",
    "images/kolors-virtual-try-on",
    "images/omni-image",
    "videos/text2video",
    "videos/image2video",
    "videos/multi-image2video",
    "videos/omni-video",
    "videos/motion-control",
    "videos/video-extend",
    "videos/advanced-lip-sync",
    "videos/lip-sync",
    "videos/effects",
    "videos/avatar/image2video",
    "videos/multi-elements",
    "audio/text-to-audio",
    "audio/video-to-audio",
    "general/advanced-custom-elements",
    "general/custom-voices",
    "general/ai-multi-shot",
)
"""The known families under `/v1` that create tasks."""

NEW_STANDARD = frozenset({"text-to-video", "image-to-video", "omni-video", "motion-control"})
"""The first parts of the new standard's known paths."""

SYNCHRONOUS_GET = frozenset({"general/presets-voices", "general/advanced-presets-elements", "account/costs"})
SYNCHRONOUS_POST = frozenset(
    {
        "audio/tts",
        "videos/identify-face",
        "videos/image-recognize",
        *(f"videos/multi-elements/{step}-selection" for step in ("init", "add", "delete", "clear", "preview")),
        *(f"general/delete-{kind}" for kind in ("elements", "advanced-elements", "voices")),
        "account/billing/balance",
        "account/billing/package",
    }
)
SYNCHRONOUS = SYNCHRONOUS_GET | SYNCHRONOUS_POST
"""The known endpoints that answer at once. Those of the account are at the root, the others under `/v1`."""


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


def is_account(path: str) -> bool:
    """Whether a path is of the account: at the root, but not of the new standard."""
    return path.removeprefix("/").startswith("account/")


def is_synchronous(path: str) -> bool:
    """Whether Kling is known to answer at this path at once, with or without a leading slash or `/v1`."""
    return _bare(path) in SYNCHRONOUS or is_account(path)


def creates_tasks(path: str) -> bool:
    """Whether a call at this path is known to create a task."""
    if is_synchronous(path):
        return False
    first, _, last = path.removeprefix("/").partition("/")
    is_new = is_new_standard(path) and (first in NEW_STANDARD or last.startswith("kling-"))
    return is_new or _bare(path) in ASYNCHRONOUS


def family_problems(family: str) -> list[str]:
    """Why tasks cannot be created in this family: messages for people."""
    if not is_job(family):
        return [f"family: {family!r} must be {DESCRIPTION}."]
    if is_synchronous(family):
        return [f"family: {family} answers at once and creates no task. Use `kling call` (in Python: kling.call)."]
    if re.match(r"/?v\d+/", family):
        return [f"family: must be {family.split('/v1/')[-1].removeprefix('v1/')!r}, without /v1/."]
    return []


def _bare(path: str) -> str:
    return path.removeprefix("/").removeprefix("v1/")

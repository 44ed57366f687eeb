"""Families: the paths at Kling that name kinds of jobs. Client and receiver check them by the same rules.

Asynchronous families create tasks, which end with a callback. Synchronous endpoints answer at once: their answer is
the result.
"""

import re
from difflib import get_close_matches
from typing import Any

from kling_callback.protocol.media_types import MEDIA_KINDS

PATTERN = re.compile(r"/?[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")

MAX_CHARS = 200

DESCRIPTION = "a path under /v1 like videos/effects, or a new one like /text-to-video/kling-3.0-turbo"

ASYNCHRONOUS = {
    "images/generations": "images from a text, or from a text and an image",
    "images/multi-image2image": "images from several images",
    "images/editing/expand": "an image continued beyond its edges",
    "images/kolors-virtual-try-on": "a person in other clothes",
    "images/omni-image": "images from texts, images and elements; a series",
    "videos/text2video": "a video from a text",
    "videos/image2video": "a video from an image",
    "videos/multi-image2video": "a video from several images",
    "videos/omni-video": "a video from texts, images, elements and a video",
    "videos/motion-control": "an image that moves as in a video",
    "videos/video-extend": "a video continued",
    "videos/advanced-lip-sync": "a video whose lips follow a sound",
    "videos/lip-sync": "the same, older",
    "videos/effects": "a video effect",
    "videos/avatar/image2video": "a portrait that speaks",
    "videos/multi-elements": "a video with elements replaced, added or deleted",
    "audio/text-to-audio": "a sound from a text",
    "audio/video-to-audio": "a sound for a video",
    "general/advanced-custom-elements": "an element, in `outputs`",
    "general/custom-voices": "a voice, in `outputs`",
    "general/ai-multi-shot": "three views of one image",
}
"""The known families under `/v1` that create tasks, with what they make."""

NEW_STANDARD = frozenset({"text-to-video", "image-to-video", "omni-video", "motion-control"})
"""The first parts of the new standard's known paths."""

SYNCHRONOUS_GET = {
    "general/presets-voices": "Kling's own voices",
    "general/advanced-presets-elements": "Kling's own elements",
    "account/costs": "resource packs, `?start_time=...&end_time=...` in unix ms",
}
SYNCHRONOUS_POST = {
    "audio/tts": "speech from a text",
    "videos/identify-face": "the faces of a video, for advanced-lip-sync",
    "videos/image-recognize": "the subjects of an image",
    **{
        f"videos/multi-elements/{step}-selection": f"{step} a selection, for multi-elements"
        for step in ("init", "add", "delete", "clear", "preview")
    },
    **{
        f"general/delete-{kind}": f"delete {kind.replace('-', ' ')}"
        for kind in ("elements", "advanced-elements", "voices")
    },
    "account/billing/balance": "what was paid from the balance",
    "account/billing/package": "what was paid from resource packs",
}
SYNCHRONOUS = SYNCHRONOUS_GET | SYNCHRONOUS_POST
"""The known endpoints that answer at once. Those of the account are at the root, the others under `/v1`."""


def is_family(text: object) -> bool:
    """Whether `text` may name a family: a path without `..`, query or host."""
    return isinstance(text, str) and len(text) <= MAX_CHARS and PATTERN.fullmatch(text) is not None


def is_job(family: Any) -> bool:
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
    return bare(path) in SYNCHRONOUS or is_account(path)


def creates_tasks(path: str) -> bool:
    """Whether a call at this path is known to create a task."""
    if is_synchronous(path):
        return False
    first, _, last = path.removeprefix("/").partition("/")
    is_new = is_new_standard(path) and (first in NEW_STANDARD or last.startswith("kling-"))
    return is_new or bare(path) in ASYNCHRONOUS


def family_problems(family: Any) -> list[str]:
    """Why tasks cannot be created in this family: messages for people."""
    if not is_job(family):
        return [f"family: {family!r} must be {DESCRIPTION}."]
    if is_synchronous(family):
        return [f"family: {family} answers at once and creates no task. Use `kling call` (in Python: kling.call)."]
    if re.match(r"/?v\d+/", family):
        return [f"family: must be {family.split('/v1/')[-1].removeprefix('v1/')!r}, without /v1/."]
    if meant := _meant(family):
        return [f"family: {family} is none of Kling's. Did you mean {meant}?"]
    return []


def _meant(family: str) -> str:
    """The known family that an unknown one nearly is; "" if it resembles none."""
    if family in ASYNCHRONOUS or is_new_standard(family):
        return ""
    if family.partition("/")[0] in NEW_STANDARD:
        return f"/{family}"
    legacy = family.lower().replace("-to-", "2")
    if legacy in ASYNCHRONOUS:
        return legacy
    similar = get_close_matches(family, ASYNCHRONOUS, 1, 0.9)
    # A longer name is rather a new version of the family.
    return similar[0] if similar and not family.startswith(similar[0]) else ""


def bare(path: str) -> str:
    """A path as the tables here have it: without a leading slash and without `v1/`."""
    return path.removeprefix("/").removeprefix("v1/")


def usual_kind(family: str) -> str:
    """The kind of the files that jobs of this family make: `video`, `image`, `audio`, or `file` if it does not tell."""
    first = family.lower().strip("/").partition("/")[0]
    if first in LEGACY_KINDS:
        return LEGACY_KINDS[first]
    made = first.rpartition("-to-")[2]
    return next((kind for kind in MEDIA_KINDS if kind in made), "video" if "motion" in made else "file")


LEGACY_KINDS = {"images": "image", "videos": "video", "audio": "audio"}
"""By the first part of a path under `/v1`."""

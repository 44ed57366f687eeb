"""Find misspelt parameters: a name that is nearly one of Kling's was hardly meant to be another one."""

from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches

MIN_SIMILARITY = 0.8
"""As `difflib` measures it; `apsect_ratio` and `aspect_ratio` have 0.92."""

ALIASES = {"model": "model_name", "image_url": "image"}
"""Names of other services, or of Kling's past, for parameters that these jobs have."""

OTHER_NAMES = frozenset(
    {
        *("contents", "options", "settings", "input", "callback_url", "external_task_id", "watermark_info"),
        *("image_url", "image_list", "video_id", "video_url", "video_list", "subject_image_list", "scene_image"),
        *("style_image", "human_image", "cloth_image", "element_frontal_image", "effect_scene", "session_id"),
        *("result_type", "series_amount", "keep_original_sound", "storyboard_list", "tail_image_url", "seed"),
    }
)
"""Kling's names of parameters that the typed jobs do not have: they resemble some of theirs, and are not misspelt."""


def misspelt(names: Iterable[str], known: Collection[str]) -> Iterator[str]:
    """Yield a problem for each name that is none of `known`, and resembles one of them."""
    for name in names:
        if name in known:
            continue
        lowered = name.lower()
        meant = ALIASES.get(lowered, "")
        if meant not in known:
            similar = get_close_matches(lowered.replace("-", "_"), known, 1, MIN_SIMILARITY)
            meant = similar[0] if similar and name not in OTHER_NAMES else ""
        if meant:
            yield f"{name}: is not a parameter of Kling. Did you mean {meant}?"

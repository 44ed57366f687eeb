"""Kling's list prices, November 2026, and what a create would cost by them. Relays and contracts have other prices."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kling_callback.jobs.body import model_of
from kling_callback.protocol.families import is_new_standard

USD_PER_VIDEO_UNIT, USD_PER_IMAGE_UNIT = 0.14, 0.0035

DEFAULT_SECONDS = 5
"""Seconds of a video whose create names no duration."""

RESOLUTIONS = {"std": "720p", "pro": "1080p", "4k": "4k"}
"""By the legacy `mode`."""

VIDEO_UNITS = {
    "kling-3.0-turbo": {"720p": 0.8, "1080p": 1.0},
    "kling-3.0": {"720p": 0.6, "1080p": 0.8, "4k": 3.0},
    "kling-3.0 with sound": {"720p": 0.9, "1080p": 1.2, "4k": 3.0},
    "kling-3.0-omni": {"720p": 0.6, "1080p": 0.8},
    "kling-2.6": {"720p": 0.3, "1080p": 0.5},
    "kling-2.6 with sound": {"1080p": 1.0},
    "kling-2.5-turbo": {"720p": 0.3, "1080p": 0.5},
}
"""Units a second, by model and resolution."""

VIDEO_MODELS = {
    "kling-v3": "kling-3.0",
    "kling-v2-6": "kling-2.6",
    "kling-v2-5-turbo": "kling-2.5-turbo",
    "kling-v3-omni": "kling-3.0-omni",
    "kling-video-o1": "kling-3.0-omni",
    "kling-o1": "kling-3.0-omni",
}
"""Models by the name under which they have a price."""

VIDEO_FAMILIES = ("videos/text2video", "videos/image2video", "videos/omni-video", "videos/motion-control")
UNITS_BY_LENGTH = {"videos/motion-control", "videos/avatar/image2video"}
"""Families whose videos are as long as their input: only the price of a second is known."""

AVATAR_UNITS = {"720p": 0.4, "1080p": 0.8}
LIP_SYNC_FAMILIES = ("videos/advanced-lip-sync", "videos/lip-sync")
LIP_SYNC_UNITS = 0.1
"""Units a second: 0.5 for 5 seconds."""

IMAGE_UNITS = {"kling-v3": 8.0, "kling-v3-omni": 8.0, "kling-image-o1": 8.0}
V2_1_UNITS = {"images/generations": 4.0, "images/multi-image2image": 16.0}
"""Units an image of kling-v2-1; one made from an image costs twice as much as one from a text."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """An expected cost. `units`: Kling's; `usd`: US dollars; `per`: "second" if the length is not known, else ""."""

    units: float
    usd: float
    per: str = ""

    def __str__(self) -> str:
        return f"{self.units:g} units, {self.usd:.3g} USD{f' per {self.per}' if self.per else ''} (estimate)"


def estimate(family: str, body: Mapping[str, Any]) -> Estimate | None:
    """The expected cost of a create by Kling's list prices; None for a model or a family without a known price."""
    if family.startswith("images/"):
        units = _image_units(family, body)
        return _estimate(units * _count(body), USD_PER_IMAGE_UNIT) if units else None
    rate = _video_rate(family, body)
    if rate is None:
        return None
    if family in (*UNITS_BY_LENGTH, *LIP_SYNC_FAMILIES) or family.startswith("/motion-control/"):
        return _estimate(rate, USD_PER_VIDEO_UNIT, "second")
    seconds = str(_settings(family, body).get("duration", DEFAULT_SECONDS))
    return _estimate(rate * int(seconds), USD_PER_VIDEO_UNIT) if re.fullmatch(r"[0-9]{1,3}", seconds) else None


def _estimate(units: float, usd_per_unit: float, per: str = "") -> Estimate:
    return Estimate(round(units, 4), round(units * usd_per_unit, 4), per)


def _image_units(family: str, body: Mapping[str, Any]) -> float | None:
    model = model_of(family, body)
    if model != "kling-v2-1":
        return IMAGE_UNITS.get(model)
    units = V2_1_UNITS.get(family)
    return units * 2 if units and body.get("image") else units


def _count(body: Mapping[str, Any]) -> int:
    count = body.get("n")
    return count if isinstance(count, int) and count > 0 else 1


def _settings(family: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    settings = body.get("settings") if is_new_standard(family) else body
    return settings if isinstance(settings, Mapping) else {}


def _video_rate(family: str, body: Mapping[str, Any]) -> float | None:
    """Units a second."""
    settings = _settings(family, body)
    resolution = str(settings.get("resolution") or RESOLUTIONS.get(str(settings.get("mode", "std")), ""))
    if family in LIP_SYNC_FAMILIES:
        return LIP_SYNC_UNITS
    if family == "videos/avatar/image2video":
        return AVATAR_UNITS.get(resolution)
    if not is_new_standard(family) and family not in VIDEO_FAMILIES:
        return None
    model = model_of(family, body)
    model = VIDEO_MODELS.get(model, model)
    if settings.get("sound") == "on" or settings.get("audio") == "native":
        model = f"{model} with sound" if f"{model} with sound" in VIDEO_UNITS else model
    return VIDEO_UNITS.get(model, {}).get(resolution)

"""The families of jobs and their parameters; strict only where Kling's pages agree."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kling_sandbox.api.replies import ApiError


@dataclass(frozen=True)
class Family:
    """A kind of job. `kind`: of its results; `needs`: its required parameter."""

    path: str
    kind: str
    needs: str = ""

    @property
    def new(self) -> bool:
        """Whether it belongs to the new standard."""
        return self.path.startswith("/")

    def options(self, body: dict[str, Any]) -> dict[str, Any]:
        """The part of a body that has the callback address and the external id."""
        options: dict[str, Any] = body.get("options", {}) if self.new else body
        return options


FAMILIES = {
    family.path: family
    for family in (
        Family("images/generations", "images", "prompt"),
        Family("images/multi-image2image", "images"),
        Family("images/editing/expand", "images"),
        Family("images/kolors-virtual-try-on", "images"),
        Family("images/omni-image", "images", "prompt"),
        Family("videos/text2video", "videos", "prompt"),
        Family("videos/image2video", "videos"),
        Family("videos/multi-image2video", "videos"),
        Family("videos/omni-video", "videos", "prompt"),
        Family("videos/motion-control", "videos"),
        Family("videos/video-extend", "videos"),
        Family("videos/advanced-lip-sync", "videos"),
        Family("videos/lip-sync", "videos"),
        Family("videos/effects", "videos"),
        Family("videos/avatar/image2video", "videos"),
        Family("audio/text-to-audio", "audios", "prompt"),
        Family("audio/video-to-audio", "audios"),
        Family("audio/tts", "audios", "text"),
        Family("/text-to-video", "videos", "prompt"),
        Family("/image-to-video", "videos"),
        Family("/omni-video", "videos"),
        Family("/motion-control", "videos"),
    )
}

Check = Callable[[Any], bool]


def _text(limit: int) -> Check:
    return lambda value: isinstance(value, str) and len(value) <= limit


def _one_of(choices: str) -> Check:
    return lambda value: value in choices.split()


def _number(low: float, high: float) -> Check:
    return lambda value: type(value) in (int, float) and low <= value <= high


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 9


def _is_seconds(value: Any) -> bool:
    return isinstance(value, str) and value.isdecimal() and 3 <= int(value) <= 15


def _is_image(value: Any) -> bool:
    if not isinstance(value, str) or not value or value.startswith("data:"):
        return False
    if value.startswith(("http://", "https://")):
        return True
    try:
        return len(base64.b64decode(value, validate=True)) <= 10 * 2**20
    except binascii.Error:
        return False


def _is_camera_control(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    config = value.get("config")
    if value.get("type") != "simple":
        return config is None and PRESETS(value.get("type"))
    if not isinstance(config, dict) or not config.keys() <= AXES:
        return False
    return all(map(_number(-10, 10), config.values())) and sum(map(bool, config.values())) == 1


AXES = {"horizontal", "vertical", "pan", "tilt", "roll", "zoom"}
PRESETS = _one_of("down_back forward_up right_turn_forward left_turn_forward")

CHECKS: dict[str, Check] = {
    "prompt": _text(2500),
    "negative_prompt": _text(2500),
    "n": _is_count,
    "series_amount": _is_count,
    "aspect_ratio": _one_of("16:9 9:16 1:1 4:3 3:4 3:2 2:3 21:9"),
    "output_format": _one_of("png jpg"),
    "resolution": _one_of("1k 2k"),
    "image": _is_image,
    "image_tail": _is_image,
    "image_reference": _one_of("subject face"),
    "image_fidelity": _number(0, 1),
    "human_fidelity": _number(0, 1),
    "cfg_scale": _number(0, 1),
    "mode": _one_of("std pro"),
    "duration": _is_seconds,
    "camera_control": _is_camera_control,
}


def check(family: Family, body: dict[str, Any]) -> None:
    """Check a create. Raises ApiError."""
    if family.needs and not body.get(family.needs):
        raise ApiError(1200, f"{family.needs} is required")
    # The new standard has its parameters in `settings`, which Kling's pages do not describe.
    checks = {"prompt": _text(3072)} if family.new else CHECKS
    for name, is_valid in checks.items():
        if name in body and not is_valid(body[name]):
            raise ApiError(1201, f"{name} is invalid")
    if family.path == "images/generations" and "image" in body and "negative_prompt" in body:
        raise ApiError(1201, "negative_prompt is not supported together with image")
    if not str(body.get("model_name", "kling")).startswith("kling"):
        raise ApiError(1203, f"Model {body['model_name']} does not exist")
    _check_options(family.options(body))


def _check_options(options: dict[str, Any]) -> None:
    url = options.get("callback_url")
    if url is not None and not _is_absolute(url):
        raise ApiError(1200, "callback_url must be an absolute http(s) address")
    external_id = options.get("external_task_id")
    if external_id is not None and not (isinstance(external_id, str) and external_id):
        raise ApiError(1201, "external_task_id is invalid")


def _is_absolute(url: Any) -> bool:
    parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
    return parts.scheme in ("http", "https") and bool(parts.hostname)

"""The families of jobs and what each accepts; strict only where Kling's pages agree."""

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kling_sandbox.replies import Refused


@dataclass(frozen=True)
class Family:
    path: str
    kind: str
    needs: str = ""

    @property
    def new(self) -> bool:
        return self.path.startswith("/")

    def options(self, body: dict[str, Any]) -> dict[str, Any]:
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

Test = Callable[[Any], bool]


def text(limit: int) -> Test:
    return lambda value: isinstance(value, str) and len(value) <= limit


def one_of(words: str) -> Test:
    return lambda value: value in words.split()


def number(low: float, high: float) -> Test:
    return lambda value: type(value) in (int, float) and low <= value <= high


def count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 9


def seconds(value: Any) -> bool:
    return isinstance(value, str) and value.isdecimal() and 3 <= int(value) <= 15


def picture(value: Any) -> bool:
    if not isinstance(value, str) or not value or value.startswith("data:"):
        return False
    if value.startswith(("http://", "https://")):
        return True
    try:
        return len(base64.b64decode(value, validate=True)) <= 10 * 2**20
    except binascii.Error:
        return False


def camera(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    config = value.get("config")
    if value.get("type") != "simple":
        return config is None and PRESETS(value.get("type"))
    if not isinstance(config, dict) or not config.keys() <= AXES:
        return False
    return all(map(number(-10, 10), config.values())) and sum(map(bool, config.values())) == 1


AXES = {"horizontal", "vertical", "pan", "tilt", "roll", "zoom"}
PRESETS = one_of("down_back forward_up right_turn_forward left_turn_forward")

CHECKS: dict[str, Test] = {
    "prompt": text(2500),
    "negative_prompt": text(2500),
    "n": count,
    "series_amount": count,
    "aspect_ratio": one_of("16:9 9:16 1:1 4:3 3:4 3:2 2:3 21:9"),
    "output_format": one_of("png jpg"),
    "resolution": one_of("1k 2k"),
    "image": picture,
    "image_tail": picture,
    "image_reference": one_of("subject face"),
    "image_fidelity": number(0, 1),
    "human_fidelity": number(0, 1),
    "cfg_scale": number(0, 1),
    "mode": one_of("std pro"),
    "duration": seconds,
    "camera_control": camera,
}


def check(family: Family, body: dict[str, Any]) -> None:
    if family.needs and not body.get(family.needs):
        raise Refused(1200, f"{family.needs} is required")
    # The new standard keeps its parameters in `settings`, which no page here describes.
    tests = {"prompt": text(3072)} if family.new else CHECKS
    for name, test in tests.items():
        if name in body and not test(body[name]):
            raise Refused(1201, f"{name} is invalid")
    if family.path == "images/generations" and "image" in body and "negative_prompt" in body:
        raise Refused(1201, "negative_prompt is not supported together with image")
    if not str(body.get("model_name", "kling")).startswith("kling"):
        raise Refused(1203, f"Model {body['model_name']} does not exist")
    check_options(family.options(body))


def check_options(options: dict[str, Any]) -> None:
    address = options.get("callback_url")
    if address is not None and not absolute(address):
        raise Refused(1200, "callback_url must be an absolute http(s) address")
    external_id = options.get("external_task_id")
    if external_id is not None and not (isinstance(external_id, str) and external_id):
        raise Refused(1201, "external_task_id is invalid")


def absolute(address: Any) -> bool:
    parts = urlsplit(address) if isinstance(address, str) else urlsplit("")
    return parts.scheme in ("http", "https") and bool(parts.hostname)

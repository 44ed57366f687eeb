"""What the value of a parameter must be, in code and in words; and what counts as no value."""

import base64
import binascii
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import imagesize  # type: ignore[import-untyped]  # it ships no types

MIN_SIDE_PIXELS = 300
MAX_ASPECT_RATIO = 2.5
"""The longer side of an image divided by the shorter one."""

IMAGE_STARTS = ("iVBORw0KGgo", "/9j/")
"""How a PNG and a JPEG begin in base64."""


@dataclass(frozen=True)
class Rule:
    """What a value must be. `text` completes the sentence `NAME must be ...`."""

    text: str
    accepts: Callable[[Any], bool]


def problems(rules: Mapping[str, Rule], values: Mapping[str, Any]) -> list[str]:
    """One sentence for each value that breaks its rule."""
    return [
        f"{name} must be {rule.text}"
        for name, rule in rules.items()
        if name in values and not rule.accepts(values[name])
    ]


def without_empty(value: Any) -> Any:
    """The value without the empty strings and nulls in its objects: Kling reads them as not given."""
    if isinstance(value, dict):
        return {name: without_empty(each) for name, each in value.items() if each not in ("", None)}
    if isinstance(value, list):
        return [without_empty(each) for each in value]
    return value


def text(limit: int) -> Rule:
    """A string of limited length."""
    return Rule(f"a text of at most {limit} characters", lambda value: isinstance(value, str) and len(value) <= limit)


def one_of(*choices: Any) -> Rule:
    """One of these values, of the same type."""
    kinds = {type(choice) for choice in choices}
    words = ", ".join(f'"{choice}"' if isinstance(choice, str) else str(choice) for choice in choices)
    return Rule(f"one of {words}", lambda value: type(value) in kinds and value in choices)


def number(low: float, high: float) -> Rule:
    """A number in a range, bounds included."""
    return Rule(f"a number from {low} to {high}", lambda value: type(value) in (int, float) and low <= value <= high)


def integer(low: int, high: int) -> Rule:
    """A whole number in a range, bounds included."""
    return Rule(f"a whole number from {low} to {high}", lambda value: type(value) is int and low <= value <= high)


def seconds(low: int, high: int) -> Rule:
    """A duration in the legacy standard: whole seconds as a string."""
    return one_of(*map(str, range(low, high + 1)))


def objects(most: int, least: int = 0, **fields: Rule) -> Rule:
    """A list of objects, each with all of these fields."""

    def accepts(value: Any) -> bool:
        return isinstance(value, list) and least <= len(value) <= most and all(map(fits, value))

    def fits(each: Any) -> bool:
        return isinstance(each, dict) and fields.keys() <= each.keys() and not problems(fields, each)

    return Rule(f"a list of {least} to {most} objects with {', '.join(fields)}", accepts)


def image(megabytes: int) -> Rule:
    """A URL, or base64 of a file of limited size. Its dimensions are looked at when the task runs."""

    def accepts(value: Any) -> bool:
        if is_url(value):
            return True
        try:
            size = len(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError, TypeError):  # such as `data:image/png;base64,...`
            return False
        return isinstance(value, str) and 0 < size <= megabytes * 2**20

    return Rule(f"a URL, or base64 without a `data:` prefix, of at most {megabytes} MB", accepts)


def is_url(value: Any) -> bool:
    """Whether the value is an absolute address."""
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        return parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def has_unusable_image(body: Any) -> bool:
    """Whether an image anywhere in a body is too small or too narrow: Kling accepts it, and fails the task."""
    return any(min(size) > 0 and not _is_usable(*size) for size in _image_sizes(body))


def _is_usable(width: int, height: int) -> bool:
    return min(width, height) >= MIN_SIDE_PIXELS and max(width, height) <= MAX_ASPECT_RATIO * min(width, height)


def _image_sizes(value: Any) -> Iterator[tuple[int, int]]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _image_sizes(each)
    elif isinstance(value, str) and value.startswith(IMAGE_STARTS):
        try:
            yield imagesize.get(io.BytesIO(base64.b64decode(value)), exif_rotation=False)
        except (ValueError, OSError):
            return  # damaged: its size is unknown


IMAGE = image(10)
URL = Rule("a URL", is_url)
ON_OFF = one_of("on", "off")
YES_NO = one_of(True, False)
ID = Rule("an id", lambda value: type(value) in (str, int))
ANY_LIST = Rule("a list", lambda value: isinstance(value, list))
ANY_OBJECT = Rule("an object", lambda value: isinstance(value, dict))
PROMPT = text(2500)

AXES = ("horizontal", "vertical", "pan", "tilt", "roll", "zoom")
MOVEMENTS = ("down_back", "forward_up", "right_turn_forward", "left_turn_forward")


def _is_camera_control(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    config = value.get("config")
    if value.get("type") != "simple":
        return config is None and value.get("type") in MOVEMENTS
    if not isinstance(config, dict) or not config.keys() <= set(AXES):
        return False
    return all(map(number(-10, 10).accepts, config.values())) and sum(map(bool, config.values())) == 1


CAMERA_CONTROL = Rule(
    f'{{"type": "simple", "config": {{one of {", ".join(AXES)}: -10 to 10, not 0}}}}, '
    f"or a type of {', '.join(MOVEMENTS)} without config",
    _is_camera_control,
)

"""The types of job parameters: each checks one value and returns the value to send.

A ValueError's message follows the parameter's name.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kling_callback.jobs.images import MAX_BYTES, check_url, decode_image, encode_image, is_url
from kling_callback.jobs.inputs import InputFile


class ParameterType(Protocol):
    """The type of a parameter."""

    def check(self, value: Any) -> Any:
        """Return the value to send. Raises ValueError for a value that Kling would refuse."""
        ...


class AnyValue:
    """Any value, sent unchanged: Kling may know more of it than the table does."""

    def check(self, value: Any) -> Any:
        return value


@dataclass(frozen=True, slots=True)
class Text:
    """Text of at most `max_chars` characters."""

    max_chars: int

    def check(self, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError("must be text.")
        if len(value) > self.max_chars:
            raise ValueError(f"has {len(value)} characters, at most {self.max_chars}.")
        return value


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few texts, those that all of Kling's pages name."""

    values: tuple[str, ...]

    def check(self, value: Any) -> str:
        if value not in self.values:
            raise ValueError(f"must be {' or '.join(self.values)}.")
        return str(value)


class Flag:
    """True or False."""

    def check(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError("must be true or false.")
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """A number from `low` to `high`."""

    low: float
    high: float

    def check(self, value: Any) -> float:
        if not _is_number(value) or not self.low <= value <= self.high:
            raise ValueError(f"must be a number from {self.low} to {self.high}.")
        return float(value)


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number from `low` to `high`."""

    low: int
    high: int

    def check(self, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not self.low <= value <= self.high:
            raise ValueError(f"must be a whole number from {self.low} to {self.high}.")
        return value


@dataclass(frozen=True, slots=True)
class Seconds:
    """Whole seconds from `low` to `high`, as int or str; `only`: the allowed ones, if not all between are.

    Sent as text in legacy jobs, as a number if `as_number`.
    """

    low: int
    high: int
    only: tuple[int, ...] = ()
    as_number: bool = False

    def check(self, value: Any) -> str | int:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        digits = isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) < 4
        if not digits or not self.low <= int(text) <= self.high or (self.only and int(text) not in self.only):
            allowed = " or ".join(map(str, self.only)) if self.only else f"whole, from {self.low} to {self.high}"
            hint = "" if self.only or self.as_number else "; 5 and 10 always work"
            raise ValueError(f"must be seconds, {allowed}{hint}.")
        return int(text) if self.as_number else str(int(text))


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image: a Path, a result of an earlier job, or a str with a URL, a data URL, a file name or bare base64."""

    max_bytes: int = MAX_BYTES

    def check(self, value: Any) -> str:
        if not isinstance(value, Path | str | InputFile):
            raise ValueError("must be a Path, a URL, a file name, base64, or an image of an earlier result: images[0].")
        return encode_image(value, self.max_bytes)


class VideoInput:
    """A video: a URL, or a result of an earlier job. Kling loads it; it has no upload."""

    def check(self, value: Any) -> str:
        if isinstance(value, InputFile):
            return value.address("video")
        if not isinstance(value, str) or not re.match(r"https?://", value, re.IGNORECASE):
            raise ValueError("must be a URL, or a video of an earlier result: Kling accepts no video files.")
        return check_url(value)


@dataclass(frozen=True, slots=True)
class ListOf:
    """At most `max_items` items, each of the type `item`; a value that is no list is a list of one."""

    item: ParameterType
    max_items: int

    def check(self, value: Any) -> list[Any]:
        items = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        if len(items) > self.max_items:
            raise ValueError(f"has {len(items)} items, at most {self.max_items}.")
        checked, problems = [], []
        for number, item in enumerate(items):
            try:
                checked.append(self.item.check(item))
            except ValueError as error:
                problems.append(f"item {number} {error}")
        if problems:
            raise ValueError(" ".join(problems))
        return checked


@dataclass(frozen=True, slots=True)
class ObjectWith:
    """An object that has the field `name`; a text alone is the object with this field. Other fields pass.

    `value`: the type of the field.
    """

    name: str
    value: ParameterType

    def check(self, value: Any) -> dict[str, Any]:
        fields = dict(value) if isinstance(value, Mapping) else {self.name: value}
        if fields.get(self.name) in (None, ""):
            raise ValueError(f"must be an object with {self.name}.")
        return {**fields, self.name: self.value.check(fields[self.name])}


class Id:
    """An id of Kling: text, or a number."""

    def check(self, value: Any) -> str | int:
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise ValueError("must be an id.")
        if isinstance(value, str) and re.search(r"[\s,;]", value):
            raise ValueError(f"must be one id, not {value!r}. Give a list, or repeat the option.")
        return value


@dataclass(frozen=True, slots=True)
class DynamicMask:
    """An object with a `mask` (an image) and `trajectories`, the points `{x, y}` (pixels) of its movement."""

    min_points: int = 2
    max_points: int = 77

    def check(self, value: Any) -> dict[str, Any]:
        points = value.get("trajectories") if isinstance(value, Mapping) else None
        if not isinstance(points, Sequence) or isinstance(points, str):
            raise ValueError("must be an object with `mask` and `trajectories`.")
        if not self.min_points <= len(points) <= self.max_points:
            raise ValueError(f"has {len(points)} points, {self.min_points} to {self.max_points} are needed.")
        if not all(
            isinstance(point, Mapping) and _is_number(point.get("x")) and _is_number(point.get("y")) for point in points
        ):
            raise ValueError("has a point without numbers x and y.")
        return {**value, "mask": ImageInput().check(value.get("mask"))}


@dataclass(frozen=True, slots=True)
class CameraControl:
    """A camera movement: a `type`, and for `simple` a `config` with one movement."""

    types: tuple[str, ...] = ("simple", "down_back", "forward_up", "right_turn_forward", "left_turn_forward")
    movements: tuple[str, ...] = ("horizontal", "vertical", "pan", "tilt", "roll", "zoom")
    max_value: int = 10

    def check(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or value.get("type") not in self.types:
            raise ValueError(f"must be an object with `type`: {', '.join(self.types)}.")
        config = value.get("config")
        if value["type"] == "simple":
            self._check_config(config)
        elif config:
            raise ValueError("`config` is only for the type simple.")
        return {name: each for name, each in value.items() if each not in (None, {})}

    def _check_config(self, config: Any) -> None:
        amounts = list(config.values()) if isinstance(config, Mapping) else []
        if unknown := [name for name in config or () if isinstance(config, Mapping) and name not in self.movements]:
            raise ValueError(f"`config` has no {', '.join(map(str, unknown))}: {', '.join(self.movements)}.")
        if not all(_is_number(amount) and abs(amount) <= self.max_value for amount in amounts):
            raise ValueError(f"`config` must contain numbers from -{self.max_value} to {self.max_value}.")
        if sum(amount != 0 for amount in amounts) != 1:
            raise ValueError(f"simple needs a `config` with exactly one of {', '.join(self.movements)} not 0.")


def embedded(kind: ParameterType, value: Any) -> Any:
    """The value of someone else's parameter: its images are URLs or base64, and no text names a file of this machine.

    Raises ValueError for a text in an image's place that is neither.
    """
    match kind:
        case ImageInput(max_bytes):
            is_embedded = isinstance(value, str) and not is_url(value)
            return InputFile("image", decode_image(value, max_bytes)) if is_embedded else value
        case ListOf(item):
            items = value if isinstance(value, list | tuple) else [value]
            return [embedded(item, each) for each in items]
        case ObjectWith(name, inner):
            if not isinstance(value, Mapping):
                return embedded(inner, value)
            return {**value, name: embedded(inner, value[name])} if name in value else value
        case DynamicMask() if isinstance(value, Mapping) and "mask" in value:
            return {**value, "mask": embedded(ImageInput(), value["mask"])}
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

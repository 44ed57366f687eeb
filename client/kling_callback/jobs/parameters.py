"""The types of job parameters: each checks one value and returns the value to send.

A ValueError's message follows the parameter's name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kling_callback.jobs.images import encode_image


class ParameterType(Protocol):
    """The type of a parameter."""

    def check(self, value: Any) -> Any:
        """Return the value to send. Raises ValueError for a value that Kling would refuse."""
        ...


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
    """Whole seconds from `low` to `high`, as int or str. They are sent as text, as Kling expects them."""

    low: int
    high: int

    def check(self, value: Any) -> str:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        digits = isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) < 4
        if not digits or not self.low <= int(text) <= self.high:
            raise ValueError(f"must be whole seconds from {self.low} to {self.high}; 5 and 10 always work.")
        return str(int(text))


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image: a Path, or a str with a URL, a data URL, a file name or bare base64."""

    def check(self, value: Any) -> str:
        if not isinstance(value, Path | str):
            raise ValueError("must be a Path, a URL, a file name or base64.")
        return encode_image(value)


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
        if not all(_is_number(amount) and abs(amount) <= self.max_value for amount in amounts):
            raise ValueError(f"`config` must contain numbers from -{self.max_value} to {self.max_value}.")
        if sum(amount != 0 for amount in amounts) != 1:
            raise ValueError(f"simple needs a `config` with exactly one of {', '.join(self.movements)} not 0.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

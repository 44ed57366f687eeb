"""Fields of the form: how each type of a job's parameter is shown, and how what was typed becomes its value."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kling_callback.jobs.job import Endpoint, Parameter
from kling_callback.jobs.parameters import (
    AnyValue,
    CameraControl,
    Choice,
    DynamicMask,
    Flag,
    ImageInput,
    Integer,
    ListOf,
    Number,
    ObjectWith,
    ParameterType,
    Seconds,
    Text,
    VideoInput,
)
from kling_callback.protocol.values import is_too_complex

Control = Literal["text", "line", "choice", "number", "json", "list", "image", "video"]

STAND_IN = "https://upload.invalid/"
"""The address that stands for an image in the browser, before the image's SHA-256. No such host exists (RFC 2606)."""
LONG_TEXT_CHARS = 1000
"""Characters that a text may have for which the form has several lines."""
MAX_RADIOS = 4
"""Choices that are shown side by side; more are a list that opens."""
MAIN = (
    *("prompt", "image", "video", "character_orientation", "first_frame", "last_frame", "refer_image", "image_list"),
    *("image_tail", "n", "aspect_ratio", "resolution", "mode", "duration", "sound", "audio"),
)
"""The parameters that are used most, in this order; others are folded away."""
LABELS = {"n": "Number of images", "cfg_scale": "CFG scale", "image_tail": "Last image (image_tail)"}
"""Labels of parameters whose names say little."""
YES_NO = (("true", "Yes"), ("false", "No"))


class Invalid(ValueError):
    """What was typed cannot be read. The message follows the parameter's name."""


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter as the form shows it. `texts`: what it contains. `options`: values and their labels.

    `max_items`: images or lines that it may have; `max_bytes`: of one image. `is_main`: not folded away.
    """

    name: str
    control: Control
    help: str
    texts: tuple[str, ...] = ()
    required: bool = False
    options: tuple[tuple[str, str], ...] = ()
    low: float | None = None
    high: float | None = None
    max_items: int = 1
    max_bytes: int = 0
    is_main: bool = False

    @property
    def label(self) -> str:
        """The name for people."""
        return LABELS.get(self.name) or self.name.replace("_", " ").capitalize()

    @property
    def text(self) -> str:
        """All that it contains, one item on each line."""
        return "\n".join(self.texts)

    @property
    def chosen(self) -> list[str]:
        """Images that are in the browser."""
        return [text for text in self.texts if STAND_IN in text]

    @property
    def typed(self) -> str:
        """The other images, one on each line."""
        return "\n".join(text for text in self.texts if STAND_IN not in text)

    @property
    def is_group(self) -> bool:
        """Whether it has several controls: choices side by side, or ways to choose an image."""
        return self.control == "image" or (self.control == "choice" and len(self.options) <= MAX_RADIOS)


def make_field(parameter: Parameter, texts: Sequence[str]) -> Field:
    """The field of a parameter."""
    return Field(
        name=parameter.name,
        help=parameter.help,
        texts=tuple(texts),
        required=parameter.required,
        is_main=parameter.required or parameter.name in MAIN,
        **_shown(parameter.kind),
    )


def _shown(kind: ParameterType) -> dict[str, Any]:
    match kind:
        case Text(max_chars):
            return {"control": "text" if max_chars > LONG_TEXT_CHARS else "line"}
        case Choice(values):
            return {"control": "choice", "options": tuple((value, value) for value in values)}
        case Flag() | ObjectWith("enabled", Flag()):
            return {"control": "choice", "options": YES_NO}
        case Integer(low, high) | Number(low, high):
            return {"control": "number", "low": low, "high": high}
        case Seconds(_, _, (_, *_) as only):
            return {"control": "choice", "options": tuple((str(each), f"{each} s") for each in only)}
        case Seconds(low, high):
            return {"control": "number", "low": low, "high": high}
        case ImageInput(max_bytes):
            return {"control": "image", "max_bytes": max_bytes}
        case VideoInput() | ListOf(ObjectWith(_, VideoInput())):
            return {"control": "video"}
        case ListOf(ObjectWith(_, ImageInput(max_bytes)), max_items):
            return {"control": "image", "max_bytes": max_bytes, "max_items": max_items}
        case ListOf(DynamicMask() | AnyValue()) | CameraControl():
            return {"control": "json"}
        case ListOf(_, max_items):
            return {"control": "list", "max_items": max_items}
        case _:
            return {"control": "line"}


def shown_parameters(endpoint: Endpoint) -> list[Parameter]:
    """The parameters of an endpoint that the form shows, the most used ones first.

    Not the model, which has a place of its own, nor another name of a parameter before it.
    """
    shown: list[Parameter] = []
    for each in endpoint.parameters:
        is_alias = each.content and any(each.content == other.content for other in shown)
        if each.name != "model_name" and not is_alias:
            shown.append(each)
    order = {name: number for number, name in enumerate(MAIN)}
    return sorted(shown, key=lambda each: order.get(each.name, len(order)))


def parse(kind: ParameterType, texts: Sequence[str]) -> Any:
    """The value of what was typed, as the command line reads the same text; None for nothing. Raises Invalid.

    Limits are not checked here: the table of jobs does that, with all problems at once.
    """
    given = [text for text in texts if text.strip()]
    if not given:
        return None
    text = given[0].strip()
    match kind:
        case Text():
            return given[0]
        case Flag() | ObjectWith("enabled", Flag()):
            return {"true": True, "false": False}.get(text, text)
        case Integer():
            return _number(int, text)
        case Number():
            return _number(float, text)
        case ImageInput() | VideoInput():
            if len(given) > 1:
                raise Invalid("is given twice. Remove one of them.")
            return text
        case ListOf(DynamicMask() | AnyValue()) | CameraControl():
            return _json("\n".join(given))
        case ListOf():
            return _items(given)
    return text


def _number(number: type[int] | type[float], text: str) -> int | float | str:
    try:
        return number(text)
    except ValueError:
        return text  # the table says what it has to be


def _items(texts: Sequence[str]) -> list[Any]:
    """The items of a list: a line is one item, or a JSON list of items."""
    items: list[Any] = []
    for line in (line.strip() for text in texts for line in _lines(text)):
        if not line:
            continue
        try:
            value = _json(line)
        except Invalid:
            value = line
        items += value if isinstance(value, list) else [value]
    return items


def _lines(text: str) -> list[str]:
    """The lines of a text; JSON may have several."""
    try:
        return [json.dumps(_json(text))] if text.lstrip().startswith(("[", "{")) else text.splitlines()
    except Invalid:
        return text.splitlines()


def _json(text: str) -> Any:
    if is_too_complex(text.encode("utf-8", "replace")):
        raise Invalid("has too many parts.")
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"is not valid JSON: {error}.") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not allowed")


def texts_of(kind: ParameterType, value: Any) -> tuple[str, ...]:
    """What is to be typed for a value: the inverse of `parse`."""
    match kind:
        case Flag() | ObjectWith("enabled", Flag()):
            enabled = value.get("enabled") if isinstance(value, Mapping) else value
            return (json.dumps(enabled),)
        case ListOf(DynamicMask() | AnyValue()) | CameraControl():
            return (json.dumps(value, indent=2, ensure_ascii=False),)
        case ListOf(ObjectWith(name, _)):
            return tuple(_item_text(name, item) for item in (value if isinstance(value, list) else [value]))
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),)


def _item_text(name: str, item: Any) -> str:
    """One item of a list; an object with nothing else than its usual field is the text of that."""
    bare = item[name] if isinstance(item, Mapping) and set(item) == {name} else item
    if isinstance(bare, str):
        try:
            _json(bare)
        except Invalid:
            return bare
    return json.dumps(bare, ensure_ascii=False)

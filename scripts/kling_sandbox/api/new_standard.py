"""The models of the new standard, each with its contents and settings."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kling_sandbox.api.parameters import ANY_OBJECT, URL, YES_NO, Rule, image, integer, one_of, problems, text
from kling_sandbox.api.replies import ApiError

PRODUCTS = ("/text-to-video", "/image-to-video", "/omni-video", "/motion-control")
LEGACY_ONLY = ("negative_prompt", "cfg_scale", "mode", "camera_control", "image_tail")

FRAME = image(50)
THING = Rule("an id or an object", lambda value: isinstance(value, str | int | dict) and type(value) is not bool)
CONTENTS: dict[str, Rule] = {
    "first_frame": FRAME,
    "last_frame": FRAME,
    "refer_image": FRAME,
    "image": FRAME,
    "feature_video": URL,
    "base_video": URL,
    "video": URL,
    "element": THING,
    "voice": THING,
}
"""What a create may contain besides its prompt. Videos are URLs: Kling has no upload."""

Extra = Callable[[Mapping[str, Any], set[str]], str]
"""A rule about the settings and the names of the contents together: its problem, or an empty text."""


def _native_needs_1080p(settings: Mapping[str, Any], names: set[str]) -> str:
    wrong = settings.get("audio") == "native" and settings.get("resolution") != "1080p"
    return "audio native needs resolution 1080p" if wrong else ""


def _last_frame_needs_1080p(settings: Mapping[str, Any], names: set[str]) -> str:
    wrong = "last_frame" in names and settings.get("resolution") != "1080p"
    return "last_frame needs resolution 1080p" if wrong else ""


def _ratio_is_known(settings: Mapping[str, Any], names: set[str]) -> str:
    known = "aspect_ratio" in settings or names & {"first_frame", "feature_video", "base_video"}
    return "" if known else "aspect_ratio is required without first_frame or a video"


def _one_video(settings: Mapping[str, Any], names: set[str]) -> str:
    return "feature_video and base_video exclude each other" if names >= {"feature_video", "base_video"} else ""


def _is_oriented(settings: Mapping[str, Any], names: set[str]) -> str:
    return "" if "character_orientation" in settings else "character_orientation is required"


@dataclass(frozen=True)
class Model:
    """One model at one product. `contents`: how many of each; `needs`: those that it needs; `prompt`: characters."""

    settings: Mapping[str, Rule]
    contents: Mapping[str, int]
    needs: tuple[str, ...]
    prompt: int
    extra: tuple[Extra, ...] = ()


RATIO = {"aspect_ratio": one_of("16:9", "9:16", "1:1")}
HD, UHD = ({"resolution": one_of("720p", "1080p", *more)} for more in ((), ("4k",)))
LONG, SHORT = {"duration": integer(3, 15)}, {"duration": one_of(5, 10)}
SOUND = {"audio": one_of("native", "off")}
SHOTS = {"multi_shot": YES_NO}
MOTION = HD | {"audio": one_of("original", "off"), "character_orientation": one_of("image", "video")}
FIRST, BOTH = {"first_frame": 1}, {"first_frame": 1, "last_frame": 1}
OMNI = BOTH | {"refer_image": 7, "feature_video": 1, "base_video": 1, "element": 7}
MOVED = {"image": 1, "video": 1}
OMNI_RULES = (_ratio_is_known, _one_video)

MODELS = {
    "/text-to-video/kling-3.0-turbo": Model(HD | RATIO | LONG, {}, ("prompt",), 3072),
    "/image-to-video/kling-3.0-turbo": Model(HD | LONG, FIRST, ("first_frame",), 3072),
    "/text-to-video/kling-3.0": Model(UHD | RATIO | LONG | SOUND | SHOTS, {}, ("prompt",), 3072),
    "/image-to-video/kling-3.0": Model(UHD | LONG | SOUND | SHOTS, BOTH | {"element": 3}, ("first_frame",), 3072),
    "/omni-video/kling-3.0-omni": Model(
        UHD | RATIO | LONG | SHOTS | {"audio": one_of("native", "original", "off")}, OMNI, ("prompt",), 3072, OMNI_RULES
    ),
    "/omni-video/kling-o1": Model(
        HD | RATIO | {"duration": integer(3, 10), "audio": one_of("original", "off")},
        OMNI,
        ("prompt",),
        2500,
        OMNI_RULES,
    ),
    "/motion-control/kling-3.0": Model(MOTION, MOVED | {"element": 1}, ("image", "video"), 2500, (_is_oriented,)),
    "/motion-control/kling-2.6": Model(MOTION, MOVED, ("image", "video"), 2500, (_is_oriented,)),
    "/text-to-video/kling-2.6": Model(HD | RATIO | SHORT | SOUND, {}, ("prompt",), 2500, (_native_needs_1080p,)),
    "/image-to-video/kling-2.6": Model(
        HD | SHORT | SOUND, BOTH | {"voice": 2}, ("first_frame",), 2500, (_native_needs_1080p,)
    ),
    "/text-to-video/kling-2.5-turbo": Model(HD | RATIO | SHORT, {}, ("prompt",), 2500),
    "/image-to-video/kling-2.5-turbo": Model(HD | SHORT, BOTH, ("first_frame",), 2500, (_last_frame_needs_1080p,)),
}
SETTINGS = {name for model in MODELS.values() for name in model.settings}
KNOWN = {path.rpartition("/")[2] for path in MODELS}


def check(path: str, body: dict[str, Any]) -> None:
    """Check a create whose body has no empty values. A model that is not in the table is hardly checked.

    Raises ApiError.
    """
    name = path.rpartition("/")[2]
    if not name.startswith("kling-") or (name in KNOWN and path not in MODELS):
        raise ApiError(1203, f"Model {name} does not exist at {path.rpartition('/')[0]}")
    settings = body.get("settings", {})
    if not isinstance(settings, dict):
        raise ApiError(1200, "settings must be an object")
    contents = [*_contents(body)]
    model = MODELS.get(path)
    found = [f"{name} is not supported" for name in LEGACY_ONLY if name in body or name in settings]
    if model:
        names = [name for name, _ in contents]
        if missing := [need for need in model.needs if need not in names]:
            raise ApiError(1200, f"{' and '.join(missing)} is required")
        found += [*_settings(model, settings), *_amounts(model, names)]
        found += [problem for extra in model.extra if (problem := extra(settings, set(names)))]
    rules = CONTENTS | {"prompt": text(model.prompt if model else 3072)}
    found += [problem for name, value in contents for problem in problems(rules, {name: value})]
    if found:
        raise ApiError(1201, "; ".join(found))


def _settings(model: Model, settings: Mapping[str, Any]) -> Iterator[str]:
    yield from problems(model.settings, settings)
    yield from (f"{name} is not supported" for name in settings if name in SETTINGS - model.settings.keys())


def _amounts(model: Model, names: list[str]) -> Iterator[str]:
    for name in dict.fromkeys(names):
        most = 1 if name == "prompt" else model.contents.get(name, 0)
        if names.count(name) > most:
            yield f"at most {most} {name}" if most else f"{name} is not supported"


def _contents(body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The prompt, frames, videos and so on: in `contents`, as a list by type or as an object, or beside it."""
    contents = body.get("contents", [])
    if isinstance(contents, list):
        for item in contents:
            if not isinstance(item, dict) or not isinstance(item.get("type"), str):
                raise ApiError(1200, "each of contents must be an object with a type")
            yield item["type"], _value(item["type"], item)
    elif ANY_OBJECT.accepts(contents):
        yield from _named(contents)
    else:
        raise ApiError(1200, "contents must be a list or an object")
    yield from _named({name: body[name] for name in ("prompt", *CONTENTS) if name in body})


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        for each in value if isinstance(value, list) else [value]:
            yield name, _value(name, each)


def _value(name: str, item: Any) -> Any:
    """The text, the address or the id in a content; the protocol leaves the name of its field open."""
    if not isinstance(item, dict):
        return item
    fields = {key: value for key, value in item.items() if key != "type"}
    return next(
        (fields[key] for key in ("text", "url", "id", name) if key in fields), next(iter(fields.values()), item)
    )

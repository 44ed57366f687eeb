"""What several typed jobs have in common: types, parameters, and the names that replace each other."""

from typing import Any

from kling_callback.jobs.images import MAX_BYTES_NEW
from kling_callback.jobs.job import Parameter, Rule, Values
from kling_callback.jobs.parameters import (
    AnyValue,
    CameraControl,
    Choice,
    Flag,
    Id,
    ImageInput,
    ListOf,
    Number,
    ObjectWith,
    ParameterType,
    Seconds,
    Text,
)

LEGACY_PROMPT, NEW_PROMPT = Text(2500), Text(3072)
VIDEO_RATIO = Choice(("16:9", "9:16", "1:1"))
IMAGE_RATIO = Choice(("16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9", "auto"))
HD, UHD = Choice(("720p", "1080p")), Choice(("720p", "1080p", "4k"))
LEGACY_SECONDS = Seconds(3, 15)
SHORT = Seconds(5, 10, only=(5, 10), as_number=True)
LONG = Seconds(3, 15, as_number=True)
NEW_IMAGE = ImageInput(MAX_BYTES_NEW)
ELEMENTS, VOICES = ObjectWith("element_id", Id()), ObjectWith("voice_id", Id())

SILENT_MODELS = (
    *("kling-v1", "kling-v1-5", "kling-v1-6", "kling-v2-master", "kling-v2-1", "kling-v2-1-master"),
    "kling-v2-5-turbo",
)
LEGACY_VIDEO_MODELS = (*SILENT_MODELS, "kling-v2-6", "kling-v3")

REPLACED_BY_NEW = {
    "mode": "resolution (std is 720p, pro is 1080p)",
    "sound": "audio",
    "image_tail": "last_frame",
    "negative_prompt": "prompt: say there what to avoid",
    "camera_control": "prompt: describe the camera there",
    "multi_prompt": "prompt: write the shots there, as `shot 1, 3, words; shot 2, 2, words;`",
    "shot_type": "prompt: write the shots there, as `shot 1, 3, words; shot 2, 2, words;`",
    "image_list": "first_frame, last_frame or refer_image",
    "video_list": "feature_video or base_video",
    "keep_original_sound": "audio",
}
REPLACED_BY_LEGACY = {
    "resolution": "mode (std is 720p, pro is 1080p)",
    "audio": "sound",
    "first_frame": "image",
    "last_frame": "image_tail",
}


def prompt(kind: ParameterType, *, required: bool = True, content: bool = False) -> Parameter:
    """The prompt of an endpoint."""
    limit = kind.max_chars if isinstance(kind, Text) else 0
    text = f"What to show, at most {limit:,} characters."
    return Parameter("prompt", kind, text, required, content="prompt" if content else "")


def model(*names: str) -> Parameter:
    """The model's name; any is accepted."""
    return Parameter("model_name", Text(200), f"Such as {', '.join(names)}.")


NEGATIVE = Parameter("negative_prompt", LEGACY_PROMPT, "What to avoid, at most 2,500 characters.")
WATERMARK = Parameter(
    "watermark_info",
    ObjectWith("enabled", Flag()),
    "true: also make a copy with a watermark; Kling's default is false.",
)
ELEMENT_LIST = Parameter(
    "element_list", ListOf(ELEMENTS, 3), "Ids of elements in the prompt, at most 3: an id, or objects with element_id."
)
ONE_ELEMENT = Parameter("element_list", ListOf(ELEMENTS, 1), "The id of one element.", content="element")

LEGACY_VIDEO = (
    NEGATIVE,
    model("kling-v3", "kling-v2-6", "kling-v2-5-turbo", "or of the new standard kling-3.0-turbo, kling-3.0, kling-2.6"),
    Parameter("cfg_scale", Number(0, 1), "How closely to follow the text, 0 to 1; Kling's default is 0.5."),
    Parameter("mode", Choice(("std", "pro", "4k")), "std (720p, the default), pro (1080p), or 4k (kling-v3)."),
    Parameter("duration", LEGACY_SECONDS, "Seconds: 5 (the default) or 10; 3 to 15 on kling-v3 and kling-3.0."),
    Parameter(
        "camera_control",
        CameraControl(),
        'How the camera moves, such as {"type": "simple", "config": {"zoom": 5}}; types: simple, '
        "down_back, forward_up, right_turn_forward, left_turn_forward.",
    ),
    Parameter("sound", Choice(("on", "off")), "Whether the video has sound (kling-v2-6, kling-v3); default: off."),
    Parameter("voice_list", ListOf(VOICES, 2), "Ids of voices in the prompt, at most 2 (kling-v2-6, kling-2.6)."),
    ELEMENT_LIST,
    Parameter("multi_shot", Flag(), "Several shots in one video (kling-v3, kling-3.0); kling-v3: default false."),
    Parameter(
        "shot_type", Choice(("customize", "intelligence")), "With multi_shot: shots by multi_prompt, or by Kling."
    ),
    Parameter(
        "multi_prompt",
        ListOf(AnyValue(), 6),
        'With multi_shot: at most 6 shots, such as {"index": 1, "prompt": "...", "duration": "5"}.',
    ),
    WATERMARK,
)
RATIO = Parameter("aspect_ratio", VIDEO_RATIO, "Width to height; Kling's default is 16:9.")


def new_settings(
    *, resolution: Choice = HD, duration: Seconds | None = LONG, audio: tuple[str, ...] = ()
) -> tuple[Parameter, ...]:
    """The settings that an endpoint of the new standard has."""
    settings = [
        model("kling-3.0-turbo", "kling-3.0", "kling-2.6", "kling-2.5-turbo"),
        Parameter("resolution", resolution, f"{', '.join(resolution.values)} (new standard); Kling's default is 720p."),
    ]
    if duration:
        text = " or ".join(map(str, duration.only)) or f"{duration.low} to {duration.high}"
        settings.append(Parameter("duration", duration, f"Seconds: {text}; Kling's default is 5."))
    if audio:
        settings.append(Parameter("audio", Choice(audio), f"{', '.join(audio)} (new standard)."))
    return (*settings, WATERMARK)


MULTI_SHOT = Parameter("multi_shot", Flag(), "Whether shots in the prompt become cuts; Kling's default is true.")


def needs(name: str, problem: str, **needed: Any) -> Rule:
    """A parameter that needs another one to have a value."""

    def is_broken(values: Values) -> bool:
        return name in values and any(values.get(other) != value for other, value in needed.items())

    return Rule(f"{name}: {problem}", is_broken)


PROMPT_OR_SHOTS = Rule(
    "prompt: is missing. Say what to show, or use multi_shot with multi_prompt.",
    lambda values: "prompt" not in values and not values.get("multi_shot"),
)
SHOTS_NEED_MULTI_SHOT = Rule(
    "multi_prompt: needs multi_shot true.", lambda values: "multi_prompt" in values and not values.get("multi_shot")
)


def only_of(name: str, *models: str, known: tuple[str, ...] = LEGACY_VIDEO_MODELS) -> Rule:
    """A parameter that, of the known models, only these have."""

    def is_broken(values: Values) -> bool:
        given = values.get("model_name")
        return values.get(name) not in (None, "off", False) and given in known and given not in models

    return Rule(f"{name}: this model has none. Use {' or '.join(models)}.", is_broken)


UHD_NEEDS_MODEL = Rule(
    "mode: this model has no 4k. Use kling-v3.",
    lambda values: values.get("mode") == "4k" and values.get("model_name") in (*SILENT_MODELS, "kling-v2-6"),
)
LONG_NEEDS_MODEL = Rule(
    "duration: this model makes 5 or 10 seconds. Use kling-v3 for 3 to 15.",
    lambda values: (
        str(values.get("duration", "5")) not in ("5", "10")
        and values.get("model_name") in (*SILENT_MODELS, "kling-v2-6")
    ),
)
LEGACY_RULES = (
    SHOTS_NEED_MULTI_SHOT,
    UHD_NEEDS_MODEL,
    LONG_NEEDS_MODEL,
    only_of("sound", "kling-v2-6", "kling-v3"),
    only_of("voice_list", "kling-v2-6", "kling-v3"),
    only_of("element_list", "kling-v3"),
    only_of("multi_shot", "kling-v3"),
)
NATIVE_NEEDS_1080P = Rule(
    "audio: native needs resolution 1080p at this model.",
    lambda values: values.get("audio") == "native" and values.get("resolution") != "1080p",
)
LAST_FRAME_NEEDS_1080P = needs("last_frame", "this model needs resolution 1080p with it.", resolution="1080p")

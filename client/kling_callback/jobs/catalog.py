"""The three typed jobs as one table: their checks, their command-line options and help all come from here.

It refuses only what all of Kling's pages refuse (section 6): models and unknown extra parameters pass.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kling_callback.errors import ParameterError
from kling_callback.jobs.body import CALLBACK_URL_RESERVED
from kling_callback.jobs.parameters import (
    CameraControl,
    Choice,
    ImageInput,
    Integer,
    Number,
    ParameterType,
    Seconds,
    Text,
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter, by Kling's own name."""

    name: str
    kind: ParameterType
    help: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of job. `refused` names parameters that it must not have, and says why."""

    name: str
    family: str
    summary: str
    parameters: tuple[Parameter, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    def body(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The body to send: None and empty values left out, the rest checked.

        It reads the image's file, if there is one. Raises ParameterError with all problems at once.
        """
        given = {name: value for name, value in values.items() if not _empty(value)}
        problems = [*self._missing(given), *self._forbidden(given)]
        body = {}
        for name, value in given.items():
            try:
                body[name] = self._kind(name).check(value)
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ParameterError(problems)
        return body

    def _missing(self, given: Mapping[str, Any]) -> Iterator[str]:
        for parameter in self.parameters:
            if parameter.required and parameter.name not in given:
                yield f"{parameter.name}: is missing. {parameter.help}"

    def _forbidden(self, given: Mapping[str, Any]) -> Iterator[str]:
        refused = {"callback_url": CALLBACK_URL_RESERVED, **self.refused}
        yield from (f"{name}: {reason}" for name, reason in refused.items() if name in given)

    def _kind(self, name: str) -> ParameterType:
        return next((each.kind for each in self.parameters if each.name == name), ANY_VALUE)


class AnyValue:
    """What this table does not know: Kling may."""

    def check(self, value: Any) -> Any:
        return value


ANY_VALUE = AnyValue()


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


PROMPT = Parameter("prompt", Text(2500), "What to make, at most 2,500 characters.", required=True)
NEGATIVE = Parameter("negative_prompt", Text(2500), "What to avoid, at most 2,500 characters.")

IMAGE = (
    Parameter("model_name", Text(200), "Such as kling-v1, kling-v1-5, kling-v2, kling-v2-1, kling-v3."),
    Parameter("n", Integer(1, 9), "How many images; Kling makes 1 unless told."),
    Parameter("aspect_ratio", Choice(("16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9")), "Width to height."),
    Parameter("resolution", Choice(("1k", "2k")), "How fine."),
    Parameter("output_format", Choice(("png", "jpg")), "The kind of file (some gateways only)."),
)

TEXT_TO_IMAGE = Job(
    "text_to_image",
    "images/generations",
    "Make images from a text.",
    (PROMPT, NEGATIVE, *IMAGE),
    {"image": "belongs to image_to_image (`kling image-to-image`)."},
)

IMAGE_TO_IMAGE = Job(
    "image_to_image",
    "images/generations",
    "Make images from a text and an image.",
    (
        PROMPT,
        Parameter(
            "image",
            ImageInput(),
            "A file, a URL, or base64: jpg or png, at most 10 MB, both sides at least 300 pixels, "
            "at most 1:2.5 or 2.5:1.",
            required=True,
        ),
        *IMAGE,
        Parameter("image_reference", Choice(("subject", "face")), "What to take from the image."),
        Parameter("image_fidelity", Number(0, 1), "How closely to follow the image; Kling takes 0.5."),
        Parameter("human_fidelity", Number(0, 1), "How closely to follow the face."),
    ),
    {"negative_prompt": "Kling takes none together with an image."},
)

TEXT_TO_VIDEO = Job(
    "text_to_video",
    "videos/text2video",
    "Make a video from a text.",
    (
        PROMPT,
        NEGATIVE,
        Parameter(
            "model_name",
            Text(200),
            "Such as kling-v1, kling-v1-6, kling-v2-master, kling-v2-1-master, kling-v2-5-turbo, kling-v2-6.",
        ),
        Parameter("cfg_scale", Number(0, 1), "How closely to follow the text; Kling takes 0.5."),
        Parameter("mode", Choice(("std", "pro")), "Standard, or better and dearer."),
        Parameter("aspect_ratio", Choice(("16:9", "9:16", "1:1")), "Width to height."),
        Parameter("duration", Seconds(3, 15), "Seconds: 5 or 10; 3 to 15 on kling-v3."),
        Parameter(
            "camera_control",
            CameraControl(),
            'How the camera moves, such as {"type": "simple", "config": {"zoom": 5}}; types: simple, '
            "down_back, forward_up, right_turn_forward, left_turn_forward.",
        ),
    ),
)

JOBS = (TEXT_TO_IMAGE, IMAGE_TO_IMAGE, TEXT_TO_VIDEO)

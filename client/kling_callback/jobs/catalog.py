"""The table of typed jobs, from which their checks, command-line options and help are made.

Only values that all of Kling's pages refuse are refused; models and unknown parameters pass.
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
    """One parameter. `name`: Kling's."""

    name: str
    kind: ParameterType
    help: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of job. `refused`: parameters that it must not have, with the reasons."""

    name: str
    family: str
    summary: str
    parameters: tuple[Parameter, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    def body(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The body to send: the values checked, None and empty ones left out.

        Blocks to read an image file. Raises ParameterError with all problems.
        """
        present = {name: value for name, value in values.items() if not _is_empty(value)}
        problems = [*self._missing(present), *self._forbidden(present)]
        body = {}
        for name, value in present.items():
            try:
                body[name] = self._type(name).check(value)
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ParameterError(problems)
        return body

    def _missing(self, present: Mapping[str, Any]) -> Iterator[str]:
        for parameter in self.parameters:
            if parameter.required and parameter.name not in present:
                yield f"{parameter.name}: is missing. {parameter.help}"

    def _forbidden(self, present: Mapping[str, Any]) -> Iterator[str]:
        refused = {"callback_url": CALLBACK_URL_RESERVED, **self.refused}
        yield from (f"{name}: {reason}" for name, reason in refused.items() if name in present)

    def _type(self, name: str) -> ParameterType:
        return next((each.kind for each in self.parameters if each.name == name), ANY_VALUE)


class AnyValue:
    """The type of parameters that are not in the table: Kling may know them."""

    def check(self, value: Any) -> Any:
        return value


ANY_VALUE = AnyValue()


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)


PROMPT = Parameter("prompt", Text(2500), "What to show, at most 2,500 characters.", required=True)
NEGATIVE = Parameter("negative_prompt", Text(2500), "What to avoid, at most 2,500 characters.")

IMAGE = (
    Parameter("model_name", Text(200), "Such as kling-v1, kling-v1-5, kling-v2, kling-v2-1, kling-v3."),
    Parameter("n", Integer(1, 9), "Number of images; Kling's default is 1."),
    Parameter("aspect_ratio", Choice(("16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9")), "Width to height."),
    Parameter("resolution", Choice(("1k", "2k")), "Resolution of the image."),
    Parameter("output_format", Choice(("png", "jpg")), "File format (some gateways only)."),
)

TEXT_TO_IMAGE = Job(
    "text_to_image",
    "images/generations",
    "Create images from a text.",
    (PROMPT, NEGATIVE, *IMAGE),
    {"image": "belongs to image_to_image (`kling image-to-image`)."},
)

IMAGE_TO_IMAGE = Job(
    "image_to_image",
    "images/generations",
    "Create images from a text and an image.",
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
        Parameter("image_fidelity", Number(0, 1), "How closely to follow the image; Kling's default is 0.5."),
        Parameter("human_fidelity", Number(0, 1), "How closely to follow the face."),
    ),
    {"negative_prompt": "Kling accepts none together with an image."},
)

TEXT_TO_VIDEO = Job(
    "text_to_video",
    "videos/text2video",
    "Create a video from a text.",
    (
        PROMPT,
        NEGATIVE,
        Parameter(
            "model_name",
            Text(200),
            "Such as kling-v1, kling-v1-6, kling-v2-master, kling-v2-1-master, kling-v2-5-turbo, kling-v2-6.",
        ),
        Parameter("cfg_scale", Number(0, 1), "How closely to follow the text; Kling's default is 0.5."),
        Parameter("mode", Choice(("std", "pro")), "Standard, or better and more expensive."),
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

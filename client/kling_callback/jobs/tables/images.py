"""The typed jobs that make images."""

from kling_callback.jobs.job import Endpoint, Job, Parameter, Rule
from kling_callback.jobs.parameters import (
    Choice,
    ImageInput,
    Integer,
    ListOf,
    Number,
)
from kling_callback.jobs.tables.common import (
    ELEMENTS,
    IMAGE_RATIO,
    LEGACY_PROMPT,
    NEGATIVE,
    WATERMARK,
    model,
    only_of,
    prompt,
)

IMAGE = (
    model("kling-v3", "kling-v2-1", "at relays also kling-v1-5, kling-v2"),
    Parameter("n", Integer(1, 9), "Number of images, 1 to 9; Kling's default is 1."),
    Parameter("aspect_ratio", IMAGE_RATIO, "Width to height; Kling's default is 16:9."),
    Parameter("resolution", Choice(("1k", "2k", "4k")), "Resolution of the image; Kling's default is 1k."),
    Parameter("output_format", Choice(("png", "jpg")), "File format (some gateways only)."),
    Parameter(
        "element_list", ListOf(ELEMENTS, 10), "Ids of elements in the prompt: an id, or objects with element_id."
    ),
    WATERMARK,
)
IMAGE_MODELS = ("kling-v1", "kling-v1-5", "kling-v2", "kling-v2-new", "kling-v2-1", "kling-v3")

ELEMENTS_NEED_V3 = only_of("element_list", "kling-v3", known=IMAGE_MODELS)

TEXT_TO_IMAGE = Job(
    "text_to_image",
    "Create images from a text.",
    (
        Endpoint(
            "images/generations",
            IMAGE_MODELS,
            (prompt(LEGACY_PROMPT), NEGATIVE, *IMAGE),
            (ELEMENTS_NEED_V3,),
            refused={"image": "belongs to image_to_image (`kling image-to-image`)."},
        ),
    ),
)


def _has_none_at_v3(name: str) -> Rule:
    problem = f"{name}: kling-v3 has none. Use model_name kling-v2-1, or describe it in the prompt."
    return Rule(problem, lambda values: name in values and values.get("model_name") == "kling-v3")


IMAGE_TO_IMAGE = Job(
    "image_to_image",
    "Create images from a text and an image.",
    (
        Endpoint(
            "images/generations",
            IMAGE_MODELS,
            (
                prompt(LEGACY_PROMPT),
                Parameter(
                    "image",
                    ImageInput(),
                    "A file, a URL, or base64: jpg or png, at most 10 MB, both sides at least 300 pixels, "
                    "at most 1:2.5 or 2.5:1.",
                    required=True,
                ),
                *IMAGE,
                Parameter(
                    "image_reference", Choice(("subject", "face")), "What to take from the image (kling-v2-1, v1-5)."
                ),
                Parameter(
                    "image_fidelity",
                    Number(0, 1),
                    "How closely to follow the image, 0 to 1; Kling's default is 0.5 (kling-v2-1, v1-5).",
                ),
                Parameter(
                    "human_fidelity",
                    Number(0, 1),
                    "How closely to follow the face, 0 to 1; Kling's default is 0.45 (kling-v2-1, v1-5).",
                ),
            ),
            (ELEMENTS_NEED_V3, *map(_has_none_at_v3, ("image_reference", "image_fidelity", "human_fidelity"))),
            refused={"negative_prompt": "Kling accepts none together with an image."},
        ),
    ),
)

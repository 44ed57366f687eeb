"""The typed jobs that make a video of a text or an image, in both standards."""

from kling_callback.jobs.job import Endpoint, Job, Parameter, Rule, Values
from kling_callback.jobs.parameters import (
    DynamicMask,
    ImageInput,
    ListOf,
)
from kling_callback.jobs.tables.common import (
    ELEMENT_LIST,
    ELEMENTS,
    LAST_FRAME_NEEDS_1080P,
    LEGACY_PROMPT,
    LEGACY_RULES,
    LEGACY_VIDEO,
    LEGACY_VIDEO_MODELS,
    MULTI_SHOT,
    NATIVE_NEEDS_1080P,
    NEW_IMAGE,
    NEW_PROMPT,
    PROMPT_OR_SHOTS,
    RATIO,
    REPLACED_BY_LEGACY,
    REPLACED_BY_NEW,
    SHORT,
    UHD,
    VOICES,
    needs,
    new_settings,
    only_of,
    prompt,
)

TEXT_TO_VIDEO = Job(
    "text_to_video",
    "Create a video from a text.",
    (
        Endpoint(
            "videos/text2video",
            LEGACY_VIDEO_MODELS,
            (prompt(LEGACY_PROMPT, required=False), *LEGACY_VIDEO, RATIO),
            (PROMPT_OR_SHOTS, *LEGACY_RULES),
            refused={"image": "belongs to image_to_video (`kling image-to-video`)."},
            replaced=REPLACED_BY_LEGACY,
        ),
        Endpoint(
            "/text-to-video/kling-3.0",
            ("kling-3.0",),
            (prompt(NEW_PROMPT), *new_settings(resolution=UHD, audio=("native", "off")), RATIO, MULTI_SHOT),
            replaced=REPLACED_BY_NEW,
        ),
        Endpoint(
            "/text-to-video/kling-3.0-turbo",
            ("kling-3.0-turbo",),
            (prompt(NEW_PROMPT), *new_settings(), RATIO),
            replaced=REPLACED_BY_NEW,
        ),
        Endpoint(
            "/text-to-video/kling-2.6",
            ("kling-2.6",),
            (prompt(LEGACY_PROMPT), *new_settings(duration=SHORT, audio=("native", "off")), RATIO),
            (NATIVE_NEEDS_1080P,),
            replaced=REPLACED_BY_NEW,
        ),
        Endpoint(
            "/text-to-video/kling-2.5-turbo",
            ("kling-2.5-turbo",),
            (prompt(LEGACY_PROMPT), *new_settings(duration=SHORT), RATIO),
            replaced=REPLACED_BY_NEW,
        ),
    ),
    new_path="/text-to-video",
)

IMAGE_HELP = "The first frame: a file, a URL, or base64; jpg or png, both sides at least 300 pixels."
FIRST_FRAME = (
    Parameter("image", NEW_IMAGE, IMAGE_HELP, content="first_frame"),
    Parameter("first_frame", NEW_IMAGE, "Another name of image (new standard).", content="first_frame"),
)
LAST_FRAME = Parameter(
    "last_frame", NEW_IMAGE, "The last frame (new standard but kling-3.0-turbo), as image.", content="last_frame"
)
NEW_ELEMENTS = Parameter("element_list", ListOf(ELEMENTS, 3), ELEMENT_LIST.help, content="element")
NEW_VOICES = Parameter("voice_list", ListOf(VOICES, 2), "Ids of voices, at most 2.", content="voice")

ONE_FIRST_FRAME = Rule(
    "image: is missing, or given twice. Give one of image and first_frame.",
    lambda values: ("image" in values) == ("first_frame" in values),
)
MASKS = ("static_mask", "dynamic_masks")


def _is_crowded(values: Values) -> bool:
    return sum(("image_tail" in values, any(name in values for name in MASKS), "camera_control" in values)) > 1


IMAGE_TO_VIDEO = Job(
    "image_to_video",
    "Create a video from an image.",
    (
        Endpoint(
            "videos/image2video",
            LEGACY_VIDEO_MODELS,
            (
                prompt(LEGACY_PROMPT, required=False),
                Parameter("image", ImageInput(), IMAGE_HELP),
                Parameter("image_tail", ImageInput(), "The last frame, as image (legacy models)."),
                Parameter("static_mask", ImageInput(), "An image: what is masked does not move (kling-v1 to v1-6)."),
                Parameter(
                    "dynamic_masks",
                    ListOf(DynamicMask(), 6),
                    'At most 6 masks that move, such as {"mask": "m.png", "trajectories": [{"x": 0, "y": 0}, ...]}; '
                    "2 to 77 points in pixels (kling-v1 to v1-6).",
                ),
                *LEGACY_VIDEO,
            ),
            (
                Rule(
                    "image: is missing. Give image, image_tail, or both.",
                    lambda values: "image" not in values and "image_tail" not in values,
                ),
                Rule("image_tail, masks, camera_control: exclude each other. Give one of the three.", _is_crowded),
                *(only_of(name, "kling-v1", "kling-v1-5", "kling-v1-6") for name in MASKS),
                *LEGACY_RULES,
            ),
            refused={"aspect_ratio": "the video has the ratio of its image."},
            replaced=REPLACED_BY_LEGACY,
        ),
        Endpoint(
            "/image-to-video/kling-3.0",
            ("kling-3.0",),
            (
                prompt(NEW_PROMPT, required=False, content=True),
                *FIRST_FRAME,
                LAST_FRAME,
                NEW_ELEMENTS,
                *new_settings(resolution=UHD, audio=("native", "off")),
                MULTI_SHOT,
            ),
            (ONE_FIRST_FRAME,),
            refused={"aspect_ratio": "the video has the ratio of its image."},
            replaced=REPLACED_BY_NEW,
        ),
        Endpoint(
            "/image-to-video/kling-3.0-turbo",
            ("kling-3.0-turbo",),
            (prompt(NEW_PROMPT, required=False, content=True), *FIRST_FRAME, *new_settings()),
            (ONE_FIRST_FRAME,),
            refused={
                "aspect_ratio": "the video has the ratio of its image.",
                "last_frame": "kling-3.0-turbo has none. Use model_name kling-3.0.",
                "image_tail": "kling-3.0-turbo has no last frame. Use model_name kling-3.0 with last_frame.",
            },
            replaced=REPLACED_BY_NEW,
        ),
        Endpoint(
            "/image-to-video/kling-2.6",
            ("kling-2.6",),
            (
                prompt(LEGACY_PROMPT, required=False, content=True),
                *FIRST_FRAME,
                LAST_FRAME,
                NEW_VOICES,
                *new_settings(duration=SHORT, audio=("native", "off")),
            ),
            (
                ONE_FIRST_FRAME,
                NATIVE_NEEDS_1080P,
                LAST_FRAME_NEEDS_1080P,
                needs("voice_list", "needs audio native.", audio="native"),
            ),
            refused={"aspect_ratio": "the video has the ratio of its image."},
            replaced=REPLACED_BY_NEW,
        ),
        Endpoint(
            "/image-to-video/kling-2.5-turbo",
            ("kling-2.5-turbo",),
            (
                prompt(LEGACY_PROMPT, required=False, content=True),
                *FIRST_FRAME,
                LAST_FRAME,
                *new_settings(duration=SHORT),
            ),
            (ONE_FIRST_FRAME, LAST_FRAME_NEEDS_1080P),
            refused={"aspect_ratio": "the video has the ratio of its image."},
            replaced=REPLACED_BY_NEW,
        ),
    ),
    new_path="/image-to-video",
)

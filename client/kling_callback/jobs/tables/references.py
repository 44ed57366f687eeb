"""The typed jobs that make a video with the help of another one: omni video and motion control."""

from kling_callback.jobs.job import Endpoint, Job, Parameter, Rule
from kling_callback.jobs.parameters import (
    Choice,
    ImageInput,
    ListOf,
    ObjectWith,
    Seconds,
    VideoInput,
)
from kling_callback.jobs.tables.common import (
    ELEMENTS,
    LEGACY_PROMPT,
    LEGACY_SECONDS,
    LEGACY_VIDEO,
    MULTI_SHOT,
    NEW_IMAGE,
    NEW_PROMPT,
    ONE_ELEMENT,
    PROMPT_OR_SHOTS,
    RATIO,
    REPLACED_BY_LEGACY,
    REPLACED_BY_NEW,
    SHOTS_NEED_MULTI_SHOT,
    UHD,
    WATERMARK,
    model,
    needs,
    new_settings,
    prompt,
)

OMNI_CONTENT = (
    Parameter("first_frame", NEW_IMAGE, "The first frame (new standard).", content="first_frame"),
    Parameter("last_frame", NEW_IMAGE, "The last frame, beside a first one (new standard).", content="last_frame"),
    Parameter(
        "refer_image",
        ListOf(ObjectWith("url", NEW_IMAGE), 7),
        "Images to refer to in the prompt (new standard); an object with url and id names one: @id.",
        content="refer_image",
    ),
    Parameter(
        "feature_video",
        VideoInput(),
        "URL of a video whose features to take over (new standard).",
        content="feature_video",
    ),
    Parameter("base_video", VideoInput(), "URL of a video to edit (new standard).", content="base_video"),
    Parameter(
        "element_list",
        ListOf(ELEMENTS, 7),
        "Ids of elements in the prompt: an id, or objects with element_id.",
        content="element",
    ),
)
VIDEOS = ("feature_video", "base_video")
OMNI_RULES = (
    Rule("feature_video, base_video: exclude each other.", lambda values: all(name in values for name in VIDEOS)),
    Rule("last_frame: needs first_frame.", lambda values: "last_frame" in values and "first_frame" not in values),
    Rule(
        "aspect_ratio: is needed without first_frame, feature_video or base_video.",
        lambda values: not {"aspect_ratio", "first_frame", *VIDEOS} & values.keys(),
    ),
    Rule(
        "base_video: excludes first_frame and last_frame.",
        lambda values: "base_video" in values and bool({"first_frame", "last_frame"} & values.keys()),
    ),
    Rule(
        "multi_shot: a base_video makes one shot. Set it to false.",
        lambda values: "base_video" in values and values.get("multi_shot") is True,
    ),
    Rule(
        "audio: a base_video has no native sound. Use original or off.",
        lambda values: "base_video" in values and values.get("audio") == "native",
    ),
    Rule(
        "audio: must be off with a feature_video.",
        lambda values: "feature_video" in values and values.get("audio", "off") != "off",
    ),
)

OMNI_VIDEO = Job(
    "omni_video",
    "Create a video from texts, images and a video.",
    (
        Endpoint(
            "videos/omni-video",
            ("kling-video-o1", "kling-v3-omni"),
            (
                prompt(LEGACY_PROMPT, required=False),
                model("kling-v3-omni", "kling-video-o1", "or of the new standard kling-3.0-omni, kling-o1"),
                Parameter(
                    "image_list",
                    ListOf(ObjectWith("image_url", ImageInput()), 7),
                    "Images (legacy): each a file, a URL or base64, or an object with image_url and type.",
                ),
                Parameter("element_list", ListOf(ELEMENTS, 7), OMNI_CONTENT[-1].help),
                Parameter(
                    "video_list",
                    ListOf(ObjectWith("video_url", VideoInput()), 1),
                    "One video (legacy): its URL, or an object with video_url, refer_type, keep_original_sound.",
                ),
                *(
                    each
                    for each in LEGACY_VIDEO
                    if each.name in ("mode", "sound", "multi_shot", "shot_type", "multi_prompt")
                ),
                Parameter("duration", LEGACY_SECONDS, "Seconds, 3 to 15 (kling-o1: 3 to 10); Kling's default is 5."),
                RATIO,
                WATERMARK,
            ),
            (PROMPT_OR_SHOTS, SHOTS_NEED_MULTI_SHOT),
            replaced=REPLACED_BY_LEGACY
            | {"first_frame": "image_list", "last_frame": "image_list", "refer_image": "image_list"}
            | dict.fromkeys(VIDEOS, "video_list"),
        ),
        Endpoint(
            "/omni-video/kling-3.0-omni",
            ("kling-3.0-omni",),
            (
                prompt(NEW_PROMPT, content=True),
                *OMNI_CONTENT,
                *new_settings(resolution=UHD, audio=("native", "original", "off")),
                RATIO,
                MULTI_SHOT,
            ),
            OMNI_RULES,
            replaced=REPLACED_BY_NEW,
        ),
        Endpoint(
            "/omni-video/kling-o1",
            ("kling-o1",),
            (
                prompt(LEGACY_PROMPT, content=True),
                *OMNI_CONTENT,
                *new_settings(duration=Seconds(3, 10, as_number=True), audio=("original", "off")),
                RATIO,
            ),
            OMNI_RULES,
            replaced=REPLACED_BY_NEW,
        ),
    ),
    new_path="/omni-video",
)

ORIENTATION = Parameter(
    "character_orientation",
    Choice(("image", "video")),
    "The person looks as in the image (a video of at most 10 seconds) or as in the video (at most 30).",
    required=True,
)
MOTION_IMAGE = "The person or creature: a file, a URL, or base64; jpg or png, both sides at least 300 pixels."
MOTION_VIDEO = "URL of the movement, mp4 or mov, at least 3 seconds; or a video of an earlier result."
NEW_MOTION = (
    prompt(LEGACY_PROMPT, required=False, content=True),
    Parameter("image", NEW_IMAGE, MOTION_IMAGE, required=True, content="image"),
    Parameter("video", VideoInput(), MOTION_VIDEO, required=True, content="video"),
    ORIENTATION,
    *new_settings(duration=None, audio=("original", "off")),
)

MOTION_CONTROL = Job(
    "motion_control",
    "Create a video in which an image moves as in a video.",
    (
        Endpoint(
            "videos/motion-control",
            ("kling-v2-6", "kling-v3"),
            (
                prompt(LEGACY_PROMPT, required=False),
                Parameter("image", ImageInput(), MOTION_IMAGE, required=True, sent_as="image_url"),
                Parameter("video", VideoInput(), MOTION_VIDEO, required=True, sent_as="video_url"),
                ORIENTATION,
                model("kling-v3", "kling-v2-6", "or of the new standard kling-3.0, kling-2.6"),
                Parameter("mode", Choice(("std", "pro")), "std (720p, the default) or pro (1080p); legacy models."),
                Parameter("keep_original_sound", Choice(("yes", "no")), "Default: yes; legacy models."),
                Parameter("element_list", ListOf(ELEMENTS, 1), ONE_ELEMENT.help),
                WATERMARK,
            ),
            replaced=REPLACED_BY_LEGACY | {"audio": "keep_original_sound"},
        ),
        Endpoint(
            "/motion-control/kling-3.0",
            ("kling-3.0",),
            (*NEW_MOTION, ONE_ELEMENT),
            (needs("element_list", "needs character_orientation video.", character_orientation="video"),),
            replaced=REPLACED_BY_NEW,
        ),
        Endpoint("/motion-control/kling-2.6", ("kling-2.6",), NEW_MOTION, replaced=REPLACED_BY_NEW),
    ),
    new_path="/motion-control",
)

"""The families of jobs and the parameters of the legacy standard; strict only where Kling's pages agree."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kling_sandbox.api import new_standard
from kling_sandbox.api.parameters import (
    ANY_LIST,
    ANY_OBJECT,
    CAMERA_CONTROL,
    ID,
    IMAGE,
    ON_OFF,
    PROMPT,
    URL,
    YES_NO,
    Rule,
    integer,
    is_url,
    number,
    objects,
    one_of,
    problems,
    seconds,
    text,
)
from kling_sandbox.api.replies import ApiError


@dataclass(frozen=True)
class Family:
    """A kind of job. `kind`: of its results. `needs`: parameters of which it needs one. `exclusive`: groups of which it
    may have one.
    """

    path: str
    kind: str
    rules: Mapping[str, Rule] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    exclusive: tuple[tuple[str, ...], ...] = ()

    @property
    def new(self) -> bool:
        """Whether it belongs to the new standard."""
        return self.path.startswith("/")

    def options(self, body: dict[str, Any]) -> dict[str, Any]:
        """The part of a body that has the callback address and the external id."""
        options: dict[str, Any] = body.get("options", {}) if self.new else body
        return options


TEXTS = {"prompt": PROMPT, "negative_prompt": PROMPT}
IMAGES = {
    **TEXTS,
    "element_list": objects(10, element_id=ID),
    "n": integer(1, 9),
    "aspect_ratio": one_of("16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9", "auto"),
    "resolution": one_of("1k", "2k", "4k"),
    "output_format": one_of("png", "jpg"),
    "image": IMAGE,
}
VIDEOS = {
    **TEXTS,
    "cfg_scale": number(0, 1),
    "mode": one_of("std", "pro", "4k"),
    "duration": seconds(3, 15),
    "sound": ON_OFF,
    "voice_list": objects(2, voice_id=ID),
    "element_list": objects(3, element_id=ID),
    "multi_shot": YES_NO,
    "shot_type": text(100),
    "multi_prompt": objects(6, prompt=PROMPT),
    "camera_control": CAMERA_CONTROL,
}
RATIO = {"aspect_ratio": one_of("16:9", "9:16", "1:1")}
REFERENCES = {
    "image_reference": one_of("subject", "face"),
    "image_fidelity": number(0, 1),
    "human_fidelity": number(0, 1),
}
FRAMES = {
    "image": IMAGE,
    "image_tail": IMAGE,
    "static_mask": IMAGE,
    "dynamic_masks": objects(6, mask=IMAGE, trajectories=objects(77, 2, x=number(0, 10**5), y=number(0, 10**5))),
}
SPOKEN = {"prompt": PROMPT, "mode": one_of("std", "pro"), "image": IMAGE}
SCENE = ("prompt", "multi_shot")  # several shots have a prompt each

FAMILIES = {
    family.path: family
    for family in (
        Family(
            "images/generations",
            "images",
            IMAGES | REFERENCES,
            ("prompt",),
            exclusive=(("image",), ("negative_prompt",)),
        ),
        Family(
            "images/multi-image2image",
            "images",
            IMAGES
            | {"subject_image_list": objects(4, 1, subject_image=IMAGE), "scene_image": IMAGE, "style_image": IMAGE},
        ),
        Family("images/editing/expand", "images", IMAGES),
        Family("images/kolors-virtual-try-on", "images", IMAGES | {"human_image": IMAGE, "cloth_image": IMAGE}),
        Family(
            "images/omni-image",
            "images",
            IMAGES | {"image_list": objects(10, image=IMAGE), "series_amount": one_of(*range(2, 10), "auto")},
            ("prompt",),
        ),
        Family("videos/text2video", "videos", VIDEOS | RATIO, SCENE),
        Family(
            "videos/image2video",
            "videos",
            VIDEOS | FRAMES,
            ("image", "image_tail"),
            exclusive=(("image_tail",), ("static_mask", "dynamic_masks"), ("camera_control",)),
        ),
        Family("videos/multi-image2video", "videos", VIDEOS | RATIO | {"image_list": objects(4, 1, image=IMAGE)}),
        Family(
            "videos/omni-video",
            "videos",
            VIDEOS | RATIO | {"image_list": objects(10, image_url=IMAGE), "video_list": objects(1, video_url=URL)},
            SCENE,
        ),
        Family(
            "videos/motion-control",
            "videos",
            VIDEOS | {"image_url": IMAGE, "video_url": URL, "character_orientation": one_of("image", "video")},
        ),
        Family("videos/video-extend", "videos", TEXTS),
        Family("videos/advanced-lip-sync", "videos", {"face_choose": ANY_LIST}),
        Family("videos/lip-sync", "videos", {"input": ANY_OBJECT}),
        Family("videos/effects", "videos", {"input": ANY_OBJECT}),
        Family("videos/avatar/image2video", "videos", SPOKEN),
        Family(
            "videos/multi-elements",
            "videos",
            VIDEOS | {"edit_mode": one_of("addition", "swap", "removal"), "image_list": objects(2, image=IMAGE)},
        ),
        Family("audio/text-to-audio", "audios", {"prompt": text(200), "duration": number(3, 10)}, ("prompt",)),
        Family("audio/video-to-audio", "audios", {"video_url": URL}),
        Family(
            "general/advanced-custom-elements",
            "elements",
            {
                "element_name": text(20),
                "element_description": text(100),
                "reference_type": one_of("image_refer", "video_refer"),
                "element_image_list": ANY_OBJECT,
                "element_video_list": ANY_OBJECT,
            },
        ),
        Family("general/custom-voices", "voices", {"voice_name": text(20), "voice_url": URL}),
        Family("general/ai-multi-shot", "images", IMAGES | {"element_frontal_image": IMAGE}),
        *(Family(product, "videos") for product in new_standard.PRODUCTS),
    )
}


def check(path: str, family: Family, body: dict[str, Any]) -> None:
    """Check a create at `path` whose body has no empty values. Raises ApiError."""
    if family.new:
        new_standard.check(path, body)
    else:
        _check_legacy(family, body)
    _check_options(family.options(body))


def _check_legacy(family: Family, body: dict[str, Any]) -> None:
    if not str(body.get("model_name", "kling")).startswith("kling"):
        raise ApiError(1203, f"Model {body['model_name']} does not exist")
    if family.needs and not any(map(body.get, family.needs)):
        raise ApiError(1200, f"{' or '.join(family.needs)} is required")
    found = problems(family.rules, body)
    groups = [group for group in family.exclusive if body.keys() & set(group)]
    if len(groups) > 1:
        found.append(f"{' and '.join('/'.join(group) for group in groups)} exclude each other")
    if found:
        raise ApiError(1201, "; ".join(found))


def _check_options(options: dict[str, Any]) -> None:
    if "callback_url" in options and not is_url(options["callback_url"]):
        raise ApiError(1200, "callback_url must be an absolute http(s) address")
    found = problems({"external_task_id": text(256), "watermark_info": ANY_OBJECT}, options)
    if found:
        raise ApiError(1201, "; ".join(found))

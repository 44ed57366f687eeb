"""The model's name selects Kling's standard, the path, and the parameters that are accepted."""

import base64
import io
import typing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kling_callback import AsyncKling, AsyncTask, Kling, Task
from kling_callback.errors import ParameterError
from kling_callback.jobs.catalog import (
    IMAGE_TO_IMAGE,
    IMAGE_TO_VIDEO,
    JOBS,
    MOTION_CONTROL,
    OMNI_VIDEO,
    TEXT_TO_IMAGE,
    TEXT_TO_VIDEO,
)
from kling_callback.jobs.inputs import InputFile, reachable_url
from kling_callback.jobs.job import Job
from kling_callback.jobs.parameters import Choice

IMAGE, VIDEO, POINT = "https://host/a.png", "https://host/a.mp4", {"x": 1, "y": 1}


def problems(job: Job, **values: Any) -> list[str]:
    with pytest.raises(ParameterError) as error:
        job.create(values)
    return error.value.problems


def literals(hint: Any) -> set[Any]:
    """The values of a `Literal`, alone or in a union."""
    if typing.get_origin(hint) is typing.Literal:
        return set(typing.get_args(hint))
    return {value for part in typing.get_args(hint) for value in literals(part)}


def picture() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (300, 300)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("job", "values", "family", "body"),
    [
        (
            TEXT_TO_VIDEO,
            {"model_name": "kling-3.0-turbo", "resolution": "1080p", "aspect_ratio": "9:16", "duration": "7"},
            "/text-to-video/kling-3.0-turbo",
            {"prompt": "x", "settings": {"resolution": "1080p", "aspect_ratio": "9:16", "duration": 7}},
        ),
        (
            TEXT_TO_VIDEO,
            {"model_name": "kling-3.0", "audio": "native", "multi_shot": False, "watermark_info": True},
            "/text-to-video/kling-3.0",
            {
                "prompt": "x",
                "settings": {"audio": "native", "multi_shot": False},
                "options": {"watermark_info": {"enabled": True}},
            },
        ),
        (
            TEXT_TO_VIDEO,
            {"model_name": "kling-v3", "mode": "4k", "sound": "on", "duration": 15},
            "videos/text2video",
            {"prompt": "x", "model_name": "kling-v3", "mode": "4k", "sound": "on", "duration": "15"},
        ),
        (
            IMAGE_TO_VIDEO,
            {
                "model_name": "kling-3.0",
                "image": IMAGE,
                "last_frame": IMAGE,
                "element_list": ["1", {"element_id": 7}],
            },
            "/image-to-video/kling-3.0",
            {
                "contents": [
                    {"type": "prompt", "text": "x"},
                    {"type": "first_frame", "url": IMAGE},
                    {"type": "last_frame", "url": IMAGE},
                    {"type": "element", "element_id": "1", "id": "element_1"},
                    {"type": "element", "element_id": 7, "id": "element_2"},
                ]
            },
        ),
        (
            IMAGE_TO_VIDEO,
            {
                "model_name": "kling-2.6",
                "first_frame": IMAGE,
                "voice_list": [{"voice_id": "9", "id": "sweet"}],
                "audio": "native",
                "resolution": "1080p",
            },
            "/image-to-video/kling-2.6",
            {
                "contents": [
                    {"type": "prompt", "text": "x"},
                    {"type": "first_frame", "url": IMAGE},
                    {"type": "voice", "voice_id": "9", "id": "sweet"},
                ],
                "settings": {"audio": "native", "resolution": "1080p"},
            },
        ),
        (
            IMAGE_TO_VIDEO,
            {"image_tail": IMAGE, "element_list": 5, "voice_list": ["1", "2"]},
            "videos/image2video",
            {
                "prompt": "x",
                "image_tail": IMAGE,
                "element_list": [{"element_id": 5}],
                "voice_list": [{"voice_id": "1"}, {"voice_id": "2"}],
            },
        ),
        (
            OMNI_VIDEO,
            {
                "model_name": "kling-3.0-omni",
                "refer_image": [IMAGE, {"url": IMAGE, "id": "a"}],
                "aspect_ratio": "1:1",
            },
            "/omni-video/kling-3.0-omni",
            {
                "contents": [
                    {"type": "prompt", "text": "x"},
                    {"type": "refer_image", "url": IMAGE},
                    {"type": "refer_image", "url": IMAGE, "id": "a"},
                ],
                "settings": {"aspect_ratio": "1:1"},
            },
        ),
        (
            OMNI_VIDEO,
            {
                "model_name": "kling-v3-omni",
                "image_list": IMAGE,
                "video_list": {"video_url": VIDEO, "more": "base"},
            },
            "videos/omni-video",
            {
                "prompt": "x",
                "model_name": "kling-v3-omni",
                "image_list": [{"image_url": IMAGE}],
                "video_list": [{"video_url": VIDEO, "more": "base"}],
            },
        ),
        (
            MOTION_CONTROL,
            {"model_name": "kling-2.6", "image": IMAGE, "video": VIDEO, "character_orientation": "video"},
            "/motion-control/kling-2.6",
            {
                "contents": [
                    {"type": "prompt", "text": "x"},
                    {"type": "image", "url": IMAGE},
                    {"type": "video", "url": VIDEO},
                ],
                "settings": {"character_orientation": "video"},
            },
        ),
        (
            MOTION_CONTROL,
            {"image": IMAGE, "video": VIDEO, "character_orientation": "image", "mode": "pro"},
            "videos/motion-control",
            {"prompt": "x", "image_url": IMAGE, "video_url": VIDEO, "character_orientation": "image", "mode": "pro"},
        ),
    ],
)
def test_the_model_selects_the_standard(job: Job, values: dict[str, Any], family: str, body: dict[str, Any]) -> None:
    """Legacy models have their name in the body; new ones have it in the path, with contents and settings."""
    assert job.create({"prompt": "x", **values}) == (family, body)


@pytest.mark.parametrize("model", ["kling-4.0", "kling-3.5-turbo", "kling-5.1"])
def test_an_unknown_model_of_the_new_standard_passes(model: str) -> None:
    """Its name has a point; its limits are not known, and neither are its parameters."""
    family, body = IMAGE_TO_VIDEO.create(
        {"prompt": "x", "image": IMAGE, "model_name": model, "duration": 30, "resolution": "8k", "middle_frame": "y"}
    )
    assert family == f"/image-to-video/{model}"
    assert body["settings"] == {"duration": 30, "resolution": "8k", "middle_frame": "y"}
    assert [each["type"] for each in body["contents"]] == ["prompt", "first_frame"]


def test_an_unknown_legacy_model_passes() -> None:
    """A relay's own names, with values that no known model accepts, and parameters of the other standard."""
    values = {"prompt": "x" * 9000, "model_name": "kling-v9", "duration": 60, "mode": "ultra", "resolution": "720p"}
    assert TEXT_TO_VIDEO.create(values) == ("videos/text2video", values)


def test_objects_of_the_new_standard_may_be_given_as_they_are() -> None:
    """`settings`, `options` and `contents` are added to what the parameters make."""
    _, body = IMAGE_TO_VIDEO.create(
        {
            "model_name": "kling-3.0",
            "image": IMAGE,
            "settings": {"seed": 1},
            "options": {"watermark_info": {"enabled": False}},
            "contents": [{"type": "prompt", "text": "y"}],
        }
    )
    assert body == {
        "contents": [{"type": "first_frame", "url": IMAGE}, {"type": "prompt", "text": "y"}],
        "settings": {"seed": 1},
        "options": {"watermark_info": {"enabled": False}},
    }


@pytest.mark.parametrize(
    ("job", "values", "replacement"),
    [
        (TEXT_TO_VIDEO, {"model_name": "kling-3.0-turbo", "mode": "pro"}, "resolution"),
        (TEXT_TO_VIDEO, {"model_name": "kling-3.0", "negative_prompt": "blur"}, "prompt"),
        (TEXT_TO_VIDEO, {"model_name": "kling-3.0", "camera_control": {"type": "down_back"}}, "prompt"),
        (TEXT_TO_VIDEO, {"model_name": "kling-3.0", "cfg_scale": 0.5}, "has none"),
        (TEXT_TO_VIDEO, {"model_name": "kling-2.6", "sound": "on"}, "audio"),
        (TEXT_TO_VIDEO, {"model_name": "kling-v3", "resolution": "1080p"}, "mode"),
        (TEXT_TO_VIDEO, {"audio": "native"}, "sound"),
        (TEXT_TO_VIDEO, {"image": IMAGE}, "image_to_video"),
        (IMAGE_TO_VIDEO, {"model_name": "kling-3.0", "image": IMAGE, "image_tail": IMAGE}, "last_frame"),
        (IMAGE_TO_VIDEO, {"model_name": "kling-3.0-turbo", "image": IMAGE, "last_frame": IMAGE}, "kling-3.0"),
        (IMAGE_TO_VIDEO, {"image": IMAGE, "last_frame": IMAGE}, "image_tail"),
        (IMAGE_TO_VIDEO, {"image": IMAGE, "aspect_ratio": "16:9"}, "ratio of its image"),
        (OMNI_VIDEO, {"first_frame": IMAGE}, "image_list"),
        (OMNI_VIDEO, {"model_name": "kling-o1", "first_frame": IMAGE, "image_list": [IMAGE]}, "refer_image"),
        (
            MOTION_CONTROL,
            {"image": IMAGE, "video": VIDEO, "character_orientation": "image", "audio": "off"},
            "keep_original_sound",
        ),
        (IMAGE_TO_IMAGE, {"model_name": "kling-v3", "image": IMAGE, "image_fidelity": 0.5}, "kling-v2-1"),
    ],
)
def test_a_parameter_that_the_model_lacks_is_refused(job: Job, values: dict[str, Any], replacement: str) -> None:
    """With the name of what replaces it."""
    (problem,) = problems(job, prompt="x", **values)
    assert replacement in problem


@pytest.mark.parametrize(
    ("job", "values", "name"),
    [
        (IMAGE_TO_VIDEO, {"model_name": "kling-2.5-turbo", "image": IMAGE, "last_frame": IMAGE}, "last_frame"),
        (
            IMAGE_TO_VIDEO,
            {"model_name": "kling-2.6", "image": IMAGE, "last_frame": IMAGE, "resolution": "720p"},
            "last_frame",
        ),
        (IMAGE_TO_VIDEO, {"model_name": "kling-2.6", "image": IMAGE, "audio": "native"}, "audio"),
        (IMAGE_TO_VIDEO, {"model_name": "kling-2.6", "image": IMAGE, "voice_list": ["1"]}, "voice_list"),
        (IMAGE_TO_VIDEO, {"model_name": "kling-3.0"}, "image"),
        (IMAGE_TO_VIDEO, {"model_name": "kling-3.0", "image": IMAGE, "first_frame": IMAGE}, "image"),
        (IMAGE_TO_VIDEO, {}, "image"),
        (IMAGE_TO_VIDEO, {"image": IMAGE, "image_tail": IMAGE, "camera_control": {"type": "down_back"}}, "image_tail"),
        (IMAGE_TO_VIDEO, {"image": IMAGE, "static_mask": IMAGE, "image_tail": IMAGE}, "image_tail"),
        (IMAGE_TO_VIDEO, {"image": IMAGE, "voice_list": ["1", "2", "3"]}, "voice_list"),
        (IMAGE_TO_VIDEO, {"image": IMAGE, "element_list": [1, 2, 3, 4]}, "element_list"),
        (IMAGE_TO_VIDEO, {"image": IMAGE, "element_list": [{"name": "x"}]}, "element_list"),
        (
            IMAGE_TO_VIDEO,
            {"image": IMAGE, "dynamic_masks": [{"mask": IMAGE, "trajectories": [{"x": 1, "y": 1}]}]},
            "dyn",
        ),
        (IMAGE_TO_VIDEO, {"image": IMAGE, "dynamic_masks": [{"mask": IMAGE, "trajectories": [{"x": 1}] * 2}]}, "dyn"),
        (IMAGE_TO_VIDEO, {"image": IMAGE, "dynamic_masks": [{"trajectories": [POINT] * 2}]}, "dyn"),
        (IMAGE_TO_VIDEO, {"image": IMAGE, "dynamic_masks": [5]}, "dyn"),
        (IMAGE_TO_VIDEO, {"image": IMAGE, "multi_shot": "yes"}, "multi_shot"),
        (TEXT_TO_VIDEO, {"multi_prompt": [{"index": 1, "prompt": "a", "duration": "5"}]}, "multi_prompt"),
        (TEXT_TO_VIDEO, {"model_name": "kling-v1-6", "sound": "on"}, "sound"),
        (TEXT_TO_VIDEO, {"model_name": "kling-v2-6", "mode": "4k"}, "mode"),
        (TEXT_TO_VIDEO, {"model_name": "kling-v2-1", "duration": 7}, "duration"),
        (TEXT_TO_VIDEO, {"model_name": "kling-v1", "multi_shot": True}, "multi_shot"),
        (TEXT_TO_VIDEO, {"model_name": "kling-v1-5", "element_list": ["1"]}, "element_list"),
        (TEXT_TO_VIDEO, {"camera_control": {"type": "simple", "config": {"zomm": 5}}}, "camera_control"),
        (IMAGE_TO_VIDEO, {"model_name": "kling-v2-1", "image": IMAGE, "voice_list": ["1"]}, "voice_list"),
        (IMAGE_TO_VIDEO, {"image": IMAGE, "element_list": "1,2"}, "element_list"),
        (TEXT_TO_IMAGE, {"model_name": "kling-v2-1", "element_list": [1]}, "element_list"),
        (IMAGE_TO_VIDEO, {"model_name": "kling-v3", "image": IMAGE, "static_mask": IMAGE}, "static_mask"),
        (TEXT_TO_VIDEO, {"model_name": "kling-2.5-turbo", "duration": 7}, "duration"),
        (TEXT_TO_VIDEO, {"model_name": "kling-2.6", "audio": "native", "resolution": "720p"}, "audio"),
        (TEXT_TO_VIDEO, {"model_name": "kling-3.0-turbo", "resolution": "4k"}, "resolution"),
        (OMNI_VIDEO, {"model_name": "kling-3.0-omni"}, "aspect_ratio"),
        (OMNI_VIDEO, {"model_name": "kling-3.0-omni", "last_frame": IMAGE, "aspect_ratio": "1:1"}, "last_frame"),
        (OMNI_VIDEO, {"model_name": "kling-3.0-omni", "feature_video": VIDEO, "base_video": VIDEO}, "feature_video"),
        (OMNI_VIDEO, {"model_name": "kling-3.0-omni", "base_video": VIDEO, "audio": "native"}, "audio"),
        (OMNI_VIDEO, {"model_name": "kling-3.0-omni", "base_video": VIDEO, "first_frame": IMAGE}, "base_video"),
        (OMNI_VIDEO, {"model_name": "kling-3.0-omni", "base_video": VIDEO, "multi_shot": True}, "multi_shot"),
        (OMNI_VIDEO, {"model_name": "kling-3.0-omni", "feature_video": VIDEO, "audio": "original"}, "audio"),
        (OMNI_VIDEO, {"model_name": "kling-o1", "first_frame": IMAGE, "duration": 11}, "duration"),
        (OMNI_VIDEO, {"model_name": "kling-o1", "base_video": "movie.mp4"}, "base_video"),
        (MOTION_CONTROL, {"image": IMAGE, "video": VIDEO}, "character_orientation"),
        (MOTION_CONTROL, {"image": IMAGE, "video": Path("a.mp4"), "character_orientation": "image"}, "video"),
        (
            MOTION_CONTROL,
            {
                "model_name": "kling-3.0",
                "image": IMAGE,
                "video": VIDEO,
                "character_orientation": "image",
                "element_list": [1],
            },
            "element_list",
        ),
    ],
)
def test_the_rules_of_a_model(job: Job, values: dict[str, Any], name: str) -> None:
    """What Kling's pages rule out is refused, by the name of the parameter to change."""
    (problem,) = problems(job, prompt="x", **values)
    assert problem.startswith(name)


def test_no_prompt_is_needed_for_shots() -> None:
    """With `multi_shot`, each shot has its own."""
    shots = [{"index": 1, "prompt": "a", "duration": "5"}]
    _, body = TEXT_TO_VIDEO.create({"multi_shot": True, "shot_type": "customize", "multi_prompt": shots})
    assert body == {"multi_shot": True, "shot_type": "customize", "multi_prompt": shots}
    assert problems(TEXT_TO_VIDEO) == [
        "prompt: is missing. Say what to show, or use multi_shot with multi_prompt.",
    ]


@pytest.mark.parametrize(
    ("job", "name", "meant"),
    [
        (TEXT_TO_IMAGE, "apsect_ratio", "aspect_ratio"),
        (TEXT_TO_IMAGE, "N", "n"),
        (TEXT_TO_IMAGE, "model", "model_name"),
        (TEXT_TO_IMAGE, "negative-prompt", "negative_prompt"),
        (TEXT_TO_VIDEO, "duraton", "duration"),
        (TEXT_TO_VIDEO, "camera_controll", "camera_control"),
        (IMAGE_TO_VIDEO, "image_url", "image"),
        (IMAGE_TO_VIDEO, "Resolution", "resolution"),
    ],
)
def test_a_misspelt_parameter_is_refused(job: Job, name: str, meant: str) -> None:
    """With the name that was meant; it would be ignored, and the task paid."""
    given = {"prompt": "x", "image": IMAGE} if job is IMAGE_TO_VIDEO else {"prompt": "x"}
    assert f"{name}: is not a parameter of Kling. Did you mean {meant}?" in problems(job, **given, **{name: "1"})


@pytest.mark.parametrize("name", ["seed", "image_list", "brand_new", "x", "video_id", "style", "external_task_id"])
def test_parameters_that_resemble_nothing_known_pass(name: str) -> None:
    """Kling may know them."""
    _, body = TEXT_TO_IMAGE.create({"prompt": "x", name: "1"})
    assert body == {"prompt": "x", name: "1"}


def test_an_earlier_result_is_an_input() -> None:
    """An image by its bytes, a video by an address that Kling can load; each only where its kind belongs."""
    content = picture()
    image, video = InputFile("image", content, IMAGE), InputFile("video", None, VIDEO)
    _, body = IMAGE_TO_VIDEO.create({"prompt": "x", "image": image})
    assert base64.b64decode(body["image"]) == content
    motion = {"image": image, "video": video, "character_orientation": "image"}
    assert MOTION_CONTROL.create(motion)[1]["video_url"] == VIDEO
    assert "not an image" in problems(IMAGE_TO_VIDEO, prompt="x", image=video)[0]
    assert "not of video" in problems(MOTION_CONTROL, **{**motion, "video": image})[0]
    lost = problems(MOTION_CONTROL, **{**motion, "video": InputFile("video")})[0]
    assert "public URL" in lost


KLING = "https://v1.klingai.com/0.mp4"
LATER, EARLIER = "2126-11-26T00:00:00.000Z", "2026-01-01T00:00:00.000Z"


@pytest.mark.parametrize(
    ("file", "url"),
    [
        ({"href": "https://r.kling.dev/0", "source_url": KLING, "expires_at": LATER}, KLING),
        ({"href": "https://r.kling.dev/0", "source_url": KLING, "expires_at": EARLIER}, "https://r.kling.dev/0"),
        ({"href": "https://r.kling.dev/0", "source_url": KLING}, "https://r.kling.dev/0"),
        ({"href": "https://laptop.invalid/0", "source_url": KLING}, KLING),
        ({"href": "http://192.168.1.2:8000/0", "source_url": KLING}, KLING),
        ({"href": "http://127.0.0.1:8000/0", "source_url": KLING, "expires_at": EARLIER}, None),
        ({"href": "http://127.0.0.1:8000/0", "source_url": "https://relay.dev/v1/videos/T/content"}, None),
        ({"href": "http://receiver/0", "source_url": ""}, None),
        ({"href": "http://[", "source_url": KLING, "expires_at": LATER}, KLING),
        ({"href": "https://r.kling.dev/0", "source_url": "http://[::"}, "https://r.kling.dev/0"),
        ({"href": "https://r.kling.dev/0", "source_url": KLING, "expires_at": "zz"}, "https://r.kling.dev/0"),
        ({"source_url": KLING, "expires_at": "0001-01-01T00:00:00+23:59"}, None),
        ({"source_url": KLING, "expires_at": "1970-01-01T00:00:00Z"}, None),
        *(
            ({"href": address, "source_url": address}, None)
            for address in (
                "javascript://r.kling.dev/%0a",
                "file:///etc/passwd",
                "ftp://r.kling.dev/0",
                "x",
                "http://[",
            )
        ),
    ],
)
def test_the_address_of_a_result_that_kling_can_load(file: dict[str, str], url: str | None) -> None:
    """Kling's own while it is known to be valid, else ours if it is public, else one of unknown validity."""
    assert reachable_url(file) == url


def test_the_methods_offer_the_table_s_choices() -> None:
    """The `Literal` types and the docstrings, which editors show, are those of the table; help() names the task."""
    for client, task in ((AsyncKling, AsyncTask), (Kling, Task)):
        for job in JOBS:
            method = getattr(client, job.name)
            hints = typing.get_type_hints(method)
            assert hints["return"] is task
            for parameter in job.parameters:
                assert f"`{parameter.name}`" in method.__doc__, (job.name, parameter.name)
                if isinstance(parameter.kind, Choice):
                    assert literals(hints[parameter.name]) == set(parameter.kind.values), (job.name, parameter.name)

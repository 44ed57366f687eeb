"""What a create of the legacy standard may contain: Kling's refusals, and nothing beyond them."""

import json
from typing import Any

import httpx
import pytest

from kling_sandbox import Sandbox
from kling_sandbox.api.direct import POSTS
from kling_sandbox.api.families import FAMILIES
from tests.support.sandbox import IMAGES, NEW, VIDEOS, code, create, finished, picture

IMAGE_TO_VIDEO = "/v1/videos/image2video"
OMNI_IMAGE = "/v1/images/omni-image"
TEXT_TO_AUDIO = "/v1/audio/text-to-audio"
URL = "https://example.com/x.png"
CAMERA = {"type": "simple", "config": {"zoom": 5}}
MASK = {"mask": URL, "trajectories": [{"x": 0, "y": 0}, {"x": 9, "y": 9}]}

REFUSED = [
    (1200, IMAGES, {"prompt": ""}, "prompt is required"),
    (1200, IMAGES, {"prompt": None}, "prompt is required"),
    (1200, IMAGES, {"callback_url": "/callbacks/x"}, "callback_url must be an absolute"),
    (1200, IMAGES, {"callback_url": 7}, "callback_url must be an absolute"),
    (1201, IMAGES, {"external_task_id": 7}, "external_task_id must be a text"),
    (1201, IMAGES, {"watermark_info": True}, "watermark_info must be an object"),
    (1201, IMAGES, {"prompt": "x" * 2501}, "prompt must be a text of at most 2500"),
    (1201, IMAGES, {"image": URL, "negative_prompt": "rain"}, "image and negative_prompt exclude each other"),
    (1201, IMAGES, {"image": "data:image/png;base64,aGVsbG8="}, "base64 without a `data:` prefix"),
    (1201, IMAGES, {"image": "no base64!"}, "image must be a URL, or base64"),
    (1201, IMAGES, {"image": "http://"}, "image must be a URL, or base64"),
    (1201, IMAGES, {"image": ["aGVsbG8="]}, "image must be a URL, or base64"),
    (1201, IMAGES, {"n": 10}, "n must be a whole number from 1 to 9"),
    (1201, IMAGES, {"n": True, "resolution": "8k"}, "n must be a whole number from 1 to 9; resolution must be one of"),
    (1201, IMAGES, {"aspect_ratio": "2:1"}, "aspect_ratio must be one of"),
    (1201, IMAGES, {"image_fidelity": 1.5}, "image_fidelity must be a number from 0 to 1"),
    (1201, IMAGES, {"prompt": "[sandbox: no-such-switch]"}, "unknown misbehaviour"),
    (1203, IMAGES, {"model_name": "sora"}, "Model sora does not exist"),
    (1201, OMNI_IMAGE, {"image_list": [{"image": "no base64!"}]}, "image_list must be a list of"),
    (1200, VIDEOS, {"prompt": "", "multi_shot": False}, "prompt or multi_shot is required"),
    (1201, VIDEOS, {"duration": 5}, 'duration must be one of "3", '),
    (1201, VIDEOS, {"duration": "16"}, "duration must be one of"),
    (1201, VIDEOS, {"mode": "8k"}, 'mode must be one of "std", "pro", "4k"'),
    (1201, VIDEOS, {"aspect_ratio": "21:9"}, "aspect_ratio must be one of"),
    (1201, VIDEOS, {"camera_control": {"type": "simple", "config": {"zoom": 5, "pan": 1}}}, "camera_control must be"),
    (1201, VIDEOS, {"camera_control": {"type": "down_back", "config": {"zoom": 5}}}, "camera_control must be"),
    (1201, VIDEOS, {"camera_control": {"type": "simple"}}, "camera_control must be"),
    (1201, VIDEOS, {"camera_control": "simple"}, "camera_control must be"),
    (1201, VIDEOS, {"sound": True}, 'sound must be one of "on", "off"'),
    (1201, VIDEOS, {"multi_shot": 1}, "multi_shot must be one of True, False"),
    (1201, VIDEOS, {"voice_list": [{"voice_id": "a"}] * 3}, "voice_list must be a list of 0 to 2"),
    (1201, VIDEOS, {"element_list": [{"element_id": 1}] * 4}, "element_list must be a list of 0 to 3"),
    (1201, VIDEOS, {"element_list": [7]}, "element_list must be a list of"),
    (1201, VIDEOS, {"multi_prompt": [{"prompt": "a"}] * 7}, "multi_prompt must be a list of 0 to 6"),
    (1201, VIDEOS, {"multi_prompt": [{"duration": "5"}]}, "multi_prompt must be a list of"),
    (1200, IMAGE_TO_VIDEO, {}, "image or image_tail is required"),
    (1200, IMAGE_TO_VIDEO, {"image": ""}, "image or image_tail is required"),
    (1201, IMAGE_TO_VIDEO, {"image": URL, "image_tail": URL, "camera_control": CAMERA}, "exclude each other"),
    (1201, IMAGE_TO_VIDEO, {"image": URL, "image_tail": URL, "static_mask": URL}, "exclude each other"),
    (1201, IMAGE_TO_VIDEO, {"image": URL, "dynamic_masks": [MASK], "camera_control": CAMERA}, "exclude each other"),
    (1201, IMAGE_TO_VIDEO, {"image": URL, "dynamic_masks": [MASK] * 7}, "dynamic_masks must be a list of 0 to 6"),
    (1201, IMAGE_TO_VIDEO, {"image": URL, "dynamic_masks": [{"mask": URL, "trajectories": []}]}, "dynamic_masks must"),
    (1201, TEXT_TO_AUDIO, {"duration": 11}, "duration must be a number from 3 to 10"),
    (1201, "/v1/videos/motion-control", {"video_url": "aGVsbG8="}, "video_url must be a URL"),
]


@pytest.mark.parametrize(("expected", "path", "body", "words"), REFUSED)
def test_what_kling_refuses_is_refused(
    gateway: Sandbox, api: httpx.Client, expected: int, path: str, body: Any, words: str
) -> None:
    """The message names the parameter and what it must be."""
    answer = create(api, path=path, **body)
    assert code(answer) == (expected, 404 if expected == 1203 else 400)
    assert words in answer.json()["message"]
    assert gateway.tasks == {}


ACCEPTED = [
    (IMAGES, {"image": "aGVsbG8=", "image_reference": "face", "human_fidelity": 0.5, "n": 9}),
    (IMAGES, {"aspect_ratio": "21:9", "resolution": "4k"}),
    (OMNI_IMAGE, {"aspect_ratio": "auto", "resolution": "4k", "result_type": "series", "series_amount": "auto"}),
    (VIDEOS, {"duration": "10", "cfg_scale": 1, "camera_control": CAMERA}),
    (VIDEOS, {"camera_control": {"type": "down_back"}, "unheard_of": 1}),
    (VIDEOS, {"mode": "4k", "model_name": "kling-v3", "duration": "15", "sound": "on"}),
    (VIDEOS, {"prompt": "", "multi_shot": True, "shot_type": "customize", "multi_prompt": [{"prompt": "a"}] * 6}),
    (IMAGE_TO_VIDEO, {"prompt": "", "image": URL}),
    (IMAGE_TO_VIDEO, {"image": URL, "image_tail": URL, "voice_list": [{"voice_id": "a"}]}),
    (IMAGE_TO_VIDEO, {"image_tail": URL}),
    (IMAGE_TO_VIDEO, {"image": URL, "static_mask": URL, "dynamic_masks": [MASK] * 6}),
    (IMAGE_TO_VIDEO, {"image": URL, "camera_control": CAMERA, "element_list": [{"element_id": 829836802793406551}]}),
    (TEXT_TO_AUDIO, {"duration": 5.5}),
]


@pytest.mark.parametrize(("path", "body"), ACCEPTED)
def test_what_kling_takes_is_taken(api: httpx.Client, path: str, body: Any) -> None:
    """Values of today's models, and fields that the sandbox does not know."""
    answer = create(api, path=path, **body)
    assert code(answer) == (0, 200), answer.text


NAMES = {name for family in FAMILIES.values() for name in family.rules} | {
    "session_id",
    "options",
    "settings",
    "contents",
}
ODD = ["\ud800", [[]], {"enabled": 7}, 10**30, -1.5, True, ["x", {"url": None}]]


@pytest.mark.parametrize("path", [*FAMILIES, *POSTS])
def test_no_value_surprises_the_sandbox(gateway: Sandbox, api: httpx.Client, path: str) -> None:
    """Whatever a parameter is, the answer is Kling's: a task, or one of its codes."""
    address = f"{path}/kling-4.0" if path.startswith("/") else f"/v1/{path}"
    for odd in ODD:
        for value in (
            dict.fromkeys(NAMES, odd),
            {"prompt": "x", "image": URL, "n": 1, "tag_list": odd, "video_id": odd},
        ):
            answer = api.post(address, content=json.dumps(value))
            assert answer.json()["code"] in (0, 1200, 1201, 1203), answer.text
    for content in (b"[" * 100_000, b'{"prompt": NaN}', b'{"prompt": "\xff"}'):
        assert api.post(address, content=content).json()["code"] in (1200, 1201)
    gateway.wait_for(lambda: all(task.finished_at for task in gateway.tasks.values()))
    assert api.get("/sandbox/account").status_code == 200
    assert api.post("/account/billing/package", json={"start_time": 0, "end_time": 10**15}).status_code == 200
    for number in gateway.tasks:
        assert api.get("/tasks", params={"task_ids": number}).status_code == 200


EMPTY = ["negative_prompt", "callback_url", "external_task_id", "aspect_ratio", "mode", "image_tail", "model_name"]


@pytest.mark.parametrize("nothing", ["", None])
def test_empty_fields_are_absent(gateway: Sandbox, api: httpx.Client, nothing: Any) -> None:
    """In every field, nested ones too, and in both standards; the record of creates has what was sent."""
    body = {**dict.fromkeys(EMPTY, nothing), "image": URL, "watermark_info": {"enabled": nothing}}
    for _ in range(2):  # an empty external id is not the same id
        assert code(create(api, path="/v1/videos/image2video", **body)) == (0, 200)
    assert gateway.creates[0]["external_task_id"] == nothing
    options = {"callback_url": nothing, "external_task_id": nothing, "watermark_info": nothing}
    settings = dict.fromkeys(("aspect_ratio", "resolution", "duration"), nothing)
    for _ in range(2):
        answer = create(api, path=NEW, options=options, settings=settings, negative_prompt=nothing)
        assert code(answer) == (0, 200), answer.text
    assert code(create(api, path=NEW, options=nothing, settings=nothing)) == (0, 200)
    assert gateway.external == {}


@pytest.mark.parametrize(
    ("image", "status"),
    [
        (picture(300, 300), "succeed"),
        (picture(299, 400), "failed"),
        (picture(400, 299, "JPEG"), "failed"),
        (picture(300, 751), "failed"),
        (picture(750, 300, "JPEG"), "succeed"),
        ("iVBORw0KGgo=", "succeed"),
    ],
)
def test_an_unusable_image_fails_the_task_later(gateway: Sandbox, api: httpx.Client, image: str, status: str) -> None:
    """The create accepts it; the reason is in the record, and the envelope still says SUCCEED."""
    for path, body in ((IMAGES, {"image": image}), ("/v1/images/omni-image", {"image_list": [{"image": image}]})):
        data = finished(gateway, api, path=path, **body)
        assert data["task_status"] == status
        assert data["task_status_msg"] == ("Image pixel is invalid" if status == "failed" else "")
        assert api.get(f"{path}/{data['task_id']}").json()["message"] == "SUCCEED"


def test_an_unusable_frame_fails_a_task_of_the_new_standard(gateway: Sandbox, api: httpx.Client) -> None:
    """The reason is the message of the record."""
    contents = [{"type": "first_frame", "url": picture(10, 10)}]
    data = finished(gateway, api, path="/image-to-video/kling-3.0", contents=contents)
    assert (data["status"], data["message"]) == ("failed", "Image pixel is invalid")

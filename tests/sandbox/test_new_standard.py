"""What a create of the new standard may contain, by product and model."""

from typing import Any

import httpx
import pytest

from kling_sandbox import Sandbox
from kling_sandbox.api.new_standard import MODELS
from tests.support.sandbox import asked, code

URL = "https://example.com/x.png"
FILM = "https://example.com/x.mp4"
FIRST = {"first_frame": URL}
BOTH = {"first_frame": URL, "last_frame": URL}
MOVED = {"image": URL, "video": FILM}
ORIENTED = {"character_orientation": "video"}
WIDE = {"aspect_ratio": "16:9"}


def body(product: str, settings: Any = None, **contents: Any) -> dict[str, Any]:
    """A body: the prompt alone for text to video, else all in `contents`."""
    options = {"external_task_id": "order-42", "watermark_info": {"enabled": True}}
    more = {"settings": settings or {}, "options": options}
    if product == "text-to-video":
        return {"prompt": "a kangaroo", **contents, **more}
    items = [{"type": "prompt", "text": "a kangaroo"}]
    for name, value in contents.items():
        items += [{"type": name, "url": each} for each in (value if isinstance(value, list) else [value])]
    return {"contents": items, **more}


ACCEPTED = [
    ("text-to-video", "kling-3.0-turbo", {"resolution": "1080p", "aspect_ratio": "9:16", "duration": 15}, {}),
    ("image-to-video", "kling-3.0-turbo", {"resolution": "720p", "duration": 3}, FIRST),
    ("text-to-video", "kling-3.0", {"multi_shot": False, "audio": "native", "resolution": "4k", **WIDE}, {}),
    ("image-to-video", "kling-3.0", {"audio": "off", "resolution": "4k"}, BOTH | {"element": ["1", "2", "3"]}),
    ("omni-video", "kling-3.0-omni", {"audio": "original", **WIDE}, {"refer_image": [URL, URL], "element": "1"}),
    ("omni-video", "kling-3.0-omni", {}, {"base_video": FILM}),
    ("omni-video", "kling-o1", {"duration": 10}, FIRST),
    ("motion-control", "kling-3.0", ORIENTED | {"audio": "off"}, MOVED | {"element": "1"}),
    ("motion-control", "kling-2.6", ORIENTED, MOVED),
    ("text-to-video", "kling-2.6", {"audio": "native", "resolution": "1080p", "duration": 10}, {}),
    ("image-to-video", "kling-2.6", {}, BOTH | {"voice": ["a", "b"]}),
    ("text-to-video", "kling-2.5-turbo", {"duration": 5}, {}),
    ("image-to-video", "kling-2.5-turbo", {"resolution": "1080p"}, BOTH),
    ("text-to-video", "kling-4.0", {"duration": 30, "unheard_of": 1}, {}),
]


@pytest.mark.parametrize(("product", "model", "settings", "contents"), ACCEPTED)
def test_every_model_makes_a_video(
    gateway: Sandbox, api: httpx.Client, product: str, model: str, settings: Any, contents: Any
) -> None:
    """With all that its row of the table allows; a model that is not in the table, too."""
    answer = api.post(f"/{product}/{model}", json=body(product, settings, **contents))
    number = answer.json()["data"]["id"]
    gateway.wait_for(lambda: gateway.tasks[number].finished_at)
    data = asked(api, f"/{product}/{model}", number)
    assert data["status"] == "succeeded"
    (output,) = data["outputs"]
    assert output["type"] == "video"
    assert api.get(output["url"]).content != api.get(output["watermark_url"]).content
    assert data["billing"] == [{"charge_type": "unit", "package_type": "video", "amount": "3.5"}]


def test_every_model_of_the_table_is_accepted_above() -> None:
    """A row without a test would be a row without a meaning."""
    assert {f"/{product}/{model}" for product, model, *_ in ACCEPTED} >= MODELS.keys()


REFUSED = [
    ("text-to-video", "kling-3.0-turbo", {"resolution": "4k"}, {}, 'resolution must be one of "720p", "1080p"'),
    ("text-to-video", "kling-3.0-turbo", {"duration": "5"}, {}, "duration must be a whole number from 3 to 15"),
    ("text-to-video", "kling-3.0-turbo", {"audio": "native"}, {}, "audio is not supported"),
    ("text-to-video", "kling-3.0-turbo", {}, {"prompt": "x" * 3073}, "prompt must be a text of at most 3072"),
    ("text-to-video", "kling-2.6", {}, {"prompt": "x" * 2501}, "prompt must be a text of at most 2500"),
    ("text-to-video", "kling-3.0", {}, {"negative_prompt": "rain"}, "negative_prompt is not supported"),
    ("text-to-video", "kling-3.0", {"mode": "std"}, {"cfg_scale": 1}, "cfg_scale is not supported; mode is not"),
    ("text-to-video", "kling-4.0", {}, {"camera_control": {}}, "camera_control is not supported"),
    ("text-to-video", "kling-3.0", {}, FIRST, "first_frame is not supported"),
    ("text-to-video", "kling-2.6", {"audio": "native"}, {}, "audio native needs resolution 1080p"),
    ("text-to-video", "kling-2.5-turbo", {"duration": 7}, {}, "duration must be one of 5, 10"),
    ("image-to-video", "kling-3.0-turbo", {}, BOTH, "last_frame is not supported"),
    ("image-to-video", "kling-3.0", WIDE, FIRST, "aspect_ratio is not supported"),
    ("image-to-video", "kling-3.0", {}, {}, "first_frame is required"),
    ("image-to-video", "kling-3.0", {}, FIRST | {"element": list("1234")}, "at most 3 element"),
    ("image-to-video", "kling-3.0", {}, {"first_frame": "data:image/png;base64,eA=="}, "first_frame must be a URL"),
    ("image-to-video", "kling-2.6", {}, FIRST | {"voice": list("123")}, "at most 2 voice"),
    ("image-to-video", "kling-2.5-turbo", {}, BOTH, "last_frame needs resolution 1080p"),
    ("image-to-video", "kling-2.5-turbo", {}, FIRST | {"tail": URL}, "tail is not supported"),
    ("omni-video", "kling-3.0-omni", {}, {"refer_image": URL}, "aspect_ratio is required without"),
    ("omni-video", "kling-3.0-omni", {}, {"base_video": "aGVsbG8="}, "base_video must be a URL"),
    ("omni-video", "kling-3.0-omni", {}, {"base_video": FILM, "feature_video": FILM}, "exclude each other"),
    ("omni-video", "kling-o1", {"duration": 11}, FIRST, "duration must be a whole number from 3 to 10"),
    ("omni-video", "kling-o1", {"audio": "native"}, FIRST, 'audio must be one of "original", "off"'),
    ("motion-control", "kling-3.0", {}, MOVED, "character_orientation is required"),
    ("motion-control", "kling-3.0", ORIENTED, {"image": URL}, "video is required"),
    ("motion-control", "kling-2.6", ORIENTED, MOVED | {"element": "1"}, "element is not supported"),
]


@pytest.mark.parametrize(("product", "model", "settings", "contents", "words"), REFUSED)
def test_what_a_model_does_not_support_is_refused(
    gateway: Sandbox, api: httpx.Client, product: str, model: str, settings: Any, contents: Any, words: str
) -> None:
    """With a message that names it."""
    answer = api.post(f"/{product}/{model}", json=body(product, settings, **contents))
    assert code(answer) == (1200 if words.endswith("is required") and "orientation" not in words else 1201, 400)
    assert words in answer.json()["message"]
    assert gateway.tasks == {}


@pytest.mark.parametrize(
    "contents",
    [
        {"contents": [{"type": "prompt", "text": "x"}, {"type": "first_frame", "url": URL}]},
        {"contents": [{"type": "first_frame", "first_frame": URL}], "prompt": "x"},
        {"contents": [{"type": "first_frame", "image_url": URL}, {"type": "element", "element_id": 1}]},
        {"contents": {"prompt": "x", "first_frame": {"url": URL}, "element": ["1", {"id": "2"}]}},
        {"prompt": "x", "first_frame": URL, "element": ["1", "2"]},
        {"first_frame": URL},
    ],
)
def test_contents_may_be_laid_out_in_several_ways(api: httpx.Client, contents: Any) -> None:
    """A list by type, an object by name, or beside the settings."""
    answer = api.post("/image-to-video/kling-3.0", json=contents | {"settings": {"duration": 5}})
    assert code(answer) == (0, 200), answer.text


@pytest.mark.parametrize("wrong", [{"contents": "x"}, {"contents": ["x"]}, {"contents": [{}]}, {"settings": 7}])
def test_a_wrong_layout_is_refused(api: httpx.Client, wrong: Any) -> None:
    """Whatever it is."""
    assert code(api.post("/image-to-video/kling-3.0", json=wrong)) == (1200, 400)


@pytest.mark.parametrize("path", ["/text-to-video/sora", "/omni-video/kling-3.0", "/motion-control/kling-2.5-turbo"])
def test_a_model_is_at_its_own_products_only(api: httpx.Client, path: str) -> None:
    """Elsewhere it does not exist."""
    assert code(api.post(path, json={"prompt": "x"})) == (1203, 404)

"""The checks of a job before it is sent, and the body that is sent."""

import base64
import inspect
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kling_callback.errors import ParameterError
from kling_callback.jobs.body import chosen_callback, chosen_id, model_of, with_callback, without_callback
from kling_callback.jobs.catalog import IMAGE_TO_IMAGE, JOBS, TEXT_TO_IMAGE, TEXT_TO_VIDEO
from kling_callback.jobs.images import MAX_BYTES
from kling_callback.jobs.job import Job
from kling_callback.jobs.untyped import prepare
from kling_callback.kling import AsyncKling

URL = "https://app.example/kling"


def picture(width: int = 300, height: int = 300, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, kind)
    return content.getvalue()


def body_of(job: Job, values: dict[str, Any]) -> dict[str, Any]:
    return job.create(values)[1]


def problems(job: Job, **values: Any) -> list[str]:
    with pytest.raises(ParameterError) as error:
        job.create({"prompt": "x", **values})
    return error.value.problems


def image_problem(image: Any) -> str:
    (problem,) = problems(IMAGE_TO_IMAGE, image=image)
    assert problem.startswith("image: ")
    return problem


def test_a_whole_text_to_image() -> None:
    """Every parameter of Kling's pages is sent unchanged under Kling's name."""
    values = {
        "prompt": "a kangaroo",
        "negative_prompt": "blur",
        "model_name": "kling-v1-5",
        "n": 9,
        "aspect_ratio": "21:9",
        "resolution": "2k",
        "output_format": "jpg",
    }
    assert body_of(TEXT_TO_IMAGE, values) == values


def test_a_whole_text_to_video() -> None:
    """Duration is sent as text, numbers as numbers, the camera as an object."""
    values = {
        "prompt": "a kangaroo",
        "negative_prompt": "blur",
        "model_name": "kling-v1-6",
        "cfg_scale": 1,
        "mode": "pro",
        "aspect_ratio": "9:16",
        "duration": 5,
        "camera_control": {"type": "simple", "config": {"zoom": -10, "pan": 0}},
    }
    assert body_of(TEXT_TO_VIDEO, values) == {**values, "duration": "5"}


def test_empty_values_are_left_out() -> None:
    """None and empty values are not sent; 0 and False are."""
    empty: dict[str, Any] = {"model_name": None, "negative_prompt": "", "x": [], "y": {}, "z": 0, "w": False}
    assert body_of(TEXT_TO_IMAGE, {"prompt": "x", **empty}) == {"prompt": "x", "z": 0, "w": False}


def test_unknown_parameters_and_models_pass() -> None:
    """Kling may know parameters that the table does not."""
    body = body_of(TEXT_TO_IMAGE, {"prompt": "x", "model_name": "kling-v9", "brand_new": {"a": [1]}})
    assert body == {"prompt": "x", "model_name": "kling-v9", "brand_new": {"a": [1]}}


def test_all_problems_are_reported_at_once() -> None:
    """One error names every wrong parameter."""
    messages = problems(TEXT_TO_VIDEO, prompt="", mode="fast", duration=1, cfg_scale=2)
    names = [each.split(":")[0].split()[0] for each in messages]
    assert names == ["prompt", "mode", "duration", "cfg_scale"]


@pytest.mark.parametrize(
    ("job", "values"),
    [
        (TEXT_TO_IMAGE, {"prompt": "x" * 2501}),
        (TEXT_TO_IMAGE, {"prompt": 5}),
        (TEXT_TO_IMAGE, {"negative_prompt": "x" * 2501}),
        (TEXT_TO_IMAGE, {"n": 0}),
        (TEXT_TO_IMAGE, {"n": 10}),
        (TEXT_TO_IMAGE, {"n": True}),
        (TEXT_TO_IMAGE, {"n": "2"}),
        (TEXT_TO_IMAGE, {"n": 1.0}),
        (TEXT_TO_IMAGE, {"aspect_ratio": "5:4"}),
        (TEXT_TO_IMAGE, {"resolution": "8k"}),
        (TEXT_TO_IMAGE, {"output_format": "gif"}),
        (TEXT_TO_IMAGE, {"model_name": 1}),
        (TEXT_TO_IMAGE, {"image": "https://host/x.png"}),
        (IMAGE_TO_IMAGE, {"image": "https://h/x", "negative_prompt": "no"}),
        (IMAGE_TO_IMAGE, {"image": "https://h/x", "image_reference": "hand"}),
        (IMAGE_TO_IMAGE, {"image": "https://h/x", "image_fidelity": 1.1}),
        (IMAGE_TO_IMAGE, {"image": "https://h/x", "human_fidelity": float("nan")}),
        (IMAGE_TO_IMAGE, {}),
        (TEXT_TO_VIDEO, {"cfg_scale": "1"}),
        (TEXT_TO_VIDEO, {"cfg_scale": -0.1}),
        (TEXT_TO_VIDEO, {"aspect_ratio": "21:9"}),
        (TEXT_TO_VIDEO, {"duration": 2}),
        (TEXT_TO_VIDEO, {"duration": "16"}),
        (TEXT_TO_VIDEO, {"duration": 5.5}),
        (TEXT_TO_VIDEO, {"duration": True}),
        (TEXT_TO_VIDEO, {"duration": "five"}),
        (TEXT_TO_VIDEO, {"mode": ["std"]}),
    ],
)
def test_what_all_of_kling_s_pages_refuse_is_refused(job: Job, values: dict[str, Any]) -> None:
    """Wrong types, ranges and combinations are found before anything is sent."""
    assert len(problems(job, **values)) == 1


@pytest.mark.parametrize(
    "camera",
    [
        {"type": "down_back"},
        {"type": "forward_up", "config": {}},
        {"type": "right_turn_forward", "config": None},
        {"type": "simple", "config": {"horizontal": 2.5}},
        {"type": "simple", "config": {"roll": 10, "tilt": 0, "vertical": 0}},
    ],
)
def test_a_camera_has_one_movement(camera: dict[str, Any]) -> None:
    """A named movement alone, or `simple` with exactly one movement that is not 0."""
    sent = body_of(TEXT_TO_VIDEO, {"prompt": "x", "camera_control": camera})["camera_control"]
    assert sent == {name: part for name, part in camera.items() if part}


@pytest.mark.parametrize(
    "camera",
    [
        "down_back",
        {"type": "sideways"},
        {"type": []},
        {"config": {"zoom": 1}},
        {"type": "down_back", "config": {"zoom": 1}},
        {"type": "simple"},
        {"type": "simple", "config": {}},
        {"type": "simple", "config": {"zoom": 0}},
        {"type": "simple", "config": {"zoom": 1, "pan": 1}},
        {"type": "simple", "config": {"zoom": 11}},
        {"type": "simple", "config": {"zoom": "1"}},
        {"type": "simple", "config": [1]},
    ],
)
def test_a_camera_that_kling_would_refuse(camera: Any) -> None:
    """Two movements, none, too much of one, or a config where none belongs."""
    assert len(problems(TEXT_TO_VIDEO, camera_control=camera)) == 1


def test_a_callback_url_is_where_its_standard_has_it() -> None:
    """In the body of a typed job, and of any other."""
    assert body_of(TEXT_TO_IMAGE, {"prompt": "x", "callback_url": URL})["callback_url"] == URL
    new = {"prompt": "x", "model_name": "kling-3.0", "callback_url": URL}
    assert body_of(TEXT_TO_VIDEO, new)["options"] == {"callback_url": URL}
    assert prepare("videos/effects", {"callback_url": URL}) == {"callback_url": URL}


@pytest.mark.parametrize(
    ("family", "body", "given"),
    [
        ("a/b", {"callback_url": URL}, None),
        ("a/b", {"callback_url": URL}, URL),
        ("a/b", {"callback_url": ""}, URL),
        ("/a/b", {"options": {"callback_url": URL, "seed": 1}}, ""),
        ("/a/b", {"callback_url": URL, "options": {"seed": 1}}, None),
    ],
)
def test_a_callback_url_is_taken_out_of_the_body(family: str, body: dict[str, Any], given: str | None) -> None:
    """Kling receives ours. In a body of the new standard it may also stand at the top."""
    assert chosen_callback(family, body, given) == URL
    rest = without_callback(family, body)
    assert rest == ({"options": {"seed": 1}} if "options" in body else {})
    assert chosen_callback(family, rest, None) == ""


@pytest.mark.parametrize(
    ("body", "given", "problem"),
    [
        ({"callback_url": URL}, "https://y", "several"),
        ({"callback_url": 5}, None, "text"),
        ({}, 5, "text"),
        ({"callback_url": [URL]}, None, "text"),
    ],
)
def test_a_callback_url_is_set_once(body: dict[str, Any], given: Any, problem: str) -> None:
    """As an argument or in the body, as text."""
    with pytest.raises(ParameterError, match=problem):
        chosen_callback("a/b", body, given)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_file_is_sent_as_bare_base64(tmp_path: Path, kind: str) -> None:
    """By Path or by name, a JPEG or PNG is read and sent without any prefix."""
    content, file = picture(300, 750, kind), tmp_path / "picture"
    file.write_bytes(content)
    for image in (file, str(file)):
        body = body_of(IMAGE_TO_IMAGE, {"prompt": "x", "image": image})
        assert base64.b64decode(body["image"]) == content


def test_an_image_may_be_a_str() -> None:
    """A data URL loses its prefix, bare base64 its line ends; a URL is unchanged."""
    text = base64.b64encode(picture()).decode()
    lines = "\n".join(text[place : place + 76] for place in range(0, len(text), 76))
    for image in (text, lines, f"data:image/png;base64,{text}"):
        assert body_of(IMAGE_TO_IMAGE, {"prompt": "x", "image": image})["image"] == text
    for url in ("https://host/x.png?a=b", "HTTP://host"):
        assert body_of(IMAGE_TO_IMAGE, {"prompt": "x", "image": url})["image"] == url


@pytest.mark.parametrize(
    ("size", "problem"),
    [((299, 600), "at least 300"), ((600, 299), "at least 300"), ((300, 751), "1:2.5"), ((751, 300), "1:2.5")],
)
def test_an_image_has_limits_of_size(size: tuple[int, int], problem: str) -> None:
    """Both sides at least 300 pixels, neither more than 2.5 times the other."""
    assert problem in image_problem(base64.b64encode(picture(*size)).decode())


def test_what_is_not_an_image_is_refused(tmp_path: Path) -> None:
    """Another format, a damaged head, a folder, a missing file, text: each with its reason."""
    gif, torn = tmp_path / "x.gif", tmp_path / "torn.png"
    gif.write_bytes(picture(kind="GIF"))
    torn.write_bytes(picture()[:12])
    assert "JPEG nor a PNG" in image_problem(gif)
    assert "damaged" in image_problem(torn)
    assert "no file" in image_problem(tmp_path)
    assert "no file" in image_problem(tmp_path / "missing.png")
    assert "neither a URL" in image_problem("missing.png")
    assert "neither a URL" in image_problem("x" * 5000 + "!")
    assert "neither a URL" in image_problem("a\0b")
    assert "base64 does not decode" in image_problem("data:image/png;base64,###")
    assert "without `;base64`" in image_problem("data:image/png,abc")
    assert "URL with blanks" in image_problem("https://host/a b")
    assert "URL with blanks" in image_problem("https://")
    assert "must be a Path" in image_problem(5)


def test_an_image_of_more_than_10_mb_is_refused_unread(tmp_path: Path) -> None:
    """A file is refused by its size alone, base64 by its length."""
    huge = tmp_path / "huge.png"
    with huge.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "10 MB" in image_problem(huge)
    assert "10 MB" in image_problem("A" * (2 * MAX_BYTES))


def test_an_unreadable_file_is_a_problem(tmp_path: Path) -> None:
    """The message has the system's reason."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "no file" in image_problem(loop)
    assert "cannot be read" in image_problem(Path("x" * 300))


def test_the_methods_have_the_table_s_parameters() -> None:
    """AsyncKling's three methods have the table's parameters, and those of every create."""
    for job in JOBS:
        parameters = list(inspect.signature(getattr(AsyncKling, job.name)).parameters)
        assert set(parameters) == {
            "self",
            *(each.name for each in job.parameters),
            "tags",
            *("hook", "hook_events", "callback_url"),
            *("external_task_id", "priority"),
            "more",
        }


def create_problems(family: str, body: Any) -> list[str]:
    with pytest.raises(ParameterError) as error:
        prepare(family, body)
    return error.value.problems


@pytest.mark.parametrize("family", ["images/generations", "videos/avatar/image2video", "/omni-video/kling-3.0"])
def test_any_job_is_a_path(family: str) -> None:
    """Under /v1, or with a leading slash of the new standard."""
    prepare(family, {"prompt": "x"})


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("effects", "must be a path"),
        ("/v1/videos/effects", "must be 'videos/effects'"),
        ("v1/videos/effects", "must be 'videos/effects'"),
        ("audio/tts", "at once"),
    ],
)
def test_an_invalid_family_is_refused(family: str, part: str) -> None:
    """A path to another place, with a second /v1, or without callbacks."""
    (problem,) = create_problems(family, {})
    assert part in problem


@pytest.mark.parametrize("body", [[], "x", {"a": float("nan")}, {"a": {1, 2}}, {"a": "\ud800"}])
def test_a_body_is_json(body: Any) -> None:
    """A body that cannot be sent is refused before the registration."""
    (problem,) = create_problems("videos/effects", body)
    assert problem.startswith("body: ")


def test_our_id_and_callback_address_are_in_the_fields_of_the_standard() -> None:
    """Legacy: at the top level. New: in `options`, beside the other options."""
    assert with_callback("a/b", {"prompt": "x"}, "id", "url") == {
        "prompt": "x",
        "external_task_id": "id",
        "callback_url": "url",
    }
    assert with_callback("/a/b", {"options": {"seed": 1}}, "id", "url") == {
        "options": {"seed": 1, "external_task_id": "id", "callback_url": "url"}
    }
    assert with_callback("/a/b", {}, "id", "url")["options"]["external_task_id"] == "id"


def test_an_id_is_set_once() -> None:
    """As an argument or in the body; two different ids, or an invalid one, are refused."""
    assert chosen_id("a/b", {}, None) is None
    assert chosen_id("a/b", {}, "x") == chosen_id("a/b", {"external_task_id": "x"}, None) == "x"
    assert chosen_id("/a/b", {"options": {"external_task_id": "x"}}, "x") == "x"
    for body, given in (({"external_task_id": "x"}, "y"), ({"external_task_id": 5}, None), ({}, "a/b")):
        with pytest.raises(ParameterError):
            chosen_id("a/b", body, given)


def test_the_model_has_a_name() -> None:
    """In the body, or at the end of a new-standard path."""
    assert model_of("a/b", {"model_name": "kling-v1"}) == "kling-v1"
    assert model_of("a/b", {"model_name": 5}) == model_of("a/b", {}) == ""
    assert model_of("/a/kling-3.0", {"model_name": "x"}) == "kling-3.0"

"""The body of `create`, for any family: files in it, and what is certainly wrong."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kling_callback.errors import ParameterError
from kling_callback.jobs.catalog import IMAGE_TO_VIDEO, OMNI_VIDEO, TEXT_TO_IMAGE
from kling_callback.jobs.inputs import InputFile
from kling_callback.jobs.job import Job
from kling_callback.jobs.untyped import prepare, prepare_job


def problems(family: str, body: Any) -> list[str]:
    with pytest.raises(ParameterError) as error:
        prepare(family, body)
    return error.value.problems


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A PNG that Kling accepts."""
    content = io.BytesIO()
    Image.new("RGB", (300, 300)).save(content, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(content.getvalue())
    return path


def test_files_are_encoded_where_images_belong(picture: Path) -> None:
    """A Path anywhere; a file name or a data URL in the fields of images, at any depth, in both standards."""
    encoded = base64.b64encode(picture.read_bytes()).decode()
    body = {
        "image": picture,
        "input": {"image": str(picture), "images": [picture, str(picture)]},
        "subject_image_list": [{"subject_image": f"data:image/png;base64,{encoded}"}],
        "element_frontal_image": str(picture),
        "mask": encoded,
        "cloth_image": "https://host/a.png",
        "prompt": str(picture),
        "image_reference": "subject",
    }
    assert prepare("videos/effects", body) == {
        "image": encoded,
        "input": {"image": encoded, "images": [encoded, encoded]},
        "subject_image_list": [{"subject_image": encoded}],
        "element_frontal_image": encoded,
        "mask": encoded,
        "cloth_image": "https://host/a.png",
        "prompt": str(picture),
        "image_reference": "subject",
    }
    contents = [{"type": "first_frame", "url": str(picture)}, {"type": "prompt", "text": str(picture)}]
    sent = prepare("/image-to-video/kling-3.0", {"contents": contents})["contents"]
    assert [sent[0]["url"], sent[1]["text"]] == [encoded, str(picture)]


@pytest.mark.parametrize(
    "body", [{"image": "nope.png"}, {"image_list": ["nope.JPG"]}, {"input": {"images": ["n.jpeg"]}}]
)
def test_a_misspelt_image_file_is_refused(body: dict[str, Any]) -> None:
    """It would be sent as base64, which it is not; an address and base64 pass."""
    (problem,) = problems("videos/effects", body)
    assert "there is no file" in problem
    assert prepare("videos/effects", {"image": "https://host/nope.png"})["image"] == "https://host/nope.png"


def test_other_files(tmp_path: Path) -> None:
    """Sounds are sent as base64, videos by URL only, and results by what their kind needs."""
    sound, movie = tmp_path / "a.mp3", tmp_path / "a.MP4"
    sound.write_bytes(b"ID3")
    assert prepare("videos/avatar/image2video", {"sound_file": sound}) == {"sound_file": "SUQz"}
    assert "by URL only" in problems("videos/effects", {"video": movie})[0]
    video = InputFile("video", None, "https://host/a.mp4")
    assert prepare("videos/video-extend", {"video_url": video}) == {"video_url": "https://host/a.mp4"}


def test_all_problems_of_a_body_are_reported_at_once(tmp_path: Path) -> None:
    """The family, misspelt names, files, and what is no JSON."""
    body = {"apsect_ratio": "1:1", "image": tmp_path / "none.png", "n": float("nan")}
    found = problems("images/generations", body)
    assert [each.partition(":")[0].split()[0] for each in found] == ["apsect_ratio", "image", "body"]
    assert len(problems("effects", {"image": Path("none.png")})) == 2


@pytest.mark.parametrize(
    ("family", "body"),
    [
        ("videos/text2video", {"promt": "x"}),
        ("/text-to-video/kling-3.0", {"prompt": "x", "settings": {"resolutoin": "1080p"}}),
        ("videos/motion-control", {"image_ulr": "https://host/a.png"}),
    ],
)
def test_a_misspelt_parameter_of_a_known_family_is_refused(family: str, body: dict[str, Any]) -> None:
    """In `create` as in the typed jobs."""
    (problem,) = problems(family, body)
    assert "Did you mean" in problem


def test_a_body_has_a_limited_depth() -> None:
    """Each field that is too deep is named, beside the other problems; a body that contains itself has no end."""
    deep, endless = json.loads("[" * 600 + "]" * 600), dict[str, Any]()
    endless["again"] = endless
    found = problems("videos/effects", {"a": deep, "b": {"c": [deep]}, "e": 1})
    assert [each.partition(":")[0].split()[0] for each in found] == ["a", "b"]
    assert "20 levels" in found[0]
    assert problems("videos/effects", endless)[0].startswith("again: ")
    assert problems("videos/effects", deep)[0].startswith("body: ")
    allowed = {"a": json.loads("[" * 20 + "]" * 20), "b": json.loads('{"a":' * 20 + "1" + "}" * 20)}
    assert prepare("videos/effects", allowed) == allowed
    assert len(problems("videos/effects", {"a": json.loads("[" * 21 + "]" * 21)})) == 1


@pytest.mark.parametrize("family", ["videos/effects", "videos/brand-new", "/text-to-video/kling-9.0"])
def test_unknown_families_pass(family: str) -> None:
    """Nothing is known of their parameters."""
    body = {"promt": "x", "settings": {"resolutoin": 1}, "callback_url": ""}
    assert prepare(family, body) == body


def test_files_in_parameters_that_the_table_lacks(picture: Path) -> None:
    """A typed job encodes them like other bodies; their problems are reported beside those of the table."""
    encoded = base64.b64encode(picture.read_bytes()).decode()
    _, body = prepare_job(TEXT_TO_IMAGE, {"prompt": "x", "style_image": str(picture)})
    assert body == {"prompt": "x", "style_image": encoded}
    with pytest.raises(ParameterError) as error:
        prepare_job(TEXT_TO_IMAGE, {"n": 99, "style_image": "missing.png", "image": "lost.png"})
    assert [problem.split(":")[0] for problem in error.value.problems] == ["prompt", "image", "n", "style_image"]


@pytest.mark.parametrize(
    ("job", "values", "at"),
    [
        (IMAGE_TO_VIDEO, {"image": "FILE"}, "image"),
        (IMAGE_TO_VIDEO, {"image": "FILE", "model_name": "kling-3.0"}, "image"),
        (IMAGE_TO_VIDEO, {"image": "https://host/a.png", "dynamic_masks": [{"mask": "FILE"}]}, "dynamic_masks"),
        (OMNI_VIDEO, {"prompt": "x", "image_list": [{"image_url": "FILE"}]}, "image_list"),
        (OMNI_VIDEO, {"prompt": "x", "image_list": "FILE"}, "image_list"),
    ],
)
def test_the_values_of_another_machine_name_no_file(
    job: Job, values: dict[str, Any], at: str, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of this name exists here, and is not read; the same image in base64 is accepted."""
    monkeypatch.chdir(picture.parent)
    picture.rename("plain")
    for name in (str(picture), "plain"):
        named = json.loads(json.dumps(values).replace("FILE", name))
        with pytest.raises(ParameterError) as error:
            prepare_job(job, {**named, "negative": 1}, local_files=False)
        assert f"{at}: is neither a URL nor base64." in error.value.problems
        assert not [each for each in error.value.problems if "missing" in each]
    encoded = base64.b64encode(Path("plain").read_bytes()).decode()
    points = [{"x": 0, "y": 0}, {"x": 1, "y": 1}]
    for text in (encoded, f"data:image/png;base64,{encoded}"):
        given = json.loads(json.dumps(values).replace("FILE", text))
        for mask in given.get("dynamic_masks", []):
            mask["trajectories"] = points
        _, body = prepare_job(job, given, local_files=False)
        assert encoded in str(body)
        assert "data:" not in str(body)


def test_parameters_of_another_machine_that_the_table_lacks() -> None:
    """Checked as other bodies are; a URL passes."""
    with pytest.raises(ParameterError, match="name of a file"):
        prepare_job(TEXT_TO_IMAGE, {"prompt": "x", "style_image": "/tmp/a.png"}, local_files=False)
    _, body = prepare_job(TEXT_TO_IMAGE, {"prompt": "x", "style_image": "https://host/a.png"}, local_files=False)
    assert body["style_image"] == "https://host/a.png"

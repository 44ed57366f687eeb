"""Every family makes its kind of result, in both spellings, and lists its tasks."""

from typing import Any

import httpx
import pytest

from kling_sandbox import Sandbox
from kling_sandbox.api.families import FAMILIES
from tests.support.sandbox import IMAGES, VIDEOS, bodies, finished, made

ELEMENTS, VOICES = "/v1/general/advanced-custom-elements", "/v1/general/custom-voices"
MULTI_SHOT, MULTI_ELEMENTS = "/v1/general/ai-multi-shot", "/v1/videos/multi-elements"
PICTURE = "https://example.com/x.png"


@pytest.mark.parametrize(
    "family", [family for family in FAMILIES.values() if not family.new], ids=lambda each: each.path
)
def test_every_legacy_family_makes_its_kind_of_result(
    gateway: Sandbox, api: httpx.Client, recipient: str, family: Any
) -> None:
    """Every address in it has a file; the callback has the same record."""
    data = finished(gateway, api, path=f"/v1/{family.path}", image=PICTURE, callback_url=recipient)
    assert data["task_status"] == "succeed"
    (result,) = data["task_result"][family.kind]
    files = [value for name, value in result.items() if "url" in name]
    assert bool(files) == (family.kind != "elements")
    assert [api.get(address).status_code for address in files] == [200] * len(files)
    assert bodies(gateway)[-1] == data


def result_of(gateway: Sandbox, api: httpx.Client, path: str, **body: Any) -> tuple[Any, Any]:
    """The first result of a task, in the legacy and in the new spelling."""
    data = finished(gateway, api, path=path, **body)
    (result, *_) = next(iter(data["task_result"].values()))
    (record,) = api.get("/tasks", params={"task_ids": data["task_id"]}).json()["data"]
    return result, record["outputs"][0]


@pytest.mark.parametrize(("path", "kind"), [(IMAGES, "image"), (VIDEOS, "video"), ("/v1/audio/text-to-audio", "audio")])
def test_files_are_told_apart_by_type(gateway: Sandbox, api: httpx.Client, path: str, kind: str) -> None:
    """In the new spelling."""
    assert result_of(gateway, api, path)[1]["type"] == kind


def test_an_element_is_no_file(gateway: Sandbox, api: httpx.Client) -> None:
    """It has an id that is a number, and the names that the client gave."""
    body = {
        "element_name": "kangaroo",
        "element_description": "with a sign",
        "reference_type": "image_refer",
        "element_image_list": {"frontal_image": PICTURE, "refer_images": [{"image_url": PICTURE}]},
    }
    legacy, new = result_of(gateway, api, ELEMENTS, **body)
    assert (legacy["element_name"], legacy["status"], type(legacy["element_id"])) == ("kangaroo", "succeed", int)
    assert (new["type"], new["id"], new["name"]) == ("element", str(legacy["element_id"]), "kangaroo")
    assert new["references"] == [{"type": "image", "role": "frontal", "url": PICTURE}]
    assert new["element_type"] == "multi_image_elements"


def test_a_voice_has_a_trial(gateway: Sandbox, api: httpx.Client) -> None:
    """Its file is not in `url`."""
    legacy, new = result_of(gateway, api, VOICES, voice_name="narrator", voice_url="https://example.com/x.mp3")
    assert legacy["voice_name"] == new["name"] == "narrator"
    assert (new["type"], new["id"]) == ("voice", legacy["voice_id"])
    assert api.get(legacy["trial_url"]).headers["content-type"] == "audio/mpeg"
    assert api.get(new["url"]).content == api.get(legacy["trial_url"]).content


def test_ai_multi_shot_has_three_addresses(gateway: Sandbox, api: httpx.Client) -> None:
    """Of three different images in one result."""
    legacy, _ = result_of(gateway, api, MULTI_SHOT, element_frontal_image=PICTURE)
    assert legacy.keys() == {"index", "url_1", "url_2", "url_3"}
    assert len({api.get(legacy[f"url_{number}"]).content for number in (1, 2, 3)}) == 3


def test_multi_elements_keeps_its_session(gateway: Sandbox, api: httpx.Client) -> None:
    """A session of its own, if it got none."""
    assert result_of(gateway, api, MULTI_ELEMENTS, session_id="84757")[0]["session_id"] == "84757"
    assert result_of(gateway, api, MULTI_ELEMENTS)[0]["session_id"]


def test_effects_have_no_duration(gateway: Sandbox, api: httpx.Client) -> None:
    """Other videos have one, in seconds, as text."""
    assert "duration" not in result_of(gateway, api, "/v1/videos/effects", effect_scene="squish")[0]
    assert result_of(gateway, api, VIDEOS)[0]["duration"] == "5.0"


def test_a_watermarked_copy_is_made_when_asked_for(gateway: Sandbox, api: httpx.Client) -> None:
    """It is another file."""
    legacy, new = result_of(gateway, api, VIDEOS, watermark_info={"enabled": True})
    assert api.get(legacy["watermark_url"]).content != api.get(legacy["url"]).content
    assert new["watermark_url"] == legacy["watermark_url"]
    assert "watermark_url" not in result_of(gateway, api, VIDEOS, watermark_info={"enabled": False})[0]


@pytest.mark.parametrize("path", [IMAGES, ELEMENTS, VOICES, MULTI_SHOT])
def test_a_list_pages_through_the_tasks_of_a_family(api: httpx.Client, path: str) -> None:
    """Newest first; the tasks of other families are elsewhere."""
    numbers = [made(api, path=path) for _ in range(5)]
    made(api, path=VIDEOS)
    pages = [api.get(path, params={"pageNum": page, "pageSize": 2}).json()["data"] for page in (1, 2, 3, 4)]
    assert [record["task_id"] for page in pages for record in page] == numbers[::-1]
    assert [len(page) for page in pages] == [2, 2, 1, 0]


@pytest.mark.parametrize(
    ("mark", "legacy", "bill"),
    [
        ("", {"final_unit_deduction": "3.5"}, {"charge_type": "unit", "package_type": "video", "amount": "3.5"}),
        (
            "pays-by-balance",
            {"final_balance_deduction": {"quota": "3.5", "list_price": "3.5"}},
            {
                "charge_type": "cash",
                "cash_type": "balance",
                "amount": "3.5",
                "list_price": "3.5",
                "currency": "USD",
            },
        ),
    ],
)
def test_the_cost_has_several_forms(gateway: Sandbox, api: httpx.Client, mark: str, legacy: Any, bill: Any) -> None:
    """Units or money; in each standard's own fields."""
    data = finished(gateway, api, mark, VIDEOS)
    assert {name: value for name, value in data.items() if name.startswith("final")} == legacy
    (record,) = api.get("/tasks", params={"task_ids": data["task_id"]}).json()["data"]
    assert record["billing"] == [bill]


def test_times_as_text_are_unix_milliseconds(gateway: Sandbox, api: httpx.Client) -> None:
    """As the batch query has been seen to answer."""
    data = finished(gateway, api, "times-as-text")
    (record,) = api.get("/tasks", params={"task_ids": data["task_id"]}).json()["data"]
    task = gateway.tasks[data["task_id"]]
    assert (data["created_at"], data["updated_at"]) == (str(task.created_at), str(task.updated_at))
    assert (record["create_time"], record["update_time"]) == (str(task.created_at), str(task.updated_at))


@pytest.mark.parametrize("path", [IMAGES, VIDEOS])
def test_watermark_only_leaves_the_address_empty(gateway: Sandbox, api: httpx.Client, path: str) -> None:
    """The copy is the only file."""
    for result in result_of(gateway, api, path, prompt="[sandbox: watermark-only]"):
        assert result["url"] == ""
        assert api.get(result["watermark_url"]).status_code == 200

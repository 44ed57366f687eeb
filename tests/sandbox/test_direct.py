"""Endpoints that answer at once, and the account: Kling's shapes, and a record of every call."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from kling_sandbox import Sandbox
from tests.support.sandbox import HEADERS, IMAGES, VIDEOS, code, finished

URL = "https://example.com/x.mp4"
POINTS = {"session_id": "84757", "frame_index": 3, "points": [{"x": 0.5, "y": 0.3}]}
COSTS = {"start_time": 0, "end_time": 9999999999999}

POSTS = {
    "audio/tts": {"text": "hello", "voice_id": "oversea_male1", "voice_language": "en"},
    "videos/identify-face": {"video_id": "", "video_url": URL},
    "videos/image-recognize": {"image": "aGVsbG8="},
    "videos/multi-elements/init-selection": {"video_id": "893605946402811985"},
    "videos/multi-elements/add-selection": POINTS,
    "videos/multi-elements/delete-selection": POINTS,
    "videos/multi-elements/clear-selection": {"session_id": "84757"},
    "videos/multi-elements/preview-selection": {"session_id": "84757"},
    "general/delete-elements": {"element_id": 829836802793406551},
    "general/delete-advanced-elements": {"element_id": "829836802793406551"},
    "general/delete-voices": {"voice_id": "829"},
}
GETS = ("general/presets-voices", "general/advanced-presets-elements")


def addresses(value: Any) -> Iterator[str]:
    """The addresses in an answer."""
    if isinstance(value, str) and value.startswith("http"):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from addresses(each)


@pytest.mark.parametrize("path", POSTS)
def test_the_answer_is_the_result(gateway: Sandbox, api: httpx.Client, path: str) -> None:
    """All its files are there; there is no task, no create, and no callback."""
    answer = api.post(f"/v1/{path}", json=POSTS[path])
    assert code(answer) == (0, 200)
    assert answer.json()["message"] == "SUCCEED"
    for address in addresses(answer.json()["data"]):
        assert api.get(address).status_code == 200
    (call,) = gateway.calls
    assert (call.method, call.path, call.values) == ("POST", path, POSTS[path])
    assert (gateway.tasks, gateway.creates, gateway.callbacks) == ({}, [], [])


def data_of(api: httpx.Client, path: str) -> Any:
    """The data of an answer."""
    return api.post(f"/v1/{path}", json=POSTS[path]).json()["data"]


def test_the_results_have_the_names_that_kling_gives_them(api: httpx.Client) -> None:
    """The parts that a program reads."""
    speech = data_of(api, "audio/tts")
    assert speech["task_status"] == "succeed"
    assert speech["task_result"]["audios"][0].keys() == {"id", "url", "duration"}
    faces = data_of(api, "videos/identify-face")
    assert faces["session_id"]
    assert faces["face_data"][0].keys() == {"face_id", "face_image", "start_time", "end_time"}
    kinds = [image["type"] for image in data_of(api, "videos/image-recognize")["task_result"]["images"]]
    assert kinds == ["object_seg", "head_seg", "face_seg", "cloth_seg"]
    started = data_of(api, "videos/multi-elements/init-selection")
    assert started.keys() >= {"status", "session_id", "fps", "original_duration", "total_frame", "normalized_video"}
    for name in ("add", "delete"):
        res = data_of(api, f"videos/multi-elements/{name}-selection")["res"]
        assert (res["frame_index"], res["rle_mask_list"][0].keys()) == (3, {"object_id", "rle_mask", "png_mask"})
    assert data_of(api, "videos/multi-elements/clear-selection")["session_id"] == "84757"
    preview = data_of(api, "videos/multi-elements/preview-selection")["res"]
    assert preview.keys() == {"video", "video_cover", "tracking_output"}
    assert data_of(api, "general/delete-voices")["task_status"] == "succeed"


@pytest.mark.parametrize(
    ("path", "values", "words"),
    [
        ("audio/tts", {"text": ""}, "text is required"),
        ("audio/tts", {"text": "x" * 1001}, "text must be a text of at most 1000"),
        ("videos/identify-face", {}, "exactly one of video_id and video_url is required"),
        ("videos/identify-face", {"video_id": "1", "video_url": URL}, "exactly one of video_id and video_url"),
        ("videos/identify-face", {"video_url": "x"}, "video_url must be a URL"),
        ("videos/multi-elements/add-selection", {"session_id": "1"}, "frame_index is required"),
        ("general/delete-voices", {"voice_id": None}, "voice_id is required"),
    ],
)
def test_bad_calls_are_refused(gateway: Sandbox, api: httpx.Client, path: str, values: Any, words: str) -> None:
    """They are recorded, too."""
    answer = api.post(f"/v1/{path}", json=values)
    assert code(answer) == (1201, 400)
    assert words in answer.json()["message"]
    assert [call.values for call in gateway.calls] == [values]


@pytest.mark.parametrize("path", [*POSTS, *GETS, "account/costs"])
def test_the_other_method_does_not_exist(api: httpx.Client, path: str) -> None:
    """Nor can a result be queried like a task."""
    base = "" if path == "account/costs" else "/v1"
    answer = api.get(f"{base}/{path}") if path in POSTS else api.post(f"{base}/{path}", json={})
    assert answer.json()["code"] in (1201, 1202)


@pytest.mark.parametrize("path", GETS)
def test_kling_s_own_library_comes_in_pages(gateway: Sandbox, api: httpx.Client, path: str) -> None:
    """Each entry is a task with one result; empty numbers of a page are absent."""
    pages = [api.get(f"/v1/{path}", params={"pageNum": page, "pageSize": 25}).json()["data"] for page in (1, 2, 3)]
    assert [len(page) for page in pages] == [25, 15, 0]
    (kind,) = pages[0][0]["task_result"]
    results = [task["task_result"][kind][0] for page in pages for task in page]
    assert len({result[f"{kind.removesuffix('s')}_id"] for result in results}) == 40
    assert {result["owned_by"] for result in results} == {"kling"}
    if kind == "voices":
        assert api.get(results[0]["trial_url"]).headers["content-type"] == "audio/mpeg"
    assert len(api.get(f"/v1/{path}?pageNum=&pageSize=").json()["data"]) == 30
    assert code(api.get(f"/v1/{path}?pageSize=1001")) == (1201, 400)
    assert gateway.calls[0].values == {"pageNum": "1", "pageSize": "25"}


@pytest.mark.parametrize(
    ("mark", "status", "beginning"),
    [
        ("busy", 429, '{"code":1302'),
        ("used-up", 429, '{"code":1102'),
        ("bad-gateway", 502, "<html>"),
        ("relay-no-quota", 403, '{"error"'),
        ("create-5002", 504, '{"code":5002'),
        ("create-garbage", 200, '{"code": 0, '),
    ],
)
def test_calls_fail_as_creates_do(gateway: Sandbox, api: httpx.Client, mark: str, status: int, beginning: str) -> None:
    """By a mark in any text of the body, or for all."""
    answer = api.post("/v1/audio/tts", json={"text": f"hello [sandbox: {mark}]"})
    assert answer.status_code == status
    assert answer.text.startswith(beginning)
    gateway.misbehave.add(mark)
    assert api.post("/v1/general/delete-voices", json={"voice_id": "1"}).status_code == status
    assert len(gateway.calls) == 2


@pytest.mark.parametrize("mark", ["drop-before-create", "drop-after-create"])
def test_calls_are_recorded_although_their_answer_is_lost(gateway: Sandbox, api: httpx.Client, mark: str) -> None:
    """So that a test can see whether a client repeats one."""
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        api.post("/v1/audio/tts", json={"text": f"hello [sandbox: {mark}]"})
    assert [call.path for call in gateway.calls] == ["audio/tts"]
    assert api.get("/sandbox/account").json()["calls"] == gateway.account()["calls"]
    assert gateway.account()["calls"][0]["path"] == "audio/tts"


def test_reads_fail_as_queries_do(gateway: Sandbox, api: httpx.Client) -> None:
    """Once, always, or without a readable answer."""
    gateway.misbehave.add("query-5xx-once")
    assert [api.get(f"/v1/{GETS[0]}").status_code for _ in range(2)] == [503, 200]
    gateway.misbehave |= {"query-5xx"}
    assert code(api.get(f"/v1/{GETS[0]}")) == (5001, 503)
    gateway.misbehave.clear()
    gateway.misbehave.add("query-garbage")
    with pytest.raises(ValueError, match="Unterminated"):
        api.get(f"/v1/{GETS[0]}").json()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/audio/tts"),
        ("GET", f"/v1/{GETS[0]}"),
        ("GET", "/account/costs"),
        ("POST", "/account/billing/balance"),
    ],
)
def test_calls_need_the_key(gateway: Sandbox, method: str, path: str) -> None:
    """And are recorded without it, too."""
    answer = httpx.request(method, f"{gateway.url}{path}", json={"text": "x"} if method == "POST" else None)
    assert code(answer) == (1001, 401)
    assert len(gateway.calls) == 1


# The account


def test_costs_have_two_envelopes(gateway: Sandbox, api: httpx.Client) -> None:
    """The pack's name tells the concurrency; what is left is less by the units of finished tasks."""
    finished(gateway, api, path=VIDEOS)
    answer = api.get("/account/costs", params=COSTS).json()
    assert (answer["code"], answer["data"]["code"]) == (0, 0)
    (pack,) = answer["data"]["resource_pack_subscribe_infos"]
    assert pack["resource_pack_name"].endswith("-5Con")
    assert (pack["total_quantity"], pack["remaining_quantity"], pack["status"]) == (1000, 996.5, "online")
    assert gateway.calls[0].values == {"start_time": "0", "end_time": "9999999999999"}


def test_costs_are_told_once_a_second(monkeypatch: pytest.MonkeyPatch, gateway: Sandbox, api: httpx.Client) -> None:
    """Sooner, the question is refused."""
    assert [code(api.get("/account/costs", params=COSTS)) for _ in range(2)] == [(0, 200), (1302, 429)]
    monkeypatch.setattr("kling_sandbox.api.account.MIN_SECONDS", 0)
    assert code(api.get("/account/costs", params=COSTS)) == (0, 200)
    assert len(gateway.calls) == 3


@pytest.mark.parametrize("query", [{}, {"start_time": 0}, {"start_time": "x", "end_time": 1}])
def test_costs_need_a_time(api: httpx.Client, query: Any) -> None:
    """From and to."""
    assert code(api.get("/account/costs", params=query)) == (1201, 400)


def test_costs_of_another_pack_are_none(api: httpx.Client) -> None:
    """The filter names one."""
    answer = api.get("/account/costs", params=COSTS | {"resource_pack_name": "another"}).json()
    assert answer["data"]["resource_pack_subscribe_infos"] == []


def test_the_pack_tells_the_sandbox_s_concurrency() -> None:
    """If it has a limit."""
    with Sandbox(concurrency=3) as gateway, httpx.Client(base_url=gateway.url, headers=HEADERS) as api:
        (pack,) = api.get("/account/costs", params=COSTS).json()["data"]["resource_pack_subscribe_infos"]
        assert "-3Con" in pack["resource_pack_name"]


def test_billing_pages_by_a_cursor(gateway: Sandbox, api: httpx.Client) -> None:
    """Units in one list, money in the other; failed tasks are in neither."""
    units = [finished(gateway, api, path=VIDEOS, mode="pro")["task_id"], finished(gateway, api)["task_id"]]
    money = finished(gateway, api, "pays-by-balance")["task_id"]
    finished(gateway, api, "failed")
    window = {"start_time": 0, "end_time": 9999999999999, "cursor": "", "limit": 1}
    first = api.post("/account/billing/package", json=window).json()["data"]
    rest = api.post("/account/billing/package", json={"cursor": first["next_cursor"]}).json()["data"]
    assert [page["has_more"] for page in (first, rest)] == [True, False]
    rows = [row for page in (first, rest) for row in page["result"]["detail"]]
    assert [row["task_id"] for row in rows] == units
    assert [row["deduction_amount"] for row in rows] == [3.5, 1]
    assert (rows[0]["resolution"], rows[0]["duration"], rows[0]["product_type"]) == ("1080p", "5.0", "video")
    result = api.post("/account/billing/balance", json=window).json()["data"]["result"]
    assert ([row["task_id"] for row in result["detail"]], result["count"]) == ([money], 1)
    assert result["detail"][0]["cash_type"] == "balance"
    none = api.post("/account/billing/balance", json=window | {"end_time": 1}).json()["data"]["result"]
    assert none["detail"] == []


@pytest.mark.parametrize("wrong", [{}, {"cursor": "x"}, {"start_time": 0, "end_time": "1"}, COSTS | {"limit": 501}])
def test_billing_needs_a_window_or_a_cursor(api: httpx.Client, wrong: Any) -> None:
    """At most 500 rows a page."""
    assert code(api.post("/account/billing/package", json=wrong)) == (1201, 400)


# OpenAI's endpoint, where relays have it


def test_without_the_prefix_a_relay_answers_as_openai() -> None:
    """That is none of Kling's answers, and makes no task; the call is recorded."""
    with Sandbox(base_path="/kling") as relay, httpx.Client(headers=HEADERS) as api:
        root = relay.url.removesuffix("/kling")
        answer = api.post(f"{root}{IMAGES}", json={"model_name": "kling-v1-5", "prompt": "a kangaroo"}).json()
        assert answer.keys() == {"created", "data"}
        assert answer["created"] == pytest.approx(time.time(), abs=60)
        assert api.get(answer["data"][0]["url"]).content.startswith(b"\x89PNG")
        assert [call.path for call in relay.calls] == [IMAGES]
        assert (relay.tasks, relay.creates) == ({}, [])
        refused = (
            httpx.post(f"{root}{IMAGES}", json={}),
            api.post(f"{root}{VIDEOS}", json={}),
            api.get(f"{root}{IMAGES}/1"),
        )
        assert [answer.status_code for answer in refused] == [401, 404, 404]
        assert all(answer.json().keys() == {"error"} for answer in refused)

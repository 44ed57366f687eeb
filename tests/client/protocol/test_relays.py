"""Relays answer in shapes of their own; each of them is parsed as Kling's."""

import json
from typing import Any
from urllib.parse import unquote

import pytest

from kling_callback.protocol.families import usual_kind
from kling_callback.protocol.relays import CONTENT_PATH, content_path, whole_address
from kling_callback.protocol.reports import Answer, Report, parse_answer, parse_callback
from kling_callback.protocol.results.outputs import Output
from kling_callback.protocol.statuses import parse_status
from kling_callback.protocol.values import MAX_URL_CHARS

MP4 = "https://files.example.com/kling/a.mp4?sig=1"
PNG = "https://files.example.com/kling/a.png"
FULL = "parallel task over resource pack limit"
KLING_REFUSES = {"code": 1303, "message": FULL, "request_id": "r"}


def answer(document: Any) -> Answer:
    found = parse_answer(json.dumps(document).encode())
    assert found
    return found


def report(document: Any) -> Report:
    (found,) = answer(document).reports
    assert parse_callback(json.dumps(document).encode()) == found
    return found


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("queued,QUEUED,pending,waiting,NOT_START,created,in-queue,In Queue", "submitted"),
        ("in_progress,IN-PROGRESS,running,generating,started,processing", "processing"),
        ("completed,SUCCESS,succeeded,done,finished,complete", "succeed"),
        ("failed,error,FAILURE,fail,cancelled,canceled,expired,rejected,timed_out", "failed"),
        ("unknown,perhaps,100%,true", None),
    ],
)
def test_relays_have_their_own_words_for_a_status(words: str, status: str | None) -> None:
    """In any case, with blanks and dashes; an unknown word means nothing."""
    assert {parse_status(word) for word in words.split(",")} == {status}


OPENAI_VIDEO = {"id": "T", "object": "video", "status": "completed"}
WITHOUT_FILES = {"task_id": "T", "task_status": "succeed", "task_result": {}}
KLINGS = {"code": 0, "data": {"task_status": "succeed", "task_result": {"videos": [{"id": "v", "url": MP4}]}}}
VIDEO, TIMED, IMAGE = Output("video", MP4), Output("video", MP4, duration=5.0), Output("image", PNG)
BARE = "https://files.example.com/1"


def done(**fields: Any) -> dict[str, Any]:
    return {"task_id": "T", "status": "completed", **fields}


def wrapped(**fields: Any) -> dict[str, Any]:
    return {"code": "success", "message": "", "data": {"task_id": "T", "status": "SUCCESS", **fields}}


@pytest.mark.parametrize(
    ("document", "outputs"),
    [
        (done(url=MP4, format="mp4", metadata={"duration": 5}, error=None), [TIMED]),
        (wrapped(result_url=MP4, data=None), [VIDEO]),
        ({**OPENAI_VIDEO, "metadata": {"url": MP4}, "seconds": "5"}, [TIMED]),
        ({**OPENAI_VIDEO, "content": {"video_url": BARE}}, [Output("video", BARE)]),
        ({**OPENAI_VIDEO, "image_url": PNG, "video_url": MP4}, [VIDEO]),
        (done(image_url=PNG, video_url=MP4), [VIDEO]),
        (done(image_urls=[PNG, f"{PNG}?2"]), [IMAGE, Output("image", f"{PNG}?2")]),
        (done(output=MP4), [VIDEO]),
        (done(output=[PNG, "no address"]), [IMAGE]),
        (done(output={"video_url": MP4}), [VIDEO]),
        (done(video={"url": MP4, "duration": 5}), [TIMED]),
        (done(images=[{"url": PNG, "id": "i"}]), [Output("image", PNG, "i")]),
        (done(data=[{"url": PNG}, {"url": MP4}]), [IMAGE, VIDEO]),
        (done(data=[{"url": PNG, "id": "one"}]), [Output("image", PNG, "one")]),
        (done(result={"files": [{"url": MP4}]}), [VIDEO]),
        (done(url=BARE, mime_type="audio/mpeg"), [Output("audio", BARE)]),
        (done(url=BARE, format="MP4"), [Output("video", BARE)]),
        (done(url=BARE), [Output("file", BARE)]),
        ({"request_id": "r", "output": {"task_id": "T", "task_status": "SUCCEEDED", "video_url": MP4}}, [VIDEO]),
        (done(response={"resultUrls": [MP4]}), [VIDEO]),
        (done(resultJson=json.dumps({"resultUrls": [MP4]})), [VIDEO]),
        (done(result=json.dumps([{"url": MP4}])), [VIDEO]),
        (done(resultJson="[" * 10_000), [Output("file", "/v1/videos/T/content")]),
        (done(output={"works": [{"video": {"resource": MP4, "duration": 5}}]}), [TIMED]),
        (done(content=[{"type": "video_url", "video_url": {"url": MP4}}]), [VIDEO]),
        (done(result={"video": {"url_list": [MP4]}}), [VIDEO]),
        (done(video_urls=[{"url": MP4}, {"url": 5}, {}]), [VIDEO]),
        (wrapped(fail_reason=MP4), [VIDEO]),
        (wrapped(result_url=MP4, data=WITHOUT_FILES), [VIDEO]),
        (wrapped(data=json.dumps(KLINGS)), [Output("video", MP4, "v")]),
        (OPENAI_VIDEO, [Output("file", "/v1/videos/T/content")]),
        (done(url="", format="mp4"), [Output("file", "/v1/videos/T/content")]),
    ],
)
def test_a_relay_s_files_are_found_under_any_name(document: dict[str, Any], outputs: list[Output]) -> None:
    """With kind and duration where the record tells; without an address, at the relay's own host."""
    found = report(document)
    assert (found.status, found.kling_id, list(found.outputs), found.message) == ("succeed", "T", outputs, "")


@pytest.mark.parametrize(
    "document",
    [
        WITHOUT_FILES,
        {"code": 0, "data": {**WITHOUT_FILES, "task_result": {"elements": [{"element_id": 1}]}}},
        {"id": "T", "status": "succeeded"},
        {"id": "T", "status": "succeeded", "outputs": []},
        {"id": "T", "object": "video", "status": "queued", "image_url": PNG},
        {"task_id": "T", "status": "processing", "url": MP4},
    ],
)
def test_kling_s_records_and_unfinished_ones_have_no_such_files(document: dict[str, Any]) -> None:
    """Kling names every file in its own fields."""
    assert report(document).outputs == ()


@pytest.mark.parametrize(
    "record",
    [
        {"error": {"message": "content moderation failed"}},
        {"error": {"code": "x", "message": "content moderation failed"}},
        {"error": "content moderation failed"},
        {"fail_reason": "content moderation failed"},
        {"error_message": "content moderation failed"},
        {"message": "SUCCESS", "error": {"message": "content moderation failed"}},
        {"fail_reason": json.dumps({"code": 1301, "message": "content moderation failed"})},
        {"error": {"code": 1301, "message": "content moderation failed"}},
    ],
)
def test_the_reason_of_a_failure_has_many_places(record: dict[str, Any]) -> None:
    """Also beside a message that says nothing, or as Kling's error in JSON; a failed task is no failed query."""
    document = {"id": "T", "object": "video", "status": "failed", **record}
    assert report(document) == Report("failed", "T", message="content moderation failed")
    outer = {"code": "success", "data": {**record, "data": {"task_id": "T", "task_status": "failed"}}}
    if record.get("message") is None:
        assert report(outer).message == "content moderation failed"


@pytest.mark.parametrize(
    "times", [(1764235825, 1764236054), (1764235825029, 1764236054436), ("1764235825", "1764236054.4")]
)
def test_times_are_in_milliseconds(times: tuple[Any, Any]) -> None:
    """Relays send seconds, milliseconds or text, under several names."""
    for names in (("created_at", "completed_at"), ("submit_time", "finish_time"), ("create_time", "update_time")):
        found = report({"id": "T", "status": "queued", **dict(zip(names, times, strict=True))})
        assert (found.created_at or 0) // 1000 == 1764235825
        assert (found.updated_at or 0) // 1000 == 1764236054
    assert report({"id": "T", "status": "queued", "created_at": True, "updated_at": "soon"}).created_at is None


@pytest.mark.parametrize(
    ("document", "code", "message"),
    [
        ({"code": "fail_to_fetch_task", "message": json.dumps(KLING_REFUSES)}, 1303, FULL),
        ({"code": "x", "message": f"status_code=429, {json.dumps(KLING_REFUSES)}"}, 1303, FULL),
        ({"code": "x", "message": json.dumps({"code": "y", "message": json.dumps(KLING_REFUSES)})}, 1303, FULL),
        ({"error": {"code": "x", "message": json.dumps(KLING_REFUSES)}}, 1303, FULL),
        ({"code": "x", "message": KLING_REFUSES}, 1303, FULL),
        ({"code": "task_not_exist", "message": "task_not_exist", "data": None}, "task_not_exist", "task_not_exist"),
        ({"error": {"code": "model_not_found", "message": "无可用渠道"}}, "model_not_found", "无可用渠道"),
        ({"error": {"code": "", "type": "new_api_error", "message": "no"}}, "new_api_error", "no"),
        ({"error": {"code": None, "message": "no"}}, None, "no"),
        ({"detail": [{"msg": "field required"}, {"msg": "too long"}]}, None, "field required; too long"),
        ({"code": 401, "msg": "invalid token"}, 401, "invalid token"),
        ({"code": 1201, "message": "a prompt with {braces} is wrong"}, 1201, "a prompt with {braces} is wrong"),
        ({"code": 1201, "message": '{"no": "message"}'}, 1201, '{"no": "message"}'),
        ({"code": 5, "message": "{" * 10_000}, 5, "{" * 4000),
    ],
)
def test_the_error_inside_a_relay_s_error_is_read(document: Any, code: int | str | None, message: str) -> None:
    """Kling's code and words, wherever the relay put them; a relay's own words in Chinese as they are."""
    found = answer(document)
    assert (found.code, found.message, found.reports) == (code, message, ())
    assert not found.ok or code is None


QUOTED = json.dumps({"prompt": "x", "code": 1303})
WITH_WORDS = json.dumps({"prompt": "x", "code": 1303, "message": FULL})


@pytest.mark.parametrize(
    ("message", "http_status", "code"),
    [
        (f"upstream timeout, request was {QUOTED}", 504, "x"),
        (f"upstream timeout, request was {QUOTED}", 429, "x"),
        (QUOTED, 504, "x"),
        (json.loads(QUOTED), 504, "x"),
        (f"request {WITH_WORDS} timed out", 504, "x"),
        (f"request {WITH_WORDS} timed out", 400, 1303),
        (f"status_code=429, {WITH_WORDS}", 500, 1303),
        (f"status_code=429, {WITH_WORDS}. (request id: 20261126)", 500, 1303),
        (WITH_WORDS, 500, 1303),
        (f"request was {json.dumps({'code': '1303', 'message': FULL})}", 400, "x"),
    ],
)
def test_a_quoted_request_is_no_error_of_kling_s(message: Any, http_status: int, code: int | str) -> None:
    """A code inside a request that a failing relay repeats does not prove that the create was refused."""
    for field in ("message", "error"):
        found = parse_answer(json.dumps({"code": "x", field: message}).encode(), http_status)
        assert found
        assert found.code == code
        if code == "x" and isinstance(message, str):
            assert found.message in (message, FULL)
    in_code = answer({"code": 500, "message": message})
    assert in_code.code == (1303 if http_status == 500 else 500)


@pytest.mark.parametrize("depth", [3, 10, 900])
def test_deeply_nested_errors_are_read_in_part(depth: int) -> None:
    """No depth exhausts the stack."""
    text = '{"message":' * depth + '"no"' + "}" * depth
    found = parse_answer(text.encode())
    assert found
    assert found.message == ("no" if depth < 4 else "")
    assert parse_callback(f'{{"status":"failed","id":"T","error":{text}}}'.encode())


def test_the_request_id_inside_is_kling_s() -> None:
    """Its support asks for it."""
    assert answer({"code": "x", "message": json.dumps(KLING_REFUSES), "request_id": "outer"}).request_id == "r"


@pytest.mark.parametrize(
    ("document", "is_openai"),
    [
        ({"created": 1, "data": [{"url": PNG}]}, True),
        ({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "choices": []}, True),
        ({"object": "list", "data": [{"id": "kling-v1"}]}, True),
        ({"error": {"message": "Invalid URL (POST /v1/images/generations)", "type": "invalid_request_error"}}, True),
        ({"error": {"message": "Unknown request URL: GET /v1/x", "type": "invalid_request_error"}}, True),
        ({"error": {"message": "no such key"}}, False),
        ({"code": 0, "data": [{"task_id": "T"}]}, False),
        ({"id": "T", "object": "video", "created_at": 1, "status": "queued"}, False),
    ],
)
def test_the_answers_of_an_openai_endpoint_are_recognized(document: Any, is_openai: bool) -> None:
    """They are about no task, whatever ids they have."""
    found = answer(document)
    assert found.is_openai == is_openai
    assert not (is_openai and found.reports)


def test_the_id_of_an_error_is_no_task() -> None:
    """Only a record without an error is one."""
    assert answer({"id": "request-1", "error": {"message": "overloaded"}}).reports == ()


def test_an_envelope_s_status_does_not_hide_the_id_inside() -> None:
    """Some relays write `status: success` around the record of a create."""
    assert report({"status": "success", "data": {"id": "T"}}).kling_id == "T"


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("images/generations", "image"),
        ("videos/image2video", "video"),
        ("audio/video-to-audio", "audio"),
        ("/text-to-video/kling-3.0", "video"),
        ("/image-to-video/kling-3.0", "video"),
        ("/motion-control/kling-2.6", "video"),
        ("/omni-video/kling-o1", "video"),
        ("/video-to-audio/x", "audio"),
        ("general/custom-voices", "file"),
    ],
)
def test_a_family_tells_the_kind_of_its_files(family: str, kind: str) -> None:
    """By its path, in both standards."""
    assert usual_kind(family) == kind


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        (MP4, MP4),
        ("/v1/videos/T/content", "https://relay.example/v1/videos/T/content"),
        ("/files/1.mp4?x=1", "https://relay.example/files/1.mp4?x=1"),
        ("http://localhost:3000/v1/videos/T/content", "https://relay.example/v1/videos/T/content"),
        ("http://relay.example/v1/videos/T/content", "https://relay.example/v1/videos/T/content"),
        ("http://localhost:3000/other", "http://localhost:3000/other"),
        ("https://other.example/v1/videos/T/content", "https://other.example/v1/videos/T/content"),
        ("http://[", "http://["),
    ],
)
def test_a_relay_s_own_files_are_at_its_own_host(url: str, whole: str) -> None:
    """A path, or an address that only the relay itself can reach, leads to KLING_API_BASE's host."""
    assert whole_address("https://relay.example/kling", url) == whole


@pytest.mark.parametrize("kling_id", ["T", "task_a-b.c", "urn:a@b=c", "d\u00e9j\u00e0;vu"])
def test_the_path_of_a_content_names_one_task(kling_id: str) -> None:
    """Ids of the usual characters stay as they are."""
    path = content_path(kling_id)
    assert unquote(path) == f"/v1/videos/{kling_id}/content"
    assert bool(CONTENT_PATH.fullmatch(path)) == kling_id.isascii()


@pytest.mark.parametrize(
    "record",
    [
        done(images=[PNG, ""]),
        done(images=[{"url": PNG}, {"url": ""}]),
        done(output=[{"image_url": PNG}, {"image_url": ""}]),
        done(result={"images": [PNG, ""]}),
        done(result_urls=[PNG, ""]),
        wrapped(image_urls=[PNG, ""]),
        {"data": [{"task_result": {"images": [PNG, ""]}, "task_status": "succeed", "task_id": "T"}]},
    ],
)
def test_a_relay_s_file_without_its_address_is_awaited(record: dict[str, Any]) -> None:
    """In a list in which another entry has one."""
    found = report(record)
    assert [each.url for each in found.outputs] == [PNG, ""]
    assert (found.awaits_file, found.is_complete) == (True, False)


@pytest.mark.parametrize("record", [done(images=[PNG, {"width": 5}, None]), done(url="", images=[PNG], video_url="")])
def test_an_entry_without_a_file_is_not_awaited(record: dict[str, Any]) -> None:
    """Nor an empty field beside the one that counts."""
    found = report(record)
    assert found.outputs == (IMAGE,)
    assert found.is_complete


def test_empty_addresses_name_no_file() -> None:
    """Nor one that is too long. The file is then the content at the relay's own host."""
    for fields in ({"images": ["", {"url": ""}], "urls": [""]}, {"url": f"{PNG}?{'x' * MAX_URL_CHARS}"}):
        found = report(done(**fields))
        assert found.outputs == (Output("file", content_path("T")),)
        assert found.is_complete


def test_a_relay_s_address_replaces_an_awaited_one() -> None:
    """Kling's record inside lacks the address that the relay names; the result is complete with it."""
    inner = {"task_id": "T", "task_status": "succeed", "task_result": {"videos": [{"id": "v", "url": ""}]}}
    found = report({**done(result_url=MP4), "data": inner})
    assert found.outputs == (VIDEO,)
    assert found.is_complete

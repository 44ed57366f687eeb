"""Every format in which Kling or a gateway reports a task is parsed into the same Report."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast, get_args

import pytest

from kling_callback.protocol.reports import Report, parse_answer, parse_callback
from kling_callback.protocol.results.fields import MAX_OBJECT_CHARS
from kling_callback.protocol.results.outputs import MAX_OBJECTS_CHARS, MAX_OUTPUTS, Output
from kling_callback.protocol.statuses import STATUS_WORDS, TASK_STATUSES, Status
from kling_callback.protocol.values import (
    MAX_COST_CHARS,
    MAX_DEPTH,
    MAX_ID_CHARS,
    MAX_PARTS,
    MAX_UNCHECKED_BYTES,
    MAX_URL_CHARS,
    sanitize,
)
from kling_receiver import states

LEGACY = {
    "task_id": "822953089408827433",
    "task_status": "succeed",
    "task_status_msg": "",
    "created_at": 1764235825029,
    "updated_at": 1764236054436,
    "final_unit_deduction": "3.5",
    "task_info": {"external_task_id": "order-42"},
    "task_result": {"videos": [{"id": "v", "url": "https://host/x.mp4?ksTime=1", "duration": "5.1"}]},
}
NEW = {
    "id": "822953089408827433",
    "status": "succeeded",
    "message": "",
    "create_time": 1764235825029,
    "update_time": 1764236054436,
    "external_id": "order-42",
    "outputs": [{"type": "video", "id": "v", "url": "https://host/x.mp4?ksTime=1", "duration": "5.1"}],
    "billing": "3.5",
}
TIME = 1764235825000
REPORT = Report(
    status="succeed",
    kling_id="822953089408827433",
    external_task_id="order-42",
    created_at=1764235825029,
    updated_at=1764236054436,
    outputs=(Output("video", "https://host/x.mp4?ksTime=1", "v", 5.1),),
    cost="3.5",
)


def body(document: Any) -> bytes:
    return json.dumps(document).encode()


def enveloped(data: Any) -> dict[str, Any]:
    return {"code": 0, "message": "SUCCEED", "request_id": "r", "data": data}


def relayed(data: Any, status: str = "SUCCESS") -> dict[str, Any]:
    outer = {"task_id": "relay", "status": status, "fail_reason": "", "progress": "100%", "data": data}
    return {"code": "success", "message": "", "data": outer}


@pytest.mark.parametrize("record", [LEGACY, NEW])
@pytest.mark.parametrize("wrap", [lambda it: it, enveloped, lambda it: relayed(enveloped(it))])
def test_both_standards_bare_or_wrapped_are_one_report(record: dict[str, Any], wrap: Any) -> None:
    """Legacy or new, bare, in Kling's envelope or in a gateway's second one: the report is the same."""
    report = parse_callback(body(wrap(record)))
    assert report is not None
    assert report.request_id in (None, "r")
    assert replace(report, request_id=None) == REPORT


def test_client_and_receiver_have_the_same_statuses() -> None:
    """Options and filters accept the statuses of the state machine; Kling reports all of them but `created`."""
    assert get_args(states.Status) == states.STATUSES == TASK_STATUSES
    assert ("created", *get_args(Status)) == TASK_STATUSES
    assert set(STATUS_WORDS.values()) == set(get_args(Status))
    assert {status for status in TASK_STATUSES if Report(cast("Status", status)).final} == states.FINAL


@pytest.mark.parametrize(
    ("spelling", "status"),
    [
        ("submitted", "submitted"),
        ("processing", "processing"),
        ("succeed", "succeed"),
        ("succeeded", "succeed"),
        ("failed", "failed"),
        (" FAILURE ", "failed"),
        ("NOT_START", "submitted"),
        ("QUEUED", "submitted"),
        ("IN_PROGRESS", "processing"),
    ],
)
def test_every_spelling_of_a_status_is_parsed(spelling: str, status: str) -> None:
    """Both spellings of success, and those of gateways, in any case."""
    report = parse_callback(body({"task_id": "a", "task_status": spelling}))
    assert report is not None
    assert (report.status, report.final) == (status, status in ("succeed", "failed"))


@pytest.mark.parametrize(
    "document",
    [
        {"task_id": "a", "task_status": "perhaps"},
        {"task_id": "a", "task_status": None},
        {"task_id": "a"},
        {"code": 1201, "message": "no"},
        [],
        "succeed",
        None,
        {"status": "x" * 1_000_000},
    ],
)
def test_what_has_no_known_status_is_unreadable(document: Any) -> None:
    """A body with an unknown status, or none, is not a report: it counts as a hint."""
    assert parse_callback(body(document)) is None


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"1" * 10_000, b"\xef\xbb\xbf{}"])
def test_invalid_json_is_unreadable(raw: bytes) -> None:
    """Broken, deeply nested or oversized JSON raises nothing."""
    assert parse_callback(raw) is None


def test_a_gateway_s_failure_without_a_record_counts() -> None:
    """An outer FAILURE without an inner record is a failure, with the gateway's reason."""
    document = relayed(None, "FAILURE")
    document["data"]["fail_reason"] = "no credit"
    report = parse_callback(body(document))
    assert report == Report("failed", kling_id="relay", message="no credit")


def test_the_innermost_record_wins() -> None:
    """Kling's record takes precedence over a gateway's."""
    report = parse_callback(body(relayed({"task_id": "inner", "task_status": "processing"}, "SUCCESS")))
    assert report is not None
    assert (report.status, report.kling_id) == ("processing", "inner")


def test_the_inner_record_is_completed_from_the_outer() -> None:
    """A gateway's inner record without an id gets the outer one."""
    report = parse_callback(body(relayed({"task_status": "processing"})))
    assert report is not None
    assert (report.status, report.kling_id) == ("processing", "relay")


def test_a_gateway_s_record_fills_every_gap() -> None:
    """Ids, times, cost and request id; Kling's values inside take precedence, and its message is its own."""
    around = {
        "id": "o",
        "status": "SUCCESS",
        "external_id": "mine",
        "create_time": TIME + 1,
        "update_time": TIME + 2,
        "billing": "7",
        "message": "outside",
        "request_id": "r-outside",
    }
    filled = parse_callback(body({**around, "data": {"status": "processing"}}))
    assert filled == Report(
        "processing", "o", "mine", created_at=TIME + 1, updated_at=TIME + 2, cost="7", request_id="r-outside"
    )
    inside = {
        "id": "i",
        "status": "processing",
        "external_id": "yours",
        "create_time": TIME + 3,
        "update_time": TIME + 4,
        "billing": "8",
        "message": "inside",
    }
    kept = parse_callback(body({**around, "data": inside}))
    assert kept == Report(
        "processing", "i", "yours", "inside", created_at=TIME + 3, updated_at=TIME + 4, cost="8", request_id="r-outside"
    )


def test_a_list_is_its_first_record() -> None:
    """A callback that is a list, or a record inside one, is parsed; items that are not records are ignored."""
    assert parse_callback(body([7, LEGACY, {"task_id": "other", "task_status": "failed"}])) == REPORT
    assert parse_callback(body({"data": ["x", NEW]})) == REPORT
    assert parse_callback(body([])) is None


def test_a_legacy_record_has_no_other_id() -> None:
    """`id` beside `task_status` is another id: matching by it would find another task."""
    assert parse_callback(body({"id": "x", "task_status": "failed"})) == Report("failed")


@pytest.mark.parametrize("name", ["task_status_msg", "fail_reason", "message"])
def test_the_reason_has_several_names(name: str) -> None:
    """Kling's two, and a gateway's."""
    assert parse_callback(body({"status": "failed", name: "no credit"})) == Report("failed", message="no credit")


def test_images_are_in_kling_s_order() -> None:
    """Images are sorted by their index; an invalid index counts as 0."""
    images = [
        {"index": 1, "url": "https://h/1"},
        {"index": 0, "url": "https://h/0"},
        {"index": "x", "url": "s"},
    ]
    report = parse_callback(body({**LEGACY, "task_result": {"images": images}}))
    assert report is not None
    assert [each.url for each in report.outputs] == ["https://h/0", "s", "https://h/1"]
    assert {each.kind for each in report.outputs} == {"image"}


def test_audio_has_both_formats() -> None:
    """One audio with an mp3 and a wav address is two files, in both standards."""
    legacy = {
        **LEGACY,
        "task_result": {"audios": [{"id": "a", "url_mp3": "https://h/m", "url_wav": "https://h/w"}]},
    }
    new = {**NEW, "outputs": [{"type": "audio", "id": "a", "mp3_url": "https://h/m", "wav_url": "https://h/w"}]}
    for record in (legacy, new):
        report = parse_callback(body(record))
        assert report is not None
        assert [(each.kind, each.url) for each in report.outputs] == [
            ("audio", "https://h/m"),
            ("audio", "https://h/w"),
        ]


def test_a_series_is_images() -> None:
    """The `series_images` of omni image are images too."""
    report = parse_callback(body({**LEGACY, "task_result": {"series_images": [{"index": 0, "url": "https://h/0"}]}}))
    assert report is not None
    assert report.outputs == (Output("image", "https://h/0"),)


def test_watermarked_copies_are_last() -> None:
    """A watermarked copy is a file of its own, after all results; one with the same address is not."""
    items = [
        {"type": "video", "id": "v", "duration": 5, "url": "https://h/1", "watermark_url": "https://h/w1"},
        {"type": "video", "url": "https://h/2", "watermark_url": "https://h/2"},
    ]
    report = parse_callback(body({**NEW, "outputs": items}))
    assert report is not None
    assert [(each.kind, each.url) for each in report.outputs] == [
        ("video", "https://h/1"),
        ("video", "https://h/2"),
        ("watermark", "https://h/w1"),
    ]
    assert report.outputs[2] == Output("watermark", "https://h/w1", "v", 5.0)


def test_a_file_of_no_kind_is_a_file() -> None:
    """A file without a kind, or with an oversized one, is still downloaded."""
    items = [{"url": "https://h/1"}, {"type": "model", "url": "https://h/2"}, {"type": "x" * 300, "url": "u"}]
    report = parse_callback(body({**NEW, "outputs": items}))
    assert report is not None
    assert [each.kind for each in report.outputs] == ["file", "model", "x" * MAX_ID_CHARS]
    report = parse_callback(body({**LEGACY, "task_result": {"y" * 300: [{"url": "u"}]}}))
    assert report is not None
    assert report.outputs == (Output("y" * MAX_ID_CHARS, "u"),)


def list_of(value: Any) -> Any:
    """A list with one element."""
    return [value]


def object_of(value: Any) -> Any:
    """An object with one member."""
    return {"a": value}


def nested(count: int, wrap: Callable[[Any], Any]) -> Any:
    """A number in so many lists or objects; its depth is one more."""
    return wrap(nested(count - 1, wrap)) if count else 1


@pytest.mark.parametrize(
    ("cost", "kept"),
    [
        ("3.5", "3.5"),
        (0, 0),
        (2.5, 2.5),
        ([{"amount": "1"}], [{"amount": "1"}]),
        ([], None),
        ("", None),
        (float("nan"), None),
        (["\0"], None),
        (["\ud800"], None),
        ({"a": "x" * 10_000}, None),
        ("x" * 300, "x" * MAX_ID_CHARS),
        (["x" * (MAX_COST_CHARS - 4)], ["x" * (MAX_COST_CHARS - 4)]),
        (["x" * (MAX_COST_CHARS - 3)], None),
        *[(deep := nested(MAX_DEPTH - 1, wrap), deep) for wrap in (list_of, object_of)],
        *[(nested(MAX_DEPTH, wrap), None) for wrap in (list_of, object_of)],
    ],
)
def test_the_cost_is_unchanged_if_a_database_can_hold_it(cost: Any, kept: Any) -> None:
    """Text, number or list as Kling sends it; what no JSON column holds is left out."""
    report = parse_callback(body({**LEGACY, "final_unit_deduction": cost}))
    assert report is not None
    assert report.cost == kept


def test_an_id_is_whole_or_none() -> None:
    """Numbers are ids too; an id that is too long is not truncated to another one."""
    for given_id, kept in (
        (42, "42"),
        (822953089408827433, "822953089408827433"),
        (10**30 - 1, "9" * 30),
        (10**30, None),
        ("x" * MAX_ID_CHARS, "x" * MAX_ID_CHARS),
        ("x" * 300, None),
        (True, None),
        ("", None),
    ):
        report = parse_callback(body({"task_id": given_id, "task_status": "submitted"}))
        assert report is not None
        assert report.kling_id == kept


def test_invalid_numbers_are_left_out() -> None:
    """Times beyond 53 bits and invalid durations do not reach the database."""
    wrong = ("nan", "-1", "x", None, "1e300", 10**400, 1e6)
    videos = [{"url": "https://h/x", "duration": each} for each in (*wrong, 0, "0.5", 5, 999_999)]
    report = parse_callback(
        body({**LEGACY, "created_at": 2**60, "updated_at": "now", "task_result": {"videos": videos}})
    )
    assert report is not None
    assert (report.created_at, report.updated_at) == (None, None)
    assert [each.duration for each in report.outputs] == [None] * len(wrong) + [0.0, 0.5, 5.0, 999_999.0]
    report = parse_callback(body({**NEW, "create_time": 2**53, "update_time": "nan"}))
    assert report is not None
    assert (report.created_at, report.updated_at) == (None, None)


def test_outputs_are_limited() -> None:
    """At most a hundred files of one task are read, and no address beyond its limit."""
    videos = [
        {"url": "x" * (MAX_URL_CHARS + 1)},
        {"url": "x" * MAX_URL_CHARS},
        {"url": 1},
        "x",
        *({"url": f"https://h/{n}"} for n in range(500)),
    ]
    report = parse_callback(body({**LEGACY, "task_result": {"videos": videos, "images": "x"}}))
    assert report is not None
    assert len(report.outputs) == MAX_OUTPUTS
    assert [each.url for each in report.outputs[:4]] == ["", "x" * MAX_URL_CHARS, "", "https://h/0"]


def test_text_can_be_stored_in_any_database() -> None:
    """NUL and lone surrogates are removed, and the text is truncated to its limit."""
    assert sanitize("a\0b\ud800c") == "ab?c"
    assert sanitize("x" * 10, max_chars=3) == "xxx"
    assert sanitize(5) == ""


def test_an_answer_has_its_envelope() -> None:
    """Code, message, request id and the record inside; an error may have no data."""
    answer = parse_answer(body({"code": 1302, "message": "too fast", "request_id": "r"}))
    assert answer is not None
    assert (answer.code, answer.message, answer.request_id, answer.reports, answer.ok) == (
        1302,
        "too fast",
        "r",
        (),
        False,
    )


@pytest.mark.parametrize(
    ("code", "ok", "read"),
    [
        (0, True, 0),
        ("0", True, 0),
        ("success", True, "success"),
        (None, True, None),
        ("1302", False, 1302),
        (5000, False, 5000),
        ("²", False, "²"),
        ("x" * 300, False, "x" * MAX_ID_CHARS),
        (10**30, True, None),
    ],
)
def test_success_has_several_spellings(code: Any, ok: bool, read: Any) -> None:
    """Zero, a text for success, or no code at all mean success; numbers as text are numbers."""
    answer = parse_answer(body({"code": code, "data": {"task_id": "a"}}))
    assert answer is not None
    assert (answer.ok, answer.code) == (ok, read)
    assert answer.reports == (Report(None, kling_id="a"),)


@pytest.mark.parametrize(
    "document", [{"error": {"message": "no credit"}}, {"error": "no credit"}, {"msg": "no credit"}]
)
def test_a_gateway_s_error_shape_is_parsed(document: Any) -> None:
    """{"error": ...} or {"msg": ...} without Kling's envelope still has its message."""
    answer = parse_answer(body(document))
    assert answer is not None
    assert answer.message == "no credit"


def test_a_batch_answers_several_records() -> None:
    """A list under `data` is one report each."""
    answer = parse_answer(body(enveloped([NEW, LEGACY, "x", {"id": "b", "status": "submitted"}])))
    assert answer is not None
    assert [report.kling_id for report in answer.reports] == [REPORT.kling_id, REPORT.kling_id, "b"]


@pytest.mark.parametrize("raw", [b"", b"[]", b"1", b"<html>", b"null"])
def test_an_answer_is_an_object(raw: bytes) -> None:
    """An HTML page or a bare value is not an answer of Kling's."""
    assert parse_answer(raw) is None


@pytest.mark.parametrize(
    "wrong", [".", "..", "a/b", "a,b", "a b", "a?b", "a#b", "a%2fb", "a\\b", "\n", ".\0", "\ud800"]
)
def test_an_id_that_would_query_another_address_is_none(wrong: str) -> None:
    """An id is part of a query's path: one that leads elsewhere, or is several, is not an id."""
    report = parse_callback(json.dumps({"task_id": wrong, "task_status": "succeed"}).encode())
    assert report is not None
    assert report.kling_id is None


def parted(count: int, fill: bytes = b"[],", pad: int = MAX_UNCHECKED_BYTES) -> bytes:
    """A long record with so many parts besides its own seven."""
    each = sum(map(fill.count, (b"[", b"{", b",")))
    record = b'{"task_status":"succeed","task_result":{"images":[]},"more":"%s","x":[%s0]}'
    return record % (b"x" * pad, fill * ((count - 7) // each))


@pytest.mark.parametrize("fill", [b"[],", b"{},", b"0,", b'{"a":0},'])
def test_a_long_body_of_too_many_parts_is_not_parsed(fill: bytes) -> None:
    """Parsing it would block; short bodies and long texts are not limited."""
    assert parse_callback(parted(MAX_PARTS, fill)) is not None
    assert parse_callback(parted(MAX_PARTS + 7, fill)) is None
    assert parse_answer(parted(MAX_PARTS + 7, fill)) is None
    assert parse_callback(parted(MAX_PARTS + 500, b"[],", 0)) is not None
    assert parse_callback(parted(7, fill, 900_000)) is not None


# --- costs, times and ids --------------------------------------------------------------------------------------

BALANCE = {"quota": "1.2", "list_price": "1.5"}


@pytest.mark.parametrize(
    ("named", "cost"),
    [
        ({"final_unit_deduction": "3.5"}, "3.5"),
        ({"billing": [{"amount": "1"}]}, [{"amount": "1"}]),
        ({"final_balance_deduction": BALANCE}, BALANCE),
        ({"final_unit_deduction": "", "final_balance_deduction": BALANCE, "billing": []}, BALANCE),
        (
            {"final_unit_deduction": "0", "final_balance_deduction": BALANCE},
            {"final_unit_deduction": "0", "final_balance_deduction": BALANCE},
        ),
    ],
)
def test_the_cost_has_several_forms(named: dict[str, Any], cost: Any) -> None:
    """Each is kept as Kling names it; several of them under their names."""
    report = parse_callback(body({"task_id": "a", "task_status": "succeed", **named}))
    assert report is not None
    assert report.cost == cost


@pytest.mark.parametrize(
    ("value", "time"),
    [
        (1764235825029, 1764235825029),
        ("1764235825029", 1764235825029),
        (1764235825, 1764235825000),
        (1764235825.5, 1764235825500),
        ("1764235825", 1764235825000),
        *[(each, None) for each in (0, -1, 17, True, None, "", "now", "inf", 10**18, "nan", 10**400)],
    ],
)
def test_a_time_is_milliseconds(value: Any, time: int | None) -> None:
    """Some gateways send seconds, some text; an implausible time is left out."""
    report = parse_callback(body({"task_id": "a", "task_status": "succeed", "created_at": value, "updated_at": value}))
    assert report is not None
    assert (report.created_at, report.updated_at) == (time, time)


def test_each_report_of_a_batch_has_the_request_id() -> None:
    """It is that of the answer, unless the record has its own."""
    records = [{"task_id": "a", "task_status": "succeed"}, {"id": "b", "status": "failed", "request_id": "own"}]
    answer = parse_answer(body({"code": 0, "request_id": "r", "data": records}))
    assert answer is not None
    assert [report.request_id for report in answer.reports] == ["r", "own"]


# --- files in other fields, and outputs that are no files --------------------------------------------------------

H = "https://files.example.com"


def result_of(**lists: Any) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """The kinds and addresses of the files in a `task_result`, and its other outputs."""
    report = parse_callback(body({"task_id": "a", "task_status": "succeed", "task_result": lists}))
    assert report is not None
    return [(each.kind, each.url.removeprefix(f"{H}/")) for each in report.outputs], list(report.objects)


ELEMENT = {"element_id": 829836802793406551, "element_name": "kangaroo", "status": "succeed"}


@pytest.mark.parametrize(
    ("lists", "files", "objects"),
    [
        ({"elements": [ELEMENT]}, [], [ELEMENT]),
        (
            {"voices": [{"voice_id": "829", "voice_name": "narrator", "trial_url": f"{H}/v.mp3"}]},
            [("audio", "v.mp3")],
            [{"voice_id": "829", "voice_name": "narrator"}],
        ),
        (
            {"images": [{"index": 0, "url_10": f"{H}/10", "url_2": f"{H}/2.png", "url_1": f"{H}/1.png"}]},
            [("image", "1.png"), ("image", "2.png"), ("image", "10")],
            [],
        ),
        ({"videos": [{"id": "v", "url": "", "watermark_url": f"{H}/w.mp4"}]}, [("video", "w.mp4")], []),
        (
            {"videos": [{"id": "v", "url": f"{H}/v.mp4", "session_id": "s"}]},
            [("video", "v.mp4")],
            [{"id": "v", "session_id": "s"}],
        ),
        ({"videos": [{"id": "v", "session_id": "s"}]}, [], [{"id": "v", "session_id": "s"}]),
        ({"session_id": "s", "face_data": [{"face_id": 1}]}, [], [{"face_id": 1}, {"session_id": "s"}]),
        ({"element": ELEMENT}, [], [ELEMENT]),
        ({"videos": {"url": f"{H}/v.mp4"}}, [("video", "v.mp4")], []),
        ({"images": [f"{H}/1.png", f"{H}/2.png"]}, [("image", "1.png"), ("image", "2.png")], []),
        ({"video": f"{H}/v.mp4"}, [("video", "v.mp4")], []),
        ({"videos": ["HTTPS://H/1"]}, [("video", "HTTPS://H/1")], []),
        ({"videos": [" https://h/a b"]}, [("video", "https://h/a b")], []),
        (
            {"videos": [{"url": f"{H}/v.mp4", "cover_url": f"{H}/c.png", "last_frame_url": f"{H}/l.png"}]},
            [("video", "v.mp4"), ("image", "l.png")],
            [],
        ),
        ({"videos": [{"cover_image_url": f"{H}/c.png"}]}, [("image", "c.png")], []),
        (
            {"videos": [{"url": f"{H}/v.mp4", "watermark_url": f"{H}/w.mp4", "audio_url": f"{H}/a.mp3"}]},
            [("video", "v.mp4"), ("watermark", "w.mp4"), ("audio", "a.mp3")],
            [],
        ),
        (
            {"videos": [{"url": f"{H}/v.mp4", "share_url": f"{H}/page", "input_image_url": f"{H}/i.png"}]},
            [("video", "v.mp4")],
            [],
        ),
        (
            {"elements": [{**ELEMENT, "input_image_url": f"{H}/i.png"}]},
            [],
            [{**ELEMENT, "input_image_url": f"{H}/i.png"}],
        ),
        ({"models": [{"glb": f"{H}/m.glb", "result_link": f"{H}/m"}]}, [("model", "m")], [{"glb": f"{H}/m.glb"}]),
        ({"videos": [{"id": "v", "url": ""}], "images": []}, [], []),
        ({"images": [], "progress": "100%", "meta": {"seed": 7}, "width": 64}, [], []),
        ({"captions": [{"text": "a kangaroo", "start": 0}]}, [], [{"text": "a kangaroo", "start": 0}]),
        ({"elements": [{}, {"index": 0, "status": "succeed", "element_id": "", "list": []}]}, [], []),
    ],
)
def test_a_result_is_files_and_other_outputs(
    lists: dict[str, Any], files: list[tuple[str, str]], objects: list[dict[str, Any]]
) -> None:
    """Files in any field, without covers beside them; elements, voices and sessions with Kling's names."""
    assert result_of(**lists) == (files, objects)


@pytest.mark.parametrize(
    ("lists", "has_results"),
    [
        ({"videos": [{"id": "v", "url": "", "session_id": "s"}]}, False),
        ({"video": {"id": "v", "session_id": "s"}}, False),
        ({"url": "", "session_id": "s"}, False),
        ({"videos": [{"url": ""}], "elements": [ELEMENT]}, False),
        ({"videos": [{"url": f"{H}/v.mp4", "session_id": "s"}]}, True),
        ({"videos": [], "elements": [ELEMENT]}, True),
        ({"elements": [{**ELEMENT, "url": ""}]}, True),
        ({"session_id": "s"}, True),
        ({"model_id": "kling-v1", "trace_id": "t", "videos": []}, False),
    ],
)
def test_a_file_whose_address_comes_late_is_awaited(lists: dict[str, Any], has_results: bool) -> None:
    """Whatever ids are beside it, such a result is not complete."""
    report = parse_callback(body({"task_id": "a", "task_status": "succeed", "task_result": lists}))
    assert report is not None
    assert report.has_results == has_results


@pytest.mark.parametrize(
    "output", [{"type": "video", "id": "v", "model_id": "m"}, {"url": "", "session_id": "s"}, {"model_id": "m"}]
)
def test_an_output_without_its_address_is_awaited(output: dict[str, Any]) -> None:
    """In the new standard, too; a relay's address beside it is that of the file."""
    report = parse_callback(body({"id": "a", "status": "succeeded", "outputs": [output]}))
    assert report is not None
    assert not report.has_results
    report = parse_callback(body({"id": "a", "status": "succeeded", "outputs": [output], "result_url": f"{H}/v.mp4"}))
    assert report is not None
    assert report.outputs == (Output("video", f"{H}/v.mp4"),)


def test_outputs_of_the_new_standard_are_told_apart_by_type() -> None:
    """An element and a voice are outputs; what a voice sounds like is a file."""
    element = {"type": "element", "id": "e", "name": "kangaroo", "references": [{"url": f"{H}/r.png"}]}
    voice = {"type": "voice", "id": "o", "name": "narrator", "url": f"{H}/v.mp3"}
    report = parse_callback(body({"id": "a", "status": "succeeded", "outputs": [element, voice]}))
    assert report is not None
    assert report.outputs == (Output("audio", f"{H}/v.mp3", "o"),)
    assert report.objects == (element, {"type": "voice", "id": "o", "name": "narrator"})


def test_other_outputs_are_limited() -> None:
    """In number, size and depth; what fits of a large one is kept, so that its id is not lost."""
    _, objects = result_of(elements=[{"element_id": str(n)} for n in range(500)])
    assert len(objects) == MAX_OUTPUTS
    large = {"element_id": "e", "mask": "x" * MAX_OBJECT_CHARS, "deep": nested(MAX_DEPTH, list_of), "nul": "\0", "a": 1}
    assert result_of(elements=[large]) == ([], [{"element_id": "e", "a": 1}])
    many = [{"element_id": str(n), "text": "x" * 3000} for n in range(50)]
    _, objects = result_of(elements=many)
    assert 0 < sum(len(json.dumps(each)) for each in objects) <= MAX_OBJECTS_CHARS
    assert result_of(elements=[{"text": float("nan")}]) == ([], [])


def test_blanks_around_an_address_are_removed() -> None:
    """Inside it every byte stays."""
    images = [{"url": f"  {H}/a%20b c.png?x=1\n"}, {"url": " "}]
    assert result_of(images=images) == ([("image", "a%20b c.png?x=1"), ("image", "")], [])


def test_a_field_whose_name_is_endless_is_no_address() -> None:
    """A name of 80,000 characters, built to be searched for the words of an address for minutes, is not searched."""
    name = "url_" * 20_000 + "\n"
    body = {"task_id": "1", "task_status": "succeed", "task_result": {"videos": [{name: "https://h/a.mp4"}], name: "x"}}
    report = parse_callback(json.dumps(body).encode())
    assert report
    assert report.outputs == ()

"""Every format in which Kling or a gateway reports a task is parsed into the same Report."""

import json
from dataclasses import replace
from typing import Any, cast, get_args

import pytest

from kling_callback.protocol.reports import Report, parse_answer, parse_callback
from kling_callback.protocol.results.outputs import Output
from kling_callback.protocol.statuses import STATUS_WORDS, TASK_STATUSES, Status
from kling_callback.protocol.values import (
    MAX_ID_CHARS,
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


def test_each_report_of_a_batch_has_the_request_id() -> None:
    """It is that of the answer, unless the record has its own."""
    records = [{"task_id": "a", "task_status": "succeed"}, {"id": "b", "status": "failed", "request_id": "own"}]
    answer = parse_answer(body({"code": 0, "request_id": "r", "data": records}))
    assert answer is not None
    assert [report.request_id for report in answer.reports] == ["r", "own"]


QUOTE = json.dumps({"code": 1303, "message": "full"})
"""Kling's words for another request, which an answer quotes."""


@pytest.mark.parametrize(
    ("document", "http_status", "code", "message"),
    [
        ({"id": "T", "status": "failed", "message": QUOTE}, 200, None, QUOTE),
        ({"id": "T", "status": "failed", "message": QUOTE}, 299, None, QUOTE),
        ({"id": "T", "status": "failed", "message": QUOTE}, 300, 1303, "full"),
        ({"status": "failed", "message": QUOTE}, 200, 1303, "full"),
        ({"code": 0, "message": QUOTE, "data": {}}, 200, 0, QUOTE),
        ({"code": 0, "data": {"task_id": "T", "task_status": "submitted"}}, 200, 0, ""),
        ({"message": f"for {QUOTE} it failed"}, 499, 1303, "full"),
        ({"message": f"for {QUOTE} it failed"}, 500, None, "full"),
    ],
)
def test_a_quoted_error_is_no_error_of_a_success(
    document: Any, http_status: int, code: int | None, message: str
) -> None:
    """Nor is one between other words in a failure that proves nothing of itself."""
    answer = parse_answer(body(document), http_status)
    assert answer is not None
    assert (answer.code, answer.message) == (code, message)


def test_a_relay_s_names_of_id_and_status_are_read() -> None:
    """`taskId` and `state`, where Kling's fields are absent."""
    assert parse_callback(body({"taskId": "T", "state": "processing"})) == Report("processing", "T")


def test_a_record_is_completed_from_the_records_inside() -> None:
    """Each of them may lack a status: one has the id, one the file."""
    report = parse_callback(
        body({"status": "completed", "data": {"id": "T", "url": "https://h/v.mp4", "data": {"x": 1}}})
    )
    assert report == Report("succeed", "T", outputs=(Output("video", "https://h/v.mp4"),))


def test_the_words_of_an_envelope_are_no_reason() -> None:
    """They say that the query succeeded."""
    document = {"code": "success", "message": "found", "data": {"task_id": "T", "status": "FAILURE"}}
    assert parse_callback(body(document)) == Report("failed", "T")

"""Values of Kling's JSON are stored unchanged, or left out."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from kling_callback.protocol import values
from kling_callback.protocol.reports import parse_answer, parse_callback
from kling_callback.protocol.values import (
    EARLIEST_MS,
    LATEST_MS,
    MAX_COST_CHARS,
    MAX_DEPTH,
    MAX_ID_CHARS,
    MAX_PARTS,
    MAX_UNCHECKED_BYTES,
    MAX_URL_CHARS,
    is_too_complex,
    json_chars,
    sanitize,
)
from tests.client.protocol.test_reports import LEGACY, NEW, body


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


def test_text_can_be_stored_in_any_database() -> None:
    """NUL and lone surrogates are removed, and the text is truncated to its limit."""
    assert sanitize("a\0b\ud800c") == "ab?c"
    assert sanitize("x" * 10, max_chars=3) == "xxx"
    assert sanitize(5) == ""


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


@pytest.mark.parametrize(
    ("value", "whole"),
    [
        (0, 0),
        (2**53 - 1, 2**53 - 1),
        (1 - 2**53, 1 - 2**53),
        *[(each, None) for each in (2**53, -(2**53), True, "1", 1.0, None)],
    ],
)
def test_a_whole_number_fits_a_database(value: Any, whole: int | None) -> None:
    """It is below 2**53, so that no program rounds it."""
    assert values.integer(value) == whole


@pytest.mark.parametrize(
    ("time", "kept"),
    [
        (EARLIEST_MS, EARLIEST_MS),
        (LATEST_MS - 1, LATEST_MS - 1),
        *[(each, None) for each in (EARLIEST_MS - 1, LATEST_MS, None)],
    ],
)
def test_a_plausible_time_is_of_two_centuries(time: int | None, kept: int | None) -> None:
    """From the year 2000 to the year 2199."""
    assert values.plausible_time(time) == kept


@pytest.mark.parametrize(
    ("value", "address"),
    [
        (" https://h/a b ", "https://h/a b"),
        ("x" * MAX_URL_CHARS, "x" * MAX_URL_CHARS),
        ("x" * (MAX_URL_CHARS + 1), ""),
        ("https://h/\0\ud800", "https://h/?"),
        (5, ""),
        (None, ""),
    ],
)
def test_an_address_is_whole_or_none(value: Any, address: str) -> None:
    """A truncated one would be that of another file."""
    assert values.address(value) == address


def test_a_short_body_of_many_parts_is_parsed() -> None:
    """Up to the size at which the parts are counted, and not one byte more."""
    many = b"[" + b"0," * MAX_PARTS
    assert not is_too_complex(many[:MAX_UNCHECKED_BYTES])
    assert is_too_complex(many)
    assert not is_too_complex(b"," * MAX_PARTS)
    assert is_too_complex(b"," * (MAX_PARTS + 1) + b" " * MAX_UNCHECKED_BYTES)
    assert not is_too_complex(b"," * (MAX_PARTS + 1) + b" " * (MAX_UNCHECKED_BYTES - MAX_PARTS - 1))


def test_the_size_of_json_is_in_characters() -> None:
    """As it is written, in any script; none that a database's JSON cannot hold has one."""
    assert json_chars({"a": "袋鼠"}) == len('{"a": "袋鼠"}')
    assert json_chars("\0") == json_chars(["\ud800"]) == json_chars(math.inf) == math.inf
    assert json_chars(nested(MAX_DEPTH, list_of)) == json_chars(nested(MAX_DEPTH, object_of)) == math.inf

"""How values are shown."""

import json
from typing import Any

import pytest

from kling_receiver.web.dashboard.display import bytes_text, cost_text, duration_text, pretty, prompt_of


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (None, ""),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_449_000, "1.4 MB"),
        (123_456_789, "123 MB"),
        (2 << 30, "2.1 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes(size: int | None, text: str) -> None:
    """Three digits at most, in units of a thousand."""
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, ""),
        (-5, "0 ms"),
        (850, "850 ms"),
        (4_240, "4.2 s"),
        (59_400, "59 s"),
        (60_000, "1 min"),
        (185_000, "3 min 5 s"),
        (7_800_000, "2 h 10 min"),
        (90_000_000, "1 d 1 h"),
    ],
)
def test_durations(milliseconds: float | None, text: str) -> None:
    """The two largest units."""
    assert duration_text(milliseconds) == text


@pytest.mark.parametrize(
    ("cost", "text"),
    [
        (None, ""),
        ("", ""),
        ([], ""),
        ("3.5", "3.5 units"),
        (2, "2 units"),
        ("1", "1 unit"),
        ([{"charge_type": "unit", "package_type": "video", "amount": "3.5"}], "3.5 units"),
        (
            [{"charge_type": "unit", "amount": "3"}, {"charge_type": "balance", "amount": "1"}],
            "3 units, 1 of the balance",
        ),
        ("free", "free"),
        ({"other": "é"}, '{"other": "é"}'),
        ([1, 2], "[1, 2]"),
    ],
)
def test_costs(cost: Any, text: str) -> None:
    """With their units, as `kling list` shows them; what cannot be read, as Kling reported it."""
    assert cost_text(cost) == text


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (None, ""),
        ("text", ""),
        ({}, ""),
        ({"prompt": "a kangaroo"}, "a kangaroo"),
        ({"prompt": 5, "input": {"prompt": "inside"}}, "inside"),
        ({"multi_prompt": [{"prompt": "one"}, {"prompt": " "}, {"prompt": "two"}]}, "one / two"),
        ({"contents": [{"type": "prompt", "text": "new standard"}]}, "new standard"),
    ],
)
def test_prompts(request_: Any, text: str) -> None:
    """Of both of Kling's standards, and of each shot."""
    assert prompt_of(request_) == text


def test_a_json_document_is_short() -> None:
    """Indented, unless the indentation would be many times as long as the document."""
    assert pretty({"a": [1, "é"]}) == '{\n  "a": [\n    1,\n    "é"\n  ]\n}'
    deep: list[Any] = [json.loads("[" * 700 + "]" * 700) for _ in range(10)]
    assert pretty(deep) == json.dumps(deep)

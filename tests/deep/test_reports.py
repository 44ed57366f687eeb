"""Any bytes can be parsed: generated documents, near to Kling's and far from them."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kling_callback.protocol.reports import parse_answer, parse_callback
from kling_callback.protocol.results.outputs import MAX_OUTPUTS

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = st.sampled_from(
    ["task_id", "id", "task_status", "status", "data", "task_result", "outputs", "videos", "url", "billing"]
)
KLINGISH = st.recursive(
    JSON | st.sampled_from(["succeed", "SUCCESS", "failed", "https://host/x"]),
    lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner),
)


def _body(document: Any) -> bytes:
    return json.dumps(document).encode()


@given(st.binary() | JSON.map(_body) | KLINGISH.map(_body))
def test_no_body_is_an_error(raw: bytes) -> None:
    """For any bytes the parsers return a report that a database can hold, or None."""
    for report in [parse_callback(raw), *(answer.reports if (answer := parse_answer(raw)) else ())]:
        if report is not None:
            text = json.dumps([report.cost, report.message, report.kling_id], allow_nan=False, ensure_ascii=False)
            assert "\0" not in text
            text.encode()
            assert len(report.outputs) <= MAX_OUTPUTS

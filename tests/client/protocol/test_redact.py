"""The stored part of a request: the same on both sides, and storable in any database."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_callback.protocol.redact import MAX_REQUEST_CHARS, MAX_VALUE_CHARS, redacted
from tests.client.jobs.test_catalog import picture

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_a_redacted_request_can_be_stored_in_any_database(request: Any) -> None:
    """No NUL, no lone surrogate, no number that JSON lacks; and a second time changes nothing."""
    fit = redacted(request)
    text = json.dumps(fit, allow_nan=False)
    assert "\\u0000" not in text
    json.dumps(json.loads(text), ensure_ascii=False).encode()
    assert redacted(fit) == fit


@pytest.mark.parametrize(
    "name",
    ["callback_url", "Api_Key", "apikey", "AUTHORIZATION", "secret_key", "access_key", "password", "token"],
)
def test_secrets_are_left_out_at_any_depth(name: str) -> None:
    """Readers of a task see neither its callback address nor a key."""
    request = {"options": {name: "secret", "keep": [{name: {"deep": "secret"}}]}}
    assert redacted(request) == {"options": {"keep": [{}]}}


def test_long_texts_are_left_out() -> None:
    """A prompt fits, an image does not."""
    assert redacted("x" * MAX_VALUE_CHARS) == "x" * MAX_VALUE_CHARS
    assert redacted(["x" * (MAX_VALUE_CHARS + 1)]) == [f"({MAX_VALUE_CHARS + 1} characters, left out)"]


def test_images_are_left_out_at_any_size_and_depth() -> None:
    """Bare base64 and data URLs; the values beside them stay."""
    tiny = base64.b64encode(picture()).decode()
    fit = redacted({"image": tiny, "list": [{"subject": f"data:image/png;base64,{tiny}", "scale": 1}]})
    assert tiny not in str(fit)
    assert fit["list"][0]["scale"] == 1


def test_a_request_that_is_too_long_becomes_a_note() -> None:
    """Whatever it consists of."""
    note = {"note": f"longer than {MAX_REQUEST_CHARS} characters, left out"}
    assert redacted({"list": ["z" * 4000] * 50}) == redacted(["z" * 4000] * 50) == note

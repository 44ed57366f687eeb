"""The stored part of a request: the same on both sides, and storable in any database."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_callback.protocol.redact import MAX_REQUEST_CHARS, MAX_VALUE_CHARS, digest, is_empty, redacted
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


BODY: dict[str, Any] = {"prompt": "x", "n": 2, "camera_control": {"type": "simple", "config": {"zoom": 5}}}


@pytest.mark.parametrize(
    "same",
    [
        dict(reversed(BODY.items())),
        {**BODY, "n": 2.0},
        {**BODY, "negative_prompt": "", "model_name": None, "element_list": [], "options": {}},
        {**BODY, "external_task_id": "order-42", "callback_url": "https://receiver.test/callbacks/x"},
        {**BODY, "options": {"external_task_id": "order-42", "watermark_info": {"enabled": None}}},
        {**BODY, "camera_control": {"config": {"zoom": 5, "pan": None}, "type": "simple"}},
    ],
)
def test_bodies_that_mean_the_same_have_one_digest(same: dict[str, Any]) -> None:
    """Whatever the order, empty values, the task's id and the callback address."""
    assert digest(same) == digest(BODY)


@pytest.mark.parametrize(
    "other",
    [
        {**BODY, "prompt": "X"},
        {**BODY, "n": "2"},
        {**BODY, "n": True},
        {**BODY, "seed": 0},
        {**BODY, "sound": False},
        {**BODY, "camera_control": {"type": "simple", "config": {"zoom": 6}}},
        {**BODY, "options": {"watermark_info": {"enabled": True}}},
        {**BODY, "image": "iVBORw0KGgo"},
    ],
)
def test_other_parameters_have_another_digest(other: dict[str, Any]) -> None:
    """Also in the bytes of an image, of which nothing is stored."""
    assert digest(other) != digest(BODY)


@pytest.mark.parametrize("value", [None, "", [], {}, (), 0, 0.0, False, " ", [None], "x"])
def test_the_digest_leaves_out_what_is_empty(value: Any) -> None:
    """And nothing else, so that the messages about other parameters and the jobs can use the same rule."""
    assert (digest({**BODY, "x": value}) == digest(BODY)) == is_empty(value)
    assert is_empty(value) == (value in (None, "", [], {}, ()) and value is not False and value != 0)


def test_a_digest_tells_images_of_one_size_apart() -> None:
    """Which look alike in the stored request."""
    one, other = ({"image": "/9j/" + letter * 5000} for letter in "ab")
    assert redacted(one) == redacted(other)
    assert digest(one) != digest(other)


def test_a_link_to_a_result_counts_without_its_signature() -> None:
    """It is signed anew each time; another file is another parameter."""
    link = "https://receiver.test/kling/api/tasks/order-42/results/{}?expires={}&signature={}"
    assert digest({"image": link.format(0, 1, "a")}) == digest({"image": link.format(0, 2, "b")})
    assert digest({"image": link.format(0, 1, "a")}) != digest({"image": link.format(1, 1, "a")})
    assert digest({"image": "https://a.test/x.png?v=1"}) != digest({"image": "https://a.test/x.png?v=2"})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("like https://r/api/tasks/a/results/0? but a CAT", "like https://r/api/tasks/a/results/0? but a DOG"),
        ("https://h/?u=https://r/api/tasks/a/results/0?f=1", "https://h/?u=https://r/api/tasks/a/results/0?f=2"),
        ("https://r/api/tasks/a/results/0?page=1", "https://r/api/tasks/a/results/0?page=2"),
    ],
)
def test_only_a_signed_link_alone_counts_without_its_query(one: str, other: str) -> None:
    """Other texts that differ are other parameters."""
    assert digest({"prompt": one}) != digest({"prompt": other})

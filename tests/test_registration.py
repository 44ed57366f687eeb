"""What a client may say of a task: checked whole, and kept without what must not be kept."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.errors import ApiError
from receiver.registration import (
    LONGEST_STRING,
    check_account,
    is_family,
    read_registration,
    registration,
    without_secrets,
)
from tests.conftest import make_settings

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=20,
)


def read(**given: Any) -> Any:
    """A registration, read from JSON."""
    return read_registration(json.dumps({"family": "images/generations", "attempt": "one", **given}).encode())


@pytest.mark.parametrize(
    "family",
    [
        "images/generations",
        "videos/text2video",
        "/text-to-video/kling-3.0-turbo",
        "videos/avatar/image2video",
        "x",
    ],
)
def test_families_are_paths(family: str) -> None:
    """Of either standard."""
    assert is_family(family)
    assert read(family=family).family == family


@pytest.mark.parametrize(
    "family",
    [
        "",
        "/",
        "//x",
        "a//b",
        "a/",
        "../a",
        "a/../b",
        "a/./b",
        "a b",
        "a?b",
        "a#b",
        "a%2e",
        "http://x",
        "a\n",
        "\u00e9",
        "x" * 201,
    ],
)
def test_what_is_no_family(family: str) -> None:
    """Nothing that would lead a question elsewhere than to a create path."""
    assert not is_family(family)


@given(JSON)
def test_a_request_is_kept_so_that_any_database_and_reader_takes_it(request: Any) -> None:
    """No NUL, no lone surrogate, no number that JSON lacks."""
    kept = json.dumps(without_secrets(request), allow_nan=False)
    assert "\\u0000" not in kept
    json.loads(kept)
    json.dumps(json.loads(kept), ensure_ascii=False).encode()


@pytest.mark.parametrize("name", ["callback_url", "Api_Key", "AUTHORIZATION", "secret_key", "access_key"])
def test_secrets_are_left_out_at_any_depth(name: str) -> None:
    """Whoever reads the task must not learn the address that proves it, nor a key."""
    request = {"options": {name: "secret", "keep": [{name: {"deep": "secret"}}]}}
    assert without_secrets(request) == {"options": {"keep": [{}]}}


def test_long_texts_are_left_out() -> None:
    """A prompt fits, an image does not."""
    assert without_secrets("x" * LONGEST_STRING) == "x" * LONGEST_STRING
    assert without_secrets(["x" * (LONGEST_STRING + 1)]) == [f"({LONGEST_STRING + 1} characters, left out)"]


def test_what_the_store_gets_is_clean() -> None:
    """NUL is gone from every text; a tag of nothing is none."""
    given = registration(
        "t", read(model="m\0", tags=["\0", "a\0"], outcome="created", task_id="k\0", reason="r\0")
    )
    assert (given.model, given.tags, given.task_id, given.reason) == ("m", ("a",), "k", "r")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"outcome": "created"}, "`task_id` is needed"),
        ({"attempt": ""}, "`attempt` is needed"),
        ({"outcome": "created", "task_id": ""}, "`task_id` is needed"),
        ({"tags": ["x"] * 21}, "tags"),
    ],
)
def test_parts_that_belong_together(given: dict[str, Any], said: str) -> None:
    """Before a create its attempt, after it Kling's id."""
    with pytest.raises(ApiError, match=said) as raised:
        read(**given)
    assert (raised.value.status, raised.value.code) == (422, "bad_registration")


@pytest.mark.parametrize("base", ["", "https://gateway.example/kling", "https://gateway.example/kling/v1/"])
def test_the_same_gateway_in_other_letters(tmp_path: Path, base: str) -> None:
    """With `/v1` or without, or not said at all."""
    settings = make_settings(tmp_path, api_base="https://gateway.example/kling")
    check_account(read(base=base), settings)
    check_account(
        read(base=base, key_fingerprint="anything"),
        make_settings(tmp_path, api_base=settings.api_base, api_key=""),
    )

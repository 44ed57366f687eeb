"""What a client may say of a task: checked whole, and kept without what must not be kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from kling_callback.protocol.redact import redacted
from kling_receiver.web.api.registration import check_account, read_registration
from kling_receiver.web.errors import ApiError
from tests.support.receiver import make_settings


def read(**given: Any) -> Any:
    """A registration, read from JSON."""
    return read_registration(json.dumps({"family": "images/generations", "attempt": "one", **given}).encode())


@pytest.mark.parametrize("family", ["a//b", "a/../b", "a/" + "x" * 199])
def test_what_is_no_family(family: str) -> None:
    """The rule is the client's."""
    with pytest.raises(ApiError, match="family: must be a path under /v1"):
        read(family=family)


def test_a_request_is_kept_as_the_client_keeps_it() -> None:
    """Whoever registers, what is stored is the same."""
    request = {"token": "secret", "image": "iVBORw0KGgo", "prompt": "x", "long": "x" * 5000}
    assert read(request=request).request == redacted(request) == read(request=redacted(request)).request


def test_what_the_store_gets_is_clean() -> None:
    """NUL is gone from every text; a tag of nothing is none."""
    given = read(model="m\0", tags=["\0", "a\0"], outcome="created", task_id="k", reason="r\0")
    assert (given.model, given.tags, given.kling_id, given.reason) == ("m", ("a",), "k", "r")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"outcome": "created"}, "`task_id` is needed"),
        ({"attempt": ""}, "`attempt` is needed"),
        ({"outcome": "created", "task_id": ""}, "`task_id` is needed"),
        ({"tags": ["x"] * 21}, "tags"),
        *(({"task_id": wrong}, "task_id: must be") for wrong in (".", "..", "a/b", "a?b", ".\0", "k" * 257)),
    ],
)
def test_parts_that_belong_together(given: dict[str, Any], said: str) -> None:
    """Before a create its attempt, after it Kling's id, of which paths to Kling are made."""
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

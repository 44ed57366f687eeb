"""Parsing and checks of a registration's body."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kling_callback.protocol.redact import redacted
from kling_callback.protocol.values import IDENTIFIER
from kling_receiver.net.guard import Allowlist
from kling_receiver.tasks.registration import KLING_ID_SCHEMA, Registration
from kling_receiver.web.api.registration import check_account, read_registration
from kling_receiver.web.errors import ApiError
from tests.support.receiver import make_settings


def read(**fields: Any) -> Registration:
    """A registration, read from JSON."""
    document = {"family": "images/generations", "attempt": "one", **fields}
    return read_registration(json.dumps(document).encode(), Allowlist())


@pytest.mark.parametrize("family", ["a//b", "a/../b", "a/" + "x" * 199])
def test_an_invalid_family_is_refused(family: str) -> None:
    """By the same rule as in the client."""
    with pytest.raises(ApiError, match="family: must be a path under /v1"):
        read(family=family)


def test_a_request_is_redacted_as_in_the_client() -> None:
    """A request that was redacted already stays the same."""
    request = {"token": "secret", "image": "iVBORw0KGgo", "prompt": "x", "long": "x" * 5000}
    assert read(request=request).request == redacted(request) == read(request=redacted(request)).request


def test_texts_are_sanitized() -> None:
    """NUL is removed from every text, and an empty tag is removed."""
    registration = read(model="m\0", tags=["\0", "a\0"], outcome="created", task_id="k", reason="r\0")
    assert (registration.model, registration.tags, registration.kling_id, registration.reason) == (
        "m",
        ("a",),
        "k",
        "r",
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outcome": "created"}, "`task_id` is needed"),
        ({"attempt": ""}, "`attempt` is needed"),
        ({"outcome": "created", "task_id": ""}, "`task_id` is needed"),
        ({"tags": ["x"] * 21}, "tags"),
        *(({"task_id": wrong}, "task_id: must be") for wrong in (".", "..", "a/b", "a?b", ".\0", "k" * 257)),
    ],
)
def test_required_fields_depend_on_the_outcome(fields: dict[str, Any], message: str) -> None:
    """Before a create the attempt, after it Kling's id, which becomes a part of paths."""
    with pytest.raises(ApiError, match=message) as raised:
        read(**fields)
    assert (raised.value.status, raised.value.code) == (422, "bad_registration")


@pytest.mark.parametrize("base", ["", "https://gateway.example/kling", "https://gateway.example/kling/v1/"])
def test_the_same_gateway_in_another_spelling(tmp_path: Path, base: str) -> None:
    """With `/v1` or without, or left out."""
    settings = make_settings(tmp_path, api_base="https://gateway.example/kling")
    check_account(read(base=base), settings)
    check_account(
        read(base=base, key_fingerprint="anything"),
        make_settings(tmp_path, api_base=settings.api_base, api_key=""),
    )


def test_all_problems_of_a_hook_are_reported_at_once() -> None:
    """Its address and each unknown type of events; events without a hook too."""
    with pytest.raises(ApiError) as raised:
        read(hook="http://10.0.0.1/", hook_events=["task.dome", "task.done", "x"], family="a//b")
    for part in ("10.0.0.1 is not a public address", "no event is called task.dome, x", "family: must be"):
        assert part in raised.value.message
    with pytest.raises(ApiError, match="hook_events: they are of the task's hook"):
        read(hook_events=["task.done"])
    assert read(hook=" https://x.example/ ", hook_events=["task.done", "task.done", "result.stored"]).hook_events == [
        "result.stored",
        "task.done",
    ]


def test_the_described_pattern_of_klings_id_is_that_of_the_check() -> None:
    """The schema allows exactly the ids that a registration accepts, character by character."""
    pattern = re.compile(KLING_ID_SCHEMA["pattern"])
    for text in ("a", "k" * 256, "k" * 257, "", *map(chr, range(0xD800)), *map(chr, range(0xE000, 0x10000))):
        if text not in (".", ".."):
            assert bool(pattern.fullmatch(text)) == bool(IDENTIFIER.fullmatch(text)), ascii(text)
    assert KLING_ID_SCHEMA["not"] == {"enum": [".", ".."]}
    assert not any(IDENTIFIER.fullmatch(text) for text in (".", ".."))

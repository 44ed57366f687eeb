"""verify_hook: accepts what a receiver signed; anything else is a HookError."""

import base64
import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from werkzeug.datastructures import Headers as FlaskHeaders

from kling_callback import HookError, HookEvent, SettingsError, verify_hook
from kling_callback.protocol.events import MAX_EVENT_BYTES, LogPosition
from kling_callback.protocol.webhooks import TOLERANCE_SECONDS, hook_body, sign, webhook_id
from tests.support.kling import LOG, task_json

SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
OTHER = "whsec_" + base64.b64encode(b"another-secret-for-these-tests--").decode()
NOW = 1_800_000_000
EVENT: dict[str, Any] = {
    "id": 17,
    "log_id": LOG,
    "type": "task.done",
    "at": "2027-01-15T08:00:00.000Z",
    "data": {"status": "succeed"},
    "task": task_json("mine", "succeed", done=True),
}
BODY = hook_body(EVENT)
NAME = webhook_id(LogPosition(LOG, 17, 1_800_000_000_000))


def signed(body: bytes = BODY, *, at: int | str = NOW, secret: str = SECRET, **changed: Any) -> dict[str, Any]:
    """The headers of a valid message; `changed`: by the last part of their names."""
    good = {
        "webhook-id": NAME,
        "webhook-timestamp": str(at),
        "webhook-signature": sign(secret, NAME, at, body),
    }
    return {"Content-Type": "application/json", **good, **{f"webhook-{k}": v for k, v in changed.items()}}


def take(body: bytes = BODY, headers: Any = None, secret: Any = SECRET, now: float = NOW) -> HookEvent:
    """Verify at a time of the test's choice."""
    return verify_hook(body, signed(body) if headers is None else headers, secret, clock=lambda: now)


def refused(*arguments: Any, **named: Any) -> Any:
    """The code of the error."""
    with pytest.raises(HookError) as error:
        take(*arguments, **named)
    assert error.value.message
    return error.value.code


def test_what_a_receiver_signed_is_an_event() -> None:
    """With all its fields, and the id by which repeats are dropped."""
    event = take()
    assert (event.id, event.type, event.at, event.data) == (17, EVENT["type"], EVENT["at"], EVENT["data"])
    assert (event.task, event.ends, event.webhook_id) == (EVENT["task"], True, f"default_{LOG}-17-1800000000000")


@pytest.mark.parametrize(
    "headers",
    [
        signed(),
        {name.title(): value for name, value in signed().items()},
        {name.upper(): value for name, value in signed().items()},
        {name.encode(): value.encode() for name, value in signed().items()},
        Headers(signed()),
        FlaskHeaders(signed()),
        httpx.Headers(signed()),
        {**signed(), "X": None, "Y": ["a"], "Z": 1},
    ],
    ids=["lower", "title", "upper", "asgi", "starlette", "flask", "httpx", "others"],
)
def test_headers_of_any_server(headers: Any) -> None:
    """In any case, and any kind of mapping."""
    assert take(headers=headers).id == 17


@pytest.mark.parametrize("secrets", [[SECRET, OTHER], [OTHER, SECRET], f"{OTHER}, {SECRET}", (SECRET,)])
def test_during_a_rotation_either_secret_verifies(secrets: Any) -> None:
    """There may be several secrets, and several signatures."""
    assert take(secret=secrets).id == 17
    both = f"{sign(OTHER, NAME, NOW, BODY)} {sign(SECRET, NAME, NOW, BODY)}"
    assert take(headers=signed(signature=both)).id == 17
    assert take(headers=signed(signature=both), secret=OTHER).id == 17


@pytest.mark.parametrize(
    "seconds", [-TOLERANCE_SECONDS - 1, -TOLERANCE_SECONDS, 0, TOLERANCE_SECONDS, TOLERANCE_SECONDS + 1]
)
def test_a_signature_is_valid_for_five_minutes_either_way(seconds: int) -> None:
    """By the given clock; an older message may be a replay."""
    if abs(seconds) <= TOLERANCE_SECONDS:
        assert take(now=NOW + seconds).id == 17
    else:
        assert refused(now=NOW + seconds) == ("too_old" if seconds > 0 else "too_new")


def test_a_message_signed_now_needs_no_clock() -> None:
    """The system's clock is the default; the example has expired by it."""
    with pytest.raises(HookError) as error:
        verify_hook(BODY, signed(at=1), SECRET)
    assert error.value.code == "too_old"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_header"),
        ({"webhook-id": NAME}, "missing_header"),
        (signed(id=""), "missing_header"),
        (signed(id=None), "missing_header"),
        (signed(signature=[1]), "missing_header"),
        (signed(timestamp="soon"), "bad_header"),
        (signed(timestamp="-1"), "bad_header"),
        (signed(timestamp="1e9"), "bad_header"),
        (signed(timestamp="١٨"), "bad_header"),
        (signed(timestamp="9" * 5000), "bad_header"),
        (signed(timestamp="1800000000.0"), "bad_header"),
        (signed(timestamp=str(NOW + 1)), "bad_signature"),
        (signed(timestamp="99999999999"), "bad_signature"),
        (signed(id="default_18_1800000000000"), "bad_signature"),
        (signed(id="\udcff\u2603"), "bad_signature"),
        (signed(id="a\r\nb"), "bad_signature"),
        (signed(signature="v1,"), "bad_signature"),
        (signed(signature="v1"), "bad_signature"),
        (signed(signature="v1,!!"), "bad_signature"),
        (signed(signature="\u00e9\0"), "bad_signature"),
        (signed(signature=" "), "bad_signature"),
        (signed(signature="v2" + sign(SECRET, NAME, NOW, BODY)[2:]), "bad_signature"),
        (signed(signature=sign(SECRET, NAME, NOW, BODY)[3:]), "bad_signature"),
        (signed(signature=f"{'v1,eA== ' * 1000}{sign(SECRET, NAME, NOW, BODY)}"), "bad_signature"),
        (signed(secret=OTHER), "bad_signature"),
        (signed(at="0" + str(NOW)), None),
    ],
)
def test_hostile_headers(headers: dict[str, Any], code: str | None) -> None:
    """Each has its error code; values that the receiver signed are accepted."""
    if code is None:
        assert take(headers=headers).id == 17
    else:
        assert refused(headers=headers) == code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "not_json"),
        (b"\xff\xfe\0", "not_json"),
        (b"{", "not_json"),
        (b"[" * 100_000, "not_json"),
        (b"1" * 5000, "not_json"),
        (b"null", "not_an_event"),
        (b"[]", "not_an_event"),
        (b"{}", "not_an_event"),
        (json.dumps({**EVENT, "id": "17"}).encode(), "not_an_event"),
        (json.dumps({**EVENT, "id": True}).encode(), "not_an_event"),
        (json.dumps({**EVENT, "type": 1}).encode(), "not_an_event"),
        (json.dumps({**EVENT, "at": None}).encode(), "not_an_event"),
        (json.dumps({**EVENT, "data": []}).encode(), "not_an_event"),
        (json.dumps({**EVENT, "task": None}).encode(), "not_an_event"),
        (json.dumps({**EVENT, "task": {"id": "mine"}}).encode(), "not_an_event"),
    ],
)
def test_signed_and_yet_no_event(body: bytes, code: str) -> None:
    """A valid signature does not make a body an event."""
    assert refused(body) == code


@pytest.mark.parametrize("change", [BODY + b" ", BODY[:-1], BODY.replace(b"17", b"18"), b""])
def test_an_altered_body(change: bytes) -> None:
    """One altered byte is enough to be refused."""
    assert refused(change, signed()) == "bad_signature"


def test_a_body_that_is_too_large_is_refused() -> None:
    """By its size, before its signature is computed."""
    assert refused(bytes(MAX_EVENT_BYTES + 1), signed()) == "too_large"


NAMES = st.sampled_from(["webhook-id", "Webhook-Timestamp", b"webhook-signature"]) | st.text() | st.binary()
VALUES = st.text() | st.binary() | st.none() | st.integers() | st.lists(st.text())


@given(st.binary(), st.dictionaries(NAMES, VALUES), st.booleans(), st.floats())
def test_nothing_hostile_is_another_error(body: bytes, headers: Any, beside: bool, now: float) -> None:
    """Any body and headers, also with a valid timestamp, and any clock: only HookError is raised."""
    headers = {"webhook-timestamp": str(NOW), "webhook-id": "m", **headers} if beside else headers
    refused(body, headers, now=now)


@given(
    st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda x: json.dumps(x).encode())
)
def test_nothing_signed_is_another_error(body: bytes) -> None:
    """Even if the sender has the secret."""
    assert refused(body) in ("not_json", "not_an_event")


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        ("", "is missing"),
        ([], "is missing"),
        (" , ", "is missing"),
        ("whsec_c2hvcnQ=", "secret 1 is too short"),
        (f"{SECRET},whsec_not base64!", "secret 2 is not of the form"),
        ([SECRET, "my-secret-phrase"], "secret 2 is not of the form"),
    ],
)
def test_an_invalid_secret_is_a_settings_error(secret: Any, problem: str) -> None:
    """For any message, and without the secret in it."""
    with pytest.raises(SettingsError, match=problem) as error:
        take(b"", {}, secret)
    assert "phrase" not in str(error.value)


@pytest.mark.parametrize("body", [BODY.decode(), EVENT, None, [1]])
def test_a_body_that_was_decoded_or_parsed(body: Any) -> None:
    """Is a TypeError that says what to pass instead."""
    with pytest.raises(TypeError, match="raw body: bytes"):
        take(body, {})

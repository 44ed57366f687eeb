"""Standard Webhooks signatures: ours agree with the standard's own package, and no header raises."""

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from kling_callback.protocol.webhooks import MAX_SIGNATURES, TOLERANCE_SECONDS, secret_key, sign, verify

SECRET = "whsec_" + base64.b64encode(b"a-webhook-secret-for-these-tests").decode()
OTHER = "whsec_" + base64.b64encode(b"another-secret-for-these-tests--").decode()
NOW = 1_781_080_794
BODY = b'{"id":"1234567890","status":"succeeded","message":"","create_time":1781080778802,"update_time":1781080794151}'


def signed(body: bytes = BODY, *, at: int = NOW, secret: str = SECRET) -> dict[str, str]:
    """The three headers of a message."""
    return {"webhook-id": "m", "webhook-timestamp": str(at), "webhook-signature": sign(secret, "m", at, body)}


def test_klings_official_vector() -> None:
    """The example in Kling's documentation verifies, byte for byte."""
    secret = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI="
    expected = "v1,UsKlJP00XoQyOn410NM9xv34sP+Gl0jnOO9Lcpr7NJ4="
    assert sign(secret, "9876543210", NOW, BODY) == expected
    headers = {"webhook-id": "9876543210", "webhook-timestamp": str(NOW), "webhook-signature": expected}
    assert verify([secret], headers, BODY, NOW) == "good"
    assert verify([secret], headers, BODY + b" ", NOW) == "bad"


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), st.binary(min_size=16), st.text())
def test_the_standards_own_package_agrees(name: str, key: bytes, body: str) -> None:
    """It verifies our signatures, and we verify its."""
    secret = "whsec_" + base64.b64encode(key).decode()
    at = datetime.now(UTC)
    stamp = int(at.timestamp())
    ours = sign(secret, name, stamp, body.encode())
    assert Webhook(secret).sign(name, at, body) == ours
    headers = {"webhook-id": name, "webhook-timestamp": str(stamp), "webhook-signature": ours}
    assert verify([secret], headers, body.encode(), stamp) == "good"
    document = json.dumps({"said": body})
    headers["webhook-signature"] = sign(secret, name, stamp, document.encode())
    assert Webhook(secret).verify(document, headers) == {"said": body}


@pytest.mark.parametrize(
    "seconds", [-TOLERANCE_SECONDS - 1, -TOLERANCE_SECONDS, -5, 0, 5, TOLERANCE_SECONDS, TOLERANCE_SECONDS + 1]
)
def test_a_signature_is_valid_for_five_minutes_either_way(seconds: int) -> None:
    """By the given clock."""
    assert verify([SECRET], signed(), BODY, NOW + seconds) == ("good" if abs(seconds) <= TOLERANCE_SECONDS else "bad")


def test_without_headers_a_signature_is_absent() -> None:
    """Which is not the same as a bad one."""
    assert verify([SECRET], {}, BODY, NOW) == "absent"
    assert verify([SECRET], {"webhook-id": ""}, BODY, NOW) == "absent"
    for name, value in signed().items():
        assert verify([SECRET], {name: value}, BODY, NOW) == "bad"


def test_any_secret_and_any_signature_may_match() -> None:
    """There are several of both during a rotation; the number of checked signatures is limited."""
    headers = signed(secret=OTHER)
    assert verify([SECRET], headers, BODY, NOW) == "bad"
    assert verify([SECRET, OTHER], headers, BODY, NOW) == "good"
    good = headers["webhook-signature"]
    headers["webhook-signature"] = f"v1a,x v1,eA== {good}"
    assert verify([OTHER], headers, BODY, NOW) == "good"
    headers["webhook-signature"] = " ".join(["v1,eA=="] * MAX_SIGNATURES + [good])
    assert verify([OTHER], headers, BODY, NOW) == "bad"
    assert verify([], headers, BODY, NOW) == "bad"


JUNK = st.sampled_from(["v1,", "v1", "v1,eA==", "v1a,x", "v2,eA==", ",", "v1,!", "V1,eA==", "v1, eA==", "\u00e9"])
BOTH = [SECRET, OTHER]


@given(
    st.lists(st.sampled_from(BOTH), max_size=2, unique=True),
    st.lists(JUNK | st.sampled_from(BOTH), max_size=5),
    st.sampled_from(["{}", "{}", "+{}", " {}", "{}.0", "{}_0", "0{}", "{}\n"]),
    st.text(max_size=20),
)
def test_a_good_signature_is_good_to_the_standards_own_package(
    secrets: list[str], listed: list[str], stamp: str, text: str
) -> None:
    """One of the signatures, by one of the secrets, whatever the others are; a valid one is not missed."""
    at, body = int(datetime.now(UTC).timestamp()), text.encode()
    given = [sign(each, "m", at, body) if each in BOTH else each for each in listed]
    headers = {"webhook-id": "m", "webhook-timestamp": stamp.format(at)}
    good = verify(secrets, {**headers, "webhook-signature": " ".join(given)}, body, at) == "good"
    if stamp == "{}":
        assert good == bool(set(secrets) & set(listed))
    # One at a time: the package raises at the first that it cannot take apart.
    assert not good or any(
        verifies(secret, text, {**headers, "webhook-signature": each}) for secret in secrets for each in given
    )


def verifies(secret: str, text: str, headers: dict[str, str]) -> bool:
    """Whether the package accepts it; it may raise anything, which is why ours is another."""
    try:
        Webhook(secret).verify(text, headers, json_parse=False)
    except Exception:
        return False
    return True


@given(
    st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.text()),
    st.binary(),
)
def test_no_header_raises(headers: dict[str, str], body: bytes) -> None:
    """Any headers are absent or bad."""
    assert verify([SECRET], headers, body, NOW) in ("absent", "bad")


@given(st.text(), st.text(st.characters(max_codepoint=255)), st.binary())
def test_no_text_in_one_header_raises(name: str, signature: str, body: bytes) -> None:
    """Nor beside a valid timestamp."""
    headers = {"webhook-id": name, "webhook-timestamp": str(NOW), "webhook-signature": signature}
    assert verify([SECRET], headers, body, NOW) in ("absent", "bad")


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        ("whsec_", "too short: 0 bytes"),
        ("whsec_" + base64.b64encode(b"short").decode(), "too short: 5 bytes"),
        ("whsec_not base64!", "not of the form"),
        ("whsec_abc", "not of the form"),
        ("whsec_\u00e9\u00e9\u00e9\u00e9", "not of the form"),
        ("my-secret-phrase", "not of the form"),
    ],
)
def test_invalid_secrets(secret: str, problem: str) -> None:
    """The message does not contain the secret."""
    with pytest.raises(ValueError, match=problem) as raised:
        secret_key(secret)
    assert secret.removeprefix("whsec_") not in str(raised.value) or secret == "whsec_"

"""Callback addresses, bearer tokens and result links: valid, expired and forged ones."""

import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from itsdangerous import Signer, TimestampSigner

from kling_callback.errors import ParameterError, SettingsError, TokenError, TokenExpired
from kling_callback.protocol.ids import PATTERN
from kling_callback.protocol.signing import (
    MAKE_SECRET_HINT,
    MIN_SECRET_CHARS,
    ApiToken,
    CallbackSigner,
    _signer,
    api_token,
    key_fingerprint,
    sign_link,
    task_hook_secrets,
    verify_api_token,
    verify_link,
)
from kling_callback.protocol.webhooks import MAX_SECRETS

OLD = "an-old-secret-of-32-characters-or-more"
NEW = "a-newer-secret-of-32-characters-or-so"
NOW = 1_800_000_000.0
DAY = 86_400


def signer(*secrets: str, now: float = NOW) -> CallbackSigner:
    return CallbackSigner(secrets or (NEW,), clock=lambda: now)


@given(st.from_regex(PATTERN, fullmatch=True), st.text(min_size=1, max_size=60))
def test_a_token_contains_what_was_signed(task_id: str, family: str) -> None:
    """Task id and family are unchanged, with the time of signing."""
    read = signer().verify(signer().token(task_id, family), DAY)
    assert (read.task_id, read.family, read.signed_at) == (task_id, family, int(NOW))


def test_a_token_fits_a_path() -> None:
    """A token has no character that a path would have to escape."""
    token = signer().token("order-42", "/text-to-video/kling-3.0-turbo")
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


@given(st.text())
def test_no_other_text_is_a_token(text: str) -> None:
    """Any text is refused with a TokenError."""
    with pytest.raises(TokenError):
        signer().verify(text, DAY)


@given(st.integers(0), st.characters())
def test_one_changed_letter_breaks_a_token(place: int, letter: str) -> None:
    """A token altered anywhere is not valid (except in what base64 reads alike: bits at its end, `+` and `-`)."""
    token = signer().token("a", "videos/text2video")
    place %= len(token) - 1
    altered = token[:place] + letter + token[place + 1 :]
    if altered.translate(str.maketrans("+/", "-_")) != token:
        with pytest.raises(TokenError):
            signer().verify(altered, DAY)


def test_what_an_earlier_version_signed_is_still_valid() -> None:
    """Callback addresses are valid for a month at Kling, longer than a version of the receiver: these are of 0.1."""
    token = "WyJvcmRlci00MiIsInZpZGVvcy90ZXh0MnZpZGVvIl0.a0nSAA.O-j_thDgz55Q-_FhaThx1pL8Mf2FpOJLSGw4BTQvTJ0"
    assert signer(OLD).token("order-42", "videos/text2video") == token
    assert signer(OLD).verify(token, DAY).task_id == "order-42"
    bearer = "WyJjbGllbnQiLDE4MDAwMDAzMDBd.1g0V2myGpqs4jQxbzwaC9R9og2FcM9wL6yYp_FMUpSk"
    assert api_token([OLD], "client", 300, now=NOW) == bearer
    assert verify_api_token([OLD], bearer, now=NOW).role == "client"
    signature = "Y0B_4YWEuJt9a7TNN8sp8RZ2kV0-TqIC4HaDPaOnf50"
    assert sign_link([OLD], "https://host/X/", "a:b", 3, int(NOW)) == (
        f"https://host/X/api/tasks/a%3Ab/results/3?expires=1800000000&signature={signature}"
    )
    verify_link([OLD], "a:b", 3, "1800000000", signature, now=NOW)
    assert key_fingerprint("key-1") == "5a90db34dff6e987"


def test_the_default_clock_is_the_machine_s() -> None:
    """Tokens and links of now are valid, and those of the year 2000 have expired."""
    past = 946_684_800
    assert CallbackSigner(NEW).verify(CallbackSigner(NEW).token("a", "b/c"), DAY).task_id == "a"
    assert verify_api_token([NEW], api_token([NEW], "read", 300)).role == "read"
    with pytest.raises(TokenExpired):
        verify_api_token([NEW], api_token([NEW], "read", 300, now=past))
    for expires, over in ((past, True), (1 << 40, False)):
        signature = sign_link([NEW], "https://host", "a", 0, expires).rpartition("=")[2]
        with pytest.raises(TokenExpired) if over else contextlib.nullcontext():
            verify_link([NEW], "a", 0, str(expires), signature)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: signer().verify("x", DAY), "The callback token is not valid."),
        (lambda: signer(now=NOW + 999).verify(signer().token("a", "b"), 1), "The callback token has expired."),
        (lambda: verify_api_token([NEW], "x"), "The bearer token is not valid."),
        (lambda: verify_api_token([NEW], api_token([NEW], "read", 1, now=0)), "The bearer token has expired."),
        (
            lambda: verify_api_token([NEW], api_token([NEW], "root", 9)),  # type: ignore[arg-type]
            "The bearer token names an unknown role.",
        ),
        (lambda: verify_link([NEW], "a", 0, "9", "x"), "The link is not one that this receiver signed."),
        (
            lambda: verify_link([NEW], "a", 0, "9", sign_link([NEW], "https://h", "a", 0, 9).rpartition("=")[2]),
            "The link has expired.",
        ),
        (
            lambda: CallbackSigner(["short"]),
            "A signing secret of at least 32 characters is needed. " + MAKE_SECRET_HINT,
        ),
        (lambda: api_token([], "read", 1), "at least one signing secret is needed"),
    ],
)
def test_a_refusal_says_what_and_why(call: Callable[[], object], message: str) -> None:
    """In one sentence that the receiver answers and logs."""
    with pytest.raises((TokenError, SettingsError, ValueError)) as raised:
        call()
    assert str(raised.value) == message


def test_a_token_of_another_purpose_is_not_valid() -> None:
    """A bearer token is not a callback token, and the other way round."""
    with pytest.raises(TokenError):
        signer().verify(api_token([NEW], "admin", 60, now=NOW), DAY)
    with pytest.raises(TokenError):
        verify_api_token([NEW], signer().token("a", "b/c"), now=NOW)


def test_the_newest_secret_signs_and_all_verify() -> None:
    """After a rotation old tokens are valid while their secret is listed; new ones are signed by the newest."""
    old = signer(OLD).token("a", "b/c")
    assert signer(NEW, OLD).verify(old, DAY).task_id == "a"
    assert signer(NEW).verify(signer(NEW, OLD).token("a", "b/c"), DAY).task_id == "a"
    with pytest.raises(TokenError):
        signer(NEW).verify(old, DAY)


@pytest.mark.parametrize(("age", "good"), [(-9_999 * DAY, True), (-61, True), (DAY + 60, True), (DAY + 61, False)])
def test_a_token_expires(age: int, good: bool) -> None:
    """It is valid to a minute past its age; one from the future is new (a clock may be behind)."""
    token, reader = signer().token("a", "b/c"), signer(now=NOW + age)
    if good:
        assert reader.verify(token, DAY).task_id == "a"
    else:
        with pytest.raises(TokenExpired):
            reader.verify(token, DAY)


def test_a_signed_payload_of_another_shape_is_not_valid() -> None:
    """Even with our secret."""
    made = signer()
    with pytest.raises(TokenError):
        made.verify(made._signer.sign("W10").decode(), DAY)  # an empty list
    assert isinstance(made._signer, TimestampSigner)


@pytest.mark.parametrize("secrets", ["", " , ", [], "too-short", [NEW, "short"]])
def test_a_signer_needs_valid_secrets(secrets: str | list[str]) -> None:
    """A missing or short secret is refused, and not shown."""
    with pytest.raises(SettingsError) as error:
        CallbackSigner(secrets)
    assert "short" not in str(error.value).replace("shorter", "")


def test_secrets_may_be_one_string() -> None:
    """One secret, or several with commas as in the setting, newest first; blanks are stripped."""
    for secrets in (f"{NEW}, {OLD}", f"{NEW},{OLD}"):
        assert CallbackSigner(secrets).verify(CallbackSigner(OLD).token("a", "b/c"), DAY).family == "b/c"
    assert CallbackSigner("x" * MIN_SECRET_CHARS).token("a", "b/c")


def test_a_callback_url_is_below_the_receiver_s_address() -> None:
    """The receiver's address, with its prefix, then /callbacks/ and the token."""
    url = signer().url("https://host/prefix/", "a", "b/c")
    assert url == f"https://host/prefix/callbacks/{signer().token('a', 'b/c')}"


@pytest.mark.parametrize("receiver", ["/callbacks", "", "host", "http://example.com", "ftp://host"])
def test_a_callback_url_is_absolute_and_encrypted(receiver: str) -> None:
    """An address that Kling cannot reach, or only unencrypted, is refused."""
    with pytest.raises(ParameterError):
        signer().url(receiver, "a", "b/c")


@pytest.mark.parametrize(("task_id", "family"), [("", "b/c"), ("a/b", "b/c"), ("a", "")])
def test_only_tasks_get_tokens(task_id: str, family: str) -> None:
    """An invalid id, or a missing family, is refused."""
    with pytest.raises(ParameterError):
        signer().token(task_id, family)


@pytest.mark.parametrize("role", ["admin", "client", "read"])
def test_a_bearer_token_contains_its_role(role: str) -> None:
    """Until a minute past its expiry."""
    token = api_token([NEW], role, 300, now=NOW)  # type: ignore[arg-type]
    assert verify_api_token([OLD, NEW], token, now=NOW + 360) == ApiToken(role, int(NOW) + 300)  # type: ignore[arg-type]
    with pytest.raises(TokenExpired):
        verify_api_token([NEW], token, now=NOW + 361)


@given(st.text())
def test_no_other_text_is_a_bearer_token(text: str) -> None:
    """Any text is refused with a TokenError."""
    with pytest.raises(TokenError):
        verify_api_token([NEW], text)


def test_an_unknown_role_is_not_valid() -> None:
    """Such as a token with a role of a later version."""
    with pytest.raises(TokenError):
        verify_api_token([NEW], api_token([NEW], "emperor", 60))  # type: ignore[arg-type]


def test_no_secrets_no_bearer_token() -> None:
    """Nothing is signed without a secret."""
    with pytest.raises(ValueError, match="secret"):
        api_token([], "client", 60)


def test_a_result_link_is_valid_until_it_expires() -> None:
    """Task, index and time are signed."""
    url = urlsplit(sign_link([NEW], "https://host/p", "a:b", 3, int(NOW)))
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert (url.netloc, url.path) == ("host", "/p/api/tasks/a%3Ab/results/3")
    verify_link([NEW], "a:b", 3, query["expires"], query["signature"], now=NOW)
    with pytest.raises(TokenExpired):
        verify_link([NEW], "a:b", 3, query["expires"], query["signature"], now=NOW + 1)
    for changed in [("a", 3, query["expires"]), ("a:b", 2, query["expires"]), ("a:b", 3, str(int(NOW) + 9))]:
        with pytest.raises(TokenError):
            verify_link([NEW], *changed, query["signature"])


ANY_TEXT = st.text(st.characters())
"""Lone surrogates too: what a caller of these functions may hand in, although no address can hold it."""


@given(ANY_TEXT, ANY_TEXT)
@example("\ud800", "\ud800")
def test_no_other_text_is_a_link(expires: str, signature: str) -> None:
    """Any text is refused with a TokenError."""
    with pytest.raises(TokenError):
        verify_link([NEW], "a", 0, expires, signature)


def test_a_fingerprint_identifies_a_key_without_revealing_it() -> None:
    """Two keys have two fingerprints, none of which contains a part of its key."""
    one, other = key_fingerprint("key-1"), key_fingerprint("key-2")
    assert one != other == key_fingerprint("key-2")
    assert "key" not in json.dumps([one, other])


def test_a_named_token_carries_its_name_and_id() -> None:
    """Signed with its role and age; without a name there is no id either."""
    token = api_token([NEW, OLD], "read", 300, now=NOW, name="ci", token_id="1")
    assert verify_api_token([NEW], token, now=NOW) == ApiToken("read", int(NOW) + 300, "ci", "1")
    assert verify_api_token([NEW], api_token([NEW], "read", 300, now=NOW), now=NOW) == ApiToken("read", int(NOW) + 300)
    labelled = api_token([NEW], "admin", 300, now=NOW, name="local command")
    assert verify_api_token([NEW], labelled, now=NOW) == ApiToken("admin", int(NOW) + 300, "local command", "")


@pytest.mark.parametrize(
    "content",
    [
        ["read"],
        ["read", 2e9, "a"],
        ["read", 9e999],
        ["read", None],
        ["read", 2e9, "a", "b", "c"],
        [["read"], 2e9],
        {},
        7,
    ],
    ids=str,
)
def test_a_signed_token_of_another_form_is_refused(content: Any) -> None:
    """As the tokens of other versions: with the error of any invalid token."""
    text = base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")
    with pytest.raises(TokenError):
        verify_api_token([NEW], Signer.sign(_signer([NEW], "api"), text).decode(), now=NOW)


def test_the_secrets_of_task_hooks_are_as_documented() -> None:
    """HMAC-SHA256 by the signing secret, one for each; nothing else that is signed has that key."""
    expected = [
        hmac.new(secret.encode(), b"kling-callback/task-hook", hashlib.sha256).digest() for secret in (NEW, OLD)
    ]
    assert task_hook_secrets([NEW, OLD]) == [f"whsec_{base64.b64encode(key).decode()}" for key in expected]
    assert len(task_hook_secrets([f"{NEW}{n}" for n in range(20)])) == MAX_SECRETS == 8

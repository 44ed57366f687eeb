"""Authentication at Kling: a bearer key, or a JWT that is renewed in time."""

import httpx
import jwt

from kling_callback.api.auth import LIFETIME_SECONDS, RENEW_BEFORE_SECONDS, BearerAuth, JwtAuth

SECRET = "kling-secret-key-of-thirty-two-chars"


def bearer(auth: httpx.Auth) -> str:
    request = next(auth.auth_flow(httpx.Request("GET", "https://host")))
    scheme, _, token = str(request.headers["Authorization"]).partition(" ")
    assert scheme == "Bearer"
    return token


def test_a_key_is_the_bearer_token() -> None:
    """An API key is sent unchanged."""
    assert bearer(BearerAuth("the-key")) == "the-key"


def test_a_token_has_kling_s_claims() -> None:
    """HS256, issued by the access key, valid from 5 seconds ago for half an hour."""
    token = bearer(JwtAuth("access", SECRET, clock=lambda: 1000.0))
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    claims = jwt.decode(token, SECRET, algorithms=["HS256"], options={"verify_exp": False, "verify_nbf": False})
    assert claims == {"iss": "access", "exp": 1000 + LIFETIME_SECONDS, "nbf": 995}


def test_a_jwt_is_reused_until_shortly_before_its_expiry() -> None:
    """One JWT serves many calls; it is renewed well before it expires."""
    now = 1000.0
    auth = JwtAuth("access", SECRET, clock=lambda: now)
    first = bearer(auth)
    now += LIFETIME_SECONDS - RENEW_BEFORE_SECONDS - 1
    assert bearer(auth) == first
    now += 1
    assert bearer(auth) != first


def test_a_jwt_from_the_future_is_renewed() -> None:
    """The clock was ahead when it was signed, and Kling refuses it until then."""
    now = 1_000_000.0
    auth = JwtAuth("access", SECRET, clock=lambda: now)
    first = bearer(auth)
    now -= 3600
    assert bearer(auth) != first


def test_an_invalidated_jwt_is_renewed() -> None:
    """After Kling refused a JWT as stale, the next request has a new one."""
    now = 1000.0
    auth = JwtAuth("access", SECRET, clock=lambda: now)
    first = bearer(auth)
    now += 1
    auth.invalidate()
    assert bearer(auth) != first


def test_a_short_secret_key_works_without_a_warning() -> None:
    """The length of its secret keys is Kling's choice."""
    assert bearer(JwtAuth("access", "short"))


def test_no_key_is_in_a_repr() -> None:
    """Printed objects contain no keys."""
    assert "the-key" not in repr(BearerAuth("the-key"))
    assert SECRET not in repr(JwtAuth("access", SECRET))
